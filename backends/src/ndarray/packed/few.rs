//! GEMM of a few rows with a quantized weight, `x W^T`, directly from its words ([`Dots`]).

use faer::MatMut;
use faer::reborrow::ReborrowMut;

use super::dots::{ArrangeRows, Dots, DotsOfRows, TILE_W_ROWS};
use super::vectors::SimdKind;
use super::{BLOCK, HostPacked, HostScales};
use crate::ndarray::few_rows::{RowBlock, few_rows_gemm};
use crate::ndarray::gemm::WriteMode;
use crate::ndarray::matrix::filled;

/// Rows of `x` in a tile.
const TILE_X_ROWS: usize = 4;

/// About how many values of `W` are multiplied by all rows of `x` before the next ones, so that
/// their words stay in a near cache.
const VALUES_PER_PART: usize = 1 << 18;

/// Computes `target = factor * x W^T`, or adds it to `target`, on the calling thread. It uses the
/// rows of `W` from `first`, as many as `target` has columns.
pub(in crate::ndarray) fn gemm(
    mut target: MatMut<'_, f32>,
    mode: WriteMode,
    factor: f32,
    x: RowBlock<'_>,
    (w, first): (&HostPacked, usize),
) {
    if w.rows_are_word_aligned() {
        return gemm_with(SimdKind::best(), target, mode, factor, x, (w, first));
    }
    let count = target.ncols();
    let mut unpacked = filled(TILE_W_ROWS * w.columns, |_| ());
    for start in (0..count).step_by(TILE_W_ROWS) {
        let rows = TILE_W_ROWS.min(count - start);
        let unpacked = &mut unpacked[..rows * w.columns];
        w.unpack((first + start) * w.columns, unpacked);
        let target = target.rb_mut().get_mut(.., start..start + rows);
        few_rows_gemm(target, mode, factor, x, RowBlock::of(unpacked, w.columns));
    }
}

impl HostPacked {
    /// Returns whether every row starts a word and a block.
    fn rows_are_word_aligned(&self) -> bool {
        match self.scales {
            HostScales::None => self.columns.is_multiple_of(self.format.per_word()),
            _ => self.columns.is_multiple_of(BLOCK),
        }
    }
}

/// Computes the same as [`gemm`] with the given instruction set.
fn gemm_with(
    kind: SimdKind,
    mut target: MatMut<'_, f32>,
    mode: WriteMode,
    factor: f32,
    x: RowBlock<'_>,
    (w, first): (&HostPacked, usize),
) {
    let mut arranged = Vec::new();
    let arrange = ArrangeRows { x, arranged: &mut arranged };
    kind.run(w.format, arrange);
    let (length, count) = (arranged.len() / x.count.max(1), target.ncols());
    let (per_row, blocks) = (w.columns / w.format.per_word(), w.columns / BLOCK);
    let share = (VALUES_PER_PART / w.columns.max(1)).next_multiple_of(TILE_W_ROWS).max(TILE_W_ROWS);
    let mut scales = vec![0f32; share.min(count) * blocks];
    for start in (0..count).step_by(share) {
        let (end, first) = (count.min(start + share), first + start);
        let words = &w.words.values()[first * per_row..];
        let scales = &mut scales[..(end - start) * blocks];
        w.scales(first * blocks, scales);
        let mut target = target.rb_mut().subcols_mut(start, end - start);
        for x_row in (0..x.count).step_by(TILE_X_ROWS) {
            let rows = TILE_X_ROWS.min(x.count - x_row);
            let dots = Dots {
                target: target.rb_mut().subrows_mut(x_row, rows),
                mode,
                factor,
                x: &arranged[x_row * length..][..rows * length],
                words,
                scales,
                columns: w.columns,
            };
            match rows {
                1 => kind.run(w.format, DotsOfRows::<1>(dots)),
                2 => kind.run(w.format, DotsOfRows::<2>(dots)),
                3 => kind.run(w.format, DotsOfRows::<3>(dots)),
                _ => kind.run(w.format, DotsOfRows::<TILE_X_ROWS>(dots)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Int, Tensor, TensorData};
    use burn_ndarray::NdArray;

    use super::*;
    use crate::ndarray::gemm::{columns_mut, rows_mut};
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

    /// Covers every format on every instruction set, every remainder of rows and vectors, a first
    /// row, and both write modes.
    #[test]
    fn sums_equal_a_naive_loop() {
        for (format, double) in FORMATS {
            for (rows, first, columns) in [(1, 0, 64), (9, 3, 192), (14, 1, 1088)] {
                let w = weight(format, [rows, columns], double);
                let mut unpacked = vec![0f32; rows * columns];
                w.unpack(0, &mut unpacked);
                let count = rows - first;
                for x_rows in [1, 2, 3, 4, 7] {
                    for kind in SimdKind::all() {
                        check(kind, &w, &unpacked, [x_rows, first, count]);
                    }
                }
            }
        }
    }

    fn check(kind: SimdKind, w: &HostPacked, unpacked: &[f32], [x_rows, first, count]: [usize; 3]) {
        let x = random(x_rows * w.columns);
        for mode in [WriteMode::Overwrite, WriteMode::Add] {
            let mut ours = vec![1f32; x_rows * (count + 2)];
            let target = columns_mut(&mut ours, count + 2, 1, count);
            let x_rows_of = RowBlock::of(&x, w.columns);
            gemm_with(kind, target, mode, 0.5, x_rows_of, (w, first));
            for m in 0..x_rows {
                for n in 0..count {
                    let x = &x[m * w.columns..][..w.columns];
                    let w_row = &unpacked[(first + n) * w.columns..][..w.columns];
                    let terms = x.iter().zip(w_row).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (sum, size) = terms
                        .fold((0f64, 1f64), |(sum, size), term| (sum + term, size + term.abs()));
                    let expected = 0.5 * sum + f64::from(u8::from(mode == WriteMode::Add));
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

    /// Compares bit by bit, also if rows start within words.
    #[test]
    fn a_row_does_not_depend_on_the_others() {
        for (format, double) in FORMATS {
            for columns in [77, 128, 320] {
                let w = weight(format, [21, columns], double);
                let x = random(40 * columns);
                let rows = |first: usize, count: usize| {
                    let mut y = vec![f32::NAN; count * 21];
                    let x = RowBlock::of(&x[first * columns..][..count * columns], columns);
                    let target = rows_mut(&mut y, 21);
                    gemm(target, WriteMode::Overwrite, 1.0, x, (&w, 0));
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
