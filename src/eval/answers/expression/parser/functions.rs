//! Parses roots, logarithms and functions of one argument.

use super::super::lexer::Kind;
use super::super::tree::{Constant, Function, Node};
use super::Parser;

impl Parser {
    /// Parses the arguments of a root: `\sqrt{x}`, `\sqrt[n]{x}`, `\sqrt(x)`, `\sqrt 16`.
    pub(super) fn root(&mut self, name: &str) -> Option<Node> {
        let index = if name == "cbrt" {
            Node::integer(3)
        } else if self.accept('[') {
            let index = self.enclosed(Self::sum)?;
            self.expect(']')?;
            index
        } else {
            Node::integer(2)
        };
        // Digits without braces are one number. `\sqrt 16` does not mean the root of 1 times 6.
        let radicand = match self.kind()? {
            Kind::Number(_) => self.atom()?,
            _ => self.argument()?,
        };
        Some(Node::Call(Function::Root, vec![index, radicand]))
    }

    /// Parses the base and argument of a logarithm: `\log_b x`. Without a base, `\log` and `\lg` have base 10 and `\ln`
    /// base e.
    pub(super) fn logarithm(&mut self, name: &str) -> Option<Node> {
        let mut base = match name {
            "ln" => Node::Constant(Constant::E),
            _ => Node::integer(10),
        };
        if self.accept('_') {
            base = match self.kind()? {
                Kind::Number(_) | Kind::Letters(_) => self.argument()?,
                _ => self.atom()?,
            };
        }
        let power = self.accept('^').then(|| self.argument());
        let argument = self.function_argument()?;
        let call = Node::Call(Function::Log, vec![base, argument]);
        match power {
            Some(power) => Some(Node::Power(call.into(), power?.into())),
            None => Some(call),
        }
    }

    /// Parses the argument of a function: `\sin x`, `\sin^2 x`, `\sin^{-1} x`, `\sin(x)`.
    pub(super) fn function(&mut self, function: Function) -> Option<Node> {
        let power = self.accept('^').then(|| self.argument());
        match power {
            Some(power) => {
                let power = power?;
                if power == Node::integer(-1) {
                    let argument = self.function_argument()?;
                    return Some(Node::Call(function.inverse()?, vec![argument]));
                }
                let argument = self.function_argument()?;
                let call = Node::Call(function, vec![argument]);
                Some(Node::Power(call.into(), power.into()))
            }
            None => Some(Node::Call(function, vec![self.function_argument()?])),
        }
    }

    /// Parses an argument in brackets, or the factors up to the next operator or function.
    fn function_argument(&mut self) -> Option<Node> {
        if matches!(self.symbol(), Some('(' | '[' | '{')) {
            return self.atom();
        }
        let mut factors = vec![self.power()?];
        while self.starts_factor() && !self.starts_function() && !self.next_is('(') {
            if !self.number_may_follow() {
                return None;
            }
            factors.push(self.power()?);
        }
        match factors.len() {
            1 => factors.pop(),
            _ => Some(Node::Product(factors)),
        }
    }

    fn starts_function(&self) -> bool {
        match self.kind() {
            Some(Kind::Command(name) | Kind::Letters(name) | Kind::Word(name)) => {
                Function::from_name(name).is_some() || matches!(name.as_str(), "log" | "ln" | "lg")
            }
            _ => false,
        }
    }
}
