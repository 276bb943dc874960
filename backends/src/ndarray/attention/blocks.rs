//! Divides queries into spans that share no keys, and spans into blocks.

use std::ops::Range;

use crate::ndarray::vector::LANES;
use crate::ops::attention::CPU_BLOCK as BLOCK;

/// Queries that attend to a range of keys to which the queries of no other span attend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
}

/// Divides queries into spans. A query that attends to keys of an earlier span joins all spans in
/// between.
pub(super) fn spans(ranges: &[[usize; 4]]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (query, range) in ranges.iter().enumerate() {
        let mut span = Span {
            queries: query..query + 1,
            keys: covering_range([range[0]..range[1], range[2]..range[3]]),
        };
        let overlaps = |last: &Span, span: &Span| {
            last.keys.is_empty() || span.keys.is_empty() || span.keys.start < last.keys.end
        };
        while let Some(last) = spans.pop_if(|last| overlaps(last, &span)) {
            span.queries.start = last.queries.start;
            span.keys = covering_range([last.keys, span.keys]);
        }
        spans.push(span);
    }
    spans
}

/// Returns the smallest range that covers all non-empty `ranges`.
fn covering_range(ranges: impl IntoIterator<Item = Range<usize>>) -> Range<usize> {
    let used = ranges.into_iter().filter(|range| !range.is_empty());
    let joined = used.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
    joined.unwrap_or(0..0)
}

/// The keys that a block of queries attends to, as one or two ranges; the scores of each range
/// start at a column of their own.
pub(super) struct VisibleKeys {
    ranges: [Range<usize>; 2],
}

impl VisibleKeys {
    /// Returns the keys that the queries with these `ranges` attend to.
    pub(super) fn of(ranges: &[[usize; 4]]) -> Self {
        let side = |a: usize, b: usize| covering_range(ranges.iter().map(|r| r[a]..r[b]));
        let (first, second) = (side(0, 1), side(2, 3));
        let disjoint = first.is_empty() || second.is_empty() || first.end <= second.start;
        Self {
            ranges: if disjoint {
                [first, second]
            } else {
                [covering_range([first, second]), 0..0]
            },
        }
    }

    /// Returns the number of columns of the scores.
    pub(super) fn width(&self) -> usize {
        let columns = self.ranges.iter().map(padded_columns);
        columns.sum()
    }

    /// Returns the ranges of keys, each with the column of the scores at which it starts.
    pub(super) fn columns_and_keys(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let [first, second] = self.ranges.clone();
        let columns = [(0, first.clone()), (padded_columns(&first), second)];
        columns.into_iter().filter(|(_, keys)| !keys.is_empty())
    }

    /// Returns the columns of the scores that hold the keys of `range`.
    pub(super) fn columns(&self, range: Range<usize>) -> Range<usize> {
        for (column, keys) in self.columns_and_keys() {
            if !range.is_empty() && keys.start <= range.start && range.end <= keys.end {
                return column + range.start - keys.start..column + range.end - keys.start;
            }
        }
        0..0
    }
}

/// Returns the columns of a range of keys, padded to whole vectors so that GEMMs have no remainder.
pub(super) fn padded_columns(keys: &Range<usize>) -> usize {
    keys.len().next_multiple_of(LANES)
}

/// Divides consecutive queries into blocks that attend to nearly the same keys: a block ends where
/// the ranges jump.
pub(super) fn blocks(ranges: &[[usize; 4]], queries: Range<usize>) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let is_near = |a: [usize; 4], b: [usize; 4]| {
        let jump = |i: usize| a[i].abs_diff(b[i]);
        (0..3).all(|i| jump(i) <= BLOCK)
    };
    for query in queries {
        match blocks.last_mut() {
            Some(block) if block.len() < BLOCK && is_near(ranges[query], ranges[query - 1]) => {
                block.end = query + 1;
            }
            _ => blocks.push(query..query + 1),
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_share_no_keys() {
        let ranges = [
            [0, 0, 0, 1],
            [0, 0, 0, 2],
            [0, 2, 2, 3],
            [0, 0, 0, 0],
            [0, 0, 4, 5],
            [0, 0, 4, 6],
            [4, 5, 6, 7],
            [0, 0, 7, 8],
        ];
        let span = |queries, keys| Span { queries, keys };
        let expected = [span(0..4, 0..3), span(4..7, 4..7), span(7..8, 7..8)];
        assert_eq!(spans(&ranges), expected);
        // A later query that attends to early keys joins all spans in between.
        let back = [[0, 0, 0, 1], [0, 0, 1, 2], [0, 0, 2, 3], [1, 2, 3, 4]];
        assert_eq!(spans(&back), [span(0..1, 0..1), span(1..4, 1..4)]);
    }

    #[test]
    fn a_block_ends_where_the_ranges_jump() {
        let mut ranges: Vec<[usize; 4]> = (0..100).map(|at| [0, 0, 0, at + 1]).collect();
        ranges.extend((100..120).map(|at| [0, 100, 100, at + 1]));
        let expected = [0..48, 48..96, 96..100, 100..120];
        assert_eq!(blocks(&ranges, 0..120), expected);
    }
}
