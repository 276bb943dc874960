//! Attention on slices, forward and backward, without ever holding scores of more than a block of queries.
//!
//! Queries are cut into spans that share no keys (the pairs of a packed row, the rows of a cache); spans and, within one,
//! key heads are shared among the threads. A span is worked off in blocks of queries: scores of the block to every key
//! it sees, softmax, product with the values.

mod blocks;
mod direct;
mod weighted_sums;

use std::ops::Range;

use rayon::prelude::*;

use self::blocks::{BLOCK, Seen, Span, blocks, columns_of, spans};
use super::exchange::exchange;
use super::gemm::Old;
use super::matrix::{split, written};
use super::tile::{Operand, Rows, small_product};
use super::vector::{exp, max, sum2, total, update, update2, vectorized};
use crate::AttentionConfig;

/// Who sees whom, on the host.
pub(super) struct HostMask {
    /// The two ranges of keys each query sees.
    pub(super) ranges: Vec<[usize; 4]>,
    /// Per key: whether nobody sees it; empty: there is none such.
    pub(super) hidden: Vec<bool>,
    /// The token each query is; empty: query `i` is token `i`.
    pub(super) queries: Vec<usize>,
}

/// Columns of one head after another, somewhere in the rows of a slice.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    /// The rows.
    pub(super) values: &'a [f32],
    /// Length of a row.
    pub(super) stride: usize,
    /// Where head 0 begins.
    pub(super) column: usize,
}

impl<'a> Heads<'a> {
    /// The rows of head `head` from row `first` on.
    fn rows(&self, head: usize, head_dim: usize, first: usize) -> Rows<'a> {
        Rows::all(self.values, self.stride).from(first, self.column + head * head_dim)
    }
}

/// A span's keys, or values, of one head with rows and columns exchanged, `[Dh, keys]`: copied once, read for every
/// block of queries.
struct Transposed {
    values: Vec<f32>,
    /// The first key.
    first: usize,
    /// Length of a row: the keys, and zeros that a last vector may read beyond them.
    stride: usize,
}

impl Transposed {
    fn of(heads: &Heads<'_>, head: usize, head_dim: usize, keys: &Range<usize>) -> Self {
        let stride = columns_of(keys) + columns_of(&(0..1));
        let values = written(head_dim * stride, |values| {
            let rows = heads.rows(head, head_dim, keys.start);
            exchange(rows, [keys.len(), head_dim], 1.0, values, stride);
            for row in values.chunks_exact_mut(stride) {
                row[keys.len()..].fill(0.0);
            }
        });
        Self { values, first: keys.start, stride }
    }

    /// The columns from key `key` on.
    fn from(&self, key: usize) -> Rows<'_> {
        Rows::all(&self.values, self.stride).from(0, key - self.first)
    }
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    /// `H` heads; by query, unless the mask chooses tokens: then by token.
    pub(super) query: Heads<'a>,
    /// `H_kv` heads, by key.
    pub(super) key: Heads<'a>,
    /// `H_kv` heads, by key.
    pub(super) value: Heads<'a>,
}

/// What a span and a key head compute in: scores of a block and their gradient, and the block's own queries.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    query: Vec<f32>,
}

/// Everything about one call.
pub(super) struct Attention<'a> {
    pub(super) inputs: Inputs<'a>,
    pub(super) mask: &'a HostMask,
    pub(super) config: &'a AttentionConfig,
}

impl Attention<'_> {
    fn group(&self) -> usize {
        self.config.heads / self.config.kv_heads
    }

    /// Output `[Q, H * Dh]` and log-sum-exp `[Q, H]`.
    pub(super) fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        if self.is_direct() {
            return self.forward_direct();
        }
        let AttentionConfig { heads, head_dim, .. } = *self.config;
        let (queries, width) = (self.mask.ranges.len(), heads * head_dim);
        // Every query is in a span, and every span writes all of its rows.
        let [mut output, mut lse] = [width, heads].map(|width| written(queries * width, |_| ()));
        let spans = spans(&self.mask.ranges);
        let lengths: Vec<usize> = spans.iter().map(|span| span.queries.len()).collect();
        let parts = spans
            .par_iter()
            .zip(split(&mut output, &lengths, width))
            .zip(split(&mut lse, &lengths, heads));
        parts.for_each(|((span, output), lse)| {
            let heads_of = |kv_head| self.span_forward(span, kv_head);
            let by_head: Vec<_> = (0..self.config.kv_heads).into_par_iter().map(heads_of).collect();
            let columns = self.group() * head_dim;
            for (kv_head, (of_output, of_lse)) in by_head.iter().enumerate() {
                scatter(output, width, kv_head * columns, of_output, columns);
                scatter(lse, heads, kv_head * self.group(), of_lse, self.group());
            }
        });
        (output, lse)
    }

    /// Output `[queries of the span, group * Dh]` and log-sum-exp `[queries, group]` of the heads on one key head.
    fn span_forward(&self, span: &Span, kv_head: usize) -> (Vec<f32>, Vec<f32>) {
        let (head_dim, group, scale) =
            (self.config.head_dim, self.group(), self.config.scale as f32);
        let (count, width) = (span.queries.len(), group * head_dim);
        let (mut output, mut lse) = (vec![0f32; count * width], vec![0f32; count * group]);
        let mut scratch = Scratch::default();
        let keys_t = Transposed::of(&self.inputs.key, kv_head, head_dim, &span.keys);
        for block in blocks(&self.mask.ranges, span.queries.clone()) {
            let seen = Seen::of(&self.mask.ranges[block.clone()]);
            let (first, shape) = (block.start - span.queries.start, [block.len(), head_dim]);
            for head in 0..group {
                let query = self.block_queries(&mut scratch.query, kv_head * group + head, &block);
                times_seen(&mut scratch.scores, scale, (query, shape), &keys_t, &seen);
                let rows = scratch.scores.chunks_exact_mut(seen.width().max(1));
                let mut totals = [1f32; BLOCK];
                vectorized(
                    #[inline(always)]
                    || {
                        for (index, scores) in rows.enumerate().take(block.len()) {
                            let place = (first + index) * group + head;
                            (totals[index], lse[place]) =
                                self.softmax(scores, block.start + index, &seen);
                        }
                    },
                );
                let output = &mut output[first * width..][..block.len() * width];
                let mut old = Old::Replace;
                for (column, keys) in seen.placed() {
                    let weights = scores_from(&scratch.scores, column, &seen);
                    let values = self.inputs.value.rows(kv_head, head_dim, keys.start);
                    small_product(
                        (&mut output[head * head_dim..], width),
                        [block.len(), keys.len(), head_dim],
                        old,
                        1.0,
                        Operand::AsItIs(weights),
                        values,
                    );
                    old = Old::Add;
                }
                // Weights become probabilities here, where there are fewer numbers to divide.
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

    /// The block's rows of query head `head`, `[block, Dh]`.
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

    /// The columns a query sees, of a block's scores.
    #[inline(always)]
    fn columns(&self, query: usize, seen: &Seen) -> [Range<usize>; 2] {
        let [a, b, c, d] = self.mask.ranges[query];
        [seen.columns(a..b), seen.columns(c..d)]
    }

    /// Turns one row of scores into weights `exp(score - max)`, 0 where the query does not see; returns their sum and the
    /// row's log-sum-exp.
    ///
    /// Rows are whole vectors, so what the query does not see is computed with the rest and cleared: a remainder, value by
    /// value, takes longer than all vectors. Sums begin where the query's keys do, so that they do not depend on the block.
    #[inline(always)]
    fn softmax(&self, scores: &mut [f32], query: usize, seen: &Seen) -> (f32, f32) {
        let columns = self.columns(query, seen);
        self.outside(scores, &columns, seen, f32::NEG_INFINITY);
        let max = max(scores);
        if max == f32::NEG_INFINITY {
            scores.fill(0.0);
            return (1.0, 0.0);
        }
        update(
            scores,
            #[inline(always)]
            |score| exp(score - max),
        );
        self.outside(scores, &columns, seen, 0.0);
        let [first, second] = columns;
        let total = total(&scores[first]) + total(&scores[second]);
        (total, total.ln() + max)
    }

    /// Sets the scores of keys that a query with these columns does not see.
    #[inline(always)]
    fn outside(&self, scores: &mut [f32], columns: &[Range<usize>; 2], seen: &Seen, value: f32) {
        fill_outside(scores, columns, value);
        self.hide(scores, seen, value);
    }

    /// Sets the scores of hidden keys.
    #[inline(always)]
    fn hide(&self, scores: &mut [f32], seen: &Seen, value: f32) {
        if self.mask.hidden.is_empty() {
            return;
        }
        for (column, keys) in seen.placed() {
            let scores = &mut scores[column..][..keys.len()];
            for (score, hidden) in scores.iter_mut().zip(&self.mask.hidden[keys]) {
                if *hidden {
                    *score = value;
                }
            }
        }
    }

    /// Gradient of queries, keys and values side by side, `[T, (H + 2 H_kv) * Dh]`, for a sequence attending to itself.
    pub(super) fn backward(
        &self,
        output: &[f32],
        lse: &[f32],
        grad: &[f32],
        tokens: usize,
    ) -> Vec<f32> {
        let config = self.config;
        let (columns, head_dim) = (config.packed_width(), config.head_dim);
        let (of_queries, of_keys) = (self.group() * head_dim, config.heads * head_dim);
        let mut d_qkv = written(tokens * columns, |_| ());
        let spans = spans(&self.mask.ranges);
        // Rows from the end of one span's keys to the end of the next's; what lies between belongs to nobody.
        let ends = spans.iter().map(|span| span.keys.end);
        let lengths: Vec<usize> = ends
            .scan(0, |start, end| {
                let length = end.saturating_sub(*start);
                *start = end.max(*start);
                Some(length)
            })
            .collect();
        let in_spans = lengths.iter().sum::<usize>() * columns;
        d_qkv[in_spans..].fill(0.0);
        let parts = spans.par_iter().zip(split(&mut d_qkv, &lengths, columns));
        parts.for_each(|(span, rows)| {
            rows.fill(0.0);
            let by_head: Vec<_> = (0..config.kv_heads)
                .into_par_iter()
                .map(|kv_head| self.span_backward(span, kv_head, output, lse, grad))
                .collect();
            let first = span.keys.end - rows.len() / columns;
            let at = |token: usize| (token - first) * columns;
            for (kv_head, [d_query, d_key, d_value]) in by_head.iter().enumerate() {
                for (query, d) in span.queries.clone().zip(d_query.chunks_exact(of_queries)) {
                    let token = self.mask.queries.get(query).copied().unwrap_or(query);
                    if (first..span.keys.end).contains(&token) {
                        rows[at(token) + kv_head * of_queries..][..of_queries].copy_from_slice(d);
                    }
                }
                let rows = &mut rows[at(span.keys.start)..];
                let column = of_keys + kv_head * head_dim;
                scatter(rows, columns, column, d_key, head_dim);
                let column = column + config.kv_heads * head_dim;
                scatter(rows, columns, column, d_value, head_dim);
            }
        });
        d_qkv
    }

    /// Gradients of the span's queries `[queries, group * Dh]`, keys and values `[keys, Dh]`, for one key head.
    fn span_backward(
        &self,
        span: &Span,
        kv_head: usize,
        output: &[f32],
        lse: &[f32],
        grad: &[f32],
    ) -> [Vec<f32>; 3] {
        let (head_dim, group, scale) =
            (self.config.head_dim, self.group(), self.config.scale as f32);
        let width = group * head_dim;
        let stride = self.config.heads * head_dim;
        let mut d_query = vec![0f32; span.queries.len() * width];
        let [mut d_key, mut d_value] = [(); 2].map(|()| vec![0f32; span.keys.len() * head_dim]);
        let mut scratch = Scratch::default();
        let [keys_t, values_t] = [&self.inputs.key, &self.inputs.value]
            .map(|side| Transposed::of(side, kv_head, head_dim, &span.keys));
        for block in blocks(&self.mask.ranges, span.queries.clone()) {
            let seen = Seen::of(&self.mask.ranges[block.clone()]);
            let d_query = &mut d_query[(block.start - span.queries.start) * width..];
            let shape = [block.len(), head_dim];
            for head in 0..group {
                let (of_model, column) = (kv_head * group + head, head * head_dim);
                let query = self.block_queries(&mut scratch.query, of_model, &block);
                times_seen(&mut scratch.scores, scale, (query, shape), &keys_t, &seen);
                let d_output =
                    Rows { values: &grad[block.start * stride + of_model * head_dim..], stride };
                times_seen(&mut scratch.d_scores, 1.0, (d_output, shape), &values_t, &seen);
                let head = BlockHead { block: &block, head: of_model, seen: &seen };
                self.probs_and_d_scores(&mut scratch, &head, [output, lse, grad]);
                for (placed, keys) in seen.placed() {
                    let probs = scores_from(&scratch.scores, placed, &seen);
                    let d_scores = scores_from(&scratch.d_scores, placed, &seen);
                    let of_span = (keys.start - span.keys.start) * head_dim;
                    let query = self.block_queries(&mut scratch.query, of_model, &block);
                    let by_key = [keys.len(), block.len(), head_dim];
                    let [probs, by_score] = [probs, d_scores].map(Operand::Transposed);
                    let target = (&mut d_value[of_span..], head_dim);
                    small_product(target, by_key, Old::Add, 1.0, probs, d_output);
                    let target = (&mut d_key[of_span..], head_dim);
                    small_product(target, by_key, Old::Add, scale, by_score, query);
                    let by_query = [block.len(), keys.len(), head_dim];
                    let keys = self.inputs.key.rows(kv_head, head_dim, keys.start);
                    let d_scores = Operand::AsItIs(d_scores);
                    let target = (&mut d_query[column..], width);
                    small_product(target, by_query, Old::Add, scale, d_scores, keys);
                }
            }
        }
        [d_query, d_key, d_value]
    }

    /// Turns scores into probabilities, `exp(score - lse)`, and the gradient of these into that of the scores,
    /// `P (dP - rowsum(dO O))`, row by row.
    fn probs_and_d_scores(
        &self,
        scratch: &mut Scratch,
        of: &BlockHead<'_>,
        [output, lse, grad]: [&[f32]; 3],
    ) {
        let AttentionConfig { heads, head_dim, .. } = *self.config;
        let keys = of.seen.width().max(1);
        let rows = scratch.scores.chunks_exact_mut(keys);
        let rows = rows.zip(scratch.d_scores.chunks_exact_mut(keys));
        vectorized(
            #[inline(always)]
            || {
                for (query, (scores, d_scores)) in of.block.clone().zip(rows) {
                    let place = (query * heads + of.head) * head_dim;
                    let (output, grad) = (&output[place..], &grad[place..]);
                    let along = sum2(&output[..head_dim], &grad[..head_dim], |o, g| o * g);
                    let lse = lse[query * heads + of.head];
                    let columns = self.columns(query, of.seen);
                    // Whole vectors, as in `softmax`.
                    update2(
                        scores,
                        d_scores,
                        #[inline(always)]
                        |score, d_score| {
                            let prob = exp(score - lse);
                            (prob, prob * (d_score - along))
                        },
                    );
                    for values in [scores, d_scores] {
                        self.outside(values, &columns, of.seen, 0.0);
                    }
                }
            },
        );
    }
}

/// `factor * rows key^T` for every key (or value) a block sees, `[block, seen.width()]`, at the start of `products`; what
/// stands beside a stretch's own columns has no meaning. `rows` are given with their shape.
fn times_seen(
    products: &mut Vec<f32>,
    factor: f32,
    (rows, [count, head_dim]): (Rows<'_>, [usize; 2]),
    keys_t: &Transposed,
    seen: &Seen,
) {
    let stride = seen.width();
    if products.len() < BLOCK * stride {
        products.resize(BLOCK * stride, 0.0);
    }
    for (column, keys) in seen.placed() {
        small_product(
            (&mut products[column..], stride),
            [count, head_dim, columns_of(&keys)],
            Old::Replace,
            factor,
            Operand::AsItIs(rows),
            keys_t.from(keys.start),
        );
    }
}

/// A block's scores from `column` on.
fn scores_from<'s>(scores: &'s [f32], column: usize, seen: &Seen) -> Rows<'s> {
    Rows { values: &scores[column..], stride: seen.width() }
}

/// A block of queries under one head.
struct BlockHead<'a> {
    block: &'a Range<usize>,
    head: usize,
    seen: &'a Seen,
}

/// Sets what lies in neither range to `value`; they do not overlap, and either may be empty.
#[inline(always)]
fn fill_outside(values: &mut [f32], [a, b]: &[Range<usize>; 2], value: f32) {
    let (a, b) = match a.is_empty() || (!b.is_empty() && b.start < a.start) {
        true => (b, a),
        false => (a, b),
    };
    let b = if b.is_empty() { &(a.end..a.end) } else { b };
    values[..a.start].fill(value);
    values[a.end..b.start].fill(value);
    values[b.end..].fill(value);
}

/// Copies rows of `columns` values to `column` of rows that are `stride` long.
fn scatter(rows: &mut [f32], stride: usize, column: usize, values: &[f32], columns: usize) {
    let rows = rows.chunks_mut(stride);
    for (row, values) in rows.zip(values.chunks_exact(columns.max(1))) {
        row[column..column + columns].copy_from_slice(values);
    }
}
