//! The expression tree of a parsed answer.

use num_rational::BigRational;

use super::units::Unit;

/// A node of an expression tree. Sums and products have any number of terms, so that only brackets make a tree deeper.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// A number written with digits.
    Number(BigRational),
    /// Digits and their base: `12_8`.
    Based(String, u32),
    /// A variable with its subscript, or a word in a formula: `x`, `a_1`, `\alpha`.
    Name(String),
    /// A mathematical constant.
    Constant(Constant),
    /// `a + b + ...`
    Sum(Vec<Self>),
    /// `a b ...`
    Product(Vec<Self>),
    /// `-a`
    Negative(Box<Self>),
    /// `\pm a`, which is both `a` and `-a`.
    PlusMinus(Box<Self>),
    /// `1 / a`
    Inverse(Box<Self>),
    /// `a^b`
    Power(Box<Self>, Box<Self>),
    /// A function of one or two arguments.
    Call(Function, Vec<Self>),
    /// `a\%`
    Percent(Box<Self>),
    /// A quantity with its unit: `5\text{ cm}`, `\$5`.
    Quantity(Box<Self>, Unit),
    /// `a, b, ...` without brackets.
    List(Vec<Self>),
    /// `\{a, b, ...\}`
    Set(Vec<Self>),
    /// A tuple or interval, `(a, b)`, `[a, b)`, ...: its brackets and its elements.
    Tuple(char, char, Vec<Self>),
    /// Sets with an operator between them: `A \cup B`.
    Sets(char, Vec<Self>),
    /// Rows of a matrix. A column vector has one element per row.
    Matrix(Vec<Vec<Self>>),
    /// `a : b : ...`
    Ratio(Vec<Self>),
    /// A chain of relations, `a < b \le c`: the operands and the operators between them.
    Relation(Vec<Self>, Vec<char>),
    /// `a \pmod{b}`
    Modulo(Box<Self>, Box<Self>),
    /// An answer in words.
    Words(String),
}

/// A mathematical constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Constant {
    Pi,
    E,
    I,
    Infinity,
}

/// A function that can be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// `\sqrt[n]{x}`: index, radicand.
    Root,
    /// `\log_b x`: base, argument.
    Log,
    Exp,
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Abs,
    Floor,
    Ceiling,
    Factorial,
    /// `\binom{n}{k}`
    Binomial,
}

impl Function {
    /// Returns the function of one argument that is called `name` in LaTeX or in plain text.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "exp" => Self::Exp,
            "sin" => Self::Sin,
            "cos" => Self::Cos,
            "tan" => Self::Tan,
            "cot" => Self::Cot,
            "sec" => Self::Sec,
            "csc" => Self::Csc,
            "arcsin" | "asin" => Self::Arcsin,
            "arccos" | "acos" => Self::Arccos,
            "arctan" | "atan" => Self::Arctan,
            "sinh" => Self::Sinh,
            "cosh" => Self::Cosh,
            "tanh" => Self::Tanh,
            "abs" => Self::Abs,
            "floor" => Self::Floor,
            "ceil" => Self::Ceiling,
            _ => return None,
        })
    }

    /// Returns the inverse function, as in `\sin^{-1}`.
    pub(super) const fn inverse(self) -> Option<Self> {
        match self {
            Self::Sin => Some(Self::Arcsin),
            Self::Cos => Some(Self::Arccos),
            Self::Tan => Some(Self::Arctan),
            _ => None,
        }
    }

    /// Returns whether the argument is an angle, which may be in degrees.
    pub(super) const fn takes_angle(self) -> bool {
        matches!(self, Self::Sin | Self::Cos | Self::Tan | Self::Cot | Self::Sec | Self::Csc)
    }
}

impl Node {
    /// Creates a node for the integer `value`.
    pub(super) fn integer(value: i64) -> Self {
        Self::Number(BigRational::from_integer(value.into()))
    }

    /// Returns the children, in order.
    pub(super) fn children(&self) -> Vec<&Self> {
        match self {
            Self::Number(_)
            | Self::Based(..)
            | Self::Name(_)
            | Self::Constant(_)
            | Self::Words(_) => Vec::new(),
            Self::Negative(one)
            | Self::PlusMinus(one)
            | Self::Inverse(one)
            | Self::Percent(one)
            | Self::Quantity(one, _) => vec![one],
            Self::Power(one, other) | Self::Modulo(one, other) => vec![one, other],
            Self::Sum(all)
            | Self::Product(all)
            | Self::Call(_, all)
            | Self::List(all)
            | Self::Set(all)
            | Self::Tuple(_, _, all)
            | Self::Sets(_, all)
            | Self::Ratio(all)
            | Self::Relation(all, _) => all.iter().collect(),
            Self::Matrix(rows) => rows.iter().flatten().collect(),
        }
    }

    /// Returns this node with `change` applied to each of its children.
    pub(super) fn map(&self, change: &mut dyn FnMut(&Self) -> Self) -> Self {
        let mut all = |nodes: &[Self]| nodes.iter().map(&mut *change).collect::<Vec<_>>();
        match self {
            Self::Sum(nodes) => Self::Sum(all(nodes)),
            Self::Product(nodes) => Self::Product(all(nodes)),
            Self::Call(function, nodes) => Self::Call(*function, all(nodes)),
            Self::List(nodes) => Self::List(all(nodes)),
            Self::Set(nodes) => Self::Set(all(nodes)),
            Self::Tuple(open, close, nodes) => Self::Tuple(*open, *close, all(nodes)),
            Self::Sets(operator, nodes) => Self::Sets(*operator, all(nodes)),
            Self::Ratio(nodes) => Self::Ratio(all(nodes)),
            Self::Relation(nodes, operators) => Self::Relation(all(nodes), operators.clone()),
            Self::Matrix(rows) => Self::Matrix(rows.iter().map(|row| all(row)).collect()),
            Self::Negative(one) => Self::Negative(change(one).into()),
            Self::PlusMinus(one) => Self::PlusMinus(change(one).into()),
            Self::Inverse(one) => Self::Inverse(change(one).into()),
            Self::Percent(one) => Self::Percent(change(one).into()),
            Self::Quantity(one, unit) => Self::Quantity(change(one).into(), unit.clone()),
            Self::Power(one, other) => {
                let one = change(one);
                Self::Power(one.into(), change(other).into())
            }
            Self::Modulo(one, other) => {
                let one = change(one);
                Self::Modulo(one.into(), change(other).into())
            }
            Self::Number(_)
            | Self::Based(..)
            | Self::Name(_)
            | Self::Constant(_)
            | Self::Words(_) => self.clone(),
        }
    }

    /// Returns whether `predicate` is true for this node or one of its descendants.
    pub(super) fn any(&self, predicate: &mut dyn FnMut(&Self) -> bool) -> bool {
        predicate(self) || self.children().into_iter().any(|child| child.any(predicate))
    }

    /// Returns the name if this node is one.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            _ => None,
        }
    }

    /// Returns the text of a node that can be assigned a value with an equals sign: a name, a product of points such as
    /// `AB`, or a tuple of names.
    pub(super) fn label(&self) -> Option<String> {
        let is_point = |name: &&str| name.len() == 1 && name.chars().all(char::is_uppercase);
        match self {
            Self::Name(name) => Some(name.clone()),
            Self::Tuple('(', ')', nodes) => Some(format!("({})", names(nodes)?.join(","))),
            Self::Product(nodes) => {
                let points = names(nodes).filter(|names| names.iter().all(is_point))?;
                Some(points.concat())
            }
            _ => None,
        }
    }

    /// Returns whether the expression contains no names.
    pub(super) fn is_closed(&self) -> bool {
        !self.any(&mut |node| matches!(node, Self::Name(_) | Self::Words(_)))
    }

    /// Returns whether the form of this node is that of an expression whose value is a number.
    pub(super) const fn is_scalar(&self) -> bool {
        matches!(
            self,
            Self::Number(_)
                | Self::Name(_)
                | Self::Constant(_)
                | Self::Sum(_)
                | Self::Product(_)
                | Self::Negative(_)
                | Self::Inverse(_)
                | Self::Power(..)
                | Self::Call(..)
                | Self::Percent(_)
        )
    }
}

/// Returns the names if all `nodes` are names.
fn names(nodes: &[Node]) -> Option<Vec<&str>> {
    nodes.iter().map(Node::name).collect()
}
