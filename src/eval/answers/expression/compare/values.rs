//! Compares expressions and equations by their values.

use std::collections::{BTreeMap, BTreeSet};

use num_rational::BigRational;

use super::super::complex::Complex;
use super::super::evaluate::{Evaluator, Point};
use super::super::exact::exact;
use super::super::tree::{Function, Node};
use super::Comparison;

/// Number of points that are tried.
const POINTS: u64 = 60;
/// Minimum number of points at which values must be defined and agree, and maximum number that is examined.
const DEFINED_POINTS: std::ops::RangeInclusive<usize> = 4..=16;

impl Comparison {
    /// Returns whether two expressions have the same value at all points where both are defined.
    pub(super) fn values(&self, a: &Node, b: &Node) -> bool {
        let names = names(&[a, b]);
        if names.is_empty() {
            if let (Some(a), Some(b)) = (exact(a, &self.budget), exact(b, &self.budget)) {
                return a == b;
            }
            return self.at(&Point::new(), a, b) == Some(true);
        }
        let points = points(&names, needs_integers(a) || needs_integers(b));
        let results = points.filter_map(|point| self.at(&point, a, b));
        enough(results)
    }

    /// Returns whether the values at one point are equal, or `None` if one of them is undefined.
    fn at(&self, point: &Point, a: &Node, b: &Node) -> Option<bool> {
        let evaluator = Evaluator { point, budget: &self.budget };
        evaluator.value(a)?.same(&evaluator.value(b)?)
    }

    /// Returns whether a closed expression is approximately equal to a rounded one. Units are ignored.
    pub(super) fn near(&self, exact: &Node, rounded: &Node) -> bool {
        /// Binary logarithm of the relative difference: about a hundredth.
        const TOLERANCE: f64 = -6.5;
        let evaluator = Evaluator { point: &Point::new(), budget: &self.budget };
        let value = |node: &Node| match node {
            Node::Quantity(size, _) => evaluator.value(size),
            node => evaluator.value(node),
        };
        let difference = || value(exact)?.minus(&value(rounded)?)?.over(&value(exact)?);
        difference().is_some_and(|difference| difference.size() < TOLERANCE)
    }

    /// Returns whether two equations are equivalent: the differences of their sides `a` and `b` are proportional.
    pub(super) fn proportional(&self, a: (&Node, &Node), b: (&Node, &Node)) -> bool {
        let names = names(&[a.0, a.1, b.0, b.1]);
        let integers_only = [a.0, a.1, b.0, b.1].into_iter().any(needs_integers);
        let difference = |point: &Point, sides: (&Node, &Node)| {
            let evaluator = Evaluator { point, budget: &self.budget };
            evaluator.value(sides.0)?.minus(&evaluator.value(sides.1)?)
        };
        let mut first: Option<Complex> = None;
        let mut ratio = |point: Point| {
            let ratio = difference(&point, a)?.over(&difference(&point, b)?)?;
            // A ratio of 0 has no inverse.
            ratio.inverse()?;
            first.get_or_insert_with(|| ratio.clone()).same(&ratio)
        };
        enough(points(&names, integers_only).filter_map(&mut ratio)) && !names.is_empty()
    }

    /// Returns whether `a` and `b` are equivalent equations.
    pub(super) fn equations(&self, a: &Node, b: &Node) -> bool {
        match (super::equation(a), super::equation(b)) {
            (Some(a), Some(b)) => self.proportional(a, b),
            _ => false,
        }
    }
}

/// Returns whether enough verdicts are true and none is false.
fn enough(verdicts: impl Iterator<Item = bool>) -> bool {
    let mut count = 0;
    let mut verdicts = verdicts.take(*DEFINED_POINTS.end());
    let all = verdicts.all(|same| {
        count += 1;
        same
    });
    all && DEFINED_POINTS.contains(&count)
}

fn names(nodes: &[&Node]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for node in nodes {
        node.any(&mut |node| {
            names.extend(node.name().map(str::to_string));
            false
        });
    }
    names
}

/// Returns whether `node` has names in a factorial or binomial, which are defined for integers only.
fn needs_integers(node: &Node) -> bool {
    node.any(&mut |node| {
        matches!(node, Node::Call(Function::Factorial | Function::Binomial, _)) && !node.is_closed()
    })
}

/// Returns a fixed sequence of points with a number for each name.
///
/// Every second point has positive numbers of moderate size, for which roots and logarithms are defined. The others have
/// numbers of all signs and sizes. With `integers_only`, all numbers are integers from 2 to 12.
fn points(names: &BTreeSet<String>, integers_only: bool) -> impl Iterator<Item = Point> {
    let mut random = SplitMix(0x5eed);
    let names: Vec<String> = names.iter().cloned().collect();
    (0..POINTS).map(move |at| {
        let values = names.iter().zip(0..).map(|(name, index)| {
            let (least, width) = match (at / 2 + index) % 3 {
                _ if at % 2 == 0 => (0.5, 4.0),
                0 => (-4.0, 3.5),
                1 => (0.0, 1.0),
                _ => (4.0, 16.0),
            };
            let random = random.next();
            let value = if integers_only {
                BigRational::from_integer((2 + random % 11).into())
            } else {
                /// Number of steps per unit. No answer has such a denominator.
                const STEPS: f64 = 65_536.0;
                let part = (random % 65_536) as f64 / STEPS;
                let steps = ((least + width * part) * STEPS) as i64;
                BigRational::new((2 * steps + 1).into(), (2 * STEPS as i64).into())
            };
            (name.clone(), value)
        });
        values.collect::<BTreeMap<_, _>>()
    })
}

/// The SplitMix64 generator of Steele, Lea and Flood, which makes the points reproducible.
struct SplitMix(u64);

impl SplitMix {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
