//! Test cases of every operation of [`TrainBackend`], with the results that a backend must return.
//!
//! The results are computed on the host in f64, by plain loops that share no code with the backends, from the same
//! rounded inputs that the backend gets. Every operation has one file with its definition, its gradient by the closed
//! formula, and its cases: sizes, ranks, masks, kinds of weights. `arithmo doctor` checks the quick cases on the user's
//! device; the tests of every backend check all of them, in every dtype and memory layout, forward, backward and
//! through autodiff.

mod adamw;
mod adapted_linear;
mod attention;
mod clip;
mod geglu;
mod head_norm;
mod host;
mod linear;
mod log_probs;
mod rms_norm;
mod rope;
mod swiglu;
mod weight;

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

use burn::backend::Autodiff;
use burn::tensor::{DType, Element, Tensor, backend::Backend};

pub use adamw::AdamW;
pub use adapted_linear::AdaptedLinear;
pub use attention::{CachedAttention, SelfAttention};
pub use clip::Clip;
pub use geglu::Geglu;
pub use head_norm::HeadNorm;
pub use host::{Host, Layout, Place, Source, numbers};
pub use linear::{Linear, quick_packed};
pub use log_probs::LogProbs;
pub use rms_norm::RmsNorm;
pub use rope::Rope;
pub use swiglu::{Swiglu, check_saturated_gates};
pub use weight::{HostPacked, HostScales, HostWeight, Kind, Unpack};

use crate::{MatmulProvider, TrainBackend, graph_lock};

/// An operation with the inputs of one case and the results that are expected of them.
pub trait Operation: Sized {
    /// The sizes and options of a case.
    type Case: Debug;

    /// Returns the cases that `arithmo doctor` checks.
    fn quick() -> Vec<Self::Case>;

    /// Returns all cases, the quick ones included.
    fn all() -> Vec<Self::Case>;

    /// Returns in which dtypes and layouts the tests check a case.
    fn extent(_case: &Self::Case) -> Extent {
        Extent::EveryLayout
    }

    /// Draws inputs that `dtype` represents exactly, and computes the expected results.
    fn new(case: &Self::Case, dtype: DType) -> Self;

    /// Compares the operations of a backend, forward and backward.
    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>);

    /// Computes results and gradients through autodiff, and returns what they must be. An operation that is not
    /// differentiable returns nothing.
    fn gradients<B: TrainBackend>(
        &self,
        _place: &Place<B::Device>,
        _rule: Rule,
    ) -> Gradients<'_, B> {
        (Vec::new(), Vec::new())
    }
}

/// Results and gradients, and what each of them must be.
pub type Gradients<'a, B> = (Vec<Tensor<B, 2>>, Vec<&'a Expected>);

/// The dtypes and memory layouts in which a case is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every layout in f32, and two layouts in the 16-bit types.
    EveryLayout,
    /// One layout in every dtype.
    EveryDtype,
    /// One layout in f32, because the case is large.
    Single,
}

/// Which function the gradient is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The operation, whose backward is written by hand.
    Operation,
    /// The reference body, whose backward is Burn's.
    Reference,
}

/// Receives the results of an operation.
pub trait Checker<B: Backend> {
    /// Compares the results that `compute` returns with the expected ones.
    fn compare(
        &mut self,
        operation: &'static str,
        compute: impl Fn() -> Vec<Tensor<B, 2>>,
        expected: &[&Expected],
    );
}

/// An expected result and how close a backend must come to it.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The exact values.
    pub values: Host,
    /// The dtype whose rounding the backend's result may contain.
    precision: DType,
    /// The factor on the tolerance of that dtype.
    slack: f64,
}

/// How far a result is from the expected one.
#[derive(Clone, Copy, Debug)]
pub struct Deviation {
    /// The largest difference; infinite if the shapes differ or a difference is not finite.
    pub difference: f64,
    /// Where it is.
    pub index: usize,
    /// The largest absolute value that is expected.
    pub scale: f64,
}

impl Expected {
    /// Creates a result that must be within the tolerance of `precision`.
    pub fn new(values: Host, precision: DType) -> Self {
        Self { values, precision, slack: 1.0 }
    }

    /// Multiplies the tolerance.
    fn slack(self, slack: f64) -> Self {
        Self { slack, ..self }
    }

    /// Compares a result.
    pub fn deviation<B: Backend>(&self, ours: Tensor<B, 2>) -> Deviation {
        let exact = &self.values.values;
        let scale = exact.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
        let mut worst = Deviation { difference: 0.0, index: 0, scale };
        if ours.dims() != self.values.shape {
            worst.difference = f64::INFINITY;
        }
        for (index, (ours, exact)) in numbers(ours).into_iter().zip(exact).enumerate() {
            let difference = (ours - exact).abs();
            let difference = if difference.is_finite() { difference } else { f64::INFINITY };
            if difference > worst.difference {
                worst = Deviation { difference, index, scale };
            }
        }
        worst
    }

    /// Asserts that every value is within the tolerance, relative to the largest value or to 1. Where only zeros are
    /// expected, they must be exact.
    #[track_caller]
    fn assert_close<B: Backend>(&self, label: &str, ours: Tensor<B, 2>) {
        assert_eq!(ours.dims(), self.values.shape, "{label}");
        let Deviation { difference, index, scale } = self.deviation(ours);
        let scale = if scale == 0.0 { 0.0 } else { scale.max(1.0) };
        let tolerance = self.slack * tolerance(self.precision) * scale;
        let exact = self.values.values[index];
        assert!(
            difference <= tolerance,
            "{label}: value {index}, {exact}, is off by {difference:.1e} (tolerance {tolerance:.1e})"
        );
    }
}

/// Returns the accepted error relative to the largest value. In f32 it covers the rounding of sums of some hundred
/// terms of size one; in f16 and bf16, every rounding of a result to 11 or 8 bits. A wrong tile, stride or mask is off
/// by the size of the values.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F16 => 5e-3,
        DType::BF16 => 4e-2,
        _ => 1e-5,
    }
}

/// Checks all cases of an operation on a backend, forward and backward.
///
/// # Panics
/// If a result is wrong.
pub fn check<B: TrainBackend, O: Operation>(device: &B::Device) {
    check_cases::<B, O>(O::all(), device);
}

/// Checks `cases` of an operation on a backend.
///
/// # Panics
/// If a result is wrong.
pub fn check_cases<B: TrainBackend, O: Operation>(cases: Vec<O::Case>, device: &B::Device) {
    for_each_case::<B, O>(cases, device, |operation, place, label| {
        operation.check::<B>(place, &mut Assert { label });
    });
}

/// Checks `cases` of an operation on a backend through autodiff.
///
/// # Panics
/// If a result or a gradient is wrong.
pub fn check_gradients<B: TrainBackend, O: Operation>(
    rule: Rule,
    cases: Vec<O::Case>,
    device: &B::Device,
) {
    for_each_case::<B, O>(cases, device, |operation, place, label| {
        let (results, expected) = {
            let _only_graph = graph_lock();
            operation.gradients::<B>(place, rule)
        };
        Assert { label }.compare("autodiff", || results.clone(), &expected);
    });
}

/// Runs `check`, and once more without the library if one multiplies matrices on the device.
pub fn with_and_without_library<B: TrainBackend>(device: &B::Device, check: impl Fn()) {
    // All threads share the library.
    static LIBRARY: Mutex<()> = Mutex::new(());
    if let MatmulProvider::Library(_) = B::matmul_provider(device) {
        let _only_user = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
        check();
        B::without_library(device, check);
    } else {
        check();
    }
}

/// Calls `check` with every one of `cases` in every dtype and layout, and a label of it.
fn for_each_case<B: TrainBackend, O: Operation>(
    cases: Vec<O::Case>,
    device: &B::Device,
    check: impl Fn(&O, &Place<B::Device>, String),
) {
    let check_in = |case: &O::Case, dtype, layouts: &[Layout]| {
        let operation = O::new(case, dtype);
        for layout in layouts {
            let place = Place { device: device.clone(), dtype, layout: *layout };
            check(&operation, &place, format!("{case:?} {dtype:?} {layout:?}"));
        }
    };
    with_and_without_library::<B>(device, || {
        for case in &cases {
            for (index, dtype) in dtypes::<B>(device).into_iter().enumerate() {
                match O::extent(case) {
                    // In f64 there are no kernels: neither large cases nor layouts make a difference.
                    Extent::Single if dtype == DType::F64 => (),
                    _ if dtype == DType::F64 => check_in(case, dtype, &[Layout::Contiguous]),
                    Extent::EveryLayout if index == 0 => check_in(case, dtype, &Layout::ALL),
                    Extent::EveryLayout => {
                        check_in(case, dtype, &[Layout::Contiguous, Layout::Aligned]);
                    }
                    Extent::Single if index > 0 => (),
                    _ => check_in(case, dtype, &[Layout::Contiguous]),
                }
            }
        }
    });
}

/// Returns the float type of a backend, and the 16-bit types that its device computes in.
fn dtypes<B: TrainBackend>(device: &B::Device) -> Vec<DType> {
    let mut dtypes = vec![B::FloatElem::dtype()];
    if dtypes[0] == DType::F32 {
        let f16 = B::supports_dtype(device, DType::F16);
        dtypes.extend(f16.then_some(DType::F16));
        dtypes.extend(B::computes_in(device, DType::BF16).then_some(DType::BF16));
    }
    dtypes
}

/// Panics at the first result that is wrong.
struct Assert {
    label: String,
}

impl<B: Backend> Checker<B> for Assert {
    fn compare(
        &mut self,
        operation: &'static str,
        compute: impl Fn() -> Vec<Tensor<B, 2>>,
        expected: &[&Expected],
    ) {
        let results = compute();
        let label = format!("{operation} {}", self.label);
        assert_eq!(results.len(), expected.len(), "{label}: results");
        for (index, (ours, expected)) in results.into_iter().zip(expected).enumerate() {
            expected.assert_close(&format!("{label}, result {index}"), ours);
        }
    }
}

/// Returns `y` and the gradient of every leaf under the loss `sum(y * dy)`.
///
/// # Panics
/// If a leaf gets no gradient.
pub fn backpropagate<B: Backend>(
    y: Tensor<Autodiff<B>, 2>,
    dy: Tensor<Autodiff<B>, 2>,
    leaves: &[Tensor<Autodiff<B>, 2>],
) -> Vec<Tensor<B, 2>> {
    let grads = (y.clone() * dy).sum().backward();
    let grads = leaves.iter().enumerate().map(|(index, leaf)| {
        leaf.grad(&grads).unwrap_or_else(|| panic!("leaf {index} gets no gradient"))
    });
    std::iter::once(y.inner()).chain(grads).collect()
}
