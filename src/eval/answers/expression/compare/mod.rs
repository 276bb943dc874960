//! Compares two answers: numbers by value, sets in any order, tuples element by element.

mod collections;
mod forms;
mod text;
mod values;

use super::exact::Budget;
use super::parser::{Commas, parse};
use super::tree::{Constant, Node};
use super::without_emphasis;
use forms::{
    Assignments, assignment, equation, is_all_numbers, is_list, same_words, solutions, with_signs,
    without_steps,
};

/// Maximum work of one comparison, in units of [`Budget`]: some tens of milliseconds.
pub(super) const MAX_WORK: u64 = 30_000_000;

/// Returns whether two answers are the same. The order of the two does not matter.
pub(in super::super) fn same(one: &str, other: &str) -> bool {
    let (one, other) = (without_emphasis(one), without_emphasis(other));
    if text::same_text(one, other) {
        return true;
    }
    let read = |text: &str| parse(text, Commas::Thousands);
    let (Some(a), Some(b)) = (read(one), read(other)) else {
        return false;
    };
    // An answer that may be a list or a number, such as `123,456`, is read as a list if the other answer is one.
    let as_list =
        |text: &str, tree: Node| parse(text, Commas::List).map_or(tree, |answer| answer.tree);
    let (a, b) = match (a.ambiguous, b.ambiguous) {
        (true, false) if is_list(&b.tree) => (as_list(one, a.tree), b.tree),
        (false, true) if is_list(&a.tree) => (a.tree, as_list(other, b.tree)),
        _ => (a.tree, b.tree),
    };
    Comparison::new().answers(&a, &b)
}

/// A comparison, with the work that is left for it.
struct Comparison {
    budget: Budget,
}

impl Comparison {
    const fn new() -> Self {
        Self { budget: Budget::new(MAX_WORK) }
    }

    /// Compares whole answers, which may assign their value to a name: `x = 5` is the same as `5`.
    fn answers(&self, a: &Node, b: &Node) -> bool {
        let (a, b) = (&without_steps(a, self), &without_steps(b, self));
        match (Assignments::from_node(a), Assignments::from_node(b)) {
            (Some(a), Some(b)) => return self.assignments(&a, &b),
            (Some(a), None) => return self.ordered_values(&a, b),
            (None, Some(b)) => return self.ordered_values(&b, a),
            (None, None) => {}
        }
        match (assignment(a), assignment(b)) {
            (Some((name, a)), Some((other, b))) if name == other => self.same(a, b),
            (Some(_), Some(_)) => self.equations(a, b),
            (Some((_, value)), None) if equation(b).is_none() => self.same(value, b),
            (None, Some((_, value))) if equation(a).is_none() => self.same(a, value),
            _ => self.same(a, b),
        }
    }

    fn assignments(&self, a: &Assignments, b: &Assignments) -> bool {
        let value = |name: &str| b.values.iter().find(|(other, _)| other == name);
        a.values.len() == b.values.len()
            && a.values
                .iter()
                .all(|(name, one)| value(name).is_some_and(|(_, other)| self.same(one, other)))
    }

    /// Compares the values of several names with a tuple or a list. For a tuple, the values are in the order of
    /// [`Assignments::as_tuple`]; for a list, in the written order.
    fn ordered_values(&self, a: &Assignments, b: &Node) -> bool {
        let (values, elements) = match b {
            Node::Tuple('(', ')', elements) => (a.as_tuple(), elements),
            Node::List(elements) => (a.values.clone(), elements),
            _ => return false,
        };
        let mut pairs = values.iter().zip(elements);
        values.len() == elements.len() && pairs.all(|((_, one), other)| self.same(one, other))
    }

    /// Compares parts of answers.
    fn same(&self, a: &Node, b: &Node) -> bool {
        if a == b || (is_all_numbers(a) && is_all_numbers(b)) {
            return true;
        }
        if self.budget.spend(16).is_none() {
            return false;
        }
        if let (Some(a), Some(b)) = (equation(a), equation(b)) {
            return self.proportional(a, b);
        }
        if let Some(same) = self.sets_of_numbers(a, b) {
            return same;
        }
        match (with_signs(a), with_signs(b)) {
            (None, None) => {}
            (a_values, b_values) => {
                let elements = |values: Option<Vec<Node>>, node: &Node| match (values, node) {
                    (Some(values), _) => values,
                    (None, Node::List(elements) | Node::Set(elements)) => elements.clone(),
                    (None, node) => vec![node.clone()],
                };
                return self.multiset(&elements(a_values, a), &elements(b_values, b));
            }
        }
        match (a, b) {
            (Node::Quantity(..), _) | (_, Node::Quantity(..)) => self.quantities(a, b),
            (Node::Percent(a), Node::Percent(b)) => self.same(a, b),
            (Node::Percent(part), other) | (other, Node::Percent(part)) if other.is_scalar() => {
                let whole = Node::Percent(part.clone());
                self.values(part, other) || self.values(&whole, other)
            }
            (Node::Words(a), Node::Words(b)) => same_words(a, b),
            (Node::List(a), Node::List(b)) => self.list(a, b),
            (Node::Set(a), Node::Set(b)) => self.set(a, b),
            (Node::Sets('∧', a), Node::Sets('∧', b)) => self.multiset(a, b),
            (Node::Set(set), Node::List(list)) | (Node::List(list), Node::Set(set)) => {
                self.multiset(set, list)
            }
            (Node::Set(set), one) | (one, Node::Set(set)) => {
                // The set of the empty set is not empty.
                let is_empty = matches!(one, Node::Name(name) if name == "emptyset");
                matches!(&set[..], [element] if !is_empty && self.same(element, one))
            }
            _ if a.is_scalar() && b.is_scalar() => self.values(a, b),
            _ => self.alike(a, b),
        }
    }

    /// Compares quantities. A quantity without a unit is in the unit of the other.
    fn quantities(&self, a: &Node, b: &Node) -> bool {
        let scaled = |size: &Node, factor: &num_rational::BigRational| {
            Node::Product(vec![size.clone(), Node::Number(factor.clone())])
        };
        match (a, b) {
            (Node::Quantity(a, one), Node::Quantity(b, other)) => {
                one.powers == other.powers
                    && (one.factor == other.factor && self.same(a, b)
                        || self.values(&scaled(a, &one.factor), &scaled(b, &other.factor)))
            }
            // 5 percent is not 5 dollars.
            (_, Node::Percent(_)) | (Node::Percent(_), _) => false,
            (Node::Quantity(size, unit), other) | (other, Node::Quantity(size, unit)) => {
                // 180 degrees is the same as 180 or pi.
                let radians = Node::Product(vec![
                    (**size).clone(),
                    Node::Constant(Constant::Pi),
                    Node::Inverse(Node::integer(180).into()),
                ]);
                self.same(size, other)
                    || (unit.is_degree() && other.is_scalar() && self.values(&radians, other))
            }
            _ => false,
        }
    }

    /// Compares inequalities, intervals and unions. Returns `None` if neither side is an inequality or a union.
    fn sets_of_numbers(&self, a: &Node, b: &Node) -> Option<bool> {
        let (x, y) = (solutions(a), solutions(b));
        if x.is_none() && y.is_none() {
            return None;
        }
        let whole = |node: &Node| (None, vec![node.clone()]);
        let ((one, a_parts), (other, b_parts)) =
            (x.unwrap_or_else(|| whole(a)), y.unwrap_or_else(|| whole(b)));
        let is_same_name = one.is_none() || other.is_none() || one == other;
        Some(is_same_name && self.multiset(&a_parts, &b_parts))
    }

    /// Returns whether both have the same form and the same children.
    fn alike(&self, a: &Node, b: &Node) -> bool {
        let is_same_form = match (a, b) {
            (Node::Tuple(a, b, _), Node::Tuple(c, d, _)) => a == c && b == d,
            (Node::Relation(_, a), Node::Relation(_, b)) => a == b,
            (Node::Sets(a, _), Node::Sets(b, _)) => a == b,
            (Node::Matrix(a), Node::Matrix(b)) => a.len() == b.len(),
            (Node::Call(a, _), Node::Call(b, _)) => a == b,
            (
                Node::Number(_)
                | Node::Based(..)
                | Node::Name(_)
                | Node::Constant(_)
                | Node::Words(_),
                _,
            ) => false,
            _ => std::mem::discriminant(a) == std::mem::discriminant(b),
        };
        let (one, other) = (a.children(), b.children());
        is_same_form
            && one.len() == other.len()
            && one.iter().zip(&other).all(|(a, b)| self.same(a, b))
    }
}

impl Node {
    fn infinity(is_negative: bool) -> Self {
        let infinity = Self::Constant(Constant::Infinity);
        if is_negative { Self::Negative(infinity.into()) } else { infinity }
    }
}
