//! Searches that cache their results. Without a cache, the tokenizer would search to the end of the text again and again on
//! markup that is never closed, which takes quadratic time.

use super::tokenizer::is_space;

/// Caches the result of the last search for the next occurrence of something. The result is also valid for every position
/// between the start of the search and the occurrence.
#[derive(Debug, Default)]
pub(super) struct Next {
    /// Start of the last search, and the position that it found.
    last: Option<(usize, Option<usize>)>,
}

impl Next {
    /// Returns the position of the next occurrence at or after `from`. Calls `search` only if the cached result is not
    /// valid.
    pub(super) fn find(
        &mut self,
        from: usize,
        search: impl FnOnce() -> Option<usize>,
    ) -> Option<usize> {
        match self.last {
            Some((start, found)) if start <= from && found.is_none_or(|at| from <= at) => found,
            _ => {
                let found = search();
                self.last = Some((from, found));
                found
            }
        }
    }
}

/// The characters that end a part of an attribute.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// The end of a name: `/`, `=`, `>` or space.
    Name,
    /// The end of a value without quotes: `>` or space.
    Bare,
    DoubleQuote,
    SingleQuote,
}

impl Stop {
    fn is(self, c: char) -> bool {
        match self {
            Self::Name => matches!(c, '/' | '=' | '>') || is_space(c),
            Self::Bare => c == '>' || is_space(c),
            Self::DoubleQuote => c == '"',
            Self::SingleQuote => c == '\'',
        }
    }

    /// Returns the position of the next stop in `text` at or after `at`, or the length of the text if there is none.
    pub(super) fn search(self, text: &str, at: usize) -> usize {
        let rest = &text[at..];
        at + rest.find(|c| self.is(c)).unwrap_or(rest.len())
    }
}

/// The positions of all stops in a text.
#[derive(Debug)]
pub(super) struct Stops {
    /// For each kind of stop, its positions in ascending order.
    positions: [Vec<u32>; 4],
    end: usize,
}

impl Stops {
    /// Finds all stops in `text`. Returns `None` if it has more than 4 GiB.
    pub(super) fn new(text: &str) -> Option<Self> {
        u32::try_from(text.len()).ok()?;
        let all = [Stop::Name, Stop::Bare, Stop::DoubleQuote, Stop::SingleQuote];
        let positions = all.map(|stop| {
            let stops = text.char_indices().filter(|(_, c)| stop.is(*c));
            stops.map(|(at, _)| at as u32).collect()
        });
        Some(Self { positions, end: text.len() })
    }

    /// Returns the same position as [`Stop::search`], by binary search.
    pub(super) fn next(&self, stop: Stop, at: usize) -> usize {
        let Some(positions) = self.positions.get(stop as usize) else {
            return self.end;
        };
        let index = positions.partition_point(|position| (*position as usize) < at);
        positions.get(index).map_or(self.end, |position| *position as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_stops_find_what_a_search_finds() {
        let text = "a b=\"c d\" é='\u{a0}x'/>\n==\"";
        let stops = Stops::new(text).unwrap();
        for (at, _) in text.char_indices().chain([(text.len(), ' ')]) {
            for stop in [Stop::Name, Stop::Bare, Stop::DoubleQuote, Stop::SingleQuote] {
                assert_eq!(stops.next(stop, at), stop.search(text, at), "{stop:?} at {at}");
            }
        }
    }

    #[test]
    fn one_search_is_valid_up_to_the_position_it_found() {
        let mut next = Next::default();
        let mut searches = 0;
        let mut find = |from: usize| {
            next.find(from, || {
                searches += 1;
                (from <= 100).then_some(from.max(50))
            })
        };
        let found: Vec<_> = [0, 10, 50, 51, 200, 300].map(&mut find).into();
        assert_eq!(found, [Some(50), Some(50), Some(50), Some(51), None, None]);
        assert_eq!(searches, 3);
    }
}
