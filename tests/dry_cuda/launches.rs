//! How often each kernel is launched in a step.

use std::collections::BTreeMap;
use std::fmt::Write;

use arithmo_backends::dry_cuda::{CARDS, Record};

use super::golden;
use super::learner::Case;

/// Returns the number of launches of each kernel.
fn by_kernel(record: &Record) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    if record.library_gemms > 0 {
        counts.insert("cuBLASLt".to_string(), record.library_gemms);
    }
    for kernel in &record.kernels {
        *counts.entry(kernel.name.clone()).or_default() += kernel.launches;
    }
    counts
}

#[test]
fn a_step_launches_what_the_table_says() {
    let mut text = String::new();
    let card = CARDS[4];
    for (all_linear, recompute, library) in [
        (false, false, true),
        (false, true, true),
        (true, false, true),
        (true, true, true),
        (false, false, false),
    ] {
        let case = Case { all_linear, recompute, library, tokens: 4096, ..Case::new(card) };
        let steps = case.run();
        let (record, host) = (&steps.later, steps.host);
        let count = record.launches();
        println!("{}: {count} launches, {host:?}, {:?} each", case.name(), host / count as u32);
        writeln!(text, "{}", case.name()).unwrap();
        writeln!(text, "{count:>8} launches").unwrap();
        writeln!(text, "{:>8} MB in the pools", record.reserved_bytes / 1_000_000).unwrap();
        for (kernel, count) in by_kernel(record) {
            writeln!(text, "{count:>8} {kernel}").unwrap();
        }
        text.push('\n');
    }
    golden::compare("launches.txt", &text);
}
