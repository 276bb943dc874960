//! Weights on the host, in floats, quantized or split, and the values that quantized ones stand for.

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::{Checker, Expected, Extent, Host, Operation, Place, Source};
use crate::ops::packed::{BLOCK, NESTED_BLOCK, dynamic_code, reference, reference_rows};
use crate::{Format, PackedWeight, Scales, SplitWeight, TrainBackend, Weight};

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In floats.
    Float,
    /// Quantized, with plain scales.
    Plain(Format),
    /// Quantized, with quantized scales.
    Double(Format),
    /// In three parts, floats or quantized.
    Split(Option<Format>),
}

impl Kind {
    /// Every format with every form of its scales.
    const PACKED: [Self; 7] = [
        Self::Plain(Format::Nf4),
        Self::Double(Format::Nf4),
        Self::Plain(Format::Fp4),
        Self::Plain(Format::Int8),
        Self::Double(Format::Int8),
        Self::Plain(Format::Bf16),
        Self::Double(Format::Fp4),
    ];

    /// The kinds of parts.
    pub(super) const SPLIT: [Self; 3] =
        [Self::Split(None), Self::Split(Some(Format::Nf4)), Self::Split(Some(Format::Bf16))];
}

/// A GEMM of tokens with two quantized weights.
pub(super) struct PackedGemm {
    pub(super) kind: Kind,
    pub(super) tokens: usize,
    pub(super) d_in: usize,
    /// The rows of each weight.
    pub(super) widths: [usize; 2],
}

/// Returns GEMMs with as many tokens as decoding has and one more, with rows of weights that begin within a block and
/// within a word, with rows that end before every thread of a block has a word, and with more than a tile.
pub(super) fn packed_gemms() -> Vec<PackedGemm> {
    let mut shapes = vec![
        (1, 1, [1, 1]),
        (7, 96, [20, 20]),
        (33, 129, [35, 35]),
        (140, 192, [70, 70]),
        (1, 64, [9, 5]),
        (7, 96, [48, 20]),
        (33, 129, [5, 100]),
        (8, 1088, [9, 12]),
    ];
    shapes.extend([1, 8].map(|tokens| (tokens, 8, [1, 2])));
    shapes.extend((1..=9).map(|tokens| (tokens, 96, [17, 20])));
    shapes.extend([1, 6].map(|tokens| (tokens, 129, [5, 3])));
    shapes.extend([2, 3].map(|tokens| (tokens, 1160, [33, 7])));
    let gemm = |kind, (tokens, d_in, widths)| PackedGemm { kind, tokens, d_in, widths };
    let kinds = &Kind::PACKED[..6];
    let mut gemms: Vec<_> =
        shapes.iter().flat_map(|shape| kinds.iter().map(|kind| gemm(*kind, *shape))).collect();
    for (double, d_in, widths) in [
        (false, 5, [3, 2]),
        (true, 96, [7, 20]),
        (false, 129, [12, 5]),
        (true, 320, [33, 70]),
        (false, 1100, [600, 40]),
        (true, 64, [1, 1030]),
    ] {
        for format in [Format::Nf4, Format::Fp4, Format::Int8, Format::Bf16] {
            let kind = if double { Kind::Double(format) } else { Kind::Plain(format) };
            gemms.extend([1, 3, 7, 129, 200].map(|tokens| gemm(kind, (tokens, d_in, widths))));
        }
    }
    gemms
}

/// Returns in which layouts a GEMM with a weight is checked.
pub(super) fn extent(kind: Kind, [tokens, d_in, d_out]: [usize; 3]) -> Extent {
    match kind {
        Kind::Float | Kind::Split(_) => Extent::EveryLayout,
        _ if tokens * d_in * d_out > 10_000_000 => Extent::Single,
        _ if tokens == 3 || d_in == 192 => Extent::EveryLayout,
        _ => Extent::EveryDtype,
    }
}

/// A weight on the host.
#[derive(Clone, Debug)]
pub enum HostWeight {
    /// Floats.
    Float(Host),
    /// A quantized weight.
    Packed(HostPacked),
    /// Parts, one below the other.
    Split(Vec<Self>),
}

impl HostWeight {
    /// Draws a weight of shape `dims`.
    pub fn random(kind: Kind, dims: [usize; 2], source: &mut Source) -> Self {
        match kind {
            Kind::Float => Self::Float(source.matrix(dims)),
            Kind::Plain(format) => Self::Packed(HostPacked::random(format, false, dims, source)),
            Kind::Double(format) => Self::Packed(HostPacked::random(format, true, dims, source)),
            Kind::Split(format) => {
                let [rows, d_in] = dims;
                let (first, last) = (rows / 3, rows / 8);
                let kind = format.map_or(Kind::Float, Kind::Plain);
                let part = |rows| Self::random(kind, [rows, d_in], source);
                Self::Split([first, rows - first - last, last].map(part).into())
            }
        }
    }

    /// Returns the values that the weight stands for.
    pub fn values(&self) -> Host {
        match self {
            Self::Float(values) => values.clone(),
            Self::Packed(packed) => packed.values(),
            Self::Split(parts) => {
                let parts: Vec<_> = parts.iter().map(Self::values).collect();
                let rows = parts.iter().map(|part| part.shape[0]).sum();
                let values = parts.iter().flat_map(|part| part.values.iter().copied());
                Host { shape: [rows, parts[0].shape[1]], values: values.collect() }
            }
        }
    }

    /// Uploads the weight.
    pub fn on<B: TrainBackend>(&self, place: &Place<B::Device>) -> Weight<B> {
        match self {
            Self::Float(values) => place.matrix::<B>(values).into(),
            Self::Packed(packed) => packed.on::<B>(&place.device).into(),
            Self::Split(parts) => {
                SplitWeight::new(parts.iter().map(|part| part.on::<B>(place)).collect()).into()
            }
        }
    }
}

/// A quantized weight on the host.
#[derive(Clone, Debug)]
pub struct HostPacked {
    /// The format of its values.
    pub format: Format,
    /// `[D_out, D_in]`
    pub dims: [usize; 2],
    /// The indices of the values.
    pub words: Vec<u32>,
    /// The scales of blocks.
    pub scales: HostScales,
}

/// The scales of a quantized weight on the host.
#[derive(Clone, Debug)]
pub enum HostScales {
    /// The values are not scaled.
    None,
    /// One scale per block.
    Plain(Vec<f32>),
    /// Indices of scales, the scales of those, and the mean of all.
    Double(Vec<u32>, Vec<f32>, f32),
}

impl HostPacked {
    /// Draws indices and scales. The numbers of [`Format::Bf16`] are between `2^-7` and 2.
    pub fn random(format: Format, double: bool, dims: [usize; 2], source: &mut Source) -> Self {
        let count = dims[0] * dims[1];
        let blocks = count.div_ceil(BLOCK);
        let words = |count: usize, source: &mut Source| -> Vec<u32> {
            (0..count).map(|_| source.bits() as u32).collect()
        };
        let mut values = words(count.div_ceil(format.per_word()), source);
        let absmax = |count: usize, source: &mut Source| -> Vec<f32> {
            let scales = source.matrix([1, count]).values;
            scales.into_iter().map(|scale| scale.abs() as f32 + 1e-3).collect()
        };
        let scales = match (format, double) {
            (Format::Bf16, _) => {
                values.iter_mut().for_each(|word| *word = (*word & 0x83ff_83ff) | 0x3c00_3c00);
                HostScales::None
            }
            (_, false) => HostScales::Plain(absmax(blocks, source)),
            (_, true) => {
                let indices = words(blocks.div_ceil(4), source);
                HostScales::Double(indices, absmax(blocks.div_ceil(NESTED_BLOCK), source), 0.5)
            }
        };
        Self { format, dims, words: values, scales }
    }

    /// Returns the value at a position of the flattened weight, computed byte by byte, in f32 by definition.
    pub fn value(&self, position: usize) -> f32 {
        let byte = |words: &[u32], at: usize| usize::from(words[at / 4].to_le_bytes()[at % 4]);
        let index = match self.format {
            Format::Nf4 | Format::Fp4 => {
                let pair = byte(&self.words, position / 2);
                if position.is_multiple_of(2) { pair >> 4 } else { pair & 15 }
            }
            Format::Int8 => byte(&self.words, position),
            Format::Bf16 => {
                let half = [0, 1].map(|i| byte(&self.words, 2 * position + i) as u8);
                return f32::from_le_bytes([0, 0, half[0], half[1]]);
            }
        };
        let block = position / BLOCK;
        let scale = match &self.scales {
            HostScales::None => 1.0,
            HostScales::Plain(absmax) => absmax[block],
            HostScales::Double(words, absmax, offset) => {
                dynamic_code()[byte(words, block)] * absmax[block / NESTED_BLOCK] + offset
            }
        };
        self.format.code()[index] * scale
    }

    /// Returns the dequantized values.
    pub fn values(&self) -> Host {
        let width = self.dims[1];
        Host::from_fn(self.dims, |row, column| f64::from(self.value(row * width + column)))
    }

    /// Uploads the weight.
    pub fn on<B: Backend>(&self, device: &B::Device) -> PackedWeight<B> {
        let words = |values: &[u32]| -> Tensor<B, 1, Int> {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::from_data(data, (device, DType::U32))
        };
        let floats = |values: &[f32]| -> Tensor<B, 1> {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::from_data(data, (device, DType::F32))
        };
        let scales = match &self.scales {
            HostScales::None => None,
            HostScales::Plain(absmax) => Some(Scales::Plain(floats(absmax))),
            HostScales::Double(indices, absmax, offset) => Some(Scales::Double {
                words: words(indices),
                absmax: floats(absmax),
                offset: *offset,
            }),
        };
        PackedWeight { format: self.format, dims: self.dims, words: words(&self.words), scales }
    }
}

/// Dequantization of consecutive rows and of single rows; the rows of split weights.
#[derive(Clone, Debug)]
pub struct Unpack {
    weight: HostWeight,
    values: Host,
    dtype: DType,
}

impl Operation for Unpack {
    type Case = (Kind, [usize; 2]);

    fn quick() -> Vec<Self::Case> {
        Vec::new()
    }

    fn all() -> Vec<Self::Case> {
        let dims = [[1, 1], [3, 5], [7, 96], [5, 64], [12, 129], [40, 1000], [300, 512]];
        let packed = Kind::PACKED.into_iter().flat_map(|kind| dims.map(|dims| (kind, dims)));
        packed.chain(Kind::SPLIT.map(|kind| (kind, [53, 40]))).collect()
    }

    fn new((kind, dims): &Self::Case, dtype: DType) -> Self {
        let weight =
            HostWeight::random(*kind, *dims, &mut Source::new(dims[0] * 31 + dims[1], dtype));
        let values = weight.values();
        Self { weight, values, dtype }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let [d_out, _] = self.values.shape;
        // Only the sum of a quantized scale and its offset may be rounded differently.
        let expected = |rows: &mut dyn Iterator<Item = usize>| {
            Expected::new(self.values.rows(rows), self.dtype).slack(0.1)
        };
        if let HostWeight::Packed(packed) = &self.weight {
            let packed = packed.on::<B>(&place.device);
            packed.check();
            let ranges: [Range<usize>; 5] =
                [0..d_out, d_out / 3..d_out, 0..1, d_out / 2..d_out, d_out / 2..d_out / 2 + 1];
            for rows in ranges {
                let compute = || {
                    let values = [
                        B::unpack(&packed, rows.clone(), place.dtype),
                        reference(&packed, rows.clone(), place.dtype),
                    ];
                    assert!(values.iter().all(|values| values.dtype() == place.dtype));
                    values.to_vec()
                };
                let expected = expected(&mut rows.clone());
                checker.compare("unpack", compute, &[&expected, &expected]);
            }
        }
        // The last rows of parts and the first of the next ones, some of them twice.
        let ids = [0, 16, 17, 46, 47, d_out - 1, 3, d_out / 2, 46, 0, d_out - 1];
        let ids: Vec<_> = ids.into_iter().filter(|id| *id < d_out).collect();
        let expected = expected(&mut ids.iter().copied());
        let ids: Vec<i64> = ids.into_iter().map(|id| id as i64).collect();
        let weight = self.weight.on::<B>(place);
        let compute = || {
            let ids = || place.ints::<B, 1>(&ids, [ids.len()]);
            let mut rows = vec![weight.clone().rows(ids(), place.dtype)];
            if let Weight::Packed(packed) = &weight {
                rows.push(reference_rows(packed, ids(), place.dtype));
            }
            assert!(rows.iter().all(|rows| rows.dtype() == place.dtype));
            rows
        };
        let all = [&expected, &expected];
        let count = if matches!(weight, Weight::Packed(_)) { 2 } else { 1 };
        checker.compare("unpack_rows", compute, &all[..count]);
    }
}
