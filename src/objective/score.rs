//! The command `score`: computes the log-probabilities of both completions of every pair under one model, as TRL does.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use arithmo_backends::{LogProbStats, TrainBackend};
use serde_json::{Map, Value, json};

use crate::data::batch::PackedBatch;
use crate::data::encode::{EncodeReport, EncodedPair};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::decoder::Decoder;
use crate::objective::log_probs::{DeviceBatch, finite_sums, score};
use crate::output::WholeFile;
use crate::progress::{Progress, ProgressMode};

/// Options for scoring pairs.
#[derive(Clone, Copy, Debug)]
pub struct ScoreOptions {
    /// Number of pairs in a batch. It affects the results only by rounding.
    pub batch_size: usize,
    /// Whether to write the id and log-probability of every completion token.
    pub per_token: bool,
    /// How progress is shown.
    pub progress: ProgressMode,
}

/// The parts of pairs that were truncated before scoring, by pair id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truncated(BTreeMap<String, Vec<&'static str>>);

impl Truncated {
    /// Returns the truncated parts that `report` lists.
    pub fn of(report: &EncodeReport) -> Self {
        let mut parts = BTreeMap::<String, Vec<&'static str>>::new();
        for (name, ids) in [
            ("prompt", &report.prompt_truncated),
            ("chosen", &report.chosen_truncated),
            ("rejected", &report.rejected_truncated),
        ] {
            for id in ids {
                parts.entry(id.clone()).or_default().push(name);
            }
        }
        Self(parts)
    }
}

/// Writes the scores of pairs that were not truncated, in the format of [`write_marked_scores`].
///
/// # Errors
/// Same as [`write_marked_scores`].
pub fn write_scores<B: TrainBackend>(
    model: &Decoder<B>,
    pairs: &[EncodedPair],
    output: &Path,
    options: &ScoreOptions,
    device: &B::Device,
) -> Result<()> {
    let truncated = Truncated::default();
    write_marked_scores(model, pairs, &truncated, output, options, device)
}

/// Writes the scores of pairs as JSON Lines, one line per pair in the given order, and marks truncated pairs.
///
/// The keys are `id`, `logps/chosen`, `logps/rejected` (summed, natural logarithm, f32), `tokens/chosen` and
/// `tokens/rejected` (numbers of scored completion tokens), and with [`ScoreOptions::per_token`] the ids and
/// log-probabilities of each token. A truncated pair also has `"truncated"`, a list of `"prompt"`, `"chosen"` and
/// `"rejected"`; its sums are over the remaining tokens.
///
/// # Errors
/// A log-probability is not finite, the file cannot be written, or the user interrupts. The file then does not appear under
/// its final name.
pub fn write_marked_scores<B: TrainBackend>(
    model: &Decoder<B>,
    pairs: &[EncodedPair],
    truncated: &Truncated,
    output: &Path,
    options: &ScoreOptions,
    device: &B::Device,
) -> Result<()> {
    let longest = pairs.iter().map(EncodedPair::longest).max().unwrap_or(0);
    let table = model.position_table(longest, device);
    let progress = Progress::new("score", Some(pairs.len() as u64), "pairs", options.progress);
    let mut file = WholeFile::create(output)?;
    for pairs in pairs.chunks(options.batch_size.max(1)) {
        let pairs: Vec<&EncodedPair> = pairs.iter().collect();
        let batch = PackedBatch::new(&pairs);
        let on_device = DeviceBatch::new(&batch, &table, device);
        let scored = score(model, &on_device, LogProbStats::None);
        let sums = finite_sums(model, &on_device, scored.sums)?;
        let tokens: Vec<f32> = scored.tokens.into_data().iter::<f32>().collect();
        for mut line in lines(&batch, &sums, &tokens, options.per_token) {
            let id = line.get("id").and_then(Value::as_str).unwrap_or_default();
            if let Some(parts) = truncated.0.get(id) {
                line.insert("truncated".to_string(), json!(parts));
            }
            writeln!(file, "{}", Value::Object(line)).map_err(|e| Error::io(output, "write", e))?;
        }
        progress.inc(pairs.len() as u64);
        if interrupt::requested() {
            let note = format!("{} was not written", output.display());
            return Err(Error::Interrupted { note });
        }
    }
    progress.finish();
    file.commit()
}

/// Returns one JSON object per pair of `batch`. The shapes are `[2N]` for `sums` and `[T]` for `tokens`.
fn lines(
    batch: &PackedBatch,
    sums: &[f32],
    tokens: &[f32],
    per_token: bool,
) -> Vec<Map<String, Value>> {
    let pairs = batch.samples();
    let mut starts = Vec::with_capacity(batch.counts.len());
    let mut next = 0;
    for count in &batch.counts {
        starts.push(next);
        next += count;
    }
    let side = |row: usize| {
        let range = starts[row]..starts[row] + batch.counts[row];
        (&batch.targets[range.clone()], &tokens[range])
    };
    let line = |pair: usize| {
        let mut line = Map::new();
        let mut insert = |key: &str, value: Value| line.insert(key.to_string(), value);
        let (chosen, rejected) = (pair, pairs + pair);
        insert("id", json!(batch.ids[pair]));
        insert("logps/chosen", json!(sums[chosen]));
        insert("logps/rejected", json!(sums[rejected]));
        insert("tokens/chosen", json!(batch.counts[chosen]));
        insert("tokens/rejected", json!(batch.counts[rejected]));
        if per_token {
            for (name, row) in [("chosen", chosen), ("rejected", rejected)] {
                let (ids, logps) = side(row);
                insert(&format!("token_ids/{name}"), json!(ids));
                insert(&format!("token_logps/{name}"), json!(logps));
            }
        }
        line
    };
    (0..pairs).map(line).collect()
}
