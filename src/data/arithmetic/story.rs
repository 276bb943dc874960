//! The clauses that stories are made of.
//!
//! In templates `{name}` and `{other}` are two people, `{things}` what they count, `{n}` and `{k}` numbers.

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

/// How a story begins: with a number.
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

/// How it begins: with a product.
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

/// Steps a solution has at most.
const MOST_STEPS: usize = 3;

/// Of a hundred pupils, how many make the usual mistake with a wording that invites it, and with another one.
const SLIPS: [i64; 2] = [85, 50];

/// A random problem of `split`, solved rightly or, for `by_pupil`, perhaps with usual mistakes; `None` where the dice led
/// to none.
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
        value: Operand::Told(0),
        sentences: Vec::new(),
        steps: Vec::new(),
        results: Vec::new(),
        form: Vec::new(),
    };
    story.open()?;
    for _ in 0..story.dice.from(0, 2) {
        story.go_on()?;
    }
    story.ask()?;
    story.finish(by_pupil)
}

/// What a step calculates with.
#[derive(Clone, Copy)]
enum Operand {
    /// A number of the story.
    Told(i64),
    /// The result of an earlier step.
    Result(usize),
}

/// A usual mistake.
#[derive(Clone, Copy)]
enum Slip {
    /// Calculates otherwise: `4 + 9` for four boxes of nine.
    Sign(char),
    /// Forgets the step, and goes on with its second operand.
    LeftOut,
}

/// A step of the solution.
#[derive(Clone, Copy)]
struct Step {
    left: Operand,
    sign: char,
    right: Operand,
    /// The mistake, and how many of a hundred pupils make it.
    slip: Option<(Slip, i64)>,
}

struct Story<'a> {
    people: [&'static str; 2],
    things: &'static str,
    split: Split,
    dice: &'a mut Dice,
    /// How many things there are by now.
    value: Operand,
    sentences: Vec<String>,
    steps: Vec<Step>,
    /// The right result of each step.
    results: Vec<i64>,
    form: Vec<u8>,
}

impl Story<'_> {
    /// Tells one of `templates`, of kind `kind`; `slip` is the usual mistake with the last step but `before`.
    fn tell(
        &mut self,
        kind: u8,
        templates: &[&str],
        [n, k]: [i64; 2],
        slip: Option<(Slip, usize)>,
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
        if let Some((slip, before)) = slip
            && let Some(step) = self.steps.iter_mut().rev().nth(before)
        {
            step.slip = Some((slip, SLIPS[index % 2]));
        }
    }

    /// The right value of an operand.
    fn number(&self, operand: Operand) -> i64 {
        match operand {
            Operand::Told(number) => number,
            Operand::Result(step) => self.results[step],
        }
    }

    fn now(&self) -> i64 {
        self.number(self.value)
    }

    /// Adds a step; `None` where it is impossible or its sum or difference belongs to the other split.
    fn calculate(&mut self, left: Operand, sign: char, right: Operand) -> Option<Operand> {
        let result = calculate(self.split, self.number(left), sign, self.number(right))?;
        self.results.push(result);
        self.steps.push(Step { left, sign, right, slip: None });
        Some(Operand::Result(self.results.len() - 1))
    }

    /// As [`Self::calculate`], on the present value and the first of some random numbers from 2 to `most` that fits.
    fn calculate_some(&mut self, sign: char, most: i64) -> Option<(i64, Operand)> {
        (0..40).find_map(|_| {
            let number = self.dice.from(2, most);
            Some((number, self.calculate(self.value, sign, Operand::Told(number))?))
        })
    }

    fn open(&mut self) -> Option<()> {
        if self.dice.from(0, 3) > 0 {
            let n = self.dice.from(4, 60);
            self.value = Operand::Told(n);
            self.tell(0, &OPENERS, [n, 0], None);
            return Some(());
        }
        let (k, n) = (self.dice.from(2, 9), self.dice.from(2, 12));
        self.value = self.calculate(Operand::Told(k), '*', Operand::Told(n))?;
        self.tell(1, &GROUP_OPENERS, [n, k], Some((Slip::Sign('+'), 0)));
        Some(())
    }

    fn go_on(&mut self) -> Option<()> {
        let value = self.now();
        match self.dice.from(0, 10) {
            0..=2 => {
                let (n, sum) = self.calculate_some('+', 50)?;
                self.tell(2, &MORE, [n, 0], None);
                self.value = sum;
            }
            3..=5 => {
                let (n, rest) = self.calculate_some('-', (value - 1).clamp(2, 50))?;
                self.tell(3, &FEWER, [n, 0], None);
                self.value = rest;
            }
            6..=8 => {
                let (k, n) = (self.dice.from(2, 9), self.dice.from(2, 9));
                let product = self.calculate(Operand::Told(k), '*', Operand::Told(n))?;
                let (sign, kind, templates) = match self.dice.from(0, 1) {
                    0 => ('+', 4, &MORE_GROUPS),
                    _ => ('-', 5, &FEWER_GROUPS),
                };
                self.value = self.calculate(self.value, sign, product)?;
                self.tell(kind, templates, [n, k], Some((Slip::Sign('+'), 1)));
            }
            9 => {
                self.value = self.calculate(self.value, '/', Operand::Told(2))?;
                self.tell(13, &HALF, [0, 0], Some((Slip::Sign('-'), 0)));
            }
            _ => {
                let k = self.dice.from(2, 5);
                self.value = self.multiply(k)?;
                self.tell(6, &TIMES, [0, k], Some((Slip::Sign('+'), 0)));
            }
        }
        (self.now() >= 2).then_some(())
    }

    /// The present value times `k`, where both are small.
    fn multiply(&mut self, k: i64) -> Option<Operand> {
        match self.now() <= 30 {
            true => self.calculate(self.value, '*', Operand::Told(k)),
            false => None,
        }
    }

    fn ask(&mut self) -> Option<()> {
        let value = self.now();
        match self.dice.from(0, 9) {
            0..=4 => self.tell(7, &ASK, [0, 0], None),
            5 => {
                let k = self.dice.from(2, 9);
                self.value = self.calculate(self.value, '/', Operand::Told(k))?;
                self.tell(8, &ASK_SHARE, [0, k], Some((Slip::Sign('-'), 0)));
            }
            6 => {
                let k = self.dice.from(2, 9);
                self.value = self.multiply(k)?;
                self.tell(9, &ASK_PRICE, [0, k], Some((Slip::Sign('+'), 0)));
            }
            7 => {
                let (n, sum) = self.calculate_some('+', 30)?;
                self.tell(10, &ASK_OTHER, [n, 0], None);
                self.value = sum;
            }
            8 => {
                let (n, rest) = self.calculate_some('-', (value - 1).clamp(2, 30))?;
                self.tell(11, &ASK_OTHER_LESS, [n, 0], Some((Slip::Sign('+'), 0)));
                self.value = rest;
            }
            _ => {
                let (n, others) = self.calculate_some('+', 20)?;
                let both = self.calculate(self.value, '+', others)?;
                self.tell(12, &ASK_BOTH, [n, 0], Some((Slip::LeftOut, 0)));
                self.value = both;
            }
        }
        Some(())
    }

    fn finish(self, by_pupil: bool) -> Option<Problem> {
        let steps = (1..=MOST_STEPS).contains(&self.steps.len());
        let form = self.form.iter().map(|part| i64::from(*part));
        let answer = self.now();
        if !steps || answer < 1 || !self.split.holds(form) {
            return None;
        }
        let right = vec![None; self.steps.len()];
        let slips: Vec<Option<Slip>> = match by_pupil {
            false => right.clone(),
            true => {
                let slips = |step: &Step| {
                    let (slip, share) = step.slip?;
                    (self.dice.from(1, 100) <= share).then_some(slip)
                };
                self.steps.iter().map(slips).collect()
            }
        };
        let solution = solve(self.split, &self.steps, self.value, &slips);
        Some(Problem {
            prompt: self.sentences.join(" "),
            // Where a mistake leads nowhere it is not made.
            solution: solution.or_else(|| solve(self.split, &self.steps, self.value, &right))?,
            answer,
            form: self.form,
        })
    }
}

/// `left sign right`; `None` if it has no whole positive result, or is a sum or difference of the other split.
fn calculate(split: Split, left: i64, sign: char, right: i64) -> Option<i64> {
    let result = match sign {
        '+' => left + right,
        '-' => left - right,
        '*' => left * right,
        _ if left % right != 0 => return None,
        _ => left / right,
    };
    let in_split = match sign {
        '+' | '-' => split.holds([left, i64::from(sign == '+'), right]),
        _ => true,
    };
    (result >= 1 && in_split).then_some(result)
}

/// The solution that comes of `steps`, each with or without its slip, and ends with `asked`.
fn solve(split: Split, steps: &[Step], asked: Operand, slips: &[Option<Slip>]) -> Option<String> {
    let (mut results, mut lines) = (Vec::new(), Vec::new());
    for (step, slip) in steps.iter().zip(slips) {
        let number = |operand, results: &[i64]| match operand {
            Operand::Told(number) => Some(number),
            Operand::Result(step) => results.get(step).copied(),
        };
        let (left, right) = (number(step.left, &results)?, number(step.right, &results)?);
        let sign = match slip {
            Some(Slip::LeftOut) => {
                results.push(right);
                continue;
            }
            Some(Slip::Sign(sign)) => *sign,
            None => step.sign,
        };
        let result = calculate(split, left, sign, right)?;
        lines.push(format!("{left} {sign} {right} = {result}."));
        results.push(result);
    }
    let answer = match asked {
        Operand::Told(number) => number,
        Operand::Result(step) => *results.get(step)?,
    };
    Some(format!("{} The answer is: {answer}", lines.join(" ")))
}
