//! Tag names as numbers: compared in one step, stored without allocation.

/// Longest name that fits, in bytes.
pub(super) const LONGEST: usize = 15;

/// A tag name of up to [`LONGEST`] ASCII bytes, lower-cased, as one number (its last byte is the length).
pub(super) const fn packed(name: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < name.len() && i < LONGEST {
        bytes[i] = name[i].to_ascii_lowercase();
        i += 1;
    }
    bytes[LONGEST] = name.len() as u8;
    u128::from_le_bytes(bytes)
}

/// [`packed`] for each of `names`.
pub(super) const fn packed_all<const N: usize>(names: [&str; N]) -> [u128; N] {
    let mut packed_names = [0; N];
    let mut i = 0;
    while i < N {
        packed_names[i] = packed(names[i].as_bytes());
        i += 1;
    }
    packed_names
}

/// `name` in lower case, kept in `buffer`; empty if it does not fit.
pub(super) fn lower<'b>(name: &str, buffer: &'b mut [u8; LONGEST]) -> &'b str {
    let Some(bytes) = buffer.get_mut(..name.len()) else {
        return "";
    };
    bytes.copy_from_slice(name.as_bytes());
    bytes.make_ascii_lowercase();
    std::str::from_utf8(bytes).unwrap_or_default()
}
