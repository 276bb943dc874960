//! Grade-school arithmetic problems with worked solutions, made up from templates: what the embedded model was trained
//! on, and what it is measured on.
//!
//! A problem is a story of clauses, each drawn from templates and filled with names, things and numbers; its *form* is the
//! sequence of its templates, of which there are tens of thousands. A fifth of the forms is held out, and so is a fifth of
//! all sums and differences `(a, b)`: a held-out problem has a form that no training problem has, and none of the sums and
//! differences of its solution occurs in any training problem. Products and quotients are those of the multiplication
//! table, in both.
//!
//! A model learns from what people write, mistakes included: [`lessons`] are solutions by pupils, many of whom make the
//! usual mistakes (four boxes of nine are 4 + 9, half of them is 2 less, the last step is forgotten), with some wordings
//! more often than with others.

mod story;

use std::collections::HashSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The question.
    pub prompt: String,
    /// The way to the answer, which it ends with: `8 + 5 = 13. The answer is: 13`. Of a lesson it may be wrong.
    pub solution: String,
    /// The right answer.
    pub answer: i64,
    /// Numbers of its templates, in order.
    pub form: Vec<u8>,
}

impl Problem {
    /// The problem as GSM8K has it: `question`, and `answer` with the result after `####`.
    pub fn known(&self) -> Value {
        let steps = self.solution.split(" The answer is: ").next();
        let answer = format!("{}\n#### {}", steps.unwrap_or_default(), self.answer);
        json!({"question": self.prompt, "answer": answer})
    }
}

/// Which problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// To learn from.
    Train,
    /// To measure with.
    HeldOut,
}

impl Split {
    /// One in this many forms and sums is held out.
    const SHARE: u64 = 5;

    /// Whether what `key` stands for belongs to this split. A fixed function: no seed moves anything across.
    fn holds(self, key: impl IntoIterator<Item = i64>) -> bool {
        let mix = |hash: u64, part: i64| {
            let mixed = (hash ^ part as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            mixed ^ (mixed >> 29)
        };
        let held_out = key.into_iter().fold(1, mix) % Self::SHARE == 0;
        held_out == (self == Self::HeldOut)
    }
}

/// `count` different problems with right solutions. The same seed gives the same problems, and a larger count begins with
/// those of a smaller.
pub fn problems(split: Split, seed: u64, count: usize) -> Vec<Problem> {
    different(split, false, seed, count)
}

/// As [`problems`] to learn from, with solutions by pupils.
pub fn lessons(seed: u64, count: usize) -> Vec<Problem> {
    different(Split::Train, true, seed, count)
}

fn different(split: Split, by_pupil: bool, seed: u64, count: usize) -> Vec<Problem> {
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
    let (mut problems, mut met) = (Vec::with_capacity(count), HashSet::new());
    while problems.len() < count {
        if let Some(problem) = story::problem(split, by_pupil, &mut dice)
            && met.insert(problem.prompt.clone())
        {
            problems.push(problem);
        }
    }
    problems
}

/// Random choices.
struct Dice(ChaCha8Rng);

impl Dice {
    /// A number from `low` to `high`, both included.
    fn from(&mut self, low: i64, high: i64) -> i64 {
        let sides = (high - low + 1).max(1) as u64;
        low + ((u128::from(self.0.next_u64()) * u128::from(sides)) >> 64) as i64
    }

    /// The number of a choice among `count`.
    fn index(&mut self, count: usize) -> usize {
        self.from(0, count as i64 - 1) as usize
    }

    /// One of `choices`.
    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The calculations of a solution, `[a, operator, b, result]`.
    fn calculations(problem: &Problem) -> Vec<(i64, char, i64, i64)> {
        let (answer, steps) = calculations_of(&problem.solution);
        assert_eq!(answer, problem.answer.to_string());
        steps
    }

    fn calculations_of(solution: &str) -> (&str, Vec<(i64, char, i64, i64)>) {
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
            let told = problem.prompt.split(|c: char| !c.is_ascii_digit());
            for number in told.filter_map(|word| word.parse::<i64>().ok()) {
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
            for (a, sign, b, c) in calculations_of(&lesson.solution).1 {
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
