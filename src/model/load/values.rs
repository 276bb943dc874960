//! What a model's tensors are made of while it is loaded: numbers, packed ones, random ones; whole, or some rows of them.

use std::ops::Range;

use arithmo_backends::{Format, PackedWeight, TrainBackend, Weight};
use burn::tensor::{DType, Distribution, Tensor, TensorData};

use crate::model::limits::HALVES;
use crate::model::quantize::{Quantized, words};

/// What a tensor is filled with.
pub(super) enum Values {
    Floats(Floats),
    /// A packed matrix.
    Packed(Quantized),
    /// A matrix of bf16, two a word.
    Halves(Vec<u32>),
}

/// Floats, in the model's dtype.
pub(super) enum Floats {
    /// Numbers from the host.
    Host(TensorData),
    Ones,
    /// Random numbers between plus and minus this.
    Uniform(f64),
}

impl Values {
    /// Values that are kept together where a matrix is cut.
    pub(super) fn unit(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.quantization().unit(),
            Self::Halves(_) | Self::Floats(_) => HALVES,
        }
    }

    /// Some rows of a matrix, which begin and end with a [`unit`](Self::unit).
    pub(super) fn rows(&self, rows: Range<usize>, columns: usize) -> Self {
        let values = rows.start * columns..rows.end * columns;
        match self {
            Self::Packed(packed) => Self::Packed(packed.rows(rows)),
            Self::Halves(words) => {
                Self::Halves(words[values.start / 2..values.end.div_ceil(2)].to_vec())
            }
            Self::Floats(Floats::Host(data)) => {
                let size = data.dtype.size();
                let bytes = &data.as_bytes()[values.start * size..values.end * size];
                let shape = [rows.len(), columns];
                host(TensorData::from_bytes_vec(bytes.to_vec(), shape, data.dtype))
            }
            Self::Floats(Floats::Ones) => Self::Floats(Floats::Ones),
            Self::Floats(Floats::Uniform(bound)) => Self::Floats(Floats::Uniform(*bound)),
        }
    }

    /// A weight of `dims` on `device`, which computes in `dtype`.
    pub(super) fn into_weight<B: TrainBackend>(
        self,
        dims: [usize; 2],
        device: &B::Device,
        dtype: DType,
    ) -> Weight<B> {
        match self {
            Self::Packed(packed) => packed.into_weight(device).into(),
            Self::Halves(words) => halves(words, dims, device).into(),
            Self::Floats(Floats::Host(data))
                if data.dtype == DType::BF16 && dtype != DType::BF16 =>
            {
                halves(words(data.as_bytes()), dims, device).into()
            }
            Self::Floats(floats) => floats.on::<B, 2>(dims, device, dtype).into(),
        }
    }
}

impl Floats {
    /// A tensor on `device`.
    pub(super) fn on<B: TrainBackend, const D: usize>(
        self,
        shape: [usize; D],
        device: &B::Device,
        dtype: DType,
    ) -> Tensor<B, D> {
        let place = (device, dtype);
        match self {
            Self::Host(data) => Tensor::from_data(data, place),
            Self::Ones => Tensor::ones(shape, place),
            Self::Uniform(bound) => {
                Tensor::random(shape, Distribution::Uniform(-bound, bound), place)
            }
        }
    }
}

/// Numbers from the host.
pub(super) fn host(data: TensorData) -> Values {
    Values::Floats(Floats::Host(data))
}

/// A matrix of bf16, two a word.
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
