//! Prints a plan as a table or as JSON.

use std::fmt;

use burn::tensor::DType;
use serde_json::{Map, Value, json};

use super::fit::Change;
use super::job::Job;
use super::memory::Category;
use super::profile::Profile;
use super::time::Timing;
use super::{PassShape, Plan};
use crate::data::lengths::SampleLengths;
use crate::error::{Error, Result};
use crate::model::limits;
use crate::train::unsaved::unsaved_warning;

/// A number of bytes that is displayed in decimal units, such as `3.21 GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 as f64 {
            bytes if bytes >= 1e9 => write!(f, "{:.2} GB", bytes / 1e9),
            bytes if bytes >= 1e6 => write!(f, "{:.1} MB", bytes / 1e6),
            bytes => write!(f, "{:.1} kB", bytes / 1e3),
        }
    }
}

/// Reads `8GB`, `7.5GiB`, `500MB` or a number of bytes.
///
/// # Errors
/// `text` is none of these, or the size is zero.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let units = [
        ("gib", (1u64 << 30) as f64),
        ("mib", (1u64 << 20) as f64),
        ("gb", 1e9),
        ("mb", 1e6),
        ("g", 1e9),
        ("m", 1e6),
        ("", 1.0),
    ];
    let lower = text.trim().to_lowercase();
    let found = units.into_iter().find_map(|(unit, size)| Some((lower.strip_suffix(unit)?, size)));
    let number = found.and_then(|(number, size)| Some(number.trim().parse::<f64>().ok()? * size));
    match number {
        Some(bytes)
            if lower.parse::<f64>().is_ok() && (1.0..MIN_BYTES_WITHOUT_UNIT).contains(&bytes) =>
        {
            let problem = format!("`{text}` without a unit is {text} bytes");
            let remedy = format!("give a unit, as {text}GB");
            Err(Error::invalid("--device-memory", problem, remedy))
        }
        Some(bytes) if (1.0..1e18).contains(&bytes) => Ok(bytes as u64),
        _ => {
            let problem = format!("`{text}` is not an amount of memory");
            let remedy = "write it as 8GB, 7.5GiB or 500MB";
            Err(Error::invalid("--device-memory", problem, remedy))
        }
    }
}

/// Numbers without a unit below this are taken for gigabytes or megabytes whose unit is missing.
const MIN_BYTES_WITHOUT_UNIT: f64 = 1e5;

/// The report of a plan.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// The job that is planned.
    pub job: &'a Job,
    /// The device that it is planned for.
    pub profile: &'a Profile,
    /// The plan.
    pub plan: &'a Plan,
    /// The largest number of samples that can be computed at once, and their tokens.
    pub largest: Option<(usize, usize)>,
    /// Changes that would make the run fit, if it does not.
    pub changes: &'a [Change],
    /// The estimated time, if it was measured.
    pub timing: Option<Timing>,
}

impl Report<'_> {
    /// Returns one line for the start of a run: how the weights are stored, and how much memory the
    /// run needs.
    pub fn summary(&self) -> String {
        let total = Bytes(self.plan.total());
        let available = match self.plan.capacity {
            Some(capacity) => format!(" of {}", Bytes(capacity)),
            None => ", and the device does not report how much it has".to_string(),
        };
        format!("{} on {}; the run takes about {total}{available}", self.model(), self.profile.name)
    }

    /// Returns the lines of the table.
    pub fn lines(&self) -> Vec<String> {
        let (job, plan) = (self.job, self.plan);
        let mut lines =
            vec![format!("{}: {}", self.profile.name, self.model()), self.samples(), String::new()];
        for category in Category::ALL {
            if let Some(bytes) = plan.table.get(&category) {
                let bytes = Bytes(*bytes).to_string();
                let note = self.note(category);
                lines.push(
                    format!("  {:<13}{bytes:>10}  {note}", category.name()).trim_end().to_string(),
                );
            }
        }
        let total = Bytes(plan.total()).to_string();
        lines.push(format!("  {:<13}{total:>10}  at the peak, in {}", "together", plan.peak_phase));
        if !self.profile.is_heap() {
            lines.push(
                "  left out: what the driver takes for itself (its context, compiled kernels)"
                    .into(),
            );
        }
        lines.push(String::new());
        lines.push(self.verdict());
        if let Some((count, tokens)) = self.largest {
            lines.push(format!(
                "at most {count} {} of {tokens} tokens together fit into one pass; a step may have more: \
                 passes take at most {} tokens (train.max_tokens_per_pass)",
                self.noun(count),
                plan.pass_tokens,
            ));
        }
        lines.extend(self.changes.iter().map(change_line));
        if let Some(timing) = &self.timing {
            lines.extend(timing_lines(timing, job));
            lines.extend(self.unsaved(timing));
        }
        lines
    }

    /// Returns the warning about a long run that writes no checkpoint before its end.
    fn unsaved(&self, timing: &Timing) -> Option<String> {
        let samples = self.job.train_samples().len();
        let every = self.job.config.train.save_interval(samples);
        unsaved_warning(every, timing.steps, timing.seconds / timing.steps.max(1) as f64)
    }

    /// Returns the word for `count` samples.
    fn noun(&self, count: usize) -> &'static str {
        match (self.job.sides(), count) {
            (2, 1) => "pair",
            (2, _) => "pairs",
            (_, 1) => "example",
            _ => "examples",
        }
    }

    /// Returns the number of weights and how they are stored.
    fn model(&self) -> String {
        let weights = self.job.shape.weights();
        let quantized = self.job.quantization.map(|quantization| {
            let double = if quantization.double_quant { ", double quantization" } else { "" };
            format!("projections in {}{double}, the rest ", quantization.name())
        });
        let quantized = quantized.unwrap_or_default();
        let dtype = self.plan.dtype.name();
        let requested = self.job.config.model.dtype.dtype() == Some(DType::BF16);
        let storage = if !self.job.bf16_storage {
            dtype.to_string()
        } else if requested {
            format!("bf16, computed in {dtype}")
        } else {
            format!("bf16 as in the files, computed in {dtype}")
        };
        let millions = weights as f64 / 1e6;
        format!("{millions:.2} M weights, {quantized}in {storage}")
    }

    /// Returns the lengths of the samples and of the largest pass.
    fn samples(&self) -> String {
        let samples = self.job.train_samples();
        let PassShape { tokens, scored, .. } = self.plan.pass;
        let lengths = if self.job.knows_samples() {
            let packed: Vec<usize> = samples.iter().map(SampleLengths::packed).collect();
            let mean = packed.iter().sum::<usize>() / packed.len().max(1);
            let longest = packed.iter().max().copied().unwrap_or(0);
            format!(
                "{} {} of {}, {mean} tokens on average, {longest} in the longest",
                samples.len(),
                self.noun(samples.len()),
                self.job.config.data.train_file.display()
            )
        } else {
            format!(
                "lengths unknown: as if every {} had sequences of max_length = {} tokens",
                self.noun(1),
                self.job.config.data.max_length
            )
        };
        format!("{lengths}; the largest pass: {tokens} tokens, {scored} of them scored")
    }

    /// Returns the remark that follows the bytes of a category.
    fn note(&self, category: Category) -> String {
        let plan = self.plan;
        match category {
            Category::Program => "the program, its tokenizer, the data".into(),
            Category::Activations => {
                let (kept, input) = (Bytes(plan.block_bytes), Bytes(plan.block_input_bytes));
                format!(
                    "{} of {} blocks keep theirs, {kept} each; the others keep {input} and recompute the rest",
                    plan.kept_blocks, plan.blocks
                )
            }
            Category::Adapter => {
                let count: usize = self.job.trained_sizes().iter().sum();
                format!("{:.2} M trained weights", count as f64 / 1e6)
            }
            Category::Unused => "reserved by the allocator beyond the rest".into(),
            _ => String::new(),
        }
    }

    /// Returns whether the run fits, as a sentence.
    fn verdict(&self) -> String {
        let plan = self.plan;
        if let Some(long) = &plan.too_long {
            return format!(
                "does not fit: {} takes {}, and this device holds at most {} in one buffer",
                long.tensor,
                Bytes(long.bytes),
                Bytes(long.limit)
            );
        }
        match plan.capacity {
            None => {
                "this device does not report how much memory it has: set --device-memory".into()
            }
            Some(capacity) if plan.total() <= capacity => {
                format!("fits into {}", Bytes(capacity))
            }
            Some(capacity) => format!(
                "does not fit into {}: {} too much",
                Bytes(capacity),
                Bytes(plan.total() - capacity)
            ),
        }
    }

    /// Returns the report as a JSON object.
    pub fn json(&self) -> Value {
        let plan = self.plan;
        let table = plan.table.iter();
        let table: Map<String, Value> =
            table.map(|(category, bytes)| (category.name().to_string(), json!(bytes))).collect();
        let changes = self.changes.iter().map(|change| {
            json!({
                "set": change.settings,
                "total_bytes": change.plan.total(),
                "time": change.time,
                "effect": change.effect.name(),
            })
        });
        let timing = self.timing.map(|timing| {
            json!({
                "seconds_per_step": timing.seconds_per_step,
                "seconds_per_known_step": timing.seconds_per_known_step,
                "steps": timing.steps,
                "seconds": timing.seconds,
                "flop_per_second": timing.flop_per_second,
                "measured_layers": timing.measured_layers,
                "measured_tokens": timing.measured_tokens,
            })
        });
        json!({
            "command": "plan",
            "device": self.profile.name,
            "dtype": plan.dtype.name(),
            "bytes": table,
            "total_bytes": plan.total(),
            "capacity_bytes": plan.capacity,
            "fits": plan.fits(),
            "moment": plan.peak_phase,
            "lengths": if self.job.knows_samples() { "data" } else { "max_length" },
            "pass_tokens": plan.pass.tokens,
            "passes_a_step": plan.passes,
            "kept_blocks": plan.kept_blocks,
            "blocks": plan.blocks,
            "block_bytes": plan.block_bytes,
            "largest_batch": self.largest.map(|(count, _)| count),
            "largest_pass_tokens": self.largest.map(|(_, tokens)| tokens),
            "too_long": plan.too_long.as_ref().map(|long| json!({
                "what": long.tensor, "bytes": long.bytes, "limit": long.limit,
            })),
            "changes": changes.collect::<Vec<_>>(),
            "timing": timing,
        })
    }

    /// Returns the error of a run that does not fit, whose remedy lists the changes that would make
    /// it fit.
    pub fn refusal(&self) -> Error {
        let changes: Vec<String> = self.changes.iter().map(change_line).collect();
        let remedy = if !changes.is_empty() {
            format!(
                "start it with one of these changes, or anyway with --ignore-plan:\n{}",
                changes.join("\n")
            )
        } else if self.plan.too_long.is_some() {
            limits::REMEDY.to_string()
        } else {
            "no change this program knows makes it fit: use a smaller model or a larger device, \
             or start it anyway with --ignore-plan"
                .to_string()
        };
        let total = Bytes(self.plan.total());
        Error::invalid(
            "plan",
            format!("the run takes {total} on {}, and {}", self.profile.name, self.verdict()),
            remedy,
        )
    }
}

/// Returns the line that proposes a change.
fn change_line(change: &Change) -> String {
    let settings: Vec<String> =
        change.settings.iter().map(|setting| format!("--set {setting}")).collect();
    format!(
        "    {}  takes {}, {:.2} times the time per step, {}",
        settings.join(" "),
        Bytes(change.plan.total()),
        change.time,
        change.effect.name()
    )
}

/// Returns the lines about the time of the run.
fn timing_lines(timing: &Timing, job: &Job) -> Vec<String> {
    let (layers, tokens) = (timing.measured_layers, timing.measured_tokens);
    let known = if timing.seconds_per_known_step < timing.seconds_per_step {
        format!(", {:.2} s once the reference is known", timing.seconds_per_known_step)
    } else {
        String::new()
    };
    vec![
        format!(
            "about {:.2} s per step{known}; {} to the end of {} steps, without evaluation and checkpoints",
            timing.seconds_per_step,
            duration(timing.seconds),
            timing.steps
        ),
        format!(
            "    estimated from {layers} of {} layers, timed with {tokens} tokens: {:.1} GFLOP/s",
            job.shape.num_hidden_layers,
            timing.flop_per_second / 1e9
        ),
    ]
}

/// Formats a duration in the unit that suits it.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}
