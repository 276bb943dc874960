//! The functions that transformers gives to chat templates, and Jinja's own that minijinja lacks.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use jiff::ZonedDateTime;
use jiff::civil::DateTime;
use minijinja::value::{Kwargs, Object, ObjectRepr, Value, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, State};

use super::arguments::{Passed, bind, split, text};
use super::python::{invalid, items, pairs, str};

/// The time that `strftime_now` formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The local time at which the first template asked: one run never sees two days.
    #[default]
    Start,
    /// A given time, for tests.
    Fixed(DateTime),
}

impl Clock {
    fn now(self) -> DateTime {
        static START: OnceLock<DateTime> = OnceLock::new();
        match self {
            Self::Start => *START.get_or_init(|| ZonedDateTime::now().datetime()),
            Self::Fixed(time) => time,
        }
    }
}

/// Name of the filter that marks the text of a `generation` block.
pub(super) const MARK: &str = "__mark_generation";
/// Name of the filter that implements `%` after a text literal.
pub(super) const PERCENT: &str = "__percent";
/// Name of the function that lets a macro take any arguments.
pub(super) const VARIADIC: &str = "__variadic";

/// Adds the functions to `env`.
pub(super) fn add_to(env: &mut Environment<'_>, clock: Clock) {
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(Error::from(Raised(str(&message)?)))
    });
    env.add_function("strftime_now", move |format: &str| strftime(clock, format));
    env.add_function("namespace", namespace);
    env.add_global("dict", Value::from_object(Dict));
    env.add_function("cycler", |args: Passed| {
        Value::from_object(Cycler { items: args.into_values(), at: AtomicUsize::new(0) })
    });
    env.add_function("joiner", |args: Passed| -> Result<Value, Error> {
        let [separator] = bind(&args.into_values(), ["sep"])?;
        let separator = separator.unwrap_or_else(|| Value::from(", "));
        Ok(Value::from_object(Joiner { separator, used: AtomicBool::new(false) }))
    });
    env.add_function(VARIADIC, |called: Value| Value::from_object(Variadic(called)));
    env.add_filter(PERCENT, |format: &str, args: Value| super::methods::percent(format, args));
}

/// The error of `raise_exception`. [`raised_message`] finds its message again.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl From<Raised> for Error {
    fn from(raised: Raised) -> Self {
        invalid(raised.0.clone()).with_source(raised)
    }
}

/// Returns the message that the template gave to `raise_exception`, if this caused the error.
pub(super) fn raised_message(error: &Error) -> Option<&str> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(raised) = error.downcast_ref::<Raised>() {
            return Some(&raised.0);
        }
        source = error.source();
    }
    None
}

fn strftime(clock: Clock, format: &str) -> Result<String, Error> {
    let formatted = jiff::fmt::strtime::format(format, clock.now());
    formatted.map_err(|e| invalid(format!("strftime_now({format:?}): {e}")))
}

/// Implements `namespace`. Names that begin with an underscore are refused, as in transformers.
fn namespace(args: Passed) -> Result<Value, Error> {
    let entries = merged(&args.into_values())?;
    for (key, _) in &entries {
        if key.as_str().is_some_and(|key| key.starts_with('_')) {
            return Err(invalid(format!(
                "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{key}'. Please rename \
                 the attribute."
            )));
        }
    }
    let defaults = [Value::from_pairs(entries)];
    let (defaults,): (Option<ValueOrKwargs>,) = from_args(&defaults)?;
    minijinja::functions::namespace(defaults)
}

/// Returns the entries of a mapping or a list of pairs, with those of the keywords after them.
fn merged(args: &[Value]) -> Result<Vec<(Value, Value)>, Error> {
    let (positional, keywords) = split(args)?;
    let mut entries = match positional {
        [] => Vec::new(),
        [mapping] if mapping.kind() == minijinja::value::ValueKind::Map => pairs(mapping)?,
        [list] => {
            let pair = |item: &Value| match &items(item)?[..] {
                [key, value] => Ok((key.clone(), value.clone())),
                other => Err(invalid(format!("a pair has {} items", other.len()))),
            };
            items(list)?.iter().map(pair).collect::<Result<_, _>>()?
        }
        more => return Err(invalid(format!("expected at most 1 argument, got {}", more.len()))),
    };
    entries.extend(keywords.into_iter().map(|(name, value)| (Value::from(name), value)));
    Ok(entries)
}

/// The type `dict`, with what transformers leaves of it.
#[derive(Debug)]
struct Dict;

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        merged(args).map(Value::from_pairs)
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        if method != "fromkeys" {
            return Err(Error::from(minijinja::ErrorKind::UnknownMethod));
        }
        let [keys, value] = bind(args, ["iterable", "value"])?;
        let keys = items(&keys.unwrap_or_default())?;
        let value = value.unwrap_or_else(|| Value::from(()));
        Ok(Value::from_pairs(keys.into_iter().map(|key| (key, value.clone()))))
    }
}

/// Jinja's `cycler`.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Cycler {
    fn current(&self) -> Value {
        let at = self.at.load(Ordering::Relaxed) % self.items.len().max(1);
        self.items.get(at).cloned().unwrap_or_default()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let [] = bind(args, [])?;
        match method {
            "next" => {
                let current = self.current();
                self.at.fetch_add(1, Ordering::Relaxed);
                Ok(current)
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(minijinja::ErrorKind::UnknownMethod)),
        }
    }
}

/// Jinja's `joiner`.
#[derive(Debug)]
struct Joiner {
    separator: Value,
    used: AtomicBool,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let [] = bind(args, [])?;
        let used = self.used.swap(true, Ordering::Relaxed);
        Ok(if used { self.separator.clone() } else { Value::from("") })
    }
}

/// A macro that reads `varargs` or `kwargs`. minijinja's macros take no more arguments than they have parameters, so the
/// others are passed in two parameters of these names.
#[derive(Debug)]
struct Variadic(Value);

impl Object for Variadic {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let parameters = items(&self.0.get_attr("arguments")?)?;
        let mut names: Vec<String> =
            parameters.iter().map(|name| text("name", Some(name))).collect::<Result<_, _>>()?;
        names.retain(|name| name != "varargs" && name != "kwargs");
        let (positional, keywords) = split(args)?;
        let (own, more) = positional.split_at(names.len().min(positional.len()));
        let known: HashSet<&str> = names.iter().map(String::as_str).chain(["caller"]).collect();
        let (mut own_keywords, other): (Vec<_>, Vec<_>) =
            keywords.into_iter().partition(|(name, _)| known.contains(name.as_str()));
        let more = Value::from(minijinja::value::Tuple::from(more));
        own_keywords.push(("varargs".to_string(), more));
        own_keywords.push(("kwargs".to_string(), Value::from_pairs(other)));
        let mut args = own.to_vec();
        args.push(Value::from(Kwargs::from_iter(own_keywords)));
        self.0.call(state, &args)
    }
}
