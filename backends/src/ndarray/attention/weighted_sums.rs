//! Weighted sums of rows for several heads at once: the last step of attention for a single query.

#![allow(
    clippy::needless_range_loop,
    reason = "plain loops: closures would not be inlined and would be compiled for narrow vectors"
)]

use pulp::{Simd, WithSimd};

use crate::ndarray::few_rows::RowBlock;

/// Number of heads, and of vectors along their columns, whose sums stay in registers.
const HEADS: usize = 4;
const VECTORS: usize = 4;

/// Adds the matmul of `weights` `[heads, keys]` and `values` `[keys, Dh]` to `output` `[heads,
/// Dh]`.
pub(super) struct WeightedSums<'a> {
    pub(super) output: &'a mut [f32],
    pub(super) weights: RowBlock<'a>,
    pub(super) values: RowBlock<'a>,
}

impl WithSimd for WeightedSums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for head in (0..self.weights.count).step_by(HEADS) {
            match self.weights.count - head {
                1 => self.heads::<S, 1>(simd, head),
                2 => self.heads::<S, 2>(simd, head),
                3 => self.heads::<S, 3>(simd, head),
                _ => self.heads::<S, HEADS>(simd, head),
            }
        }
    }
}

impl WeightedSums<'_> {
    /// Computes all columns of `H` heads.
    #[inline(always)]
    fn heads<S: Simd, const H: usize>(&mut self, simd: S, head: usize) {
        let (width, lanes, mut column) = (self.values.columns, S::F32_LANES, 0);
        while column + VECTORS * lanes <= width {
            self.columns::<S, H, VECTORS>(simd, head, column);
            column += VECTORS * lanes;
        }
        while column + lanes <= width {
            self.columns::<S, H, 1>(simd, head, column);
            column += lanes;
        }
        for column in column..width {
            for head in head..head + H {
                let sum = &mut self.output[head * width + column];
                for (key, weight) in self.weights.row(head).iter().enumerate() {
                    *sum += weight * self.values.row(key)[column];
                }
            }
        }
    }

    /// Computes `V` vectors from `column` for `H` heads.
    #[inline(always)]
    fn columns<S: Simd, const H: usize, const V: usize>(
        &mut self,
        simd: S,
        head: usize,
        column: usize,
    ) {
        let (width, count) = (self.values.columns, V * S::F32_LANES);
        let (mut sums, mut weights) = ([[simd.splat_f32s(0.0); V]; H], [&[][..]; H]);
        for h in 0..H {
            weights[h] = self.weights.row(head + h);
            let initial = &self.output[(head + h) * width + column..][..count];
            sums[h].copy_from_slice(S::as_simd_f32s(initial).0);
        }
        for key in 0..self.values.count {
            let value = &self.values.row(key)[column..][..count];
            let value = S::as_simd_f32s(value).0;
            for h in 0..H {
                let weight = simd.splat_f32s(weights[h][key]);
                for v in 0..V {
                    sums[h][v] = simd.mul_add_e_f32s(weight, value[v], sums[h][v]);
                }
            }
        }
        for h in 0..H {
            let target = &mut self.output[(head + h) * width + column..][..count];
            S::as_mut_simd_f32s(target).0.copy_from_slice(&sums[h]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ndarray::matrix::small_integers;
    use crate::ndarray::tile::Rows;

    /// Covers every remainder of heads, vectors and lanes, and rows with gaps; the result is added
    /// to the output.
    #[test]
    fn sums_equal_a_naive_loop() {
        for (heads, keys, width) in [(1, 1, 1), (2, 5, 16), (3, 4, 24), (4, 7, 64), (7, 9, 101)] {
            let (weights_stride, stride) = (keys + 3, width + 5);
            let (weights, values) =
                (small_integers(heads * weights_stride, 7), small_integers(keys * stride, 5));
            let before = small_integers(heads * width, 11);
            let mut output = before.clone();
            pulp::Arch::new().dispatch(WeightedSums {
                output: &mut output,
                weights: RowBlock {
                    rows: Rows::all(&weights, weights_stride),
                    count: heads,
                    columns: keys,
                },
                values: RowBlock { rows: Rows::all(&values, stride), count: keys, columns: width },
            });
            for head in 0..heads {
                for column in 0..width {
                    let term =
                        |key| weights[head * weights_stride + key] * values[key * stride + column];
                    let at = head * width + column;
                    let expected = before[at] + (0..keys).map(term).sum::<f32>();
                    assert_eq!(output[at], expected, "{heads} {keys} {width} {head} {column}");
                }
            }
        }
    }
}
