//! Whether CUDA's compiler accepts every kernel of a training step, and what each one uses.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use arithmo_backends::Format;
use arithmo_backends::dry_cuda::nvrtc::{self, Usage};
use arithmo_backends::dry_cuda::{CARDS, Card, KernelRecord};
use burn::tensor::DType;

use super::golden;
use super::learner::Case;

/// The largest number of bytes that a thread of one of this project's kernels may spill.
const MAX_SPILLED_BYTES: usize = 64;

/// Bytes of registers of a multiprocessor, on every architecture.
const REGISTERS: usize = 65_536;

/// Returns the types of weights that models have on a card.
fn dtypes(card: &Card) -> &'static [DType] {
    // Without instructions for bf16.
    if card.capability < 80 { &[DType::F16] } else { &[DType::F32, DType::F16, DType::BF16] }
}

/// Returns models whose kernels differ: every width of heads, ranks from 4 to 256, quantized weights, recomputed
/// activations, and matrix products without cuBLASLt.
fn cases(card: Card, dtype: DType) -> Vec<Case> {
    let usual = Case { dtype, ..Case::new(card) };
    vec![
        usual,
        Case { all_linear: true, recompute: true, ..usual },
        Case { head_width: 64, rank: 4, ..usual },
        Case { head_width: 80, rank: 8, all_linear: true, ..usual },
        Case { head_width: 96, rank: 64, ..usual },
        Case { head_width: 256, rank: 256, all_linear: true, ..usual },
        Case { quantized: Some(Format::Nf4), ..usual },
        Case { quantized: Some(Format::Int8), ..usual },
        Case { library: false, ..usual },
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
    for case in cases(card, dtype) {
        let steps = case.run();
        let mut counts = BTreeMap::<String, usize>::new();
        let records = [steps.setup, steps.first, steps.later];
        for record in records.into_iter().flat_map(|record| record.kernels) {
            if seen.insert((record.name.clone(), record.source.clone())) {
                let number = counts.entry(record.name.clone()).or_default();
                *number += 1;
                let row = format!("{} | {} #{number}", case.name(), record.name);
                kernels.push(Kernel { row, record });
            }
        }
    }
    kernels
}

/// Compiles kernels for an architecture on all cores, and returns what each one uses.
fn compile(kernels: &[Kernel], card: &Card) -> Vec<Usage> {
    let started = Instant::now();
    let next = Mutex::new(0..kernels.len());
    let usages = Mutex::new(vec![Usage::default(); kernels.len()]);
    let failures = Mutex::new(Vec::new());
    let worker = || {
        loop {
            let Some(at) = next.lock().unwrap().next() else { break };
            match nvrtc::compile(&kernels[at].record.source, &card.architecture()) {
                Ok(usage) => usages.lock().unwrap()[at] = usage,
                Err(error) => failures.lock().unwrap().push((at, error)),
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(worker);
        }
    });
    let failures = failures.into_inner().unwrap();
    let describe = |(at, error): &(usize, String)| {
        let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernel-{at}.cu"));
        fs::write(&source, &kernels[*at].record.source).unwrap();
        format!("{}\n{}\n{error}", kernels[*at].row, source.display())
    };
    let failed = failures.iter().map(describe).collect::<Vec<_>>();
    assert!(failed.is_empty(), "{}: {}", card.architecture(), failed.join("\n\n"));
    let (count, time) = (kernels.len(), started.elapsed());
    println!("{}: {count} kernels compiled in {time:.1?}", card.architecture());
    usages.into_inner().unwrap()
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

/// The rows of a table: the kernel's block and shared memory, and its usage by architecture.
type Rows = BTreeMap<String, (String, BTreeMap<String, String>)>;

/// Compiles the kernels of all cases for some architectures.
fn table(dtype: DType, cards: &[Card]) -> Rows {
    let mut rows = Rows::new();
    for card in cards {
        let kernels = kernels(*card, dtype);
        let usages = compile(&kernels, card);
        for (kernel, usage) in kernels.iter().zip(&usages) {
            check(kernel, usage, card);
            let (x, y, z) = kernel.record.block;
            let block = format!("{x} x {y} x {z} | {}", kernel.record.shared_bytes);
            let row = rows.entry(kernel.row.clone()).or_insert((block.clone(), BTreeMap::new()));
            assert_eq!(row.0, block, "{} on {}", kernel.row, card.architecture());
            let spilled = usage.spill_stores + usage.spill_loads;
            let spilled = if spilled > 0 { format!("+{spilled}") } else { String::new() };
            row.1.insert(card.architecture(), format!("{}{spilled}", usage.registers));
        }
    }
    rows
}

/// Writes a table as text, with the columns of `cards`.
fn text(rows: &Rows, cards: &[Card]) -> String {
    let mut text = "case | kernel | threads | shared bytes".to_string();
    for card in cards {
        write!(text, " | {}", card.architecture()).unwrap();
    }
    text.push('\n');
    for (row, (block, usages)) in rows {
        write!(text, "{row} | {block}").unwrap();
        for card in cards {
            let usage = usages.get(&card.architecture()).map_or("", String::as_str);
            write!(text, " | {usage}").unwrap();
        }
        text.push('\n');
    }
    text
}

/// Returns the cards that have weights of this type.
fn cards(dtype: DType) -> Vec<Card> {
    CARDS.into_iter().filter(|card| dtypes(card).contains(&dtype)).collect()
}

#[test]
#[ignore = "needs CUDA's run-time compiler: run scripts/nvrtc.sh all"]
fn every_architecture() {
    println!("NVRTC {:?}", nvrtc::version().unwrap());
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let cards = cards(dtype);
        let text = text(&table(dtype, &cards), &cards);
        golden::compare(&format!("{}.txt", dtype.name()), &text);
    }
}

#[test]
#[ignore = "needs CUDA's run-time compiler: run scripts/nvrtc.sh"]
fn one_architecture_per_type() {
    println!("NVRTC {:?}", nvrtc::version().unwrap());
    for (dtype, card) in [(DType::F32, CARDS[2]), (DType::F16, CARDS[0]), (DType::BF16, CARDS[4])] {
        let text = text(&table(dtype, &[card]), &[card]);
        golden::compare_column(&format!("{}.txt", dtype.name()), &text, &card.architecture());
    }
}
