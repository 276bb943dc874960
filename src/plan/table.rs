//! A plan for people, and as JSON.

use std::fmt;

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

/// A number of bytes for people: `3.21 GB`.
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
/// It is none of these, or nothing.
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
        Some(bytes) if (1.0..1e18).contains(&bytes) => Ok(bytes as u64),
        _ => {
            let problem = format!("`{text}` is no amount of memory");
            let remedy = "write it as 8GB, 7.5GiB or 500MB";
            Err(Error::invalid("--device-memory", problem, remedy))
        }
    }
}

/// Everything a plan says.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// What is planned.
    pub job: &'a Job,
    /// For which device.
    pub profile: &'a Profile,
    /// The plan.
    pub plan: &'a Plan,
    /// The most samples computed at once, and their tokens.
    pub largest: Option<(usize, usize)>,
    /// What would make it fit, where it does not.
    pub changes: &'a [Change],
    /// The time, if measured.
    pub timing: Option<Timing>,
}

impl Report<'_> {
    /// One line for the start of a run: what weights are held in, and how much it will take.
    pub fn summary(&self) -> String {
        let total = Bytes(self.plan.total());
        let of = match self.plan.capacity {
            Some(capacity) => format!(" of {}", Bytes(capacity)),
            None => ", which this device does not say whether it has".to_string(),
        };
        format!("{} on {}; the run takes about {total}{of}", self.model(), self.profile.name)
    }

    /// The table, line by line.
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
        lines.push(format!("  {:<13}{total:>10}  at the most, in {}", "together", plan.moment));
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
        }
        lines
    }

    fn noun(&self, count: usize) -> &'static str {
        match (self.job.sides(), count) {
            (2, 1) => "pair",
            (2, _) => "pairs",
            (_, 1) => "example",
            _ => "examples",
        }
    }

    fn model(&self) -> String {
        let weights: usize = crate::train::setup::weights(&self.job.shape);
        let quantized = self.job.quantization.map(|packed| {
            let double = match packed.double_quant {
                true => ", double quantisation",
                false => "",
            };
            format!("projections in {}{double}, the rest ", packed.name())
        });
        let quantized = quantized.unwrap_or_default();
        let dtype = self.plan.dtype.name();
        let held = match self.job.halves {
            true => format!("bf16, computed in {dtype}"),
            false => dtype.to_string(),
        };
        let millions = weights as f64 / 1e6;
        format!("{millions:.2} M weights, {quantized}in {held}")
    }

    fn samples(&self) -> String {
        let samples = self.job.train_samples();
        let PassShape { tokens, scored, .. } = self.plan.pass;
        let lengths = match self.job.knows_samples() {
            true => {
                let packed: Vec<usize> = samples.iter().map(SampleLengths::packed).collect();
                let mean = packed.iter().sum::<usize>() / packed.len().max(1);
                let longest = packed.iter().max().copied().unwrap_or(0);
                format!(
                    "{} {} of {}, {mean} tokens in the mean, {longest} the longest",
                    samples.len(),
                    self.noun(samples.len()),
                    self.job.config.data.train_file.display()
                )
            }
            false => format!(
                "lengths not known: as if every {} had sequences of max_length = {} tokens",
                self.noun(1),
                self.job.config.data.max_length
            ),
        };
        format!("{lengths}; the largest pass: {tokens} tokens, {scored} of them scored")
    }

    fn note(&self, category: Category) -> String {
        let plan = self.plan;
        match category {
            Category::Program => "the program, its tokenizer, the data".into(),
            Category::Activations => {
                let [kept, input] = plan.block_bytes.map(Bytes);
                format!(
                    "{} of {} blocks keep theirs, {kept} each; the others {input}, and compute again",
                    plan.kept_blocks, plan.blocks
                )
            }
            Category::Adapter => {
                let count: usize = self.job.trained().iter().sum();
                format!("{:.2} M trained weights", count as f64 / 1e6)
            }
            Category::Unused => "held by the allocator between the others".into(),
            _ => String::new(),
        }
    }

    fn verdict(&self) -> String {
        let plan = self.plan;
        if let Some(long) = &plan.too_long {
            return format!(
                "does not fit: {} takes {}, and this device at most {} in one piece",
                long.what,
                Bytes(long.bytes),
                Bytes(long.limit)
            );
        }
        match plan.capacity {
            None => "this device does not tell how much memory it has: give --device-memory".into(),
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

    /// The same as one object.
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
                "measured_layers": timing.measured.0,
                "measured_tokens": timing.measured.1,
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
            "moment": plan.moment,
            "lengths": if self.job.knows_samples() { "data" } else { "max_length" },
            "pass_tokens": plan.pass.tokens,
            "passes_a_step": plan.passes,
            "kept_blocks": plan.kept_blocks,
            "blocks": plan.blocks,
            "block_bytes": plan.block_bytes[0],
            "largest_batch": self.largest.map(|(count, _)| count),
            "largest_pass_tokens": self.largest.map(|(_, tokens)| tokens),
            "too_long": plan.too_long.as_ref().map(|long| json!({
                "what": long.what, "bytes": long.bytes, "limit": long.limit,
            })),
            "changes": changes.collect::<Vec<_>>(),
            "timing": timing,
        })
    }

    /// The refusal of a run that does not fit, with what would make it fit.
    pub fn refusal(&self) -> Error {
        let changes: Vec<String> = self.changes.iter().map(change_line).collect();
        let remedy = match changes.is_empty() {
            true if self.plan.too_long.is_some() => limits::REMEDY.to_string(),
            true => {
                "nothing this program can change makes it fit: take a smaller model or a larger \
                     device; --ignore-plan starts anyway"
                    .to_string()
            }
            false => format!(
                "start it with one of these, or with --ignore-plan:\n{}",
                changes.join("\n")
            ),
        };
        let total = Bytes(self.plan.total());
        Error::invalid(
            "plan",
            format!("the run takes {total} on {}, and {}", self.profile.name, self.verdict()),
            remedy,
        )
    }
}

fn change_line(change: &Change) -> String {
    let settings: Vec<String> =
        change.settings.iter().map(|setting| format!("--set {setting}")).collect();
    format!(
        "    {}  takes {}, {:.2} times the time a step, {}",
        settings.join(" "),
        Bytes(change.plan.total()),
        change.time,
        change.effect.name()
    )
}

fn timing_lines(timing: &Timing, job: &Job) -> Vec<String> {
    let (layers, tokens) = timing.measured;
    let known = match timing.seconds_per_known_step < timing.seconds_per_step {
        true => format!(", {:.2} s once the reference is known", timing.seconds_per_known_step),
        false => String::new(),
    };
    vec![
        format!(
            "about {:.2} s a step{known}; {} to the end of {} steps, evaluation and checkpoints apart",
            timing.seconds_per_step,
            duration(timing.seconds),
            timing.steps
        ),
        format!(
            "    from {layers} of {} layers timed with {tokens} tokens: {:.1} GFLOP/s",
            job.shape.num_hidden_layers,
            timing.flop_per_second / 1e9
        ),
    ]
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}
