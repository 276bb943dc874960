//! `score`: log-probabilities of both completions of every pair under one model, as TRL would compute them.

use std::io::Write;
use std::path::Path;

use arithmo_backends::{LogProbStats, TrainBackend};
use serde_json::{Map, Value, json};

use crate::data::batch::PreferenceBatch;
use crate::data::encode::EncodedPair;
use crate::dpo::log_probs::{DeviceBatch, score};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::mistral::Mistral;
use crate::output::WholeFile;
use crate::progress::{Progress, ProgressMode};

/// How pairs are scored.
#[derive(Clone, Copy, Debug)]
pub struct ScoreOptions {
    /// Pairs in a batch; does not change a number beyond rounding.
    pub batch_size: usize,
    /// Also write every completion token's id and log-probability.
    pub per_token: bool,
    /// Where progress goes.
    pub progress: ProgressMode,
}

/// Writes `scores.jsonl`: a line a pair, in the order given: `id`, `logps/chosen`, `logps/rejected` (summed, natural
/// log, f32), `tokens/chosen`, `tokens/rejected` (completion tokens scored), and with
/// [`ScoreOptions::per_token`] the ids and log-probabilities of each.
///
/// # Errors
/// The file cannot be written, or the user interrupts; the final name then does not appear.
pub fn write_scores<B: TrainBackend>(
    model: &Mistral<B>,
    pairs: &[EncodedPair],
    output: &Path,
    options: &ScoreOptions,
    device: &B::Device,
) -> Result<()> {
    let positions = model.config.max_position_embeddings;
    let table = model.position_table(positions, device);
    let progress = Progress::new("score", Some(pairs.len() as u64), "pairs", options.progress);
    let mut file = WholeFile::create(output)?;
    for pairs in pairs.chunks(options.batch_size.max(1)) {
        let pairs: Vec<&EncodedPair> = pairs.iter().collect();
        let batch = PreferenceBatch::new(&pairs);
        let scored = score(model, &DeviceBatch::new(&batch, &table, device), LogProbStats::None);
        let sums: Vec<f32> = scored.sums.into_data().iter::<f32>().collect();
        let tokens: Vec<f32> = scored.tokens.into_data().iter::<f32>().collect();
        for line in lines(&batch, &sums, &tokens, options.per_token) {
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

/// One object a pair of `batch`; `sums` are `[2N]`, `tokens` `[T]`.
fn lines(
    batch: &PreferenceBatch,
    sums: &[f32],
    tokens: &[f32],
    per_token: bool,
) -> Vec<Map<String, Value>> {
    let pairs = batch.pairs();
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
        let mut put = |key: &str, value: Value| line.insert(key.to_string(), value);
        let (chosen, rejected) = (pair, pairs + pair);
        put("id", json!(batch.ids[pair]));
        put("logps/chosen", json!(sums[chosen]));
        put("logps/rejected", json!(sums[rejected]));
        put("tokens/chosen", json!(batch.counts[chosen]));
        put("tokens/rejected", json!(batch.counts[rejected]));
        if per_token {
            for (name, row) in [("chosen", chosen), ("rejected", rejected)] {
                let (ids, logps) = side(row);
                put(&format!("token_ids/{name}"), json!(ids));
                put(&format!("token_logps/{name}"), json!(logps));
            }
        }
        line
    };
    (0..pairs).map(line).collect()
}
