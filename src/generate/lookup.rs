//! Guesses the next tokens from the text so far (prompt lookup decoding).
//!
//! Answers repeat their question, derivations their last line. If the newest tokens occurred before, the tokens that
//! followed them there are guessed to follow again. One pass computes all guesses, and only those that the model
//! itself would have chosen are kept: the text is the same as without guesses, in fewer passes.

/// Numbers of newest tokens that must match an earlier place, longest first.
const RUNS: [usize; 3] = [4, 2, 1];

/// Returns at most `count` guesses of the tokens that follow the text `before` + `after`.
pub(super) fn guess(before: &[u32], after: &[u32], count: usize) -> Vec<u32> {
    let mut text = [before, after].concat();
    let length = text.len();
    let place = |run: &usize| {
        let newest = text.len().checked_sub(*run)?;
        let stood = |end: &usize| text[end - run..*end] == text[newest..];
        (*run..length).rev().find(stood)
    };
    let Some(from) = RUNS.iter().find_map(place) else {
        return Vec::new();
    };
    // A repetition continues into its own guesses.
    for at in from..from + count {
        text.push(text[at]);
    }
    text.split_off(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_followed_before_are_guessed() {
        assert_eq!(guess(&[7, 1, 2, 3], &[9, 1, 2], 2), [3, 9]);
        // The longest run decides, then the latest place.
        assert_eq!(guess(&[1, 2, 5, 8, 2, 6], &[1, 2], 1), [5]);
        assert_eq!(guess(&[2, 5, 2, 6], &[2], 1), [6]);
        assert_eq!(guess(&[4], &[1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
        assert_eq!(guess(&[4, 4], &[], 3), [4, 4, 4]);
        assert!(guess(&[1, 2], &[3], 4).is_empty());
        assert!(guess(&[1], &[], 4).is_empty());
        assert!(guess(&[1, 1], &[1], 0).is_empty());
    }
}
