//! Arithmetic problems with worked steps, their results, and the result of a common mistake.

use super::rows::Dice;

/// A problem in HTML with TeX, as users of Stack Exchange write it.
pub(crate) struct Problem {
    /// The quantity that is asked for; continues a sentence such as "How do I calculate".
    pub(crate) ask: String,
    /// A sentence or list that accompanies the question.
    pub(crate) detail: String,
    /// The steps to the result.
    pub(crate) steps: Vec<String>,
    /// The result in TeX.
    pub(crate) result: String,
    /// The result of a common mistake.
    pub(crate) wrong: String,
    /// Python code that checks the result.
    pub(crate) check: Option<String>,
}

/// A function that generates problems of one kind.
pub(crate) type Topic = fn(&mut Dice) -> Problem;

/// All kinds of problems.
pub(crate) const TOPICS: [Topic; 20] = [
    percentage,
    triangle,
    hypotenuse,
    common_divisor,
    mean,
    power_modulo,
    multiples,
    derivative,
    fractions,
    choose,
    determinant,
    discount,
    average_speed,
    geometric_sum,
    binary,
    compound_interest,
    dice,
    distance,
    equation,
    conversion,
];

fn problem(ask: String, detail: &str, steps: &[String], result: i64, wrong: i64) -> Problem {
    Problem {
        ask,
        detail: detail.to_string(),
        steps: steps.to_vec(),
        result: result.to_string(),
        // The mistake must not give the right result by chance.
        wrong: (wrong + i64::from(wrong == result)).to_string(),
        check: None,
    }
}

fn percentage(dice: &mut Dice) -> Problem {
    let (p, n) = (5 * dice.from(1, 19), 20 * dice.from(2, 40));
    let result = p * n / 100;
    let steps = [
        format!(r"One percent is a hundredth, so ${p}\%$ is $\frac{{{p}}}{{100}}$."),
        format!(r"Multiply: $\frac{{{p}}}{{100}} \cdot {n} = {result}$."),
    ];
    let ask = format!(r"${p}\%$ of ${n}$");
    let detail = "I know that 50&nbsp;% is one half, but not what to do with other percentages.";
    problem(ask, detail, &steps, result, p * n / 10)
}

fn triangle(dice: &mut Dice) -> Problem {
    let (base, height) = (2 * dice.from(2, 30), dice.from(3, 40));
    let result = base * height / 2;
    let steps = [
        "A triangle is half of the rectangle around it.".to_string(),
        format!("The rectangle has ${base} \\cdot {height} = {}$.", base * height),
        format!("Half of it is ${result}$."),
    ];
    let ask =
        format!("the area of a triangle with base ${base}$&nbsp;cm and height ${height}$&nbsp;cm");
    let detail = "The triangle has no right angle, if that matters.";
    problem(ask, detail, &steps, result, base * height)
}

fn hypotenuse(dice: &mut Dice) -> Problem {
    let (a, b, c) = dice.pick(&[(3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25)]);
    let k = dice.from(1, 9);
    let (a, b, c) = (k * a, k * b, k * c);
    let steps = [
        "By Pythagoras, $c^2 = a^2 + b^2$.".to_string(),
        format!("Here $c^2 = {} + {} = {}$.", a * a, b * b, c * c),
        format!(r"The root is $c = \sqrt{{{}}} = {c}$.", c * c),
    ];
    let ask = format!("the hypotenuse of a right triangle with legs ${a}$ and ${b}$");
    let detail = "The sides satisfy $a &lt; b &lt; c$, that is all I am given.";
    problem(ask, detail, &steps, c, a + b)
}

fn common_divisor(dice: &mut Dice) -> Problem {
    let g = dice.from(2, 14);
    let (a, b) = (g * dice.from(7, 20), g * dice.from(2, 6));
    let mut steps = vec!["Use Euclid: divide, keep the remainder, repeat.".to_string()];
    let (mut x, mut y) = (a, b);
    while y != 0 {
        steps.push(format!(r"${x} = {} \cdot {y} + {}$.", x / y, x % y));
        (x, y) = (y, x % y);
    }
    steps.push(format!("The last remainder that is not zero is ${x}$."));
    let ask = format!("the greatest common divisor of ${a}$ and ${b}$");
    let detail = "Listing all divisors takes me ages.";
    let check = Some(format!("import math\nprint(math.gcd({a}, {b}))"));
    Problem { check, ..problem(ask, detail, &steps, x, a - b) }
}

fn mean(dice: &mut Dice) -> Problem {
    let mean = dice.from(10, 60);
    let (p, q) = (dice.from(1, 9), dice.from(1, 9));
    let values = [mean - p, mean + q, mean - q, mean, mean + p];
    let list = values.map(|v| v.to_string()).join(", ");
    let steps = [
        format!("Add them: ${} = {}$.", values.map(|v| v.to_string()).join(" + "), 5 * mean),
        format!("Divide by how many there are: ${} / 5 = {mean}$.", 5 * mean),
    ];
    let ask = format!("the mean of ${list}$");
    let detail = "These are the points of five pupils &amp; the teacher wants their average.";
    problem(ask, detail, &steps, mean, 5 * mean)
}

fn power_modulo(dice: &mut Dice) -> Problem {
    let (a, m) = (dice.from(2, 9), dice.from(11, 40));
    let (square, fourth) = (a * a % m, a * a % m * (a * a % m) % m);
    let result = fourth * fourth % m;
    let steps = [
        format!(r"Square and reduce: ${a}^2 \equiv {square} \pmod{{{m}}}$."),
        format!(r"Again: ${a}^4 \equiv {square}^2 \equiv {fourth} \pmod{{{m}}}$."),
        format!(r"Once more: ${a}^8 \equiv {fourth}^2 \equiv {result} \pmod{{{m}}}$."),
    ];
    let ask = format!(r"${a}^8 \bmod {m}$");
    let detail = "The power itself has too many digits for me.";
    Problem {
        check: Some(format!("print(pow({a}, 8, {m}))")),
        ..problem(ask, detail, &steps, result, 8 * a % m)
    }
}

fn multiples(dice: &mut Dice) -> Problem {
    let (k, n) = (dice.from(2, 12), 2 * dice.from(4, 30));
    let result = k * n * (n + 1) / 2;
    let steps = [
        format!(r"Take out the factor: ${k}\,(1 + 2 + \dots + {n})$."),
        format!(r"The bracket is $\frac{{{n} \cdot {}}}{{2}} = {}$.", n + 1, n * (n + 1) / 2),
        format!(r"So ${k} \cdot {} = {result}$.", n * (n + 1) / 2),
    ];
    let ask = format!("the sum of the first ${n}$ multiples of ${k}$");
    let detail = r"Written out it is $\sum_{i=1}^{n} k\,i$, I believe.";
    problem(ask, detail, &steps, result, k * n * n / 2)
}

fn derivative(dice: &mut Dice) -> Problem {
    let (a, n, x) = (dice.from(2, 9), dice.from(2, 4), dice.from(2, 6));
    let power = |n: i64| (0..n).fold(1, |product, _| product * x);
    let result = a * n * power(n - 1);
    let steps = [
        format!("The power rule gives $f'(x) = {}x^{{{}}}$.", a * n, n - 1),
        format!(r"Put in ${x}$: $f'({x}) = {} \cdot {} = {result}$.", a * n, power(n - 1)),
    ];
    let ask = format!("the derivative of $f(x) = {a}x^{n}$ at $x = {x}$");
    let detail = "The limit definition got me nowhere.";
    problem(ask, detail, &steps, result, a * power(n))
}

fn fractions(dice: &mut Dice) -> Problem {
    let (a, b) = (dice.from(1, 5), dice.from(6, 9));
    let (c, d) = (dice.from(1, 3), dice.from(4, 5));
    let (top, bottom) = (a * d + c * b, b * d);
    let steps = [
        format!("A common denominator is ${b} \\cdot {d} = {bottom}$."),
        format!(
            r"Then $\frac{{{}}}{{{bottom}}} + \frac{{{}}}{{{bottom}}}$, and only the tops are added.",
            a * d,
            c * b
        ),
    ];
    let ask = format!(r"$\frac{{{a}}}{{{b}}} + \frac{{{c}}}{{{d}}}$");
    let detail = "The denominators are different &ndash; that is my whole problem.";
    Problem {
        result: format!(r"\frac{{{top}}}{{{bottom}}}"),
        wrong: format!(r"\frac{{{}}}{{{}}}", a + c, b + d),
        check: Some(format!(
            "from fractions import Fraction as F\nprint(F({a}, {b}) + F({c}, {d}))"
        )),
        ..problem(ask, detail, &steps, 0, 0)
    }
}

fn choose(dice: &mut Dice) -> Problem {
    let (n, k) = (dice.from(5, 16), dice.from(2, 3));
    let over = |k: i64| (0..k).fold(1, |product, i| product * (n - i));
    let below = if k == 2 { 2 } else { 6 };
    let result = over(k) / below;
    let steps = [
        format!("In order, there are ${}$ ways.", over(k)),
        format!("Each choice was counted ${k}! = {below}$ times."),
        format!(r"So $\binom{{{n}}}{{{k}}} = {} / {below} = {result}$.", over(k)),
    ];
    let ask = format!("how many ways there are to choose ${k}$ out of ${n}$ people");
    let detail = "<em>The order does not matter.</em>";
    problem(ask, detail, &steps, result, n * k)
}

fn determinant(dice: &mut Dice) -> Problem {
    let [a, b, c, d] = [2, 1, 1, 3].map(|min| dice.from(min, 12));
    let result = a * d - b * c;
    let steps = [
        "For two rows the rule is $ad - bc$.".to_string(),
        format!(r"That is ${a} \cdot {d} - {b} \cdot {c} = {} - {}$.", a * d, b * c),
    ];
    let ask = format!(
        r"the determinant of $\begin{{pmatrix}} {a} &amp; {b} \\ {c} &amp; {d} \end{{pmatrix}}$"
    );
    let detail = "I mix up the signs every time.";
    problem(ask, detail, &steps, result, a * d + b * c)
}

fn discount(dice: &mut Dice) -> Problem {
    let (price, off) = (20 * dice.from(2, 30), 5 * dice.from(1, 12));
    let saved = price * off / 100;
    let steps = [
        format!(r"The discount is ${price} \cdot {off} / 100 = {saved}$."),
        format!("Take it off: ${price} - {saved} = {}$.", price - saved),
    ];
    let ask = format!(r"the price after ${off}\%$ off, when it was ${price}$ before");
    let detail =
        "<blockquote>\n<p>All prices include tax.</p>\n</blockquote>\n<p>says the shop.</p>";
    problem(ask, detail, &steps, price - saved, (price - off).abs())
}

fn average_speed(dice: &mut Dice) -> Problem {
    let speeds = [
        (20, 30),
        (30, 60),
        (40, 60),
        (60, 90),
        (10, 15),
        (40, 120),
        (50, 75),
        (30, 45),
        (15, 30),
        (12, 24),
        (45, 90),
        (20, 60),
        (24, 48),
        (80, 120),
        (70, 105),
    ];
    let (there, back) = dice.pick(&speeds);
    let result = 2 * there * back / (there + back);
    let steps = [
        "The times differ, so take total way over total time.".to_string(),
        format!(r"For a way of 1: $\frac{{2}}{{1/{there} + 1/{back}}}$."),
        format!("That is ${} / {} = {result}$.", 2 * there * back, there + back),
    ];
    let ask = format!(
        "the average speed, going at ${there}$&nbsp;km/h and coming back at ${back}$&nbsp;km/h"
    );
    let detail = "The way is the same in both directions.";
    problem(ask, detail, &steps, result, (there + back) / 2)
}

fn geometric_sum(dice: &mut Dice) -> Problem {
    let (r, n) = (dice.from(2, 6), dice.from(3, 6) as u32);
    let result = (r.pow(n + 1) - 1) / (r - 1);
    let steps = [
        format!(r"Multiply the sum $S$ by ${r}$ and subtract: ${} S = {r}^{} - 1$.", r - 1, n + 1),
        format!("So $S = {} / {} = {result}$.", r.pow(n + 1) - 1, r - 1),
    ];
    let ask = format!(r"$1 + {r} + {r}^2 + \dots + {r}^{n}$");
    let detail = "Adding term by term works, but there must be a formula.";
    let check = Some(format!("print(sum({r}**i for i in range({})))", n + 1));
    Problem { check, ..problem(ask, detail, &steps, result, r.pow(n)) }
}

fn binary(dice: &mut Dice) -> Problem {
    let n = dice.from(9, 120);
    let digits = format!("{n:b}");
    let places = digits.chars().rev().zip(0..).filter(|(digit, _)| *digit == '1');
    let mut powers: Vec<String> = places.map(|(_, place)| (1 << place).to_string()).collect();
    powers.reverse();
    let steps = [
        "Each digit counts twice as much as the one on its right.".to_string(),
        format!("The ones stand for ${} = {n}$.", powers.join(" + ")),
    ];
    let ask = format!("the decimal value of the binary number <code>{digits}</code>");
    let detail = "Is the first digit the largest or the smallest?";
    Problem {
        check: Some(format!("print(int(\"{digits}\", 2))")),
        ..problem(ask, detail, &steps, n, powers.len() as i64)
    }
}

fn compound_interest(dice: &mut Dice) -> Problem {
    let (start, rate) = (400 * dice.from(1, 20), dice.pick(&[5, 10, 15, 20]));
    let first = start * (100 + rate) / 100;
    let second = first * (100 + rate) / 100;
    let steps = [
        format!("After one year there are ${start} \\cdot {} / 100 = {first}$.", 100 + rate),
        format!(
            "The second year starts from ${first}$: ${first} \\cdot {} / 100 = {second}$.",
            100 + rate
        ),
    ];
    let ask = format!(r"what ${start}$ euros grow to in two years at ${rate}\%$ interest");
    let detail = "The interest stays on the account.";
    problem(ask, detail, &steps, second, start + 2 * start * rate / 100)
}

fn dice(dice: &mut Dice) -> Problem {
    let (sides, n) = (dice.pick(&[4, 6, 8, 10, 12, 20]), dice.from(2, 4) as u32);
    let (none, all) = ((sides - 1i64).pow(n), sides.pow(n));
    let steps = [
        "Look at the opposite: the highest number never comes.".to_string(),
        format!(
            r"That has probability $\left(\frac{{{}}}{{{sides}}}\right)^{n} = \frac{{{none}}}{{{all}}}$.",
            sides - 1
        ),
        "Subtract it from 1.".to_string(),
    ];
    let ask = format!(
        "the probability of at least one ${sides}$ in ${n}$ rolls of a die with ${sides}$ sides"
    );
    let detail = "<ul>\n<li>the die is fair</li>\n<li>the rolls are independent</li>\n</ul>";
    Problem {
        result: format!(r"\frac{{{}}}{{{all}}}", all - none),
        wrong: format!(r"\frac{{{n}}}{{{sides}}}"),
        ..problem(ask, detail, &steps, 0, 0)
    }
}

fn distance(dice: &mut Dice) -> Problem {
    let k = dice.from(1, 8);
    let (x, y) = (dice.from(0, 9), dice.from(0, 9));
    let (across, up, result) = (3 * k, 4 * k, 5 * k);
    let steps = [
        format!("The points are ${across}$ apart in $x$ and ${up}$ in $y$."),
        format!(
            r"So the distance is $\sqrt{{{across}^2 + {up}^2}} = \sqrt{{{}}}$.",
            result * result
        ),
    ];
    let ask =
        format!("the distance between the points $({x}, {y})$ and $({}, {})$", x + across, y + up);
    let detail = "I drew them, but my ruler is not precise enough.";
    problem(ask, detail, &steps, result, across + up)
}

fn equation(dice: &mut Dice) -> Problem {
    let (a, b, x) = (dice.from(2, 12), dice.from(3, 30), dice.from(2, 20));
    let c = a * x + b;
    let steps = [
        format!("Subtract ${b}$ on both sides: ${a}x = {}$.", a * x),
        format!("Divide by ${a}$: $x = {} / {a}$.", a * x),
    ];
    let ask = format!("$x$ from ${a}x + {b} = {c}$");
    let detail = "I never know which number has to go first.";
    problem(ask, detail, &steps, x, c - b)
}

fn conversion(dice: &mut Dice) -> Problem {
    let k = dice.from(1, 30);
    let (kilometers, meters) = (18 * k, 5 * k);
    let steps = [
        "A kilometre has 1000 metres, an hour 3600 seconds.".to_string(),
        format!("So divide by $3.6$: ${kilometers} / 3.6 = {meters}$."),
    ];
    let ask = format!("how many metres a second ${kilometers}$&nbsp;km/h are");
    let detail = "Is it a factor of 3.6, &quot;up&quot; or &quot;down&quot;?";
    problem(ask, detail, &steps, meters, 54 * k)
}
