//! Arguments of a call, bound to the parameters of a Python function.

use minijinja::value::{Kwargs, Rest, Value, ValueOrKwargs};
use minijinja::{Error, ErrorKind};

/// Positional and keyword arguments as minijinja passes them.
pub(super) type Passed = Rest<ValueOrKwargs>;

/// Keyword arguments with their values.
pub(super) type Keywords = Vec<(String, Value)>;

/// Binds `args` to the parameters `names`, in order; a parameter without an argument is `None`.
///
/// # Errors
/// There are too many arguments, a keyword is not a parameter, or a parameter is given twice.
pub(super) fn bind<const N: usize>(
    args: &[Value],
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    let (positional, keywords) = split(args)?;
    if positional.len() > N {
        let problem = format!("{} arguments are given, and there are {N}", positional.len());
        return Err(Error::new(ErrorKind::TooManyArguments, problem));
    }
    let mut bound = [const { None }; N];
    for (slot, value) in bound.iter_mut().zip(positional) {
        *slot = Some(value.clone());
    }
    for (keyword, value) in keywords {
        let slot = names.iter().position(|name| *name == keyword).map(|index| &mut bound[index]);
        match slot {
            Some(slot @ None) => *slot = Some(value),
            Some(_) => {
                let problem = format!("the argument {keyword} is given twice");
                return Err(Error::new(ErrorKind::TooManyArguments, problem));
            }
            None => {
                let problem = format!("there is no argument {keyword}");
                return Err(Error::new(ErrorKind::TooManyArguments, problem));
            }
        }
    }
    Ok(bound)
}

/// Separates positional arguments from keywords with their values.
///
/// # Errors
/// A keyword is not text.
pub(super) fn split(args: &[Value]) -> Result<(&[Value], Keywords), Error> {
    let Some((last, positional)) = args.split_last().filter(|(last, _)| last.is_kwargs()) else {
        return Ok((args, Vec::new()));
    };
    let keywords = Kwargs::try_from(last.clone())?;
    let value = |name: &str| Ok((name.to_string(), keywords.peek::<Value>(name)?));
    let pairs: Result<_, Error> = keywords.args().map(value).collect();
    Ok((positional, pairs?))
}

/// Returns the text of an argument, or an error that names it.
///
/// # Errors
/// The argument is missing or not text.
pub(super) fn text(name: &str, value: Option<&Value>) -> Result<String, Error> {
    match value {
        Some(value) => match value.as_str() {
            Some(text) => Ok(text.to_string()),
            None => {
                let problem = format!("{name} must be text, not {}", value.kind());
                Err(Error::new(ErrorKind::InvalidOperation, problem))
            }
        },
        None => Err(Error::new(ErrorKind::MissingArgument, format!("{name} is missing"))),
    }
}

/// Returns the whole number of an argument, or `default` if it is missing.
///
/// # Errors
/// The argument is not a whole number.
pub(super) fn number(name: &str, value: Option<&Value>, default: i64) -> Result<i64, Error> {
    match value {
        None => Ok(default),
        Some(value) => i64::try_from(value.clone()).map_err(|_| {
            let problem = format!("{name} must be a whole number, not {}", value.kind());
            Error::new(ErrorKind::InvalidOperation, problem)
        }),
    }
}

/// Maximum width, in characters, to which a text is padded.
const MAX_WIDTH: i64 = 1_000_000;

/// Returns the width of an argument as [`number`] does; widths below 0 count as 0.
///
/// # Errors
/// Same as [`number`], or the width is more than a million.
pub(super) fn width(value: Option<&Value>, default: i64) -> Result<usize, Error> {
    let width = number("width", value, default)?.max(0);
    if width > MAX_WIDTH {
        let problem = format!("a width of {width} is more than {MAX_WIDTH}");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    Ok(width as usize)
}
