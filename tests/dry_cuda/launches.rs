//! How often each kernel is launched in a step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use arithmo_backends::Format;
use arithmo_backends::dry_cuda::{CARDS, MAX_BUFFERS, MAX_SHARED_BYTES, Record};
use burn::tensor::DType;

use super::learner::Case;
use super::{golden, is_autotuned};

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

/// Runs a step of models with two and with three layers, and writes the launches of both.
fn table(case: Case) -> String {
    let [two, three] = [2, 3].map(|layers| Case { layers, ..case }.run());
    let (count, host) = (two.later.launches(), two.host);
    // Not in the table: the host frees memory while the server reserves more.
    let pools = two.later.reserved_bytes / 1_000_000;
    let (name, each) = (case.name(), host / count as u32);
    println!("{name}: {count} launches, {each:.0?} of the host each; {pools} MB in the pools");
    let (mut text, [two, three]) = (case.name(), [two, three].map(|steps| steps.later));
    text.push_str("\n two layers  each more  kernel\n");
    let mut line = |two: usize, three: usize, name: &str| {
        let more = three as i64 - two as i64;
        writeln!(text, "{two:>11}{more:>11}  {name}").unwrap();
    };
    line(two.launches(), three.launches(), "all launches");
    let [two, three] = [two, three].map(|record| by_kernel(&record));
    let names: BTreeSet<&String> = two.keys().chain(three.keys()).collect();
    for name in names {
        let [two, three] = [&two, &three].map(|counts| counts.get(name).copied().unwrap_or(0));
        line(two, three, name);
    }
    text
}

#[test]
fn a_step_launches_what_the_table_says() {
    if is_autotuned() {
        return;
    }
    let usual = Case { tokens: 4096, ..Case::new(CARDS[4]) };
    let cases = [
        usual,
        Case { recompute: true, ..usual },
        Case { all_linear: true, ..usual },
        Case { all_linear: true, recompute: true, ..usual },
        Case { quantized: Some(Format::Nf4), ..usual },
        Case { library: false, ..usual },
        Case { gemma: true, ..usual },
    ];
    golden::compare("launches.txt", &cases.map(table).join("\n"), |golden, now| golden == now);
}

/// The wgpu backend refuses GPUs with less than its kernels need.
#[test]
fn kernels_need_what_small_gpus_are_asked_for() {
    if is_autotuned() {
        return;
    }
    let usual = Case { dtype: DType::F32, library: false, all_linear: true, ..Case::new(CARDS[4]) };
    let cases = [
        usual,
        Case { gemma: true, ..usual },
        Case { head_width: 256, rank: 256, ..usual },
        Case { quantized: Some(Format::Nf4), ..usual },
        Case { quantized: Some(Format::Int8), ..usual },
    ];
    let (mut buffers, mut shared) = (Vec::new(), Vec::new());
    for case in cases {
        let steps = case.run();
        let records = [steps.setup, steps.first, steps.later];
        for kernel in records.into_iter().flat_map(|record| record.kernels) {
            // Burn asks the GPU itself, and so do kernels over many tensors.
            let asks = ["burn", "cube", "adamw", "clip"];
            if !asks.iter().any(|name| kernel.name.starts_with(name)) {
                // With the buffer of shapes and scalars, which CUDA passes otherwise.
                buffers.push((kernel.buffers() + 1, kernel.name.clone()));
                shared.push((kernel.shared_bytes, kernel.name));
            }
        }
    }
    let (most_buffers, most_shared) = (buffers.iter().max().unwrap(), shared.iter().max().unwrap());
    println!("{most_buffers:?}, {most_shared:?}");
    let shared = most_shared.0.next_multiple_of(1 << 10);
    assert_eq!((most_buffers.0, shared), (MAX_BUFFERS, MAX_SHARED_BYTES));
}

/// Burn's kernels for tensor cores round f32 factors to the 11 bits of TF32, as those for bf16 show that are found here.
#[test]
fn factors_in_f32_are_not_rounded() {
    if is_autotuned() {
        return;
    }
    let uses_tensor_cores = |dtype, library| {
        let steps = Case { dtype, library, ..Case::new(CARDS[4]) }.run();
        let records = [steps.setup, steps.first, steps.later];
        records
            .iter()
            .flat_map(|record| &record.kernels)
            .any(|kernel| kernel.source.contains("mma"))
    };
    assert!(uses_tensor_cores(DType::BF16, false));
    assert!(!uses_tensor_cores(DType::F32, false));
    assert!(!uses_tensor_cores(DType::F32, true));
}
