//! The rules by name, and the rule of a run's configuration.

use arithmo_backends::TrainBackend;

use super::args::Args;
use super::{AdEmaMix, Adafactor, Adagrad, AdamW, Lion, RmsProp, Sgd, Update, UpdateRule, Updated};
use crate::config::{Optim, RunConfig, TrainSection};
use crate::error::{Error, Result};

/// The rules by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// AdamW.
    AdamW(AdamW),
    /// Stochastic gradient descent.
    Sgd(Sgd),
    /// RMSprop.
    RmsProp(RmsProp),
    /// Lion.
    Lion(Lion),
    /// Adagrad.
    Adagrad(Adagrad),
    /// Adafactor.
    Adafactor(Adafactor),
    /// AdEMAMix.
    AdEmaMix(AdEmaMix),
}

/// Calls a method of the rule, whichever it is.
macro_rules! each_rule {
    ($self:expr, $rule:ident => $call:expr) => {
        match $self {
            Rule::AdamW($rule) => $call,
            Rule::Sgd($rule) => $call,
            Rule::RmsProp($rule) => $call,
            Rule::Lion($rule) => $call,
            Rule::Adagrad($rule) => $call,
            Rule::Adafactor($rule) => $call,
            Rule::AdEmaMix($rule) => $call,
        }
    };
}

impl Rule {
    /// Returns the rule of a run. With LoRA+, the weight decay is that of `[lora]`.
    ///
    /// # Errors
    /// Same as [`Self::of`].
    pub fn of_run(config: &RunConfig) -> Result<Self> {
        let mut train = config.train.clone();
        if config.lora.loraplus_lr_ratio.is_some() {
            train.weight_decay = config.lora.loraplus_weight_decay;
        }
        Self::of(&train)
    }

    /// Returns the rule of the configuration.
    ///
    /// # Errors
    /// `train.optim_args` cannot be read, or does not fit the optimizer.
    pub fn of(train: &TrainSection) -> Result<Self> {
        let mut args = Args::read(train)?;
        let (betas, weight_decay) = ([train.adam_beta1, train.adam_beta2], train.weight_decay);
        let rule = match train.optim {
            optim if optim.is_adamw() => Self::AdamW(AdamW {
                beta1: betas[0],
                beta2: betas[1],
                epsilon: train.adam_epsilon,
                weight_decay,
            }),
            optim if optim.is_ademamix() => Self::AdEmaMix(AdEmaMix {
                betas: [betas[0], betas[1], args.number("beta3", 0.9999, [0.0, 0.999_999_9])?],
                alpha: args.number("alpha", 5.0, [0.0, 1e6])?,
                epsilon: train.adam_epsilon,
                weight_decay,
            }),
            Optim::Adagrad => Self::Adagrad(Adagrad {
                lr_decay: args.number("lr_decay", 0.0, [0.0, 1e6])?,
                epsilon: args.number("eps", 1e-10, [1e-30, 1e6])?,
                weight_decay,
            }),
            Optim::Adafactor => Self::Adafactor(Adafactor { weight_decay }),
            Optim::Sgd => Self::Sgd(Sgd {
                momentum: args.number("momentum", 0.0, [0.0, 1.0])?,
                dampening: args.number("dampening", 0.0, [0.0, 1.0])?,
                nesterov: args.flag("nesterov")?,
                weight_decay,
            }),
            Optim::Rmsprop => Self::RmsProp(RmsProp {
                alpha: args.number("alpha", 0.99, [0.0, 0.999_999_9])?,
                epsilon: args.number("eps", 1e-8, [1e-30, 1e6])?,
                momentum: args.number("momentum", 0.0, [0.0, 1.0])?,
                centered: args.flag("centered")?,
                weight_decay,
            }),
            // All others are Lion's.
            _ => Self::Lion(Lion { beta1: betas[0], beta2: betas[1], weight_decay }),
        };
        args.finish()?;
        if let Self::Sgd(Sgd { momentum, dampening, nesterov, .. }) = rule {
            let error = |problem, remedy| Err(Error::invalid("train.optim_args", problem, remedy));
            if momentum == 0.0 && (dampening != 0.0 || nesterov) {
                return error("dampening and nesterov need a momentum above 0", "add momentum=0.9");
            }
            if nesterov && dampening != 0.0 {
                return error("nesterov allows no dampening", "remove one of them");
            }
        }
        Ok(rule)
    }
}

impl UpdateRule for Rule {
    fn state_names(&self) -> &'static [&'static str] {
        each_rule!(self, rule => rule.state_names())
    }

    fn state_dims(&self, dims: [usize; 2]) -> Vec<[usize; 2]> {
        each_rule!(self, rule => rule.state_dims(dims))
    }

    fn step<B: TrainBackend>(&self, lr: f64, updates: Vec<Update<B>>) -> Vec<Updated<B>> {
        each_rule!(self, rule => rule.step(lr, updates))
    }
}

impl From<AdamW> for Rule {
    fn from(rule: AdamW) -> Self {
        Self::AdamW(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(optim: Optim, args: &str) -> std::result::Result<Rule, String> {
        let train = TrainSection { optim, optim_args: Some(args.into()), ..Default::default() };
        Rule::of(&train).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_are_read_or_refused_by_name() {
        let sgd = Sgd { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 0.0 };
        assert_eq!(rule(Optim::Sgd, "momentum=0.9, nesterov=True"), Ok(Rule::Sgd(sgd)));
        for (optim, args, part) in [
            (Optim::AdamwTorch, "momentum=0.9", "`momentum`"),
            (Optim::Rmsprop, "momentum", "NAME=VALUE"),
            (Optim::Rmsprop, "alpha=x", "`x`"),
            (Optim::Rmsprop, "centered=1", "neither True nor False"),
            (Optim::Rmsprop, "eps=1,eps=2", "twice"),
            (Optim::Sgd, "momentum=-1", "from 0"),
            (Optim::Sgd, "nesterov=True", "momentum above 0"),
            (Optim::Sgd, "dampening=0.5", "momentum above 0"),
            (Optim::Sgd, "momentum=0.9,nesterov=True,dampening=0.5", "no dampening"),
            (Optim::Rmsprop, "alpha=1", "from 0 to 0.9999999"),
            (Optim::Rmsprop, "eps=0", "`0`"),
        ] {
            let error = rule(optim, args).unwrap_err();
            assert!(error.contains("train.optim_args") && error.contains(part), "{args}: {error}");
        }
    }
}
