//! Pairs scored by a model, with and without its adapter.

use arithmo_backends::TrainBackend;
use serde_json::json;

use super::pages::results_page;
use super::{EvaluateArgs, missing};
use crate::cli::print_line;
use crate::data::encode::{Compat, EncodeConfig, TruncationMode, encode_pairs};
use crate::data::pair::read_pairs;
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::eval::folder::model_settings;
use crate::eval::judged::Results;
use crate::eval::preference::{Margins, judge_pairs, margin_lines, score_pairs};
use crate::eval::store::{Store, sha256};
use crate::eval::task::Task;
use crate::progress::ProgressMode;
use crate::report::evaluation::write_evaluation_page;

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
    let settings = model_settings(&model_args.model, &model_folder, args.adapter.as_deref())?
        .with("data", data.display().to_string())
        .with("data_sha256", sha256(data)?)
        .with("pairs", pairs.len())
        .with("max_length", args.max_length)
        .with("prompt_template", String::from(template.clone()));
    let folder = args.folder(task);
    if args.overwrite {
        folder.clear()?;
    }
    // beta changes no score, only what is made of it.
    let known = settings.clone().with("beta", args.beta);
    if folder.is_complete(&known)? && mode != ProgressMode::Quiet {
        eprintln!(
            "{}: is complete; its scores are read again",
            folder.0.display()
        );
    }
    let mut store = Store::open(&folder.file("pair-scores.jsonl"), &settings)?;
    let tokenizer = Tokenizer::from_folder(&model_folder)?;
    let config = EncodeConfig {
        compat: Compat::Trl1,
        max_length: Some(args.max_length),
        max_prompt_length: None,
        truncation_mode: TruncationMode::KeepStart,
        prompt_template: template,
    };
    let encoded = encode_pairs(&tokenizer, &pairs, &config)?.settle(true, false)?;
    if mode != ProgressMode::Quiet {
        for line in encoded.report.summary() {
            eprintln!("{}: {line}", data.display());
        }
    }
    if store.done().len() < encoded.pairs.len() {
        let model = model_args.load::<B>(&model_folder, device)?;
        encoded.check_fits(
            model.config.vocab_size,
            model.config.max_position_embeddings,
        )?;
        let adapted = args.adapter.is_some();
        score_pairs(
            &model,
            adapted,
            &encoded.pairs,
            args.batch_size,
            &mut store,
            (mode, device),
        )?;
    }
    let (scores, _) = store.finish();
    let judged = judge_pairs(&pairs, &scores, args.beta);
    let margins = Margins::new(&pairs, &scores, args.beta);
    let mut rules = task.rules();
    if args.adapter.is_none() {
        rules.retain(|rule| rule.0 != "reward");
    }
    let mut results = Results::new(task.name(), &judged, &rules, known);
    results.more = margins.json();
    let dropped = &encoded.report.dropped_prompt_too_long;
    if !dropped.is_empty() {
        results
            .more
            .insert("dropped_prompt_too_long".into(), json!(dropped));
    }
    results.write(&folder.0, &judged)?;
    let page = results_page(&results, &margins.tables());
    write_evaluation_page(&folder.file("index.html"), &page)?;
    print_line(&format!("{}\n{}", results.table(), margin_lines(&margins)))
}
