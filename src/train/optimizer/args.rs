//! Reads `train.optim_args`, transformers' `optim_args`: `NAME=VALUE` separated by commas.

use std::collections::BTreeMap;

use crate::config::TrainSection;
use crate::error::{Error, Result};

const KEY: &str = "train.optim_args";

/// The arguments that no setting has used yet.
pub(super) struct Args<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Args<'a> {
    /// Splits the arguments.
    ///
    /// # Errors
    /// One is not `NAME=VALUE`, or is given twice.
    pub(super) fn read(train: &'a TrainSection) -> Result<Self> {
        let text = train.optim_args.as_deref().unwrap_or_default();
        let mut args = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((name, value)) = part.split_once('=') else {
                let problem = format!("`{part}` is not NAME=VALUE");
                return Err(Error::invalid(KEY, problem, "write it like \"momentum=0.9\""));
            };
            if args.insert(name.trim(), value.trim()).is_some() {
                let problem = format!("gives `{}` twice", name.trim());
                return Err(Error::invalid(KEY, problem, "give it once"));
            }
        }
        Ok(Self(args))
    }

    /// Removes argument `name` and returns its value, or `default` if it is not given.
    ///
    /// # Errors
    /// The value is not a number from `min` to `max`.
    pub(super) fn number(&mut self, name: &str, default: f64, [min, max]: [f64; 2]) -> Result<f64> {
        let Some(text) = self.0.remove(name) else { return Ok(default) };
        match text.parse::<f64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => {
                let problem = format!("{name} is `{text}`, not a number from {min} to {max}");
                Err(Error::invalid(KEY, problem, format!("write it like \"{name}={default}\"")))
            }
        }
    }

    /// Removes argument `name` and returns whether it is true; false if it is not given.
    ///
    /// # Errors
    /// The value is neither true nor false.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool> {
        match self.0.remove(name) {
            None | Some("False" | "false") => Ok(false),
            Some("True" | "true") => Ok(true),
            Some(text) => {
                let problem = format!("{name} is `{text}`, neither True nor False");
                Err(Error::invalid(KEY, problem, format!("write it like \"{name}=True\"")))
            }
        }
    }

    /// Checks that every argument was used.
    ///
    /// # Errors
    /// The optimizer does not have one of them.
    pub(super) fn finish(self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => {
                let problem = format!("has `{name}`, which train.optim does not take");
                let remedy = "sgd takes momentum, dampening and nesterov; rmsprop alpha, eps, momentum and centered; adagrad lr_decay and eps; ademamix beta3 and alpha; \
                     the others none";
                Err(Error::invalid(KEY, problem, remedy))
            }
        }
    }
}
