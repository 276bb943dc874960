//! The values of a model's tensors while it is loaded: floats, quantized or random values, of whole matrices or some
//! rows.

use std::ops::Range;

use arithmo_backends::{Format, PackedWeight, TrainBackend, Weight};
use burn::tensor::{DType, Distribution, Tensor, TensorData};

use crate::model::limits::HALVES;
use crate::model::quantize::{Quantized, words};

/// The values that fill a tensor.
pub(super) enum Values {
    Floats(Floats),
    /// A quantized matrix.
    Quantized(Quantized),
    /// A bf16 matrix, two values per word.
    Halves(Vec<u32>),
}

/// Floats, converted to the model's dtype.
pub(super) enum Floats {
    /// Values in host memory.
    Host(TensorData),
    Zeros,
    Ones,
    /// Uniform random values between minus and plus this bound.
    Uniform(f64),
}

impl Values {
    /// Returns the number of values that must stay together when a matrix is split.
    pub(super) fn unit(&self) -> usize {
        match self {
            Self::Quantized(quantized) => quantized.quantization().unit(),
            Self::Halves(_) | Self::Floats(_) => HALVES,
        }
    }

    /// Returns the given rows of a matrix; both ends lie at a multiple of [`unit`](Self::unit) values.
    pub(super) fn rows(&self, rows: Range<usize>, columns: usize) -> Self {
        let values = rows.start * columns..rows.end * columns;
        match self {
            Self::Quantized(quantized) => Self::Quantized(quantized.rows(rows)),
            Self::Halves(words) => {
                Self::Halves(words[values.start / 2..values.end.div_ceil(2)].to_vec())
            }
            Self::Floats(Floats::Host(data)) => {
                let size = data.dtype.size();
                let bytes = &data.as_bytes()[values.start * size..values.end * size];
                let shape = [rows.len(), columns];
                host(TensorData::from_bytes_vec(bytes.to_vec(), shape, data.dtype))
            }
            Self::Floats(Floats::Zeros) => Self::Floats(Floats::Zeros),
            Self::Floats(Floats::Ones) => Self::Floats(Floats::Ones),
            Self::Floats(Floats::Uniform(bound)) => Self::Floats(Floats::Uniform(*bound)),
        }
    }

    /// Creates a weight of `dims` on `device`, which computes in `dtype`.
    pub(super) fn into_weight<B: TrainBackend>(
        self,
        dims: [usize; 2],
        device: &B::Device,
        dtype: DType,
    ) -> Weight<B> {
        match self {
            Self::Quantized(quantized) => quantized.into_weight(device).into(),
            Self::Halves(words) => halves(words, dims, device).into(),
            Self::Floats(Floats::Host(data))
                if data.dtype == DType::BF16 && dtype != DType::BF16 =>
            {
                halves(words(data.as_bytes()), dims, device).into()
            }
            Self::Floats(floats) => floats.into_tensor::<B, 2>(dims, device, dtype).into(),
        }
    }
}

impl Floats {
    /// Creates a tensor on `device`.
    pub(super) fn into_tensor<B: TrainBackend, const D: usize>(
        self,
        shape: [usize; D],
        device: &B::Device,
        dtype: DType,
    ) -> Tensor<B, D> {
        let place = (device, dtype);
        match self {
            Self::Host(data) => Tensor::from_data(data, place),
            Self::Zeros => Tensor::zeros(shape, place),
            Self::Ones => Tensor::ones(shape, place),
            Self::Uniform(bound) => {
                Tensor::random(shape, Distribution::Uniform(-bound, bound), place)
            }
        }
    }
}

/// Wraps values in host memory.
pub(super) fn host(data: TensorData) -> Values {
    Values::Floats(Floats::Host(data))
}

/// Creates a bf16 matrix of two values per word.
fn halves<B: TrainBackend>(
    words: Vec<u32>,
    dims: [usize; 2],
    device: &B::Device,
) -> PackedWeight<B> {
    let words = TensorData::new(words, [(dims[0] * dims[1]).div_ceil(2)]);
    PackedWeight {
        format: Format::Bf16,
        dims,
        words: Tensor::from_data(words, (device, DType::U32)),
        scales: None,
    }
}
