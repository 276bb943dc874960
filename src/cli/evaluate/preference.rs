//! Pairs scored by a model, with and without its adapter.

use arithmo_backends::TrainBackend;
use serde_json::json;

use super::pages::results_page;
use super::{EvaluateArgs, missing};
use crate::cli::print_line;
use crate::data::encode::{Compat, EncodeConfig, EncodedDataset, TruncationMode, encode_pairs};
use crate::data::pair::{PreferencePair, read_pairs};
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::eval::folder::{Folder, model_settings};
use crate::eval::judged::Results;
use crate::eval::preference::{Margins, PairScore, judge_pairs, margin_lines, score_pairs};
use crate::eval::store::{Settings, Store, sha256};
use crate::eval::task::Task;
use crate::progress::ProgressMode;
use crate::report::evaluation::write_evaluation_page;

/// As in run.toml.
const MAX_LENGTH: usize = 1024;
const BETA: f64 = 0.1;

/// Scores the pairs and says how well they are told apart.
pub(super) fn run<B: TrainBackend>(
    args: &EvaluateArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let task = Task::Preference;
    let data = args.data.as_deref().ok_or_else(|| missing("--data"))?;
    let mut pairs = read_pairs(data)?;
    pairs.truncate(args.limit.unwrap_or(usize::MAX));
    let template = match &args.prompt_template {
        Some(text) => PromptTemplate::new(text)?,
        None => task.template()?,
    };
    let model_args = args.model_args()?;
    let model_folder = model_args.folder(mode)?;
    let packed = args.quantize.quantization()?;
    let adapter = args.adapter.as_deref();
    let settings = model_settings(&model_args.model, &model_folder, packed, adapter)?
        .with("data", data.display().to_string())
        .with("data_sha256", sha256(data)?)
        .with("pairs", pairs.len())
        .with("max_length", args.max_length.unwrap_or(MAX_LENGTH))
        .with("prompt_template", String::from(template.clone()));
    let folder = args.folder(task);
    if args.overwrite {
        folder.clear()?;
    }
    // beta changes no score, only what is made of it.
    let known = settings.clone().with("beta", args.beta.unwrap_or(BETA));
    if folder.is_complete(&known)? && mode != ProgressMode::Quiet {
        eprintln!("{}: is complete; its scores are read again", folder.0.display());
    }
    let mut store = Store::open(&folder.file("pair-scores.jsonl"), &settings)?;
    let tokenizer = Tokenizer::from_folder(&model_folder)?;
    let encoded = encode(args, &pairs, &tokenizer, template)?;
    if mode != ProgressMode::Quiet {
        for line in encoded.report.summary() {
            eprintln!("{}: {line}", data.display());
        }
    }
    if store.done().len() < encoded.pairs.len() {
        let model = model_args.load::<B>(&model_folder, mode, device)?;
        encoded.check_fits(model.config.vocab_size, model.config.max_position_embeddings)?;
        let adapted = args.adapter.is_some();
        score_pairs(&model, adapted, &encoded.pairs, args.batch_size, &mut store, (mode, device))?;
    }
    let (scores, _) = store.finish();
    let dropped = &encoded.report.dropped_prompt_too_long;
    finish(args, &folder, &pairs, &scores, dropped, known)
}

fn encode(
    args: &EvaluateArgs,
    pairs: &[PreferencePair],
    tokenizer: &Tokenizer,
    prompt_template: PromptTemplate,
) -> Result<EncodedDataset> {
    let config = EncodeConfig {
        compat: Compat::Trl1,
        max_length: Some(args.max_length.unwrap_or(MAX_LENGTH)),
        max_prompt_length: None,
        truncation_mode: TruncationMode::KeepStart,
        prompt_template,
    };
    // Nothing is trained here: pairs that would train on nothing still have scores.
    encode_pairs(tokenizer, pairs, &config)?.settle(true, false)
}

/// Says what the scores mean, in the folder and on stdout.
fn finish(
    args: &EvaluateArgs,
    folder: &Folder,
    pairs: &[PreferencePair],
    scores: &[PairScore],
    dropped: &[String],
    settings: Settings,
) -> Result<()> {
    let judged = judge_pairs(pairs, scores, args.beta.unwrap_or(BETA));
    let margins = Margins::new(pairs, scores, args.beta.unwrap_or(BETA));
    let mut rules = Task::Preference.rules();
    if args.adapter.is_none() {
        rules.retain(|rule| rule.0 != "reward");
    }
    let mut results = Results::new(Task::Preference.name(), &judged, &rules, settings);
    results.more = margins.json();
    if !dropped.is_empty() {
        let name = "dropped_prompt_too_long".to_string();
        results.more.insert(name, json!(dropped));
    }
    results.write(&folder.0, &judged)?;
    let page = results_page(&results, &margins.tables());
    write_evaluation_page(&folder.file("index.html"), &page)?;
    print_line(&format!("{}\n{}", results.table(), margin_lines(&margins)))
}
