//! Attention on slices, forward and backward, in blocks of queries, so that only one block's scores
//! are in memory.
//!
//! Queries are divided into spans that share no keys (the pairs of a packed row, the rows of a
//! cache). Spans, and the key-value heads within a span, are distributed over the threads. A span
//! is processed in blocks of queries: the scores of the block and every key it attends to, softmax,
//! GEMM with the values.

mod backward;
mod blocks;
mod direct;
mod weighted_sums;

use std::ops::Range;

use rayon::prelude::*;

use self::blocks::{Span, VisibleKeys, blocks, padded_columns, spans};
use super::gemm::WriteMode;
use super::matrix::{filled, split};
use super::tile::{Operand, Rows, small_gemm};
use super::transpose::transpose;
use super::vector::{exp, max, total, update, vectorized};
use crate::AttentionConfig;
use crate::ops::attention::CPU_BLOCK as BLOCK;

/// An attention mask on the host.
pub(super) struct HostMask {
    /// The two ranges of keys that each query attends to.
    pub(super) ranges: Vec<[usize; 4]>,
    /// Whether each key is hidden from all queries; empty if none is.
    pub(super) hidden: Vec<bool>,
    /// The token of each query; empty if query `i` is token `i`.
    pub(super) queries: Vec<usize>,
}

/// Consecutive columns of attention heads within the rows of a slice.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    /// The rows.
    pub(super) values: &'a [f32],
    /// Length of a row.
    pub(super) stride: usize,
    /// The first column of head 0.
    pub(super) column: usize,
}

impl<'a> Heads<'a> {
    /// Returns the rows of head `head` from row `first`.
    fn rows(&self, head: usize, head_dim: usize, first: usize) -> Rows<'a> {
        Rows::all(self.values, self.stride).from(first, self.column + head * head_dim)
    }
}

/// The transposed keys or values of a span for one head, `[Dh, keys]`: copied once and read for
/// every block of queries.
struct Transposed {
    values: Vec<f32>,
    /// The first key.
    first: usize,
    /// Length of a row: the keys, and zeros beyond them that the last vector may read.
    stride: usize,
}

impl Transposed {
    /// Copies and transposes the rows `keys` of a head.
    fn of(heads: &Heads<'_>, head: usize, head_dim: usize, keys: &Range<usize>) -> Self {
        let stride = padded_columns(keys) + padded_columns(&(0..1));
        let values = filled(head_dim * stride, |values| {
            let rows = heads.rows(head, head_dim, keys.start);
            transpose(rows, [keys.len(), head_dim], 1.0, values, stride);
            for row in values.chunks_exact_mut(stride) {
                row[keys.len()..].fill(0.0);
            }
        });
        Self { values, first: keys.start, stride }
    }

    /// Returns the columns from key `key`.
    fn from(&self, key: usize) -> Rows<'_> {
        Rows::all(&self.values, self.stride).from(0, key - self.first)
    }
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    /// `H` heads, one row per query, or one row per token if the mask selects queries.
    pub(super) query: Heads<'a>,
    /// `H_kv` heads, one row per key.
    pub(super) key: Heads<'a>,
    /// `H_kv` heads, one row per key.
    pub(super) value: Heads<'a>,
}

/// Workspace of a span and a key-value head: a block's scores, their gradient, and the block's
/// queries.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    query: Vec<f32>,
}

/// The arguments of an attention call.
pub(super) struct Attention<'a> {
    pub(super) inputs: Inputs<'a>,
    pub(super) mask: &'a HostMask,
    pub(super) config: &'a AttentionConfig,
}

impl Attention<'_> {
    /// Returns the number of query heads per key-value head.
    fn group(&self) -> usize {
        self.config.heads / self.config.kv_heads
    }

    /// Returns the output `[Q, H * Dh]` and the log-sum-exp `[Q, H]`.
    pub(super) fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        if self.is_direct() {
            return self.forward_direct();
        }
        let AttentionConfig { heads, head_dim, .. } = *self.config;
        let (queries, width) = (self.mask.ranges.len(), heads * head_dim);
        // Every query is in a span, and every span writes all of its rows.
        let [mut output, mut lse] = [width, heads].map(|width| filled(queries * width, |_| ()));
        let spans = spans(&self.mask.ranges);
        let lengths: Vec<usize> = spans.iter().map(|span| span.queries.len()).collect();
        let parts = spans
            .par_iter()
            .zip(split(&mut output, &lengths, width))
            .zip(split(&mut lse, &lengths, heads));
        parts.for_each(|((span, output), lse)| {
            let head_results = |kv_head| self.span_forward(span, kv_head);
            let by_head: Vec<_> =
                (0..self.config.kv_heads).into_par_iter().map(head_results).collect();
            let columns = self.group() * head_dim;
            for (kv_head, (head_output, head_lse)) in by_head.iter().enumerate() {
                scatter(output, width, kv_head * columns, head_output, columns);
                scatter(lse, heads, kv_head * self.group(), head_lse, self.group());
            }
        });
        (output, lse)
    }

    /// Returns the output `[queries of the span, group * Dh]` and log-sum-exp `[queries, group]` of
    /// the query heads that share one key-value head.
    fn span_forward(&self, span: &Span, kv_head: usize) -> (Vec<f32>, Vec<f32>) {
        let (head_dim, group, scale) =
            (self.config.head_dim, self.group(), self.config.scale as f32);
        let (count, width) = (span.queries.len(), group * head_dim);
        let (mut output, mut lse) = (vec![0f32; count * width], vec![0f32; count * group]);
        let mut scratch = Scratch::default();
        let keys_t = Transposed::of(&self.inputs.key, kv_head, head_dim, &span.keys);
        for block in blocks(&self.mask.ranges, span.queries.clone()) {
            let visible = VisibleKeys::of(&self.mask.ranges[block.clone()]);
            let (first, shape) = (block.start - span.queries.start, [block.len(), head_dim]);
            for head in 0..group {
                let query = self.block_queries(&mut scratch.query, kv_head * group + head, &block);
                visible_scores(&mut scratch.scores, scale, (query, shape), &keys_t, &visible);
                let rows = scratch.scores.chunks_exact_mut(visible.width().max(1));
                let mut totals = [1f32; BLOCK];
                vectorized(
                    #[inline(always)]
                    || {
                        for (index, scores) in rows.enumerate().take(block.len()) {
                            let lse_index = (first + index) * group + head;
                            (totals[index], lse[lse_index]) =
                                self.softmax(scores, block.start + index, &visible);
                        }
                    },
                );
                let output = &mut output[first * width..][..block.len() * width];
                let mut mode = WriteMode::Overwrite;
                for (column, keys) in visible.columns_and_keys() {
                    let weights = scores_from(&scratch.scores, column, &visible);
                    let values = self.inputs.value.rows(kv_head, head_dim, keys.start);
                    small_gemm(
                        (&mut output[head * head_dim..], width),
                        [block.len(), keys.len(), head_dim],
                        mode,
                        1.0,
                        Operand::RowMajor(weights),
                        values,
                    );
                    mode = WriteMode::Add;
                }
                // Normalized here, where there are fewer values to divide than weights.
                for (row, total) in output.chunks_exact_mut(width).zip(totals) {
                    let inverse = 1.0 / total;
                    for value in &mut row[head * head_dim..][..head_dim] {
                        *value *= inverse;
                    }
                }
            }
        }
        (output, lse)
    }

    /// Returns the block's rows of query head `head`, `[block, Dh]`.
    fn block_queries<'s>(
        &'s self,
        copy: &'s mut Vec<f32>,
        head: usize,
        block: &Range<usize>,
    ) -> Rows<'s> {
        let (query, head_dim) = (&self.inputs.query, self.config.head_dim);
        if self.mask.queries.is_empty() {
            return query.rows(head, head_dim, block.start);
        }
        copy.clear();
        for &token in &self.mask.queries[block.clone()] {
            let start = token * query.stride + query.column + head * head_dim;
            copy.extend_from_slice(&query.values[start..][..head_dim]);
        }
        Rows { values: copy, stride: head_dim }
    }

    /// Returns the columns of a block's scores that a query attends to.
    #[inline(always)]
    fn columns(&self, query: usize, visible: &VisibleKeys) -> [Range<usize>; 2] {
        let [a, b, c, d] = self.mask.ranges[query];
        [visible.columns(a..b), visible.columns(c..d)]
    }

    /// Turns one row of scores into weights `exp(score - max)`, 0 for masked keys; returns their
    /// sum and the row's log-sum-exp.
    ///
    /// Rows are whole vectors, so masked scores are computed with the rest and then cleared:
    /// processing a remainder value by value takes longer than all vectors. Sums start at the
    /// query's first key, so that they do not depend on the block.
    #[inline(always)]
    fn softmax(&self, scores: &mut [f32], query: usize, visible: &VisibleKeys) -> (f32, f32) {
        let columns = self.columns(query, visible);
        self.fill_masked(scores, &columns, visible, f32::NEG_INFINITY);
        let max = max(scores);
        if max == f32::NEG_INFINITY {
            return self.softmax_of_masked_row(scores, &columns, visible);
        }
        update(
            scores,
            #[inline(always)]
            |score| exp(score - max),
        );
        self.fill_masked(scores, &columns, visible, 0.0);
        let [first, second] = columns;
        let total = total(&scores[first]) + total(&scores[second]);
        (total, total.ln() + max)
    }

    /// Computes [`softmax`](Self::softmax) of scores that are all negative infinity or NaN: the
    /// weights of a query that attends to no key are 0, those of any other are NaN.
    #[cold]
    #[inline(never)]
    fn softmax_of_masked_row(
        &self,
        scores: &mut [f32],
        columns: &[Range<usize>; 2],
        visible: &VisibleKeys,
    ) -> (f32, f32) {
        let hidden = &self.mask.hidden;
        let mut visible_columns = visible.columns_and_keys().flat_map(|(first, keys)| {
            (first..).zip(keys).filter(|(column, key)| {
                columns.iter().any(|columns| columns.contains(column))
                    && !hidden.get(*key).copied().unwrap_or(false)
            })
        });
        let sees_nothing = visible_columns.next().is_none();
        scores.fill(0.0);
        if sees_nothing {
            return (1.0, 0.0);
        }
        for columns in columns {
            scores[columns.clone()].fill(f32::NAN);
        }
        (f32::NAN, f32::NAN)
    }

    /// Sets the scores of masked keys to `value`; the query attends to `columns`.
    #[inline(always)]
    fn fill_masked(
        &self,
        scores: &mut [f32],
        columns: &[Range<usize>; 2],
        visible: &VisibleKeys,
        value: f32,
    ) {
        fill_outside(scores, columns, value);
        self.fill_hidden(scores, visible, value);
    }

    /// Sets the scores of hidden keys to `value`.
    #[inline(always)]
    fn fill_hidden(&self, scores: &mut [f32], visible: &VisibleKeys, value: f32) {
        if self.mask.hidden.is_empty() {
            return;
        }
        for (column, keys) in visible.columns_and_keys() {
            let scores = &mut scores[column..][..keys.len()];
            for (score, hidden) in scores.iter_mut().zip(&self.mask.hidden[keys]) {
                if *hidden {
                    *score = value;
                }
            }
        }
    }
}

/// Computes `factor * rows key^T` for every key (or value) that a block attends to, `[block,
/// visible.width()]`, at the start of `scores`; padding columns of a range are undefined. `rows` is
/// passed with its shape.
fn visible_scores(
    scores: &mut Vec<f32>,
    factor: f32,
    (rows, [count, head_dim]): (Rows<'_>, [usize; 2]),
    keys_t: &Transposed,
    visible: &VisibleKeys,
) {
    let stride = visible.width();
    if scores.len() < BLOCK * stride {
        scores.resize(BLOCK * stride, 0.0);
    }
    for (column, keys) in visible.columns_and_keys() {
        small_gemm(
            (&mut scores[column..], stride),
            [count, head_dim, padded_columns(&keys)],
            WriteMode::Overwrite,
            factor,
            Operand::RowMajor(rows),
            keys_t.from(keys.start),
        );
    }
}

/// Returns a block's scores from `column`.
fn scores_from<'s>(scores: &'s [f32], column: usize, visible: &VisibleKeys) -> Rows<'s> {
    Rows { values: &scores[column..], stride: visible.width() }
}

/// A block of queries and a query head.
struct BlockHead<'a> {
    block: &'a Range<usize>,
    head: usize,
    visible: &'a VisibleKeys,
}

/// Sets the values outside two ranges to `value`. The ranges do not overlap, and either may be
/// empty.
#[inline(always)]
fn fill_outside(values: &mut [f32], [a, b]: &[Range<usize>; 2], value: f32) {
    let (a, b) = if a.is_empty() || (!b.is_empty() && b.start < a.start) { (b, a) } else { (a, b) };
    let b = if b.is_empty() { &(a.end..a.end) } else { b };
    values[..a.start].fill(value);
    values[a.end..b.start].fill(value);
    values[b.end..].fill(value);
}

/// Copies rows of `columns` values to `column` of rows of length `stride`.
fn scatter(rows: &mut [f32], stride: usize, column: usize, values: &[f32], columns: usize) {
    let rows = rows.chunks_mut(stride);
    for (row, values) in rows.zip(values.chunks_exact(columns.max(1))) {
        row[column..column + columns].copy_from_slice(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory plans ask [`AttentionConfig`] for the workspace; here it is compared with the buffers of a span.
    #[test]
    fn the_declared_workspace_holds_the_buffers() {
        for (heads, kv_heads, head_dim, count) in
            [(4, 2, 64, 1000), (6, 3, 40, 517), (2, 2, 96, 33)]
        {
            let config = AttentionConfig { heads, kv_heads, head_dim, scale: 1.0 };
            let values = vec![0f32; count * config.qkv_width()];
            let side = |column| Heads { values: &values, stride: config.qkv_width(), column };
            let (query, key, value) =
                (side(0), side(heads * head_dim), side((heads + kv_heads) * head_dim));
            let ranges =
                (0..count).map(|token| [0, count / 3, count / 3, token.max(count / 3) + 1]);
            let mask =
                HostMask { ranges: ranges.collect(), hidden: Vec::new(), queries: Vec::new() };
            let inputs = Inputs { query, key, value };
            let attention = Attention { inputs, mask: &mask, config: &config };
            let span = &spans(&mask.ranges)[0];
            assert_eq!((span.queries.len(), span.keys.len()), (count, count));

            let transposed = Transposed::of(&inputs.key, 0, head_dim, &span.keys).values.len();
            let scores = BLOCK * VisibleKeys::of(&mask.ranges).width();
            let declared = config.cpu_workspace(count, count);
            let thread = 4 * (transposed + scores);
            assert!(
                (thread..thread + thread / 2).contains(&declared.thread),
                "{thread} {declared:?}"
            );
            let (output, lse) = attention.forward();
            assert_eq!(declared.span, 4 * (output.len() + lse.len()));

            let declared = config.cpu_backward_workspace(count);
            assert!((2 * thread..3 * thread).contains(&declared.thread), "{thread} {declared:?}");
            let grads = (0..kv_heads)
                .map(|head| attention.span_backward(span, head, &output, &lse, &output));
            let bytes = grads.flatten().map(|grad| 4 * grad.len());
            assert_eq!(declared.span, bytes.sum::<usize>());
        }
    }
}
