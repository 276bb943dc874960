//! Attention of single queries to a cache: keys and values are read where they lie, once for all heads of a group.
//!
//! Blocks of queries pay for laying keys out anew; a query that is alone with its keys, as in decoding, does not.

use std::ops::Range;

use rayon::prelude::*;

use super::weighted_sums::WeightedSums;
use super::{Attention, Heads};
use crate::ndarray::few_rows::{Output, Rows, Term, Weights};
use crate::ndarray::gemm::{Old, SMALL, columns_of};
use crate::ndarray::matrix::written;
use crate::ndarray::vector::{exp, max, total, update, vectorized};

/// Consecutive queries of one sequence, on average, from which on blocks are faster.
const BLOCKS_FROM: usize = 16;

impl<'a> Attention<'a> {
    /// Whether most queries are alone with their keys.
    pub(super) fn is_direct(&self) -> bool {
        let ranges = &self.mask.ranges;
        let follows = |pair: &&[[usize; 4]]| pair[1][3] == pair[0][3] + 1;
        let following = ranges.windows(2).filter(follows).count();
        let sequences = ranges.len() - following;
        let chosen = !self.mask.hidden.is_empty() || !self.mask.queries.is_empty();
        !chosen && ranges.len() < BLOCKS_FROM * sequences
    }

    /// As [`Attention::forward`], query by query.
    pub(super) fn forward_direct(&self) -> (Vec<f32>, Vec<f32>) {
        let (heads, kv_heads) = (self.config.heads, self.config.kv_heads);
        let (queries, group, head_dim) =
            (self.mask.ranges.len(), self.group(), self.config.head_dim);
        let [mut output, mut lse] =
            [head_dim, 1].map(|width| written(queries * heads * width, |_| ()));
        let seen = |range: &[usize; 4]| range[1] - range[0] + range[3] - range[2];
        let work: usize = self.mask.ranges.iter().map(seen).sum();
        let one = |(index, (output, lse)): (usize, (&mut [f32], &mut [f32]))| {
            self.query_forward(index / kv_heads, index % kv_heads, output, lse);
        };
        let (of_output, of_lse) = (group * head_dim, group);
        match work * heads * head_dim < SMALL {
            true => {
                output.chunks_mut(of_output).zip(lse.chunks_mut(of_lse)).enumerate().for_each(one)
            }
            false => output
                .par_chunks_mut(of_output)
                .zip(lse.par_chunks_mut(of_lse))
                .enumerate()
                .for_each(one),
        }
        (output, lse)
    }

    /// The rows in `range` of one head.
    fn rows_of(&self, heads: &Heads<'a>, range: &Range<usize>, head: usize) -> Rows<'a> {
        let head_dim = self.config.head_dim;
        let start = range.start * heads.stride + heads.column + head * head_dim;
        Rows {
            values: heads.values.get(start..).unwrap_or_default(),
            count: range.len(),
            columns: head_dim,
            stride: heads.stride,
        }
    }

    /// Output `[group, Dh]` and log-sum-exp `[group]` of one query's heads on one key head.
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
        let x = Rows::of(&heads.values[start..][..group * head_dim], head_dim);
        let mut column = 0;
        let mut scores = written(group * keys, |_| ());
        for range in &ranges {
            let w = self.rows_of(&self.inputs.key, range, kv_head);
            let factor = self.config.scale as f32;
            Output {
                target: columns_of(&mut scores, keys, column, range.len()),
                old: Old::Replace,
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
                        *total = weights(scores);
                    }
                }
            },
        );
        output.fill(0.0);
        let mut column = 0;
        for range in &ranges {
            pulp::Arch::new().dispatch(WeightedSums {
                output: &mut *output,
                weights: Rows {
                    values: &scores[column..],
                    count: group,
                    columns: range.len(),
                    stride: keys,
                },
                values: self.rows_of(&self.inputs.value, range, kv_head),
            });
            column += range.len();
        }
    }
}

/// Turns scores into their softmax; returns their log-sum-exp.
#[inline(always)]
fn weights(scores: &mut [f32]) -> f32 {
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
