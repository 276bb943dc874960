//! Attention of single queries to a cache: keys and values are read in place, once for all heads of
//! a group.
//!
//! Blocks of queries have to transpose the keys; a query that shares its keys with no other, as in
//! decoding, avoids that.

use std::ops::Range;

use rayon::prelude::*;

use super::weighted_sums::WeightedSums;
use super::{Attention, Heads};
use crate::ndarray::few_rows::{Output, RowBlock, Term, Weights};
use crate::ndarray::gemm::{MIN_PARALLEL_WORK, WriteMode, columns_mut};
use crate::ndarray::matrix::filled;
use crate::ndarray::tile::Rows;
use crate::ndarray::vector::{exp, max, total, update, vectorized};

/// Mean number of consecutive queries per sequence from which blocks are faster.
const MIN_BLOCK_QUERIES: usize = 16;

impl<'a> Attention<'a> {
    /// Returns whether most queries share their keys with no other query.
    pub(super) fn is_direct(&self) -> bool {
        let ranges = &self.mask.ranges;
        let follows = |pair: &&[[usize; 4]]| pair[1][3] == pair[0][3] + 1;
        let continuations = ranges.windows(2).filter(follows).count();
        let sequences = ranges.len() - continuations;
        let chosen = !self.mask.hidden.is_empty() || !self.mask.queries.is_empty();
        !chosen && ranges.len() < MIN_BLOCK_QUERIES * sequences
    }

    /// Computes the same as [`Attention::forward`], query by query.
    pub(super) fn forward_direct(&self) -> (Vec<f32>, Vec<f32>) {
        let (heads, kv_heads) = (self.config.heads, self.config.kv_heads);
        let (queries, group, head_dim) =
            (self.mask.ranges.len(), self.group(), self.config.head_dim);
        let [mut output, mut lse] =
            [head_dim, 1].map(|width| filled(queries * heads * width, |_| ()));
        let visible_keys = |range: &[usize; 4]| range[1] - range[0] + range[3] - range[2];
        let work: usize = self.mask.ranges.iter().map(visible_keys).sum();
        let forward = |(index, (output, lse)): (usize, (&mut [f32], &mut [f32]))| {
            self.query_forward(index / kv_heads, index % kv_heads, output, lse);
        };
        let (output_width, lse_width) = (group * head_dim, group);
        if work * heads * head_dim < MIN_PARALLEL_WORK {
            output
                .chunks_mut(output_width)
                .zip(lse.chunks_mut(lse_width))
                .enumerate()
                .for_each(forward)
        } else {
            output
                .par_chunks_mut(output_width)
                .zip(lse.par_chunks_mut(lse_width))
                .enumerate()
                .for_each(forward)
        }
        (output, lse)
    }

    /// Returns the rows in `range` of one head.
    fn head_rows(&self, heads: &Heads<'a>, range: &Range<usize>, head: usize) -> RowBlock<'a> {
        let head_dim = self.config.head_dim;
        let rows = heads.rows(head, head_dim, range.start);
        RowBlock { rows, count: range.len(), columns: head_dim }
    }

    /// Computes the output `[group, Dh]` and log-sum-exp `[group]` of one query for the query heads
    /// that share one key-value head.
    fn query_forward(&self, query: usize, kv_head: usize, output: &mut [f32], lse: &mut [f32]) {
        let (head_dim, group) = (self.config.head_dim, self.group());
        let [a, b, c, d] = self.mask.ranges[query];
        let ranges = [a..b, c..d];
        let keys = ranges[0].len() + ranges[1].len();
        if keys == 0 {
            output.fill(0.0);
            return lse.fill(0.0);
        }
        let heads = &self.inputs.query;
        let start = query * heads.stride + heads.column + kv_head * group * head_dim;
        let x = RowBlock::of(&heads.values[start..][..group * head_dim], head_dim);
        let mut column = 0;
        let mut scores = filled(group * keys, |_| ());
        for range in &ranges {
            let w = self.head_rows(&self.inputs.key, range, kv_head);
            let factor = self.config.scale as f32;
            Output {
                target: columns_mut(&mut scores, keys, column, range.len()),
                mode: WriteMode::Overwrite,
                terms: vec![Term { factor, x, w: Weights::Floats(w) }],
            }
            .compute();
            column += range.len();
        }
        vectorized(
            #[inline(always)]
            || {
                let mut totals = lse.iter_mut();
                for scores in scores.chunks_exact_mut(keys) {
                    if let Some(total) = totals.next() {
                        *total = softmax(scores);
                    }
                }
            },
        );
        output.fill(0.0);
        let mut column = 0;
        for range in &ranges {
            pulp::Arch::new().dispatch(WeightedSums {
                output: &mut *output,
                weights: RowBlock {
                    rows: Rows::all(&scores, keys).from(0, column),
                    count: group,
                    columns: range.len(),
                },
                values: self.head_rows(&self.inputs.value, range, kv_head),
            });
            column += range.len();
        }
    }
}

/// Replaces scores by their softmax; returns their log-sum-exp.
#[inline(always)]
fn softmax(scores: &mut [f32]) -> f32 {
    let max = max(scores);
    update(
        scores,
        #[inline(always)]
        |score| exp(score - max),
    );
    let total = total(scores);
    let inverse = 1.0 / total;
    for score in scores.iter_mut() {
        *score *= inverse;
    }
    total.ln() + max
}
