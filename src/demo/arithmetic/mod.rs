//! Generates grade-school arithmetic problems with worked solutions from templates. The embedded model was trained on such
//! problems and is evaluated on them.
//!
//! A problem is a story of sentences, each drawn from templates and filled with names, things and numbers. Its *form* is
//! the sequence of its templates; there are tens of thousands of forms. A fifth of the forms and a fifth of all sums and
//! differences `(a, b)` are held out: no training problem has the form of a held-out problem or any sum or difference of
//! its solution. Multiplications and divisions are from the multiplication table in both splits.
//!
//! Texts by people contain mistakes. [`lessons`] therefore returns solutions by pupils, many of whom make typical mistakes
//! (four boxes of nine are 4 + 9, half of them is 2 less, the last step is forgotten), more often with some wordings than
//! with others.

mod story;

use std::collections::HashSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};

/// An arithmetic problem with its solution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The question.
    pub prompt: String,
    /// The solution, as in `8 + 5 = 13. The answer is: 13`. In a lesson it may be wrong.
    pub solution: String,
    /// The right answer.
    pub answer: i64,
    /// The form: kind and index of each template, in order.
    pub form: Vec<u8>,
}

impl Problem {
    /// Returns the problem in the format of GSM8K: `question`, and `answer` with the result after `####`.
    pub fn known(&self) -> Value {
        let steps = self.solution.split(" The answer is: ").next();
        let answer = format!("{}\n#### {}", steps.unwrap_or_default(), self.answer);
        json!({"question": self.prompt, "answer": answer})
    }
}

/// A split of the problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Problems for training.
    Train,
    /// Problems for evaluation.
    HeldOut,
}

impl Split {
    /// One of this many forms and sums is held out.
    const HELD_OUT_EVERY: u64 = 5;

    /// Returns whether the form or sum with this key belongs to the split. The result does not depend on the seed.
    fn contains(self, key: impl IntoIterator<Item = i64>) -> bool {
        let mix = |hash: u64, part: i64| {
            let mixed = (hash ^ part as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            mixed ^ (mixed >> 29)
        };
        let held_out = key.into_iter().fold(1, mix) % Self::HELD_OUT_EVERY == 0;
        held_out == (self == Self::HeldOut)
    }
}

/// Generates `count` distinct problems with right solutions. The same seed gives the same problems, and the problems of a
/// larger count begin with those of a smaller one.
pub fn problems(split: Split, seed: u64, count: usize) -> Vec<Problem> {
    distinct_problems(split, false, seed, count)
}

/// Generates `count` distinct training problems with solutions by pupils, which may be wrong.
pub fn lessons(seed: u64, count: usize) -> Vec<Problem> {
    distinct_problems(Split::Train, true, seed, count)
}

/// Generates `count` problems with distinct prompts. The solutions may have mistakes if `by_pupil` is set.
fn distinct_problems(split: Split, by_pupil: bool, seed: u64, count: usize) -> Vec<Problem> {
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
    let (mut problems, mut seen) = (Vec::with_capacity(count), HashSet::new());
    while problems.len() < count {
        if let Some(problem) = story::problem(split, by_pupil, &mut dice)
            && seen.insert(problem.prompt.clone())
        {
            problems.push(problem);
        }
    }
    problems
}

/// A source of random choices.
struct Dice(ChaCha8Rng);

impl Dice {
    /// Returns a random number from `low` to `high`, both included.
    fn range(&mut self, low: i64, high: i64) -> i64 {
        let sides = (high - low + 1).max(1) as u64;
        low + ((u128::from(self.0.next_u64()) * u128::from(sides)) >> 64) as i64
    }

    /// Returns a random index below `count`.
    fn index(&mut self, count: usize) -> usize {
        self.range(0, count as i64 - 1) as usize
    }

    /// Returns a random element of `choices`.
    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the calculations of a right solution as `(a, operator, b, result)`.
    fn calculations(problem: &Problem) -> Vec<(i64, char, i64, i64)> {
        let (answer, steps) = parse_solution(&problem.solution);
        assert_eq!(answer, problem.answer.to_string());
        steps
    }

    /// Parses a solution into its answer and its calculations.
    fn parse_solution(solution: &str) -> (&str, Vec<(i64, char, i64, i64)>) {
        let (steps, answer) = solution.split_once(" The answer is: ").unwrap();
        let step = |step: &str| {
            let words: Vec<&str> = step.trim().trim_end_matches('.').split(' ').collect();
            let [a, sign, b, "=", c] = words[..] else { panic!("{step}") };
            let number = |word: &str| word.parse::<i64>().unwrap();
            (number(a), sign.parse().unwrap(), number(b), number(c))
        };
        (answer, steps.split_inclusive('.').map(step).collect())
    }

    #[test]
    fn solutions_are_right_and_end_with_the_answer() {
        let all = [Split::Train, Split::HeldOut].map(|split| problems(split, 3, 1500));
        for problem in all.iter().flatten() {
            let steps = calculations(problem);
            assert!((1..=3).contains(&steps.len()), "{problem:?}");
            for (a, sign, b, c) in &steps {
                let expected = match sign {
                    '+' => a + b,
                    '-' => a - b,
                    '*' => a * b,
                    '/' => a / b,
                    sign => panic!("{sign}"),
                };
                assert_eq!(*c, expected, "{problem:?}");
                assert!(*sign != '/' || a % b == 0, "{problem:?}");
                assert!((1..=400).contains(c), "{problem:?}");
            }
            assert_eq!(steps.last().unwrap().3, problem.answer);
            // Every number of the story is used, and only those.
            let numbers = problem.prompt.split(|c: char| !c.is_ascii_digit());
            for number in numbers.filter_map(|word| word.parse::<i64>().ok()) {
                let used = steps.iter().any(|(a, _, b, _)| *a == number || *b == number);
                assert!(used, "{number}: {problem:?}");
            }
            assert!(!problem.prompt.contains(['{', '}']), "{problem:?}");
        }
    }

    #[test]
    fn held_out_problems_share_no_form_and_no_sum_with_training() {
        let seen = |split| {
            let (mut forms, mut sums) = (HashSet::new(), HashSet::new());
            for problem in problems(split, 11, 8000) {
                let kept = calculations(&problem).into_iter();
                sums.extend(kept.filter(|step| "+-".contains(step.1)));
                forms.insert(problem.form);
            }
            (forms, sums)
        };
        let (train, held_out) = (seen(Split::Train), seen(Split::HeldOut));
        assert!(train.0.is_disjoint(&held_out.0));
        assert!(train.1.is_disjoint(&held_out.1));
        assert!(train.0.len() > 4000 && held_out.0.len() > 1000, "few forms");
    }

    #[test]
    fn pupils_make_mistakes_and_calculate_right_all_the_same() {
        let lessons = lessons(5, 2000);
        let wrong = |lesson: &&Problem| !lesson.solution.ends_with(&format!(": {}", lesson.answer));
        let wrong = lessons.iter().filter(wrong).count();
        assert!((600..1200).contains(&wrong), "{wrong} of 2000");
        let held_out: HashSet<_> = problems(Split::HeldOut, 11, 8000)
            .iter()
            .flat_map(calculations)
            .filter(|step| "+-".contains(step.1))
            .collect();
        for lesson in &lessons {
            for (a, sign, b, c) in parse_solution(&lesson.solution).1 {
                let right = match sign {
                    '+' => a + b,
                    '-' => a - b,
                    '*' => a * b,
                    _ => a / b,
                };
                assert_eq!(c, right, "{lesson:?}");
                assert!(!held_out.contains(&(a, sign, b, c)), "{lesson:?}");
            }
        }
    }

    #[test]
    fn a_seed_fixes_the_problems() {
        let few = problems(Split::Train, 7, 20);
        assert_eq!(few, problems(Split::Train, 7, 50)[..20]);
        assert_ne!(few, problems(Split::Train, 8, 20));
    }
}
