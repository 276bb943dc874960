//! Compares the results of operations with those computed in f64 on the CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arithmo_backends::conformance::{
    self, AdamW, AdaptedLinear, Clip, Deviation, Expected, Geglu, HeadNorm, Layout, Linear,
    LogProbs, Operation, Place, RmsNorm, Rope, SelfAttention, Swiglu,
};
use arithmo_backends::{MatmulProvider, TrainBackend};
use burn::tensor::{DType, Tensor};
use serde_json::{Value, json};

use super::Out;
use super::speed::timed;
use crate::error::{Error, Result};
use crate::interrupt;

/// The types in which weights and activations are tested, if the device computes in them.
pub(super) const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The results of an operation over all tested sizes and layouts.
#[derive(Clone, Debug)]
pub(super) struct Row {
    operation: &'static str,
    dtype: DType,
    /// Largest difference from the reference, relative to the largest value of the result.
    error: f64,
    seconds: f64,
    /// Whether the backend's kernels computed the GEMMs although a library is available.
    without_library: bool,
    /// The message with which the operation panicked.
    stopped: Option<String>,
}

impl Row {
    /// Returns the header of the table.
    pub(super) fn header() -> String {
        let (operation, dtype, error, ms) = ("operation", "type", "largest error", "ms");
        format!("  {operation:<31}{dtype:<6}{error:>14}{:8}{ms:>10}", "")
    }

    /// Returns the operation's name and type.
    pub(super) fn name(&self) -> String {
        let by = if self.without_library { ", without the library" } else { "" };
        format!("{} in {}{by}", self.operation, self.dtype.name())
    }

    /// Returns whether the error is within the tolerance.
    pub(super) fn ok(&self) -> bool {
        self.stopped.is_none() && self.error <= tolerance(self.dtype)
    }

    /// Returns the row as a line of the table.
    fn line(&self) -> String {
        let (operation, dtype) = (&self.operation, self.dtype.name());
        if let Some(reason) = &self.stopped {
            return format!("  {operation:<31}{dtype:<6}{:>14}  WRONG  {reason}", "");
        }
        let state = if self.ok() { "ok" } else { "WRONG" };
        let (error, ms) = (self.error, self.seconds * 1e3);
        format!("  {operation:<31}{dtype:<6}{error:>14.1e}  {state:<6}{ms:>10.2}")
    }

    /// Returns the row as a JSON object.
    pub(super) fn json(&self) -> Value {
        json!({
            "operation": self.operation,
            "dtype": self.dtype.name(),
            "largest_relative_error": self.error,
            "tolerance": tolerance(self.dtype),
            "ok": self.ok(),
            "milliseconds": self.seconds * 1e3,
            "without_library": self.without_library,
            "stopped": self.stopped,
        })
    }
}

/// Returns the largest relative error that is accepted: twice that of the tests, because drivers may
/// round exponentials and quotients more coarsely than those on which the tests have run.
fn tolerance(dtype: DType) -> f64 {
    2.0 * conformance::tolerance(dtype)
}

/// Checks every operation in every type and writes a line for each. If a library computes GEMMs,
/// operations that contain GEMMs are checked once more without it.
pub(super) fn check_operations<B: TrainBackend>(
    device: &B::Device,
    out: &mut Out<'_>,
) -> Result<Vec<Row>> {
    let all = families::<B>();
    let mut rows = check_families::<B>(&all, device, out)?;
    if let MatmulProvider::Library(name) = B::matmul_provider(device) {
        let gemm_families = all.into_iter();
        let gemm_families = gemm_families.filter(|(family, _)| GEMM_FAMILIES.contains(family));
        let gemm_families: Vec<_> = gemm_families.collect();
        out(&format!("  (without {name}:)"))?;
        let check = || check_families::<B>(&gemm_families, device, out);
        let rows_without_library = B::without_library(device, check)?.into_iter();
        rows.extend(rows_without_library.map(|row| Row { without_library: true, ..row }));
    }
    Ok(rows)
}

/// Checks operation families in every type that the device computes in.
fn check_families<B: TrainBackend>(
    families: &[(&'static str, Family<B>)],
    device: &B::Device,
    out: &mut Out<'_>,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for dtype in TYPES {
        if dtype != DType::F32 && !B::computes_in(device, dtype) {
            out(&format!("  (does not compute in {})", dtype.name()))?;
            continue;
        }
        for (name, family) in families {
            let mut checker = Checker::new(dtype, device);
            checker.run(name, *family)?;
            for row in &checker.rows {
                out(&row.line())?;
            }
            rows.extend(checker.rows);
        }
    }
    Ok(rows)
}

/// A function that checks the operations of one family.
type Family<B> = fn(&mut Checker<B>) -> Result<()>;

/// Returns the checks of all operations, by name.
fn families<B: TrainBackend>() -> [(&'static str, Family<B>); 12] {
    [
        ("frozen_linear", |checker| checker.check::<Linear>(Linear::quick())),
        ("frozen_linear packed", |checker| checker.check::<Linear>(conformance::quick_packed())),
        ("adapted_linear", |checker| checker.check::<AdaptedLinear>(AdaptedLinear::quick())),
        ("rms_norm", |checker| checker.check::<RmsNorm>(RmsNorm::quick())),
        ("head_norm", |checker| checker.check::<HeadNorm>(HeadNorm::quick())),
        ("rope", |checker| checker.check::<Rope>(Rope::quick())),
        ("swiglu", |checker| checker.check::<Swiglu>(Swiglu::quick())),
        ("geglu", |checker| checker.check::<Geglu>(Geglu::quick())),
        ("self_attention", |checker| checker.check::<SelfAttention>(SelfAttention::quick())),
        ("completion_log_probs", |checker| checker.check::<LogProbs>(LogProbs::quick())),
        ("clip", |checker| checker.check::<Clip>(Clip::quick())),
        ("adamw", |checker| checker.check::<AdamW>(AdamW::quick())),
    ]
}

/// The families whose GEMMs a library may compute.
const GEMM_FAMILIES: [&str; 4] =
    ["frozen_linear", "frozen_linear packed", "adapted_linear", "completion_log_probs"];

/// Compares and times operations.
struct Checker<B: TrainBackend> {
    device: B::Device,
    dtype: DType,
    rows: Vec<Row>,
    /// The first failure of the device.
    failure: Option<Error>,
}

impl<B: TrainBackend> Checker<B> {
    fn new(dtype: DType, device: &B::Device) -> Self {
        Self { device: device.clone(), dtype, rows: Vec::new(), failure: None }
    }

    /// Checks one family of operations. If it panics, the message is recorded as its result.
    ///
    /// # Errors
    /// The user interrupts, or the family's own errors.
    fn run(&mut self, name: &'static str, family: Family<B>) -> Result<()> {
        if interrupt::requested() {
            let note = "the checks were not finished".into();
            return Err(Error::Interrupted { note });
        }
        match catch_unwind(AssertUnwindSafe(|| family(&mut *self))) {
            Ok(result) => result,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                let text = text.unwrap_or("stopped without a word");
                let row = self.row(name);
                row.stopped = text.lines().next().map(String::from);
                Ok(())
            }
        }
    }

    /// Checks cases with inputs whose rows are contiguous, and whose rows are not.
    fn check<O: Operation>(&mut self, cases: Vec<O::Case>) -> Result<()> {
        for case in cases {
            let operation = O::new(&case, self.dtype);
            for layout in [Layout::Contiguous, Layout::Pitched] {
                let place = Place { device: self.device.clone(), dtype: self.dtype, layout };
                operation.check::<B>(&place, self);
                if let Some(failure) = self.failure.take() {
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    /// Returns the row of an operation, which is added if there is none.
    fn row(&mut self, operation: &'static str) -> &mut Row {
        let known = self.rows.iter().position(|r| r.operation == operation);
        let index = known.unwrap_or_else(|| {
            self.rows.push(Row {
                operation,
                dtype: self.dtype,
                error: 0.0,
                seconds: 0.0,
                without_library: false,
                stopped: None,
            });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }
}

impl<B: TrainBackend> conformance::Checker<B> for Checker<B> {
    fn compare(
        &mut self,
        operation: &'static str,
        compute: impl Fn() -> Vec<Tensor<B, 2>>,
        expected: &[&Expected],
    ) {
        let ours = compute();
        let mut error = if ours.len() == expected.len() { 0.0 } else { f64::INFINITY };
        for (ours, expected) in ours.into_iter().zip(expected) {
            let Deviation { difference, scale, .. } = expected.deviation(ours);
            error = f64::max(error, difference / scale.max(f64::MIN_POSITIVE));
        }
        match timed::<B, _>(&self.device, compute) {
            Ok((seconds, _)) => {
                let row = self.row(operation);
                row.error = row.error.max(error);
                row.seconds += seconds;
            }
            Err(failure) => self.failure = self.failure.take().or(Some(failure)),
        }
    }
}

#[cfg(test)]
mod tests {
    use arithmo_backends::conformance::Source;

    use super::*;

    type Cpu = burn_ndarray::NdArray<f32>;

    fn checker() -> Checker<Cpu> {
        Checker::new(DType::F32, &Default::default())
    }

    /// Returns the row of an operation that returns `wrong(x)` instead of `x`.
    fn row(wrong: impl Fn(Tensor<Cpu, 2>) -> Tensor<Cpu, 2>) -> Row {
        let mut checker = checker();
        let x = Source::new(1, DType::F32).matrix([7, 5]);
        let tested = x.on::<Cpu>(DType::F32, Layout::Contiguous, &Default::default());
        let expected = Expected::new(x, DType::F32);
        let compute = || vec![wrong(tested.clone())];
        conformance::Checker::compare(&mut checker, "copy", compute, &[&expected]);
        checker.rows.remove(0)
    }

    #[test]
    fn small_errors_pass_and_wrong_results_fail() {
        assert!(row(|x| x).ok());
        assert!(row(|x| x * (1.0 + 1e-6)).ok());
        assert!(!row(|x| x * (1.0 + 1e-4)).ok());
        assert!(!row(|x| x.narrow(0, 0, 6)).ok());
        assert!(!row(|x| x.log()).ok(), "values that are NaN");
        let last = |x: Tensor<Cpu, 2>| {
            let zero = Tensor::zeros([1, 1], &x.device());
            x.slice_assign([6..7, 4..5], zero)
        };
        assert!(!row(last).ok(), "one value of 35");
    }

    #[test]
    fn an_operation_that_stops_is_a_result() {
        let mut checker = checker();
        let family: Family<Cpu> = |_| panic!("no such kernel\nand more");
        checker.run("rope", family).unwrap();
        assert!(!checker.rows[0].ok());
        assert!(checker.rows[0].line().contains("WRONG  no such kernel"));
    }
}
