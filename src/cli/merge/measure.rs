//! Measures what merging changes: compares each merge target with the quantized base and its adapter on a few texts.

use arithmo_backends::TrainBackend;

use super::MergeArgs;
use crate::adapter::merge::{MergeConfig, MergeTarget, merged_model};
use crate::adapter::peft;
use crate::data::chat::ChatTemplate;
use crate::data::pair::{PreferencePair, read_pairs};
use crate::data::prompt::{PromptTemplate, QUESTION};
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::eval::change::{Change, Texts, change, model_outputs};
use crate::generate::stop_ids;
use crate::model::config::DecoderConfig;
use crate::model::dtype::{Purpose, choose};
use crate::model::load::load_as;
use crate::model::quantize::Quantization;
use crate::model::quantize::cache::Cache;
use crate::progress::{Progress, ProgressMode};
use crate::train::folder::run_of_adapter;
use crate::train::manifest::RunManifest;

/// Number of texts to measure on.
const TEXTS: usize = 8;

/// Number of tokens of an answer.
const ANSWER: usize = 32;

/// Texts to measure on if the run's own pairs are not available.
const BUILT_IN: [(&str, &str); TEXTS] = [
    ("What is 12 + 30?", " 12 + 30 = 42."),
    (
        "A train covers 180 km in 3 hours. How fast is it?",
        " 180 / 3 = 60, so it covers 60 km an hour.",
    ),
    ("Solve 2x - 6 = 10.", " Adding 6 gives 2x = 16, so x = 8."),
    ("Is 91 a prime number?", " No: 91 = 7 * 13."),
    ("What is the derivative of x^3?", " By the power rule it is 3x^2."),
    ("Anna has 5 apples and gives away 2. How many are left?", " 5 - 2 = 3 apples are left."),
    (
        "Why is the sum of two odd numbers even?",
        " (2a + 1) + (2b + 1) = 2(a + b + 1), which is a multiple of 2.",
    ),
    ("What is the area of a circle of radius 2?", " It is pi * 2^2 = 4 pi, about 12.57."),
];

/// Prints on stderr how far each merge target is from the trained model. Without a tokenizer in the base, it only prints a
/// note.
///
/// # Errors
/// `--data` cannot be read, base and adapter do not fit together, or the user interrupts.
pub(super) fn measure<B: TrainBackend>(
    args: &MergeArgs,
    config: &MergeConfig,
    to: Quantization,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let folder = &config.model;
    if !folder.join("tokenizer.json").is_file() {
        say!("note: the base has no tokenizer.json, so the effect of merging is not measured");
        return Ok(());
    }
    let (shape, tokenizer) = (DecoderConfig::load(folder)?, Tokenizer::from_folder(folder)?);
    let (texts, source) = texts(args, &tokenizer, shape.max_position_embeddings)?;
    let eos = stop_ids(folder, &shape, tokenizer.eos_id())?;
    let dtype = choose::<B>(&shape, None, Purpose::Hold, device)?;
    let targets = [
        ("dequantized", MergeTarget::Dequantized),
        ("original", MergeTarget::Original),
        ("requantized", MergeTarget::Requantized),
    ];
    let possible = |target| shape.quantization.is_none() || target != MergeTarget::Original;
    let progress = Progress::new("measure", Some(targets.len() as u64 + 1), "models", mode);
    let trained = {
        let cache = Cache::from_env(mode);
        let mut model = load_as::<B>(folder, dtype, Some(to), &cache, device)?;
        peft::load(&mut model, &config.adapter, device)?;
        model_outputs(&model, &texts, ANSWER, &eos, device)?
    };
    progress.inc(1);
    let mut table = vec![format!(
        "against the base in {} with its adapter, on {} {source} ({} tokens):",
        to.name(),
        texts.len(),
        texts.tokens()
    )];
    table.push(
        "target        mean |change of log-prob|     KL, nats/token   greedy answers equal".into(),
    );
    for (name, target) in targets.into_iter().filter(|(_, target)| possible(*target)) {
        let one = MergeConfig { target, ..config.clone() };
        let model = merged_model::<B>(&one, dtype, device)?;
        let merged = model_outputs(&model, &texts, ANSWER, &eos, device)?;
        let written = if target == config.target { "  <- written" } else { "" };
        table.push(format!("{}{written}", line(name, &change(&texts, &trained, &merged))));
        progress.inc(1);
    }
    // The table is printed in one piece, below the last line of progress.
    progress.finish_with(&table);
    Ok(())
}

/// Formats the effect of a merge target as a line of the table.
fn line(name: &str, change: &Change) -> String {
    format!(
        "{name:<13} {:>23.6}   {:>16.3e}   {:>13} of {}",
        change.log_prob, change.kl, change.same_answers, change.answers
    )
}

/// Returns the texts with a name for them: from `--data`, from the run that contains the adapter, or built in.
fn texts(
    args: &MergeArgs,
    tokenizer: &Tokenizer,
    positions: usize,
) -> Result<(Texts, &'static str)> {
    let (pairs, template, source) = match (&args.data, run_pairs(args, tokenizer.chat_template())) {
        (Some(data), run) => {
            let template = run.map_or_else(PromptTemplate::default, |(_, own)| own);
            (read_pairs(data, tokenizer.chat_template())?, template, "texts of --data")
        }
        (None, Some((pairs, template))) => (pairs, template, "texts of the run"),
        (None, None) => (built_in(), PromptTemplate::new(QUESTION)?, "built-in texts"),
    };
    let mut texts = Texts::new(positions);
    let every = pairs.len().div_ceil(TEXTS).max(1);
    for pair in pairs.iter().step_by(every) {
        let (prompt, whole, special) = match &pair.rendered {
            Some(row) => {
                (row.prompt.clone(), row.wholes.first().cloned().unwrap_or_default(), false)
            }
            None => {
                let prompt = template.apply(&pair.prompt);
                let whole = format!("{prompt}{}", pair.chosen);
                (prompt, whole, true)
            }
        };
        texts.push(tokenizer.encode(&prompt, special)?, tokenizer.encode(&whole, special)?);
    }
    Ok((texts, source))
}

/// Returns the pairs of the run that contains the adapter, if they still exist; held-out ones if it has any.
fn run_pairs(
    args: &MergeArgs,
    chat: Option<&ChatTemplate>,
) -> Option<(Vec<PreferencePair>, PromptTemplate)> {
    let adapter = peft::adapter_folder(&args.adapter);
    let run = RunManifest::read(run_of_adapter(&adapter)?).ok()??;
    let data = run.config.data;
    let file = data.eval_file.unwrap_or(data.train_file);
    let template = PromptTemplate::new(&data.prompt_template).ok()?;
    Some((read_pairs(&file, chat).ok()?, template))
}

/// Returns the built-in texts as pairs with an empty rejected side.
fn built_in() -> Vec<PreferencePair> {
    let pair = |(prompt, answer): (&str, &str)| PreferencePair {
        id: prompt.to_string(),
        prompt: prompt.to_string(),
        chosen: answer.to_string(),
        rejected: String::new(),
        chosen_score: None,
        rejected_score: None,
        rendered: None,
    };
    BUILT_IN.map(pair).to_vec()
}
