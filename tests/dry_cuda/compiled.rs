//! Whether CUDA's compiler accepts every kernel of a training step, and what each one uses.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use arithmo_backends::Format;
use arithmo_backends::dry_cuda::nvrtc::{self, Usage};
use arithmo_backends::dry_cuda::{CARDS, Card, DryDevice, KernelRecord};
use burn::tensor::DType;

use super::learner::Case;
use super::{golden, is_autotuned};

/// The largest number of bytes that a thread of one of this project's kernels may spill. The most are 76, by attention in f32 on
/// sm_100a; a loop over a tile that no longer fits its registers spills hundreds.
const MAX_SPILLED_BYTES: usize = 96;

/// Bytes of shared memory between arrays, which depend on their order: one alignment of what a plane loads at once.
const MAX_GAP: usize = 32;

/// Bytes of registers of a multiprocessor, on every architecture.
const REGISTERS: usize = 65_536;

/// Returns models whose kernels differ: of two families, every width of heads, ranks from 4 to 256, quantized weights, recomputed
/// activations, and matrix products without cuBLASLt.
fn cases(card: Card, dtype: DType) -> Vec<Case> {
    let usual = Case { dtype, ..Case::new(card) };
    vec![
        usual,
        Case { all_linear: true, recompute: true, ..usual },
        Case { head_width: 64, rank: 4, ..usual },
        Case { head_width: 80, rank: 8, all_linear: true, ..usual },
        Case { head_width: 96, rank: 64, ..usual },
        Case { head_width: 256, rank: 256, ..usual },
        Case { quantized: Some(Format::Nf4), ..usual },
        Case { quantized: Some(Format::Int8), ..usual },
        Case { library: false, ..usual },
        Case { gemma: true, ..usual },
    ]
}

/// A kernel and the case in which it was launched first.
struct Kernel {
    /// The row of the table.
    row: String,
    record: KernelRecord,
}

/// Returns every distinct kernel of all cases on a card.
fn kernels(card: Card, dtype: DType) -> Vec<Kernel> {
    let (mut seen, mut kernels) = (HashSet::new(), Vec::new());
    // Kernels that several cases share are translated once.
    let devices = [false, true].map(|with_library| DryDevice::new(&card, with_library));
    for case in cases(card, dtype) {
        let steps = case.run_on(devices[usize::from(case.library)]);
        let mut counts = BTreeMap::<String, usize>::new();
        let records = [steps.setup, steps.first, steps.later];
        for record in records.into_iter().flat_map(|record| record.kernels) {
            if seen.insert(record.id.clone()) {
                let number = counts.entry(record.name.clone()).or_default();
                *number += 1;
                let row = format!("{} | {} #{number}", case.name(), record.name);
                kernels.push(Kernel { row, record });
            }
        }
    }
    kernels
}

/// Compiles kernels for an architecture on all cores, and returns what each one uses, in the order of the kernels.
fn compile(kernels: &[Kernel], card: &Card) -> Vec<Usage> {
    let next = Mutex::new(kernels.iter().enumerate());
    let (usages, failures) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let worker = || {
        while let Some((at, kernel)) = { next.lock().unwrap().next() } {
            match nvrtc::compile(&kernel.record.source, &card.architecture()) {
                Ok(usage) => drop(usages.lock().unwrap().insert(at, usage)),
                Err(error) => {
                    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
                    let source = folder.join(format!("{}-{at}.cu", card.architecture()));
                    fs::write(&source, &kernel.record.source).unwrap();
                    let failure = format!("{}\n{}\n{error}", kernel.row, source.display());
                    failures.lock().unwrap().push(failure);
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(worker))));
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}: {}", card.architecture(), failures.join("\n\n"));
    usages.into_inner().unwrap().into_values().collect()
}

/// Checks that a kernel can be launched, and that none of ours is slow because its registers do not suffice.
fn check(kernel: &Kernel, usage: &Usage, card: &Card) {
    let (row, record) = (&kernel.row, &kernel.record);
    let threads = (record.block.0 * record.block.1 * record.block.2) as usize;
    // Registers are assigned to warps, in units of eight per thread.
    let registers = usage.registers.next_multiple_of(8) * threads.next_multiple_of(32);
    assert!(registers <= REGISTERS, "{row} on {}: {registers} registers", card.architecture());
    let is_ours = !["burn", "cube"].iter().any(|name| record.name.starts_with(name));
    let spilled = usage.spill_stores + usage.spill_loads;
    if is_ours {
        let architecture = card.architecture();
        assert!(spilled <= MAX_SPILLED_BYTES, "{row} on {architecture} spills {spilled} bytes");
    }
}

/// Compiles the kernels of all cases with weights of one type for one architecture, and compares what they use with
/// the golden table.
fn compare(card: Card, dtype: DType) {
    let started = Instant::now();
    let kernels = kernels(card, dtype);
    let (translated, started) = (started.elapsed(), Instant::now());
    let usages = compile(&kernels, &card);
    let (compiled, architecture) = (started.elapsed(), card.architecture());
    let (name, count) = (dtype.name(), kernels.len());
    println!(
        "{architecture}, {name}: {count} kernels, translated in {translated:.0?}, compiled in {compiled:.0?}"
    );
    let lines = kernels.iter().zip(&usages).map(|(kernel, usage)| {
        check(kernel, usage, &card);
        let (x, y, z) = kernel.record.block;
        let (shared, spilled) =
            (kernel.record.shared_bytes, usage.spill_stores + usage.spill_loads);
        let (row, registers) = (&kernel.row, usage.registers);
        format!("{row} | {x} x {y} x {z} | {shared} | {registers} | {spilled}\n")
    });
    let header = "case | kernel | threads | shared bytes | registers | spilled bytes\n".to_string();
    let text: String = std::iter::once(header).chain(lines).collect();
    golden::compare(&format!("{architecture}-{name}.txt"), &text, fits);
}

/// Returns whether a row fits its golden one: the same kernel and threads, and not many more registers or spilled bytes.
///
/// CubeCL writes some lines in another order each time, so that a kernel's registers differ by some 25 %, or by a few. It places
/// arrays in shared memory in another order too, with gaps between those that are aligned and the others.
fn fits(golden: &str, now: &str) -> bool {
    let parse = |row: &str| {
        let mut cells = row.rsplitn(4, " | ").map(str::to_string);
        let mut number = || cells.next()?.parse::<usize>().ok();
        let numbers = [number()?, number()?, number()?];
        Some((cells.next()?, numbers))
    };
    match (parse(golden), parse(now)) {
        (Some((golden, [old_spill, old, old_shared])), Some((now, [spill, registers, shared]))) => {
            golden == now
                && shared.abs_diff(old_shared) <= MAX_GAP
                && registers <= old + (old / 2).max(16)
                && spill <= old_spill + MAX_SPILLED_BYTES
        }
        _ => golden == now,
    }
}

#[test]
fn rows_with_more_registers_or_memory_do_not_fit() {
    let golden = "case | kernel #1 | 256 x 1 x 1 | 0 | 40 | 0";
    for (now, expected) in [
        (golden, true),
        ("case | kernel #1 | 256 x 1 x 1 | 0 | 60 | 96", true),
        ("case | kernel #1 | 256 x 1 x 1 | 0 | 61 | 0", false),
        ("case | kernel #1 | 256 x 1 x 1 | 0 | 40 | 97", false),
        ("case | kernel #1 | 256 x 1 x 1 | 32 | 40 | 0", true),
        ("case | kernel #1 | 256 x 1 x 1 | 48 | 40 | 0", false),
        ("case | kernel #2 | 256 x 1 x 1 | 0 | 40 | 0", false),
    ] {
        assert_eq!(fits(golden, now), expected, "{now}");
    }
}

/// The types of weights, each with one architecture.
const SOME: [(DType, Card); 3] =
    [(DType::BF16, CARDS[4]), (DType::F16, CARDS[0]), (DType::F32, CARDS[2])];

#[test]
#[ignore = "needs CUDA's run-time compiler: run scripts/nvrtc.sh"]
fn one_architecture_per_type() {
    if is_autotuned() {
        return;
    }
    println!("NVRTC {:?}", nvrtc::version().unwrap());
    SOME.into_iter().for_each(|(dtype, card)| compare(card, dtype));
}

#[test]
#[ignore = "needs CUDA's run-time compiler: run scripts/nvrtc.sh all"]
fn every_other_architecture() {
    if is_autotuned() {
        return;
    }
    println!("NVRTC {:?}", nvrtc::version().unwrap());
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        // Models on the first card have weights in f16: it has no instructions for bf16.
        let cards = CARDS.into_iter().skip(1).filter(|card| !SOME.contains(&(dtype, *card)));
        cards.for_each(|card| compare(card, dtype));
    }
}
