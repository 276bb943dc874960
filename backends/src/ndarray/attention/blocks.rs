//! Which queries are worked off together: spans that share no keys, and blocks within them.

use std::ops::Range;

use crate::ndarray::vector::LANES;

/// Queries of a block, at most. A multiple of the rows the product's kernel takes at a time; more queries would see more
/// keys that only some of them may.
pub(super) const BLOCK: usize = 48;

/// Queries that see the same stretch of keys, which no other span's queries see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
}

/// Cuts queries into spans. One that looks back into an earlier span joins all between.
pub(super) fn spans(ranges: &[[usize; 4]]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (query, range) in ranges.iter().enumerate() {
        let mut span = Span {
            queries: query..query + 1,
            keys: cover([range[0]..range[1], range[2]..range[3]]),
        };
        let meets = |last: &Span, span: &Span| {
            last.keys.is_empty() || span.keys.is_empty() || span.keys.start < last.keys.end
        };
        while let Some(last) = spans.pop_if(|last| meets(last, &span)) {
            span.queries.start = last.queries.start;
            span.keys = cover([last.keys, span.keys]);
        }
        spans.push(span);
    }
    spans
}

/// The smallest range that covers all of `ranges`; empty ones count for nothing.
fn cover(ranges: impl IntoIterator<Item = Range<usize>>) -> Range<usize> {
    let used = ranges.into_iter().filter(|range| !range.is_empty());
    let joined = used.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
    joined.unwrap_or(0..0)
}

/// The keys a block of queries sees, as one stretch or two, each in columns of its own of the block's scores.
pub(super) struct Seen {
    stretches: [Range<usize>; 2],
}

impl Seen {
    pub(super) fn of(ranges: &[[usize; 4]]) -> Self {
        let side = |a: usize, b: usize| cover(ranges.iter().map(|r| r[a]..r[b]));
        let (first, second) = (side(0, 1), side(2, 3));
        let apart = first.is_empty() || second.is_empty() || first.end <= second.start;
        Self {
            stretches: match apart {
                true => [first, second],
                false => [cover([first, second]), 0..0],
            },
        }
    }

    /// Columns of the scores.
    pub(super) fn width(&self) -> usize {
        let columns = self.stretches.iter().map(columns_of);
        columns.sum()
    }

    /// The stretches, each with the column of the scores where it begins.
    pub(super) fn placed(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let [first, second] = self.stretches.clone();
        let columns = [(0, first.clone()), (columns_of(&first), second)];
        columns.into_iter().filter(|(_, keys)| !keys.is_empty())
    }

    /// The columns of the scores that hold keys of `range`.
    pub(super) fn columns(&self, range: Range<usize>) -> Range<usize> {
        for (column, keys) in self.placed() {
            if !range.is_empty() && keys.start <= range.start && range.end <= keys.end {
                return column + range.start - keys.start..column + range.end - keys.start;
            }
        }
        0..0
    }
}

/// Columns a stretch takes: whole vectors, so that products leave no rest.
pub(super) fn columns_of(keys: &Range<usize>) -> usize {
    keys.len().next_multiple_of(LANES)
}

/// Blocks of consecutive queries that see nearly the same keys: a block ends where the ranges jump.
pub(super) fn blocks(ranges: &[[usize; 4]], queries: Range<usize>) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let near = |a: [usize; 4], b: [usize; 4]| {
        let jump = |i: usize| a[i].abs_diff(b[i]);
        (0..3).all(|i| jump(i) <= BLOCK)
    };
    for query in queries {
        match blocks.last_mut() {
            Some(block) if block.len() < BLOCK && near(ranges[query], ranges[query - 1]) => {
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
        // A later query that looks far back joins everything between.
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
