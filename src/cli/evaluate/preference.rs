//! Implements `arithmo evaluate preference`: scores pairs with a model, with and without its adapter.

use arithmo_backends::TrainBackend;
use serde_json::json;

use super::PreferenceArgs;
use super::pages::results_page;
use crate::cli::print_line;
use crate::data::encode::{Compat, EncodeConfig, EncodedDataset, TruncationMode, encode_pairs};
use crate::data::pair::{PreferencePair, read_pairs};
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::folder::Folder;
use crate::eval::judged::Results;
use crate::eval::preference::{Margins, PairScore, judge_pairs, margin_lines, score_pairs};
use crate::eval::settings::{ResultKey, Settings};
use crate::eval::store::Store;
use crate::eval::task::Task;
use crate::output::Lock;
use crate::progress::ProgressMode;
use crate::report::evaluation::write_evaluation_page;

/// Scores the pairs, continuing an earlier evaluation, and reports how often the chosen completion is preferred.
pub(super) fn run<B: TrainBackend>(
    args: &PreferenceArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let (task, data) = (Task::Preference, args.data.as_path());
    let model_folder = args.model.folder(mode)?;
    let tokenizer = Tokenizer::from_folder(&model_folder)?;
    let mut pairs = read_pairs(data, tokenizer.chat_template())?;
    pairs.truncate(args.output.limit.unwrap_or(usize::MAX));
    let template = match args.template.given()? {
        Some(template) => template,
        None => task.template()?,
    };
    let settings = args
        .model
        .evaluated_model(&model_folder)?
        .settings()?
        .with("data", data.display().to_string())
        .with("max_length", args.max_length)
        .with("prompt_template", String::from(template.clone()));
    let key = ResultKey::new(settings, "pairs", pairs.iter().map(content));
    let folder = args.output.folder(task);
    let inputs = args.model.inputs().into_iter().chain([data]);
    folder.check(&Folder::FILES, inputs.chain(args.template.inputs()))?;
    let _lock = Lock::folder(&folder.0)?;
    let encoded = encode(args, &pairs, &tokenizer, template)?;
    let load = || {
        let model = args.model.load::<B>(&model_folder, mode, device)?;
        encoded.check_fits(model.config.vocab_size, model.config.max_position_embeddings)?;
        Ok::<_, Error>(model)
    };
    // Remove the old results only once everything that the new evaluation needs is loaded.
    let mut loaded = None;
    if args.output.overwrite {
        loaded = Some(load()?);
        folder.clear()?;
    }
    // beta changes only the results, not the scores in the store.
    let known = key.clone().with("beta", args.beta);
    if folder.rows_done(&known)? == pairs.len() && mode != ProgressMode::Quiet {
        let place = folder.0.display();
        say!("{place}: is complete; its scores are read again");
    }
    let scores_file = folder.file("pair-scores.jsonl");
    let mut store = Store::open(&scores_file, &key, encoded.pairs.len())?;
    if mode != ProgressMode::Quiet {
        for line in encoded.report.summary() {
            say!("{}: {line}", data.display());
        }
    }
    if store.done().len() < encoded.pairs.len() {
        let model = loaded.map_or_else(load, Ok)?;
        let adapted = args.model.load.adapter.is_some();
        score_pairs(
            &model,
            adapted,
            &encoded.pairs,
            args.output.batch_size,
            &mut store,
            (mode, device),
        )?;
    }
    let (scores, _) = store.finish()?;
    let dropped = &encoded.report.dropped_prompt_too_long;
    report(args, &folder, &pairs, &scores, dropped, known.settings())
}

/// Returns what identifies a pair: its texts, as the chat template renders those of a conversation.
fn content(pair: &PreferencePair) -> Vec<u8> {
    match &pair.rendered {
        None => serde_json::to_vec(pair),
        Some(rendered) => serde_json::to_vec(&(&rendered.prompt, &rendered.wholes)),
    }
    .unwrap_or_default()
}

/// Encodes the pairs as TRL 1.x does.
fn encode(
    args: &PreferenceArgs,
    pairs: &[PreferencePair],
    tokenizer: &Tokenizer,
    prompt_template: PromptTemplate,
) -> Result<EncodedDataset> {
    let config = EncodeConfig {
        compat: Compat::Trl1,
        max_length: Some(args.max_length),
        max_prompt_length: None,
        truncation_mode: TruncationMode::KeepStart,
        prompt_template,
        assistant_only_loss: false,
    };
    // Nothing is trained here: pairs that would train on nothing still have scores.
    encode_pairs(tokenizer, pairs, &config)?.settle(true, false)
}

/// Computes the results from the scores, writes them and the page to `folder`, and prints the tables.
fn report(
    args: &PreferenceArgs,
    folder: &Folder,
    pairs: &[PreferencePair],
    scores: &[PairScore],
    dropped: &[String],
    settings: Settings,
) -> Result<()> {
    let judged = judge_pairs(pairs, scores, args.beta);
    let margins = Margins::new(pairs, scores, args.beta);
    let mut rules = Task::Preference.rules();
    if args.model.load.adapter.is_none() {
        rules.retain(|rule| rule.0 != "reward");
    }
    let mut results = Results::new(Task::Preference.name(), &judged, &rules, settings);
    results.more = margins.json();
    if !dropped.is_empty() {
        let name = "dropped_prompt_too_long".to_string();
        results.more.insert(name, json!(dropped));
    }
    results.write(&folder.0, &judged)?;
    let page = results_page(&results, &judged, Task::Preference, &margins.tables());
    write_evaluation_page(&folder.file("index.html"), &page)?;
    print_line(&format!("{}\n{}", results.table(), margin_lines(&margins)))
}
