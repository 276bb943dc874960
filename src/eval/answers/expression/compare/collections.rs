//! Compares lists and sets.

use num_rational::BigRational;

use super::super::exact::exact;
use super::super::tree::Node;
use super::Comparison;

/// Maximum number of elements of collections that are compared pair by pair. Larger ones are compared after sorting.
const MAX_PAIRED: usize = 24;

impl Comparison {
    /// Returns whether two lists without brackets are the same. Two elements are taken as the two solutions of a problem,
    /// which may be in either order. In a longer list the order matters, because it may have a meaning (the sides of a
    /// triangle).
    pub(super) fn list(&self, a: &[Node], b: &[Node]) -> bool {
        match a.len() {
            2 => self.multiset(a, b),
            _ => self.sequence(a, b),
        }
    }

    /// Returns whether both have the same elements in the same order.
    fn sequence(&self, a: &[Node], b: &[Node]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(one, other)| self.same(one, other))
    }

    /// Returns whether both have the same elements equally often, in any order.
    pub(super) fn multiset(&self, a: &[Node], b: &[Node]) -> bool {
        if a.len() != b.len() {
            return false;
        }
        if a.len() > MAX_PAIRED {
            return match (self.sorted(a), self.sorted(b)) {
                (Some(a), Some(b)) => a == b,
                _ => self.sequence(a, b),
            };
        }
        let mut remaining: Vec<&Node> = b.iter().collect();
        a.iter().all(|one| {
            let found = remaining.iter().position(|other| self.same(one, other));
            found.map(|at| remaining.swap_remove(at)).is_some()
        })
    }

    /// Returns whether each element of either is an element of the other.
    pub(super) fn set(&self, a: &[Node], b: &[Node]) -> bool {
        if a.len().max(b.len()) > MAX_PAIRED {
            return match (self.sorted(a), self.sorted(b)) {
                (Some(mut a), Some(mut b)) => {
                    a.dedup();
                    b.dedup();
                    a == b
                }
                _ => self.sequence(a, b),
            };
        }
        let within = |a: &[Node], b: &[Node]| {
            a.iter().all(|one| b.iter().any(|other| self.same(one, other)))
        };
        within(a, b) && within(b, a)
    }

    fn sorted(&self, nodes: &[Node]) -> Option<Vec<BigRational>> {
        let values = nodes.iter().map(|node| exact(node, &self.budget));
        let mut values = values.collect::<Option<Vec<_>>>()?;
        values.sort();
        Some(values)
    }
}
