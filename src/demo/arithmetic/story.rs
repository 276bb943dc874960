//! The templates of stories, and the generation of a problem from them.
//!
//! In the templates, `{name}` and `{other}` are two people, `{things}` is the kind of thing they count, and `{n}` and `{k}`
//! are numbers.

use super::{Dice, Problem, Split};

const NAMES: [&str; 32] = [
    "Aisha", "Anna", "Ben", "Carla", "Chen", "David", "Dora", "Emma", "Felix", "Grace", "Hana",
    "Henry", "Ines", "Jack", "Juan", "Kim", "Leo", "Mia", "Nina", "Noah", "Olga", "Omar", "Paul",
    "Rosa", "Ruth", "Sam", "Tina", "Umar", "Vera", "Will", "Yara", "Zoe",
];

const THINGS: [&str; 32] = [
    "apples",
    "badges",
    "balloons",
    "balls",
    "beads",
    "books",
    "buttons",
    "candles",
    "cards",
    "coins",
    "cookies",
    "cups",
    "dolls",
    "eggs",
    "flowers",
    "keys",
    "lemons",
    "marbles",
    "nuts",
    "pears",
    "pencils",
    "photos",
    "plates",
    "postcards",
    "ribbons",
    "seeds",
    "shells",
    "spoons",
    "stamps",
    "stickers",
    "stones",
    "tickets",
];

/// First sentences of stories that begin with a number.
const OPENERS: [&str; 8] = [
    "{name} has {n} {things}.",
    "{name} owns {n} {things}.",
    "In the morning {name} counts {n} {things}.",
    "There are {n} {things} in a box of {name}.",
    "{name} starts the week with {n} {things}.",
    "On a table of {name} lie {n} {things}.",
    "{name} has been given {n} {things} by {other}.",
    "{n} {things} belong to {name}.",
];

/// First sentences of stories that begin with a multiplication.
const GROUP_OPENERS: [&str; 6] = [
    "{name} has {k} boxes with {n} {things} in each.",
    "{name} buys {k} packs of {n} {things}.",
    "{name} fills {k} bags with {n} {things} each.",
    "On each of {k} days {name} collects {n} {things}.",
    "{name} lays out {k} rows of {n} {things}.",
    "From each of {k} shops {name} brings {n} {things}.",
];

const MORE: [&str; 8] = [
    "{name} buys {n} more.",
    "{other} gives {name} {n} {things}.",
    "Then {name} finds another {n} {things}.",
    "{name} wins {n} {things} in a game.",
    "Later {other} brings {n} more {things}.",
    "{n} {things} are added.",
    "{other} lends {name} another {n}.",
    "In a drawer there are {n} more.",
];

const FEWER: [&str; 8] = [
    "{name} gives {n} of them to {other}.",
    "Then {n} {things} get lost.",
    "{name} sells {n} {things}.",
    "{other} takes {n} of them away.",
    "{n} of the {things} break.",
    "Later {name} throws {n} {things} out.",
    "Then {name} uses up {n}.",
    "{name} takes {n} {things} to school and leaves them there.",
];

const MORE_GROUPS: [&str; 4] = [
    "Then {name} buys {k} packs of {n} {things}.",
    "{other} brings {k} bags with {n} {things} each.",
    "Each of {k} friends gives {name} {n} {things}.",
    "For {k} weeks {name} gets {n} {things} a week.",
];

const FEWER_GROUPS: [&str; 4] = [
    "{name} gives {n} {things} to each of {k} friends.",
    "{name} sells {k} packs of {n} {things}.",
    "On each of {k} days {n} {things} get lost.",
    "For {k} weeks {name} gives away {n} {things} a week.",
];

const TIMES: [&str; 2] =
    ["A year later {name} has {k} times as many.", "Soon there are {k} times as many {things}."];

const HALF: [&str; 2] = ["{name} keeps only half of them.", "Half of the {things} go to {other}."];

const ASK: [&str; 6] = [
    "How many {things} does {name} have now?",
    "How many {things} are there in the end?",
    "How many {things} is that?",
    "What is the number of {things} now?",
    "How many {things} are there now?",
    "Count the {things} that {name} has by now.",
];

const ASK_SHARE: [&str; 3] = [
    "{name} shares them equally among {k} children. How many {things} does each child get?",
    "They go into {k} equal rows. How many {things} are in a row?",
    "{name} packs {k} into each bag. How many bags does {name} need?",
];

const ASK_PRICE: [&str; 3] = [
    "Each one costs {k} dollars. How many dollars do all of them cost?",
    "{name} sells them for {k} dollars each. How many dollars does {name} get?",
    "Each of them weighs {k} grams. How many grams do they weigh together?",
];

const ASK_OTHER: [&str; 2] = [
    "{other} has {n} more {things} than {name}. How many {things} does {other} have?",
    "{other} needs {n} more than that. How many {things} does {other} need?",
];

const ASK_OTHER_LESS: [&str; 2] = [
    "{other} has {n} {things} fewer than {name}. How many {things} does {other} have?",
    "{other} needs {n} less than that. How many {things} does {other} need?",
];

const ASK_BOTH: [&str; 2] = [
    "{other} has {n} more {things} than {name}. How many {things} do they have together?",
    "{other} gets {n} more than that. How many {things} do the two have in all?",
];

/// Maximum number of steps of a solution.
const MAX_STEPS: usize = 3;

/// Percentage of pupils who make the typical mistake, for wordings that invite it (even template index) and for others.
const MISTAKE_PERCENT: [i64; 2] = [85, 50];

/// Generates a random problem of `split`. With `by_pupil`, its solution may have typical mistakes. Returns `None` if the
/// random choices give no valid problem.
pub(super) fn problem(split: Split, by_pupil: bool, dice: &mut Dice) -> Option<Problem> {
    let name = *dice.pick(&NAMES);
    let other = *dice.pick(&NAMES);
    if name == other {
        return None;
    }
    let things = *dice.pick(&THINGS);
    let mut story = Story {
        people: [name, other],
        things,
        split,
        dice,
        value: Operand::Given(0),
        sentences: Vec::new(),
        steps: Vec::new(),
        results: Vec::new(),
        form: Vec::new(),
    };
    story.open()?;
    for _ in 0..story.dice.range(0, 2) {
        story.continue_story()?;
    }
    story.ask()?;
    story.finish(by_pupil)
}

/// An operand of a step.
#[derive(Clone, Copy)]
enum Operand {
    /// A number that the story gives.
    Given(i64),
    /// The result of an earlier step, by its index.
    Result(usize),
}

/// A typical mistake in a step.
#[derive(Clone, Copy)]
enum Mistake {
    /// Uses another operator, as in `4 + 9` for four boxes of nine.
    WrongSign(char),
    /// Forgets the step and continues with its second operand.
    LeftOut,
}

/// A step of the solution.
#[derive(Clone, Copy)]
struct Step {
    left: Operand,
    sign: char,
    right: Operand,
    /// The typical mistake, and the percentage of pupils who make it.
    mistake: Option<(Mistake, i64)>,
}

/// A story under construction.
struct Story<'a> {
    people: [&'static str; 2],
    things: &'static str,
    split: Split,
    dice: &'a mut Dice,
    /// The number of things at this point of the story.
    value: Operand,
    sentences: Vec<String>,
    steps: Vec<Step>,
    /// The right result of each step.
    results: Vec<i64>,
    form: Vec<u8>,
}

impl Story<'_> {
    /// Adds a sentence from a random one of `templates`, which are of kind `kind`. `mistake` is a typical mistake and the
    /// step in which pupils make it: 0 is the last step so far, 1 the one before it.
    fn add_sentence(
        &mut self,
        kind: u8,
        templates: &[&str],
        [n, k]: [i64; 2],
        mistake: Option<(Mistake, usize)>,
    ) {
        let index = self.dice.index(templates.len());
        self.form.extend([kind, index as u8]);
        let [name, other] = self.people;
        let sentence = templates[index]
            .replace("{name}", name)
            .replace("{other}", other)
            .replace("{things}", self.things)
            .replace("{n}", &n.to_string())
            .replace("{k}", &k.to_string());
        self.sentences.push(sentence);
        if let Some((mistake, steps_back)) = mistake
            && let Some(step) = self.steps.iter_mut().rev().nth(steps_back)
        {
            step.mistake = Some((mistake, MISTAKE_PERCENT[index % 2]));
        }
    }

    /// Returns the right value of an operand.
    fn number(&self, operand: Operand) -> i64 {
        match operand {
            Operand::Given(number) => number,
            Operand::Result(step) => self.results[step],
        }
    }

    /// Returns the number of things at this point of the story.
    fn current(&self) -> i64 {
        self.number(self.value)
    }

    /// Adds a step to the solution. Returns `None` if [`calculate`] does.
    fn calculate(&mut self, left: Operand, sign: char, right: Operand) -> Option<Operand> {
        let result = calculate(self.split, self.number(left), sign, self.number(right))?;
        self.results.push(result);
        self.steps.push(Step { left, sign, right, mistake: None });
        Some(Operand::Result(self.results.len() - 1))
    }

    /// Adds a step with the current value and a random number from 2 to `max`, and returns that number and the result.
    /// Tries up to 40 numbers until [`Self::calculate`] accepts one.
    fn calculate_random(&mut self, sign: char, max: i64) -> Option<(i64, Operand)> {
        (0..40).find_map(|_| {
            let number = self.dice.range(2, max);
            Some((number, self.calculate(self.value, sign, Operand::Given(number))?))
        })
    }

    /// Adds the first sentence.
    fn open(&mut self) -> Option<()> {
        if self.dice.range(0, 3) > 0 {
            let n = self.dice.range(4, 60);
            self.value = Operand::Given(n);
            self.add_sentence(0, &OPENERS, [n, 0], None);
            return Some(());
        }
        let (k, n) = (self.dice.range(2, 9), self.dice.range(2, 12));
        self.value = self.calculate(Operand::Given(k), '*', Operand::Given(n))?;
        self.add_sentence(1, &GROUP_OPENERS, [n, k], Some((Mistake::WrongSign('+'), 0)));
        Some(())
    }

    /// Adds a sentence that changes the number of things.
    fn continue_story(&mut self) -> Option<()> {
        let value = self.current();
        match self.dice.range(0, 10) {
            0..=2 => {
                let (n, sum) = self.calculate_random('+', 50)?;
                self.add_sentence(2, &MORE, [n, 0], None);
                self.value = sum;
            }
            3..=5 => {
                let (n, rest) = self.calculate_random('-', (value - 1).clamp(2, 50))?;
                self.add_sentence(3, &FEWER, [n, 0], None);
                self.value = rest;
            }
            6..=8 => {
                let (k, n) = (self.dice.range(2, 9), self.dice.range(2, 9));
                let product = self.calculate(Operand::Given(k), '*', Operand::Given(n))?;
                let (sign, kind, templates) = match self.dice.range(0, 1) {
                    0 => ('+', 4, &MORE_GROUPS),
                    _ => ('-', 5, &FEWER_GROUPS),
                };
                self.value = self.calculate(self.value, sign, product)?;
                self.add_sentence(kind, templates, [n, k], Some((Mistake::WrongSign('+'), 1)));
            }
            9 => {
                self.value = self.calculate(self.value, '/', Operand::Given(2))?;
                self.add_sentence(13, &HALF, [0, 0], Some((Mistake::WrongSign('-'), 0)));
            }
            _ => {
                let k = self.dice.range(2, 5);
                self.value = self.multiply(k)?;
                self.add_sentence(6, &TIMES, [0, k], Some((Mistake::WrongSign('+'), 0)));
            }
        }
        (self.current() >= 2).then_some(())
    }

    /// Adds a step that multiplies the current value, if it is small, by `k`.
    fn multiply(&mut self, k: i64) -> Option<Operand> {
        if self.current() > 30 {
            return None;
        }
        self.calculate(self.value, '*', Operand::Given(k))
    }

    /// Adds the question.
    fn ask(&mut self) -> Option<()> {
        let value = self.current();
        match self.dice.range(0, 9) {
            0..=4 => self.add_sentence(7, &ASK, [0, 0], None),
            5 => {
                let k = self.dice.range(2, 9);
                self.value = self.calculate(self.value, '/', Operand::Given(k))?;
                self.add_sentence(8, &ASK_SHARE, [0, k], Some((Mistake::WrongSign('-'), 0)));
            }
            6 => {
                let k = self.dice.range(2, 9);
                self.value = self.multiply(k)?;
                self.add_sentence(9, &ASK_PRICE, [0, k], Some((Mistake::WrongSign('+'), 0)));
            }
            7 => {
                let (n, sum) = self.calculate_random('+', 30)?;
                self.add_sentence(10, &ASK_OTHER, [n, 0], None);
                self.value = sum;
            }
            8 => {
                let (n, rest) = self.calculate_random('-', (value - 1).clamp(2, 30))?;
                self.add_sentence(11, &ASK_OTHER_LESS, [n, 0], Some((Mistake::WrongSign('+'), 0)));
                self.value = rest;
            }
            _ => {
                let (n, others) = self.calculate_random('+', 20)?;
                let both = self.calculate(self.value, '+', others)?;
                self.add_sentence(12, &ASK_BOTH, [n, 0], Some((Mistake::LeftOut, 0)));
                self.value = both;
            }
        }
        Some(())
    }

    /// Returns the problem, or `None` if its form belongs to the other split or its number of steps is out of range.
    fn finish(self, by_pupil: bool) -> Option<Problem> {
        let steps_in_range = (1..=MAX_STEPS).contains(&self.steps.len());
        let form = self.form.iter().map(|part| i64::from(*part));
        let answer = self.current();
        if !steps_in_range || answer < 1 || !self.split.contains(form) {
            return None;
        }
        let no_mistakes = vec![None; self.steps.len()];
        let mistakes: Vec<Option<Mistake>> = if by_pupil {
            let draw = |step: &Step| {
                let (mistake, percent) = step.mistake?;
                (self.dice.range(1, 100) <= percent).then_some(mistake)
            };
            self.steps.iter().map(draw).collect()
        } else {
            no_mistakes.clone()
        };
        let solution = solve(self.split, &self.steps, self.value, &mistakes);
        Some(Problem {
            prompt: self.sentences.join(" "),
            // If the mistakes allow no solution, the right one is used.
            solution: solution
                .or_else(|| solve(self.split, &self.steps, self.value, &no_mistakes))?,
            answer,
            form: self.form,
        })
    }
}

/// Computes `left sign right`. Returns `None` if the result is not a positive integer, or if the sum or difference belongs
/// to the other split.
fn calculate(split: Split, left: i64, sign: char, right: i64) -> Option<i64> {
    let result = match sign {
        '+' => left + right,
        '-' => left - right,
        '*' => left * right,
        _ if left % right != 0 => return None,
        _ => left / right,
    };
    let in_split = match sign {
        '+' | '-' => split.contains([left, i64::from(sign == '+'), right]),
        _ => true,
    };
    (result >= 1 && in_split).then_some(result)
}

/// Writes the solution that follows from `steps` with the given mistakes. Its answer is the value of `asked`. Returns
/// `None` if [`calculate`] does for a step.
fn solve(
    split: Split,
    steps: &[Step],
    asked: Operand,
    mistakes: &[Option<Mistake>],
) -> Option<String> {
    let (mut results, mut lines) = (Vec::new(), Vec::new());
    for (step, mistake) in steps.iter().zip(mistakes) {
        let number = |operand, results: &[i64]| match operand {
            Operand::Given(number) => Some(number),
            Operand::Result(step) => results.get(step).copied(),
        };
        let (left, right) = (number(step.left, &results)?, number(step.right, &results)?);
        let sign = match mistake {
            Some(Mistake::LeftOut) => {
                results.push(right);
                continue;
            }
            Some(Mistake::WrongSign(sign)) => *sign,
            None => step.sign,
        };
        let result = calculate(split, left, sign, right)?;
        lines.push(format!("{left} {sign} {right} = {result}."));
        results.push(result);
    }
    let answer = match asked {
        Operand::Given(number) => number,
        Operand::Result(step) => *results.get(step)?,
    };
    Some(format!("{} The answer is: {answer}", lines.join(" ")))
}
