//! Numbers that both sides get, and how they are compared.

use std::sync::OnceLock;

use arithmo_backends::BackendKind;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

pub(crate) type Gpu = arithmo_backends::wgpu::Gpu;
pub(crate) type Cpu = burn_ndarray::NdArray<f32>;

/// Whether the default device starts; where it does not, says so.
pub(crate) fn starts() -> bool {
    static STARTS: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTS.get_or_init(|| BackendKind::Wgpu.start());
    if let Err(reason) = started {
        eprintln!("SKIPPED: wgpu {reason}");
    }
    started.is_ok()
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Layout {
    Contiguous,
    /// Rows of a wider tensor. (A view, not a copy, where what is left out fills whole 256 bytes.)
    Pitched,
    /// Rows of a wider tensor, whose first columns are others.
    Shifted,
    /// Dimensions 0 and 1 swapped in memory.
    Swapped,
}

pub(crate) const LAYOUTS: [Layout; 4] =
    [Layout::Contiguous, Layout::Pitched, Layout::Shifted, Layout::Swapped];

/// Every layout in f32, and f16 where the device has it.
pub(crate) fn variants() -> Vec<(DType, Layout)> {
    let mut variants: Vec<_> = LAYOUTS.map(|layout| (DType::F32, layout)).into();
    if Gpu::supports_dtype(&Default::default(), DType::F16) {
        variants.push((DType::F16, Layout::Contiguous));
        variants.push((DType::F16, Layout::Pitched));
    }
    variants
}

/// A generator of numbers (splitmix64).
pub(crate) struct Source(u64);

impl Source {
    pub(crate) fn new(seed: usize) -> Self {
        Self(seed as u64)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[-1.5, 1.5]`, exact in f16.
    pub(crate) fn floats(&mut self, shape: [usize; 2]) -> Host {
        let value = |n: u64| (n % 3073) as f32 / 1024.0 - 1.5;
        let values = (0..shape[0] * shape[1]).map(|_| value(self.next()));
        Host { shape, values: values.collect() }
    }
}

#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) shape: [usize; 2],
    pub(crate) values: Vec<f32>,
}

impl Host {
    /// On the CPU, in f32.
    pub(crate) fn exact(&self) -> Tensor<Cpu, 2> {
        self.on(DType::F32, Layout::Contiguous)
    }

    pub(crate) fn on<B: Backend>(&self, dtype: DType, layout: Layout) -> Tensor<B, 2> {
        let device = B::Device::default();
        let data = TensorData::new(self.values.clone(), self.shape).convert_dtype(dtype);
        let plain = Tensor::<B, 2>::from_data(data, (&device, dtype));
        let [rows, width] = self.shape;
        let beside = |columns| Tensor::ones([rows, columns], (&device, dtype));
        match layout {
            Layout::Contiguous => plain,
            Layout::Pitched => Tensor::cat(vec![plain, beside(64)], 1).narrow(1, 0, width),
            Layout::Shifted => {
                Tensor::cat(vec![beside(64), plain, beside(64)], 1).narrow(1, 64, width)
            }
            // Copied in the other order, then looked at in this one.
            Layout::Swapped => (plain.swap_dims(0, 1) * 1.0).swap_dims(0, 1),
        }
    }
}

pub(crate) fn ints<B: Backend, const D: usize>(
    values: &[i64],
    shape: [usize; D],
) -> Tensor<B, D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Default::default())
}

/// Rounding of sums of some hundred terms relative to the largest value; 11 bits of mantissa in f16.
pub(crate) fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 5e-3,
        _ => 1e-5,
    }
}

#[track_caller]
pub(crate) fn close(what: &str, ours: Tensor<Gpu, 2>, exact: Tensor<Cpu, 2>, tolerance: f32) {
    assert_eq!(ours.dims(), exact.dims(), "{what}");
    let [ours, exact] =
        [ours.into_data(), exact.into_data()].map(|data| data.iter::<f32>().collect::<Vec<_>>());
    let scale = exact.iter().fold(1.0, |max: f32, v| max.max(v.abs()));
    for (index, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
        let difference = (ours - exact).abs();
        assert!(
            difference <= tolerance * scale,
            "{what}: value {index} is {ours}, not {exact} (scale {scale})"
        );
    }
}
