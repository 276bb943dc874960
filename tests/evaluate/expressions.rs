//! Tests of `equivalent` on a table of pairs, on generated pairs of known values, and on inputs that could be slow.

use arithmo::eval::answers::{MATH_SCORERS, equivalent, rational_value};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::answers::fixture;
use crate::support::json_lines;

/// Compares every pair of the table in both orders. The table has pairs that were once judged wrongly, pairs that users
/// of Math-Verify reported, and every form of an answer.
#[test]
fn pairs_are_judged_as_the_table_says() {
    let mut wrong = Vec::new();
    for row in json_lines(&fixture("expressions.jsonl")) {
        let text = |key: &str| row[key].as_str().unwrap();
        let (known, answer) = (text("known"), text("answer"));
        for (one, other) in [(known, answer), (answer, known)] {
            if row["equivalent"] != equivalent(one, other) {
                wrong.push(row.to_string());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn completions_are_judged_as_the_table_says() {
    for row in json_lines(&fixture("completions.jsonl")) {
        let text = |key: &str| row[key].as_str().unwrap();
        let verdict = MATH_SCORERS[2].judge(text("known"), text("completion"));
        assert_eq!(row["equivalent"], verdict.correct, "{row}");
    }
}

#[test]
fn closed_expressions_have_exact_values() {
    for (text, value) in [
        ("7", "7"),
        ("-0.25", "-1/4"),
        ("1,000", "1000"),
        (r"1{,}000{,}000.5", "2000001/2"),
        (r"10\,000", "10000"),
        (r"\frac{1}{2} + \frac13", "5/6"),
        (r"2\frac{1}{2}", "5/2"),
        ("2 1/2", "5/2"),
        ("2^{10}", "1024"),
        ("10^{-3}", "1/1000"),
        (r"\sqrt{16}", "4"),
        (r"\sqrt[3]{-\frac{8}{27}}", "-2/3"),
        ("8^{2/3}", "4"),
        (r"\binom{10}{3}", "120"),
        ("5!", "120"),
        (r"0.1\overline{6}", "1/6"),
        (r"\left|-3\right|", "3"),
        ("3 million", "3000000"),
        ("5(3)", "15"),
        ("x", ""),
        (r"3\pi", ""),
        (r"\sqrt{2}", ""),
        ("5 cm", ""),
        ("1, 2", ""),
        ("(1, 2)", ""),
        ("1/0", ""),
        ("0^0", ""),
        ("x=5", ""),
        ("9^{9^9}", ""),
        ("7 mod 3", ""),
        ("10-", ""),
        ("", ""),
    ] {
        let found = rational_value(text).map(|value| value.to_string());
        assert_eq!(found.unwrap_or_default(), value, "{text}");
    }
}

/// An expression in one of several notations, and its value as a fraction.
struct Sample {
    text: String,
    value: (i128, i128),
}

struct Generator(ChaCha8Rng);

impl Generator {
    fn below(&mut self, end: u32) -> u32 {
        self.0.next_u32() % end
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u32) as usize]
    }

    fn space(&mut self) -> &'static str {
        self.pick(&["", " ", r"\,", r"\;", " "])
    }

    /// Generates an expression of at most `depth` nested operations.
    fn sample(&mut self, depth: u32) -> Sample {
        if depth == 0 || self.below(6) == 0 {
            let value = i128::from(self.below(9)) + 1;
            return Sample { text: value.to_string(), value: (value, 1) };
        }
        let (a, b) = (self.sample(depth - 1), self.sample(depth - 1));
        let (p, q) = (a.value, b.value);
        let (open, close) =
            [("(", ")"), (r"\left(", r"\right)"), ("{(", ")}"), ("[", "]")][self.below(4) as usize];
        let (left, right) = (self.space(), self.space());
        let group = |text: &str| format!("{open}{text}{close}");
        match self.below(5) {
            0 => Sample {
                text: format!("{}{left}+{right}{}", a.text, group(&b.text)),
                value: (p.0 * q.1 + q.0 * p.1, p.1 * q.1),
            },
            1 => Sample {
                text: format!("{}{left}-{right}{}", a.text, group(&b.text)),
                value: (p.0 * q.1 - q.0 * p.1, p.1 * q.1),
            },
            2 => Sample {
                text: format!(
                    "{}{left}{}{right}{}",
                    group(&a.text),
                    self.pick(&[r"\cdot ", r"\times ", "*", "", "×"]),
                    group(&b.text)
                ),
                value: (p.0 * q.0, p.1 * q.1),
            },
            3 if q.0 != 0 => Sample {
                text: match self.below(3) {
                    0 => format!("{}/{}", group(&a.text), group(&b.text)),
                    1 => format!(r"\frac{{{}}}{{{}}}", a.text, b.text),
                    _ => format!(r"\dfrac{left}{{{}}} {{{}}}", a.text, b.text),
                },
                value: (p.0 * q.1, p.1 * q.0),
            },
            _ => Sample {
                text: format!("{}^{}", group(&a.text), self.pick(&["2", "{2}", "{ 2 }", "{1+1}"])),
                value: (p.0 * p.0, p.1 * p.1),
            },
        }
    }
}

/// Checks 4,000 pairs of generated expressions. Each expression is also compared with its value, with itself plus a
/// small number, and with multiples of a root.
#[test]
fn generated_expressions_are_equal_if_their_values_are() {
    let mut generator = Generator(ChaCha8Rng::seed_from_u64(12));
    let mut equal = 0;
    for _ in 0..4_000 {
        let (a, b) = (generator.sample(2), generator.sample(2));
        let same = a.value.0 * b.value.1 == b.value.0 * a.value.1;
        equal += usize::from(same);
        assert_eq!(equivalent(&a.text, &b.text), same, "{} and {}", a.text, b.text);
        let (above, below) = a.value;
        assert!(
            equivalent(&a.text, &format!("{above}/({below})")),
            "{} is {above}/{below}",
            a.text
        );
        let off = format!("{} + 10^{{-60}}", a.text);
        assert!(!equivalent(&a.text, &off), "{off}");
        let root = format!(r"({})\sqrt{{2}}", a.text);
        let written = format!(r"\frac{{2({above})}}{{({below})\sqrt 2}}");
        assert!(equivalent(&root, &written), "{root} is {written}");
        let near = format!(r"({root})(1 + 10^{{-40}})");
        assert_eq!(equivalent(&root, &near), above == 0, "{near}");
    }
    assert!(equal > 40, "only {equal} pairs were equal");
}

/// Checks that order matters in tuples and intervals but not in sets and pairs, and that repetition matters except in
/// sets.
#[test]
fn generated_collections_are_compared_by_their_kind() {
    let mut generator = Generator(ChaCha8Rng::seed_from_u64(13));
    for _ in 0..500 {
        let numbers: Vec<String> = (0..2 + generator.below(4))
            .map(|n| (u64::from(n) * 10 + 1 + u64::from(generator.below(9))).to_string())
            .collect();
        let mut rotated = numbers.clone();
        rotated.rotate_left(1);
        let mut longer = numbers.clone();
        longer.push(numbers[0].clone());
        let write = |open: &str, numbers: &[String], close: &str| {
            format!("{open}{}{close}", numbers.join(", "))
        };
        for (open, close, any_order, repeats) in [
            ("", "", numbers.len() == 2, false),
            (r"\{", r"\}", true, true),
            ("(", ")", false, false),
            ("[", ")", false, false),
        ] {
            let text = write(open, &numbers, close);
            assert!(equivalent(&text, &text.replace(' ', "  ")), "{text}");
            assert_eq!(equivalent(&text, &write(open, &rotated, close)), any_order, "{text}");
            assert_eq!(equivalent(&text, &write(open, &longer, close)), repeats, "{text}");
        }
        let assign = |names: &[&str], values: &[String]| -> String {
            let pairs = names.iter().zip(values).map(|(name, value)| format!("{name} = {value}"));
            pairs.collect::<Vec<_>>().join(", ")
        };
        let (pair, swapped) = (&numbers[..2], [numbers[1].clone(), numbers[0].clone()]);
        let text = assign(&["x", "y"], pair);
        assert!(equivalent(&text, &assign(&["y", "x"], &swapped)), "{text}");
        assert!(!equivalent(&text, &assign(&["y", "x"], pair)), "{text}");
        assert!(equivalent(&text, &format!("({}, {})", pair[0], pair[1])), "{text}");
    }
}

/// Checks texts that would take minutes in quadratic time, or overflow the stack in unbounded recursion.
#[test]
fn long_texts_are_compared_in_linear_time() {
    let repeated = [
        "(",
        "[",
        "{",
        r"\{",
        r"\frac{",
        r"\sqrt{",
        r"\text{",
        r"\left(",
        "9",
        "-",
        "1,",
        "1.",
        "1 ",
        "1+",
        "2^",
        "1:",
        "|",
        "$",
        "x'",
        "x_",
        "!",
        r"\pm",
        r"\pm 1+",
        r"\sin ",
        r"\log_",
        "1/",
        "½",
        "²",
        r"\cup ",
        "1=",
        "1<",
        r"\%",
        r"\begin{",
        "^",
        "{,}",
        "a",
        "5 cm ",
        "dollars per ",
        r"\sqrt{2}+",
        "x+",
        "(x+1)",
        r"\choose ",
        r"1\over ",
        r"{1\choose ",
        "]0,",
        "[0,1[",
        "(1)_",
        "0.(1)",
        r"1{\,}",
        r"\tag{1}",
        r"\\[2mm]",
        "5 a.m.",
        "1A",
        "answer: ",
        "One might think that the answer is ",
    ];
    for piece in repeated {
        for times in [300, 3_000, 40_000] {
            let text = piece.repeat(times);
            for text in
                [format!("{text}1"), format!("{text}1{}", ")".repeat(times)), format!("7{text}")]
            {
                assert!(!equivalent(&text, "3"), "{piece}");
                equivalent(&text, &format!("{text}7"));
                for scorer in MATH_SCORERS {
                    scorer.judge(&text, &format!(r"\boxed{{{text}}} answer is {text}"));
                }
            }
        }
    }
    let numbers =
        |separator: &str| (0..20_000).map(|n| n.to_string()).collect::<Vec<_>>().join(separator);
    for text in [
        format!(r"\{{{}\}}", numbers(",")),
        format!("1/{}", numbers("+1/")),
        format!("{}/{}", "9".repeat(200_000), "7".repeat(200_000)),
        format!(r"\sqrt{{{}}}", numbers(r"}+\sqrt{")),
    ] {
        assert!(!equivalent(&text, "3"));
        assert!(!equivalent(&text, &format!("{text}1")));
    }
}

/// Checks expressions whose values are too large to compute.
#[test]
fn expressions_of_huge_values_are_compared() {
    for text in [
        "9^{9^9}",
        "9^{9^{9^9}}",
        "9^9^9^9",
        "2004!",
        "1000000!",
        "(20000!)!",
        "10^{10^{10}}!",
        r"\binom{1000000}{500000}",
        r"\sqrt[1000000]{2}",
        "2^{-9^9}",
        "e^{e^{e^{e^e}}}",
        r"\sin(10^{100})",
        r"\sin(10^{20})",
        r"\tan\frac{\pi}{2}",
        "(-1)^{10^{30}}",
        "i^{9^9}",
        "(1+i)^{100000000000}",
        "1e99999999999",
        "(1/3)^{100000}",
        "x^{x^{x^x}}",
        "((((2^{1000})^{1000})^{1000})^{1000})^{1000}",
        r"\frac{1}{x-x}",
        "0^{-1}",
        r"\log_1 5",
        r"\ln 0",
    ] {
        assert!(equivalent(text, text), "{text}");
        for other in ["3", "x+3", r"\sqrt{3}", "0"] {
            assert!(!equivalent(text, other), "{text} and {other}");
        }
    }
    assert!(equivalent("9^{9^9}", "9^{387420489}") && !equivalent("9^{9^9}", "9^{387420488}"));
    assert!(
        equivalent(r"\frac{2004!}{2003!}", "2004")
            && !equivalent(r"\frac{1}{2004!}", r"\frac{1}{2006!}")
    );
}
