//! Recognizes different forms of the same answer: assignments, chains of steps, inequalities, both signs.

use std::collections::BTreeSet;

use super::super::symbols::SHORT_WORDS;
use super::super::tree::Node;
use super::Comparison;

/// The values that an answer assigns to several names.
pub(super) struct Assignments {
    /// Names and values in the written order.
    pub(super) values: Vec<(String, Node)>,
    /// Whether a tuple or list of values is assigned to a tuple or list of names.
    is_tuple: bool,
}

impl Assignments {
    /// Returns the values in the order of a tuple: the written order if the names are a tuple, else alphabetical order.
    pub(super) fn as_tuple(&self) -> Vec<(String, Node)> {
        let mut values = self.values.clone();
        if !self.is_tuple {
            values.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        values
    }

    /// Returns the assignments in `x = 1, y = 2`, `(x = 1, y = 2)` or `(x, y) = (1, 2)`.
    pub(super) fn from_node(node: &Node) -> Option<Self> {
        if let Node::Relation(sides, operators) = node {
            let (names, values) = match &sides[..] {
                [Node::Tuple('(', ')', names), Node::Tuple('(', ')', values)]
                | [Node::List(names), Node::List(values)] => (names, values),
                _ => return None,
            };
            let names = names.iter().map(|name| name.name().map(str::to_string));
            let names: Vec<String> = names.collect::<Option<_>>()?;
            let is_valid = names.len() == values.len() && operators[..] == ['='];
            let values = names.into_iter().zip(values.iter().cloned()).collect();
            return is_valid.then_some(Self { values, is_tuple: true });
        }
        let items = elements(node).filter(|items| items.len() > 1)?;
        let pairs = items.iter().map(|item| {
            let (name, value) = assignment(item)?;
            Some((name, value.clone()))
        });
        let values: Vec<(String, Node)> = pairs.collect::<Option<_>>()?;
        let names: BTreeSet<&String> = values.iter().map(|(name, _)| name).collect();
        let are_distinct = names.len() == values.len();
        are_distinct.then_some(Self { values, is_tuple: false })
    }
}

fn elements(node: &Node) -> Option<&[Node]> {
    match node {
        Node::Tuple('(', ')', elements) | Node::List(elements) | Node::Set(elements) => {
            Some(elements)
        }
        _ => None,
    }
}

/// Returns the name and value of `x = 5`, `5 = x` or `x \in A`.
pub(super) fn assignment(node: &Node) -> Option<(String, &Node)> {
    match node {
        Node::Relation(sides, operators) if matches!(operators[..], ['=' | '∈']) => {
            let swapped = || sides[1].name().filter(|_| sides[0].is_closed());
            match sides[0].label() {
                Some(name) => Some((name, &sides[1])),
                None => swapped().map(|name| (name.to_string(), &sides[0])),
            }
        }
        _ => None,
    }
}

/// Returns the two sides of an equation between expressions.
pub(super) fn equation(node: &Node) -> Option<(&Node, &Node)> {
    match node {
        Node::Relation(sides, operators) if operators[..] == ['='] => {
            let are_scalar = sides.iter().all(Node::is_scalar);
            are_scalar.then(|| (&sides[0], &sides[1]))
        }
        _ => None,
    }
}

/// Returns whether `node` is the set of all real numbers.
pub(super) fn is_all_numbers(node: &Node) -> bool {
    match node {
        Node::Name(name) => name == "reals",
        Node::Words(words) => words.eq_ignore_ascii_case("all real numbers"),
        Node::Tuple('(', ')', ends) => ends[..] == [Node::infinity(true), Node::infinity(false)],
        _ => false,
    }
}

/// Returns whether an answer has several values.
pub(super) fn is_list(node: &Node) -> bool {
    match node {
        Node::List(_) | Node::Set(_) => true,
        Node::Relation(sides, _) => {
            sides.iter().any(|side| matches!(side, Node::List(_) | Node::Set(_)))
        }
        _ => false,
    }
}

/// Reduces a chain of steps to its result, if all steps are correct: `x = \frac{4}{8} = \frac{1}{2}` becomes
/// `x = \frac{1}{2}`, and `2 + 3 = 5` becomes `5`. A rounded value after an exact one is removed: `\sqrt{2} \approx 1.41`
/// becomes `\sqrt{2}`. `x \approx 1.41` becomes `x = 1.41`.
pub(super) fn without_steps(node: &Node, comparison: &Comparison) -> Node {
    let Node::Relation(sides, operators) = node else {
        return node.clone();
    };
    let relation = |sides: &[Node]| match sides {
        [one] => one.clone(),
        sides => Node::Relation(sides.to_vec(), vec!['='; sides.len() - 1]),
    };
    let label = usize::from(sides[0].label().is_some());
    let equal = operators.iter().take_while(|operator| **operator == '=').count();
    match operators[equal..] {
        [] => {}
        ['≈'] if equal == 0 && label == 1 => return relation(sides),
        // A rounded value comes after an exact one.
        ['≈'] if equal >= label && comparison.near(&sides[equal], &sides[equal + 1]) => {
            return without_steps(&relation(&sides[..=equal]), comparison);
        }
        _ => return node.clone(),
    }
    let steps = &sides[label..];
    let Some(last) = steps.last().filter(|_| steps.len() > 1) else {
        return node.clone();
    };
    let is_step =
        |step: &Node| step.is_scalar() && step.is_closed() && comparison.values(step, last);
    if !steps.iter().all(is_step) {
        return node.clone();
    }
    let name = &sides[..label];
    relation(&[name, std::slice::from_ref(last)].concat())
}

/// Returns the interval that an inequality describes, and the name of its variable.
pub(super) fn inequality(node: &Node) -> Option<(String, Node)> {
    let Node::Relation(sides, operators) = node else {
        return None;
    };
    let is_less = |operator: &char| matches!(operator, '<' | '≤');
    let is_greater = |operator: &char| matches!(operator, '>' | '≥');
    let bracket = |operator: char, round: char, square: char| match operator {
        '<' | '>' => round,
        _ => square,
    };
    let is_ascending = operators.iter().all(is_less);
    if !is_ascending && !operators.iter().all(is_greater) {
        return None;
    }
    let (mut sides, mut operators): (Vec<&Node>, Vec<char>) =
        (sides.iter().collect(), operators.clone());
    if !is_ascending {
        sides.reverse();
        operators.reverse();
    }
    let (name, open, close, low, high) = match (&sides[..], &operators[..]) {
        ([name, high], [operator]) if name.name().is_some() => {
            (name, '(', bracket(*operator, ')', ']'), Node::infinity(true), (*high).clone())
        }
        ([low, name], [operator]) => {
            (name, bracket(*operator, '(', '['), ')', (*low).clone(), Node::infinity(false))
        }
        ([low, name, high], [first, second]) => {
            let (open, close) = (bracket(*first, '(', '['), bracket(*second, ')', ']'));
            (name, open, close, (*low).clone(), (*high).clone())
        }
        _ => return None,
    };
    let are_closed = low.is_closed() && high.is_closed();
    let name = name.name().filter(|_| are_closed)?;
    Some((name.to_string(), Node::Tuple(open, close, vec![low, high])))
}

/// Returns the name of the variable, if there is one, and the intervals of an inequality, of several inequalities, of a
/// union, or of all real numbers except one.
pub(super) fn solutions(node: &Node) -> Option<(Option<String>, Vec<Node>)> {
    match node {
        Node::Relation(sides, operators) if operators[..] == ['∈'] => {
            let name = sides[0].name()?.to_string();
            let (_, parts) = solutions(&sides[1]).unwrap_or_else(|| (None, vec![sides[1].clone()]));
            Some((Some(name), parts))
        }
        Node::List(items) => {
            let all: Option<Vec<(String, Node)>> = items.iter().map(inequality).collect();
            let all = all.filter(|all| all.windows(2).all(|pair| pair[0].0 == pair[1].0))?;
            let name = all.first().map(|(name, _)| name.clone());
            Some((name, all.into_iter().map(|(_, interval)| interval).collect()))
        }
        Node::Relation(sides, operators) if operators[..] == ['≠'] => {
            let (name, excluded) = name_and_value(&sides[0], &sides[1])?;
            Some((Some(name.to_string()), all_but(excluded)))
        }
        Node::Relation(..) => inequality(node).map(|(name, interval)| (Some(name), vec![interval])),
        Node::Sets('∖', sets) => match &sets[..] {
            [all, Node::Set(excluded)] if is_all_numbers(all) => match &excluded[..] {
                [one] => Some((None, all_but(one))),
                _ => None,
            },
            _ => None,
        },
        Node::Sets('∪', parts) => Some((None, parts.clone())),
        Node::Sets('∧', items) => {
            let (name, interval) = both_bounds(items)?;
            Some((Some(name), vec![interval]))
        }
        _ => None,
    }
}

/// Returns the name and the closed expression, if `one` and `other` are these, in any order.
fn name_and_value<'a>(one: &'a Node, other: &'a Node) -> Option<(&'a str, &'a Node)> {
    let named = |name: &'a Node, value: &'a Node| {
        name.name().filter(|_| value.is_closed()).map(|name| (name, value))
    };
    named(one, other).or_else(|| named(other, one))
}

/// Returns the two intervals of all real numbers except `excluded`.
fn all_but(excluded: &Node) -> Vec<Node> {
    let interval = |low: Node, high: Node| Node::Tuple('(', ')', vec![low, high]);
    let lower = interval(Node::infinity(true), excluded.clone());
    vec![lower, interval(excluded.clone(), Node::infinity(false))]
}

/// Returns the name and the interval of two bounds that both hold: `x > 3 and x < 5`.
fn both_bounds(items: &[Node]) -> Option<(String, Node)> {
    let [one, other] = items else {
        return None;
    };
    let ((name, one), (same, other)) = (inequality(one)?, inequality(other)?);
    let (Node::Tuple(open, end, mut one), Node::Tuple(begin, close, mut other)) = (one, other)
    else {
        return None;
    };
    let is_infinity = |bound: Option<&Node>, negative| bound == Some(&Node::infinity(negative));
    if name != same {
        return None;
    }
    if is_infinity(one.last(), false) && is_infinity(other.first(), true) {
        return Some((name, Node::Tuple(open, close, vec![one.swap_remove(0), other.pop()?])));
    }
    let is_swapped = is_infinity(other.last(), false) && is_infinity(one.first(), true);
    is_swapped
        .then(|| Some((name, Node::Tuple(begin, end, vec![other.swap_remove(0), one.pop()?]))))?
}

/// Returns the values of an expression, or of the elements of a list, that contains `\pm`: one for each choice of signs.
/// Returns `None` if there is no `\pm` or there are too many.
pub(super) fn with_signs(node: &Node) -> Option<Vec<Node>> {
    /// Maximum number of `\pm` whose choices are written out.
    const MAX_SIGNS: usize = 4;
    let mut signs = 0;
    node.any(&mut |node| {
        signs += usize::from(matches!(node, Node::PlusMinus(_)));
        false
    });
    if signs == 0 || signs > MAX_SIGNS {
        return None;
    }
    if let Node::List(items) | Node::Set(items) = node {
        let values =
            items.iter().map(|item| with_signs(item).unwrap_or_else(|| vec![item.clone()]));
        return Some(values.flatten().collect());
    }
    // If there is a \mp, all signs change together.
    let has_mp = node.any(
        &mut |node| matches!(node, Node::PlusMinus(one) if matches!(**one, Node::Negative(_))),
    );
    let choices: Vec<usize> =
        if has_mp { vec![0, (1 << signs) - 1] } else { (0..1 << signs).collect() };
    Some(choices.into_iter().map(|choice| with_choice(node, &mut { choice })).collect())
}

/// Replaces each `\pm` in `node` by a plus or a minus, which is given by a bit of `choice`.
fn with_choice(node: &Node, choice: &mut usize) -> Node {
    let Node::PlusMinus(one) = node else {
        return node.map(&mut |child| with_choice(child, choice));
    };
    let is_negative = *choice & 1 == 1;
    *choice >>= 1;
    let one = with_choice(one, choice);
    if is_negative { Node::Negative(one.into()) } else { one }
}

/// Returns whether answers in words are the same. Case is ignored unless it may have a meaning.
pub(super) fn same_words(a: &str, b: &str) -> bool {
    let plain = |text: &str| {
        let mut words: Vec<&str> = text.split(' ').collect();
        if words.len() > 1 && matches!(words[0], "a" | "an" | "the" | "A" | "An" | "The") {
            words.remove(0);
        }
        words.into_iter().map(str::to_string).collect::<Vec<_>>()
    };
    let (a, b) = (plain(a), plain(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| same_word(a, b))
}

fn same_word(a: &str, b: &str) -> bool {
    /// Words of four and five letters that, in capitals, are not names of figures.
    const COMMON: [&str; 8] = ["even", "true", "false", "none", "both", "zero", "never", "prime"];
    let lower = a.to_lowercase();
    if a == b || lower != b.to_lowercase() {
        return a == b;
    }
    // ABCD is a figure, and aBcD is not a word.
    let is_lowercase = |word: &str| {
        let mut rest = word.chars();
        rest.next();
        rest.all(char::is_lowercase)
    };
    let is_known = lower.chars().count() > 5
        || COMMON.contains(&lower.as_str())
        || SHORT_WORDS.contains(&lower.as_str());
    let is_word =
        |word: &str| is_lowercase(word) || (is_known && word.chars().all(char::is_uppercase));
    lower.chars().count() > 1
        && is_word(a)
        && is_word(b)
        && (is_known || lower.chars().count() >= 4)
}
