//! Tag names as numbers, which are compared in one step and stored without allocation, and the stack of open elements.

use std::collections::HashMap;

/// Maximum length of a name that fits a number, in bytes.
pub(super) const LONGEST: usize = 15;

/// Returns a tag name of up to [`LONGEST`] ASCII bytes, lower-cased, as one number whose last byte is the length.
pub(super) const fn name_number(name: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < name.len() && i < LONGEST {
        bytes[i] = name[i].to_ascii_lowercase();
        i += 1;
    }
    bytes[LONGEST] = name.len() as u8;
    u128::from_le_bytes(bytes)
}

/// Returns [`name_number`] of each of `names`.
pub(super) const fn name_numbers<const N: usize>(names: [&str; N]) -> [u128; N] {
    let mut numbers = [0; N];
    let mut i = 0;
    while i < N {
        numbers[i] = name_number(names[i].as_bytes());
        i += 1;
    }
    numbers
}

/// Writes `name` in lower case into `buffer` and returns it. The result is empty if the name does not fit.
pub(super) fn lower<'b>(name: &str, buffer: &'b mut [u8; LONGEST]) -> &'b str {
    let Some(bytes) = buffer.get_mut(..name.len()) else {
        return "";
    };
    bytes.copy_from_slice(name.as_bytes());
    bytes.make_ascii_lowercase();
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Number of elements that are searched one by one.
const NEAR: usize = 64;

/// The names of the open elements, the innermost last. A search takes bounded time however many elements are open.
#[derive(Debug, Default)]
pub(super) struct OpenNames {
    names: Vec<u128>,
    /// Depths at which each name occurs, without the outermost [`NEAR`] elements.
    deep: HashMap<u128, Vec<usize>>,
}

impl OpenNames {
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn push(&mut self, name: u128) {
        let depth = self.names.len();
        if depth >= NEAR {
            self.deep.entry(name).or_default().push(depth);
        }
        self.names.push(name);
    }

    pub(super) fn pop(&mut self) -> Option<u128> {
        let name = self.names.pop()?;
        if self.names.len() >= NEAR
            && let Some(depths) = self.deep.get_mut(&name)
        {
            depths.pop();
        }
        Some(name)
    }

    /// Returns the depth of the innermost element called `name`: the number of elements around it.
    pub(super) fn innermost(&self, name: u128) -> Option<usize> {
        let first = self.names.len().saturating_sub(NEAR);
        let (outer, near) = self.names.split_at(first);
        if let Some(index) = near.iter().rposition(|open| *open == name) {
            return Some(first + index);
        }
        let deep = self.deep.get(&name).and_then(|depths| depths.last().copied());
        let outer = outer.get(..NEAR.min(outer.len())).unwrap_or_default();
        deep.or_else(|| outer.iter().rposition(|open| *open == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_at_every_depth() {
        let mut open = OpenNames::default();
        let names: Vec<u128> = (0..300).map(|n| n * 7919 % 50).collect();
        for (depth, name) in names.iter().enumerate() {
            open.push(*name);
            for wanted in 0..51 {
                let expected = names[..=depth].iter().rposition(|name| *name == wanted);
                assert_eq!(open.innermost(wanted), expected);
            }
        }
        for depth in (100..300).rev() {
            assert_eq!(open.pop(), Some(names[depth]));
            let expected = names[..depth].iter().rposition(|name| *name == 3);
            assert_eq!(open.innermost(3), expected);
        }
        assert_eq!(open.len(), 100);
    }
}
