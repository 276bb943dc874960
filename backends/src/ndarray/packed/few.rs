//! Products of a few rows with a packed weight, `x W^T`, straight from its words ([`Dots`]).

use faer::MatMut;
use faer::reborrow::ReborrowMut;

use super::dots::{Arrange, Dots, Of, W_ROWS};
use super::vectors::Kind;
use super::{BLOCK, HostPacked, HostScales};
use crate::ndarray::few_rows::{Rows, float_product};
use crate::ndarray::gemm::Old;
use crate::ndarray::matrix::written;

/// Rows of `x` whose products are computed together.
const X_ROWS: usize = 4;

/// Values of `W` that all rows of `x` are multiplied with before the next ones, about: their words stay in a near cache.
const SHARE: usize = 1 << 18;

/// `target = factor * x W^T`, or `target += factor * x W^T`, with the rows of `W` from `first` on, as many as `target`
/// has columns. On the calling thread.
pub(in crate::ndarray) fn product(
    mut target: MatMut<'_, f32>,
    old: Old,
    factor: f32,
    x: Rows<'_>,
    (w, first): (&HostPacked, usize),
) {
    if w.rows_begin_words() {
        return product_by(Kind::best(), target, old, factor, x, (w, first));
    }
    let count = target.ncols();
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

/// [`product`] by the vectors named.
fn product_by(
    kind: Kind,
    mut target: MatMut<'_, f32>,
    old: Old,
    factor: f32,
    x: Rows<'_>,
    (w, first): (&HostPacked, usize),
) {
    let mut arranged = Vec::new();
    let arrange = Arrange { x, arranged: &mut arranged };
    kind.run(w.format, arrange);
    let (length, count) = (arranged.len() / x.count.max(1), target.ncols());
    let (per_row, blocks) = (w.columns / w.format.per_word(), w.columns / BLOCK);
    let share = (SHARE / w.columns.max(1)).next_multiple_of(W_ROWS).max(W_ROWS);
    let mut scales = vec![0f32; share.min(count) * blocks];
    for start in (0..count).step_by(share) {
        let (end, first) = (count.min(start + share), first + start);
        let words = &w.words.values()[first * per_row..];
        let scales = &mut scales[..(end - start) * blocks];
        w.scales(first * blocks, scales);
        let mut target = target.rb_mut().subcols_mut(start, end - start);
        for x_row in (0..x.count).step_by(X_ROWS) {
            let rows = X_ROWS.min(x.count - x_row);
            let dots = Dots {
                target: target.rb_mut().subrows_mut(x_row, rows),
                old,
                factor,
                x: &arranged[x_row * length..][..rows * length],
                words,
                scales,
                columns: w.columns,
            };
            match rows {
                1 => kind.run(w.format, Of::<1>(dots)),
                2 => kind.run(w.format, Of::<2>(dots)),
                3 => kind.run(w.format, Of::<3>(dots)),
                _ => kind.run(w.format, Of::<X_ROWS>(dots)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Int, Tensor, TensorData};
    use burn_ndarray::NdArray;

    use super::*;
    use crate::ndarray::gemm::{columns_of, rows_mut};
    use crate::{Format, PackedWeight, Scales};

    type Cpu = NdArray<f32>;

    fn random(count: usize) -> Vec<f32> {
        (0..count).map(|at| (at as f32 * 1.37).sin()).collect()
    }

    fn ints(count: usize) -> Tensor<Cpu, 1, Int> {
        let values: Vec<u32> =
            (0..count as u32).map(|at| at.wrapping_mul(2_654_435_769) & 0x3fff_3fff).collect();
        Tensor::from_data(TensorData::new(values, [count]), (&Default::default(), DType::U32))
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
        let packed: PackedWeight<Cpu> =
            PackedWeight { format, dims, words: ints(count.div_ceil(format.per_word())), scales };
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
                    for kind in Kind::all() {
                        check(kind, &w, &unpacked, [x_rows, first, count]);
                    }
                }
            }
        }
    }

    fn check(kind: Kind, w: &HostPacked, unpacked: &[f32], [x_rows, first, count]: [usize; 3]) {
        let x = random(x_rows * w.columns);
        for old in [Old::Replace, Old::Add] {
            let mut ours = vec![1f32; x_rows * (count + 2)];
            let target = columns_of(&mut ours, count + 2, 1, count);
            let x_rows_of = Rows::of(&x, w.columns);
            product_by(kind, target, old, 0.5, x_rows_of, (w, first));
            for m in 0..x_rows {
                for n in 0..count {
                    let x = &x[m * w.columns..][..w.columns];
                    let w_row = &unpacked[(first + n) * w.columns..][..w.columns];
                    let terms = x.iter().zip(w_row).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (sum, size) = terms
                        .fold((0f64, 1f64), |(sum, size), term| (sum + term, size + term.abs()));
                    let expected = 0.5 * sum + f64::from(u8::from(old == Old::Add));
                    let value = f64::from(ours[m * (count + 2) + 1 + n]);
                    assert!(
                        (value - expected).abs() < 1e-6 * size,
                        "{:?} {}x{} {m} {n} {kind:?}: {value} for {expected}",
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
                    let target = rows_mut(&mut y, 21);
                    product(target, Old::Replace, 1.0, x, (&w, 0));
                    y
                };
                let all = rows(0, 40);
                for (first, count) in [(0, 1), (5, 1), (39, 1), (3, 2), (8, 7), (9, 31)] {
                    let ours = rows(first, count);
                    assert_eq!(ours, all[first * 21..][..count * 21], "{format:?} {columns}");
                }
            }
        }
    }
}
