//! Products of a few rows with a packed weight, `x W^T`, straight from its words.
//!
//! A vector of words holds, at the same place of each, indices whose values are as many columns apart as a word holds. So
//! `x` is put in that order once, and for each place a shift, a look-up and a multiplication with what belongs to it are
//! all there is to do; a block's scale multiplies the sum of its products. The order of sums is the same whatever the
//! number of rows, so that no row's result depends on the others.

use std::ops::Range;

use faer::MatMut;
use faer::reborrow::ReborrowMut;

use super::dots::{PackedRows, dots};
use super::vectors::{Decoder, Job, Lookup, dispatch};
use super::{BLOCK, HostPacked, HostScales};
use crate::ndarray::few_rows::{Rows, float_product};
use crate::ndarray::gemm::Old;
use crate::ndarray::matrix::written;

/// Rows of `x` and of `W` whose products are computed together.
const X_ROWS: usize = 4;
const W_ROWS: usize = 4;

/// `target = factor * x W^T`, or `target += factor * x W^T`, with the rows of `W` from `first` on, as many as `target`
/// has columns. On the calling thread.
pub(in crate::ndarray) fn product(
    mut target: MatMut<'_, f32>,
    old: Old,
    factor: f32,
    x: Rows<'_>,
    (w, first): (&HostPacked, usize),
) {
    let count = target.ncols();
    if w.rows_begin_words() {
        let few = Few {
            target,
            old,
            factor,
            x,
            w,
            first,
        };
        return dispatch(w.format, few);
    }
    let mut unpacked = written(W_ROWS * w.columns, |_| ());
    for start in (0..count).step_by(W_ROWS) {
        let rows = W_ROWS.min(count - start);
        let unpacked = &mut unpacked[..rows * w.columns];
        w.unpack((first + start) * w.columns, unpacked);
        let target = target.rb_mut().get_mut(.., start..start + rows);
        float_product(target, old, factor, x, Rows::of(unpacked, w.columns));
    }
}

impl HostPacked {
    /// Whether every row begins a word, and a block.
    fn rows_begin_words(&self) -> bool {
        match self.scales {
            HostScales::None => self.columns.is_multiple_of(self.format.per_word()),
            _ => self.columns.is_multiple_of(BLOCK),
        }
    }
}

struct Few<'a> {
    target: MatMut<'a, f32>,
    old: Old,
    factor: f32,
    x: Rows<'a>,
    w: &'a HostPacked,
    first: usize,
}

impl Job for Few<'_> {
    #[inline(always)]
    fn run<S: Lookup, D: Decoder<S>>(mut self, simd: S, decoder: D) {
        let columns = self.w.columns;
        let x = arranged::<S, D>(self.x, columns);
        let blocks = columns / BLOCK;
        // One more, for half a vector behind the last.
        let mut scales = vec![0f32; W_ROWS * blocks + 1];
        let count = self.target.ncols();
        for start in (0..count).step_by(W_ROWS) {
            let rows = W_ROWS.min(count - start);
            let first = (self.first + start) * blocks;
            self.w.scales(first, &mut scales[..rows * blocks]);
            self.rows(simd, decoder, &x, start..start + rows, &scales);
        }
    }
}

/// `x` in the order of the places in vectors of words, what follows the last column 0.
#[inline(always)]
fn arranged<S: Lookup, D: Decoder<S>>(x: Rows<'_>, columns: usize) -> Vec<f32> {
    let (lanes, per_word) = (S::F32_LANES, D::PER_WORD);
    let chunk = lanes * per_word;
    let length = columns.next_multiple_of(chunk);
    let mut arranged = vec![0f32; x.count * length];
    for (index, row) in arranged.chunks_exact_mut(length.max(1)).enumerate() {
        let chunks = row.chunks_exact_mut(chunk);
        for (to, from) in chunks.zip(x.row(index).chunks(chunk)) {
            for (lane, word) in from.chunks(per_word).enumerate() {
                for (at, value) in word.iter().enumerate() {
                    to[at * lanes + lane] = *value;
                }
            }
        }
    }
    arranged
}

impl Few<'_> {
    /// Some columns, at most [`W_ROWS`].
    #[inline(always)]
    fn rows<S: Lookup, D: Decoder<S>>(
        &mut self,
        simd: S,
        decoder: D,
        x: &[f32],
        columns: Range<usize>,
        scales: &[f32],
    ) {
        let (per_row, blocks) = (self.w.columns / D::PER_WORD, self.w.columns / BLOCK);
        let first = self.first + columns.start;
        let all = self.w.words.values();
        let mut rows = PackedRows {
            words: [&[][..]; W_ROWS],
            scales: [&[][..]; W_ROWS],
            ahead: &[],
        };
        for n in 0..W_ROWS {
            // Where there are fewer, the last is taken again, for nothing.
            let n_or_last = n.min(columns.len() - 1);
            rows.words[n] = &all[(first + n_or_last) * per_row..][..per_row];
            rows.scales[n] = &scales[n_or_last * blocks..];
        }
        // Those that come next are fetched meanwhile: they are too short for the processor to see what will be read.
        let next = (first + W_ROWS) * per_row;
        rows.ahead = &all[next.min(all.len())..];
        let length = self.w.columns.next_multiple_of(S::F32_LANES * D::PER_WORD);
        for x_row in (0..self.x.count).step_by(X_ROWS) {
            let (x, columns) = (&x[x_row * length..], columns.clone());
            match self.x.count - x_row {
                1 => self.tile::<S, D, 1>(simd, decoder, (x, x_row), rows, columns),
                2 => self.tile::<S, D, 2>(simd, decoder, (x, x_row), rows, columns),
                3 => self.tile::<S, D, 3>(simd, decoder, (x, x_row), rows, columns),
                _ => self.tile::<S, D, X_ROWS>(simd, decoder, (x, x_row), rows, columns),
            }
            rows.ahead = &[];
        }
    }

    #[inline(always)]
    fn tile<S: Lookup, D: Decoder<S>, const M: usize>(
        &mut self,
        simd: S,
        decoder: D,
        (x, x_row): (&[f32], usize),
        rows: PackedRows<'_, W_ROWS>,
        columns: Range<usize>,
    ) {
        let length = self.w.columns.next_multiple_of(S::F32_LANES * D::PER_WORD);
        let mut of_rows = [&[][..]; M];
        for m in 0..M {
            of_rows[m] = S::as_simd_f32s(&x[m * length..][..length]).0;
        }
        let sums = dots::<S, D, M, W_ROWS>(simd, decoder, of_rows, rows);
        for (m, sums) in sums.iter().enumerate() {
            for (column, sum) in columns.clone().zip(sums) {
                let place = self.target.rb_mut().get_mut(x_row + m, column);
                *place = match self.old {
                    Old::Replace => self.factor * sum,
                    Old::Add => *place + self.factor * sum,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Int, Tensor, TensorData};
    use burn_ndarray::NdArray;

    use super::super::vectors::on_kind;
    use super::*;
    use crate::ndarray::gemm::columns_of;
    use crate::{Format, PackedWeight, Scales};

    type Cpu = NdArray<f32>;

    fn random(count: usize) -> Vec<f32> {
        (0..count).map(|at| (at as f32 * 1.37).sin()).collect()
    }

    fn ints(count: usize) -> Tensor<Cpu, 1, Int> {
        let values: Vec<u32> = (0..count as u32)
            .map(|at| at.wrapping_mul(2_654_435_769) & 0x3fff_3fff)
            .collect();
        Tensor::from_data(
            TensorData::new(values, [count]),
            (&Default::default(), DType::U32),
        )
    }

    fn floats(count: usize) -> Tensor<Cpu, 1> {
        Tensor::from_data(TensorData::new(random(count), [count]), &Default::default())
    }

    fn weight(format: Format, dims: [usize; 2], double: bool) -> HostPacked {
        let count = dims[0] * dims[1];
        let blocks = count.div_ceil(BLOCK);
        let scales = match (format, double) {
            (Format::Bf16, _) => None,
            (_, false) => Some(Scales::Plain(floats(blocks))),
            (_, true) => Some(Scales::Double {
                words: ints(blocks.div_ceil(4)),
                absmax: floats(blocks.div_ceil(256)),
                offset: 0.25,
            }),
        };
        let packed: PackedWeight<Cpu> = PackedWeight {
            format,
            dims,
            words: ints(count.div_ceil(format.per_word())),
            scales,
        };
        HostPacked::new(packed).unwrap()
    }

    const FORMATS: [(Format, bool); 5] = [
        (Format::Nf4, false),
        (Format::Nf4, true),
        (Format::Fp4, false),
        (Format::Int8, true),
        (Format::Bf16, false),
    ];

    /// Every format on every kind of processor; every remainder of rows and vectors; from a row on; added or not.
    #[test]
    fn sums_of_products_are_the_definition() {
        for (format, double) in FORMATS {
            for (rows, first, columns) in [(1, 0, 64), (9, 3, 192), (14, 1, 1088)] {
                let w = weight(format, [rows, columns], double);
                let mut unpacked = vec![0f32; rows * columns];
                w.unpack(0, &mut unpacked);
                let count = rows - first;
                for x_rows in [1, 2, 3, 4, 7] {
                    for kind in 0..3 {
                        check(kind, &w, &unpacked, [x_rows, first, count]);
                    }
                }
            }
        }
    }

    fn check(kind: usize, w: &HostPacked, unpacked: &[f32], [x_rows, first, count]: [usize; 3]) {
        let x = random(x_rows * w.columns);
        for old in [Old::Replace, Old::Add] {
            let mut ours = vec![1f32; x_rows * (count + 2)];
            let few = Few {
                target: columns_of(&mut ours, count + 2, 1, count),
                old,
                factor: 0.5,
                x: Rows::of(&x, w.columns),
                w,
                first,
            };
            if !on_kind(kind, w.format, few) {
                return;
            }
            for m in 0..x_rows {
                for n in 0..count {
                    let x = &x[m * w.columns..][..w.columns];
                    let w_row = &unpacked[(first + n) * w.columns..][..w.columns];
                    let terms = x
                        .iter()
                        .zip(w_row)
                        .map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (sum, size) = terms.fold((0f64, 1f64), |(sum, size), term| {
                        (sum + term, size + term.abs())
                    });
                    let expected = 0.5 * sum + f64::from(u8::from(old == Old::Add));
                    let value = f64::from(ours[m * (count + 2) + 1 + n]);
                    assert!(
                        (value - expected).abs() < 1e-6 * size,
                        "{:?} {}x{} {m} {n} kind {kind}: {value} for {expected}",
                        w.format,
                        w.rows,
                        w.columns
                    );
                }
                assert_eq!(ours[m * (count + 2)], 1.0);
            }
        }
    }

    /// Bit by bit, also where rows begin within words.
    #[test]
    fn a_row_does_not_depend_on_the_others() {
        for (format, double) in FORMATS {
            for columns in [77, 128, 320] {
                let w = weight(format, [21, columns], double);
                let x = random(40 * columns);
                let rows = |first: usize, count: usize| {
                    let mut y = vec![f32::NAN; count * 21];
                    let x = Rows::of(&x[first * columns..][..count * columns], columns);
                    let target = columns_of(&mut y, 21, 0, 21);
                    product(target, Old::Replace, 1.0, x, (&w, 0));
                    y
                };
                let all = rows(0, 40);
                for (first, count) in [(0, 1), (5, 1), (39, 1), (3, 2), (8, 7), (9, 31)] {
                    let ours = rows(first, count);
                    assert_eq!(
                        ours,
                        all[first * 21..][..count * 21],
                        "{format:?} {columns}"
                    );
                }
            }
        }
    }
}
