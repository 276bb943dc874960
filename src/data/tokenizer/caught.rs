//! Turns panics of the tokenizers crate into errors. That crate panics on some damaged files.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread runs [`caught`].
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` and returns its result, or its panic message if it panics. The panic prints nothing.
///
/// A panic in `f` must not leave data that is used afterwards in an inconsistent state.
pub(super) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            if !CATCHING.get() {
                print(panic);
            }
        }));
    });
    CATCHING.set(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(false);
    result.map_err(|panic| message(panic.as_ref()))
}

/// Returns the message of a panic payload.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the tokenizers crate panicked").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_values_and_others_stay_panics() {
        assert_eq!(caught(|| 3), Ok(3));
        let index = [1, 2].len();
        let failed = caught(|| [1, 2].get(index).copied().unwrap());
        assert!(failed.unwrap_err().contains("None"));
        assert_eq!(caught(|| -> u8 { panic!("at {index}") }), Err("at 2".into()));
        assert!(!CATCHING.get());
    }
}
