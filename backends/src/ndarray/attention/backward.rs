//! Attention, backward.

use rayon::prelude::*;

use super::super::gemm::WriteMode;
use super::super::matrix::{filled, split};
use super::super::tile::{Operand, Rows, small_gemm};
use super::super::vector::{exp, sum2, update2, vectorized};
use super::blocks::{Span, VisibleKeys, blocks, spans};
use super::{Attention, BlockHead, Scratch, Transposed, scatter, scores_from, visible_scores};
use crate::AttentionConfig;

impl Attention<'_> {
    /// Returns the gradient of queries, keys and values side by side, `[T, (H + 2 H_kv) * Dh]`, for
    /// self-attention.
    pub(in super::super) fn backward(
        &self,
        output: &[f32],
        lse: &[f32],
        grad: &[f32],
        tokens: usize,
    ) -> Vec<f32> {
        let config = self.config;
        let (columns, head_dim) = (config.qkv_width(), config.head_dim);
        let (query_columns, key_column) = (self.group() * head_dim, config.heads * head_dim);
        let mut d_qkv = filled(tokens * columns, |_| ());
        let spans = spans(&self.mask.ranges);
        // Rows from the end of one span's keys to the end of the next's; rows in between belong to
        // no span.
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
                for (query, d) in span.queries.clone().zip(d_query.chunks_exact(query_columns)) {
                    let token = self.mask.queries.get(query).copied().unwrap_or(query);
                    if (first..span.keys.end).contains(&token) {
                        rows[at(token) + kv_head * query_columns..][..query_columns]
                            .copy_from_slice(d);
                    }
                }
                let rows = &mut rows[at(span.keys.start)..];
                let column = key_column + kv_head * head_dim;
                scatter(rows, columns, column, d_key, head_dim);
                let column = column + config.kv_heads * head_dim;
                scatter(rows, columns, column, d_value, head_dim);
            }
        });
        d_qkv
    }

    /// Returns the gradients of the span's queries `[queries, group * Dh]`, keys and values `[keys,
    /// Dh]`, for one key-value head.
    pub(super) fn span_backward(
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
            let visible = VisibleKeys::of(&self.mask.ranges[block.clone()]);
            let d_query = &mut d_query[(block.start - span.queries.start) * width..];
            let shape = [block.len(), head_dim];
            for head in 0..group {
                let (query_head, column) = (kv_head * group + head, head * head_dim);
                let query = self.block_queries(&mut scratch.query, query_head, &block);
                visible_scores(&mut scratch.scores, scale, (query, shape), &keys_t, &visible);
                let d_output =
                    Rows { values: &grad[block.start * stride + query_head * head_dim..], stride };
                visible_scores(&mut scratch.d_scores, 1.0, (d_output, shape), &values_t, &visible);
                let head = BlockHead { block: &block, head: query_head, visible: &visible };
                self.probs_and_d_scores(&mut scratch, &head, [output, lse, grad]);
                for (column_start, keys) in visible.columns_and_keys() {
                    let probs = scores_from(&scratch.scores, column_start, &visible);
                    let d_scores = scores_from(&scratch.d_scores, column_start, &visible);
                    let span_offset = (keys.start - span.keys.start) * head_dim;
                    let query = self.block_queries(&mut scratch.query, query_head, &block);
                    let by_key = [keys.len(), block.len(), head_dim];
                    let [probs, by_score] = [probs, d_scores].map(Operand::Transposed);
                    let target = (&mut d_value[span_offset..], head_dim);
                    small_gemm(target, by_key, WriteMode::Add, 1.0, probs, d_output);
                    let target = (&mut d_key[span_offset..], head_dim);
                    small_gemm(target, by_key, WriteMode::Add, scale, by_score, query);
                    let by_query = [block.len(), keys.len(), head_dim];
                    let keys = self.inputs.key.rows(kv_head, head_dim, keys.start);
                    let d_scores = Operand::RowMajor(d_scores);
                    let target = (&mut d_query[column..], width);
                    small_gemm(target, by_query, WriteMode::Add, scale, d_scores, keys);
                }
            }
        }
        [d_query, d_key, d_value]
    }

    /// Turns scores into probabilities, `exp(score - lse)`, and the gradient of the probabilities
    /// into that of the scores, `P (dP - rowsum(dO O))`, row by row.
    fn probs_and_d_scores(
        &self,
        scratch: &mut Scratch,
        block_head: &BlockHead<'_>,
        [output, lse, grad]: [&[f32]; 3],
    ) {
        let AttentionConfig { heads, head_dim, .. } = *self.config;
        let keys = block_head.visible.width().max(1);
        let rows = scratch.scores.chunks_exact_mut(keys);
        let rows = rows.zip(scratch.d_scores.chunks_exact_mut(keys));
        vectorized(
            #[inline(always)]
            || {
                for (query, (scores, d_scores)) in block_head.block.clone().zip(rows) {
                    let index = (query * heads + block_head.head) * head_dim;
                    let (output, grad) = (&output[index..], &grad[index..]);
                    let row_dot = sum2(&output[..head_dim], &grad[..head_dim], |o, g| o * g);
                    let lse = lse[query * heads + block_head.head];
                    let columns = self.columns(query, block_head.visible);
                    // Whole vectors, as in `softmax`.
                    update2(
                        scores,
                        d_scores,
                        #[inline(always)]
                        |score, d_score| {
                            let prob = exp(score - lse);
                            (prob, prob * (d_score - row_dot))
                        },
                    );
                    for values in [scores, d_scores] {
                        self.fill_masked(values, &columns, block_head.visible, 0.0);
                    }
                }
            },
        );
    }
}
