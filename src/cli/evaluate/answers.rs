//! Problems answered by a model, or answers of a file, scored.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use serde_json::{Value, json};

use super::pages::results_page;
use super::{EvaluateArgs, missing};
use crate::cli::print_line;
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::answers::STOP_STRINGS;
use crate::eval::folder::{Folder, model_settings};
use crate::eval::judged::{Results, judge_all};
use crate::eval::pot::{run_programs, write_programs};
use crate::eval::predict::{Answering, prompts, too_long};
use crate::eval::predictions::{
    Prediction, check_same_problems, predictions, read_predictions, write_predictions,
};
use crate::eval::problems::{Problem, read_problems};
use crate::eval::sandbox::Sandbox;
use crate::eval::store::{Settings, Store, sha256};
use crate::eval::task::Task;
use crate::generate::{GenerateConfig, stop_ids};
use crate::model::config::MistralConfig;
use crate::progress::ProgressMode;
use crate::report::evaluation::write_evaluation_page;

/// The original project's.
const MAX_NEW_TOKENS: usize = 1024;

/// Scores a predictions file.
pub(super) fn score_file(args: &EvaluateArgs, file: &Path, mode: ProgressMode) -> Result<()> {
    let task = args.task.ok_or_else(|| missing("TASK"))?.task();
    if task == Task::Preference {
        let problem = "preference has no predictions: it is measured by log-probabilities";
        return Err(Error::invalid("--predictions", problem, "give --model and --data"));
    }
    args.check(task)?;
    let sandbox = args.sandbox(task)?;
    let mut predictions = read_predictions(file)?;
    let problems = args.data.as_deref().map(|data| problems(args, data)).transpose()?;
    match &problems {
        Some(problems) => check_same_problems(file, &predictions, problems)?,
        None => predictions.truncate(args.limit.unwrap_or(usize::MAX)),
    }
    let beside = || file.parent().map(Path::to_path_buf).unwrap_or_default();
    let folder = Folder(args.output.clone().unwrap_or_else(beside));
    let scored = Settings::default()
        .with("predictions", file.display().to_string())
        .with("predictions_sha256", sha256(file)?);
    // Scoring a run's own answers again forgets nothing of the run.
    let own = |old: &Value| folder.predictions() == *file && old["task"] == task.name();
    let old = folder.results()?.filter(own).unwrap_or_default();
    let settings = serde_json::from_value(old["settings"].clone()).unwrap_or(scored);
    let too_long: Vec<usize> =
        serde_json::from_value(old["prompts_too_long"].clone()).unwrap_or_default();
    let scoring = Scoring { task, sandbox, mode };
    let problems = problems.as_deref();
    scoring.finish(&folder, &predictions, problems, settings, &too_long)
}

/// Answers the problems and scores the answers.
pub(super) fn run<B: TrainBackend>(
    args: &EvaluateArgs,
    task: Task,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    // What can be checked before any weight is loaded is.
    let scoring = Scoring { task, sandbox: args.sandbox(task)?, mode };
    let asked = Asked::read(args, task)?;
    let mut config = asked.config(args);
    config.validate()?;
    let model_args = args.model_args()?;
    let model_folder = model_args.folder(mode)?;
    let settings = asked.settings(args, &model_folder)?;
    let folder = args.folder(task);
    if args.overwrite {
        folder.clear()?;
    }
    let tokenizer = Tokenizer::from_folder(&model_folder)?;
    let shape = MistralConfig::load(&model_folder)?;
    let too_long = too_long(&asked.prompts, &tokenizer, shape.max_position_embeddings)?;
    if folder.is_complete(&settings)? {
        if mode != ProgressMode::Quiet {
            let place = folder.0.display();
            eprintln!("{place}: is complete; its answers are scored again");
        }
        let predictions = read_predictions(&folder.predictions())?;
        let problems = Some(&asked.problems[..]);
        return scoring.finish(&folder, &predictions, problems, settings, &too_long);
    }
    let mut store = Store::open(&folder.partial(), &settings)?;
    if store.done().len() < asked.problems.len() {
        let model = model_args.load::<B>(&model_folder, mode, device)?;
        config.eos_ids = stop_ids(&model_folder, &model.config, tokenizer.eos_id())?;
        let answering = Answering {
            model: &model,
            tokenizer: &tokenizer,
            config: &config,
            scorers: if task == Task::Gsm8kPot { &[] } else { task.scorers() },
            progress: mode,
        };
        answering.answer(&asked.problems, &asked.prompts, &too_long, &mut store)?;
    }
    let (texts, partial) = store.finish();
    let predictions = predictions(&asked.problems, texts);
    write_predictions(&folder.predictions(), &predictions)?;
    let problems = Some(&asked.problems[..]);
    scoring.finish(&folder, &predictions, problems, settings, &too_long)?;
    partial.remove()
}

/// The first problems of a file, as many as `--limit` says.
fn problems(args: &EvaluateArgs, data: &Path) -> Result<Vec<Problem>> {
    let mut problems = read_problems(data)?;
    problems.truncate(args.limit.unwrap_or(usize::MAX));
    Ok(problems)
}

/// Refuses examples that are among the problems.
fn refuse_given_away(file: &Path, solved: &[Problem], problems: &[Problem]) -> Result<()> {
    let asked = |problem: &Problem| solved.iter().any(|shot| shot.question == problem.question);
    match problems.iter().position(asked) {
        Some(at) => Err(Error::file(
            file,
            format!("solves problem {} of the data in an example", at + 1),
            "take examples from another file: GSM8K's train.jsonl for its test.jsonl",
        )),
        None => Ok(()),
    }
}

/// What the model is asked.
struct Asked {
    data: PathBuf,
    problems: Vec<Problem>,
    prompts: Vec<String>,
    /// What the settings say of the prompt.
    template: String,
    shots: Option<(usize, String)>,
}

impl Asked {
    fn read(args: &EvaluateArgs, task: Task) -> Result<Self> {
        let data = args.data.clone().ok_or_else(|| missing("--data"))?;
        let problems = problems(args, &data)?;
        let template = match &args.prompt_template {
            Some(text) => PromptTemplate::new(text)?,
            None => task.template()?,
        };
        let (mut solved, mut shots) = (Vec::new(), None);
        if let (Some(count), Some(file)) = (args.shots, &args.shots_from) {
            solved = read_problems(file)?;
            if solved.len() < count {
                let problem = format!("holds {} problems, --shots asks for {count}", solved.len());
                return Err(Error::file(file, problem, "lower --shots"));
            }
            solved.truncate(count);
            refuse_given_away(file, &solved, &problems)?;
            shots = Some((count, sha256(file)?));
        }
        let prompts = prompts(&problems, &template, &solved);
        Ok(Self { data, problems, prompts, template: template.into(), shots })
    }

    fn config(&self, args: &EvaluateArgs) -> GenerateConfig {
        let stop = match self.shots {
            Some(_) => STOP_STRINGS.map(str::to_string).to_vec(),
            None => Vec::new(),
        };
        GenerateConfig {
            max_new_tokens: args.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
            batch_size: args.batch_size,
            stop,
            ..GenerateConfig::default()
        }
    }

    fn settings(&self, args: &EvaluateArgs, model_folder: &Path) -> Result<Settings> {
        let model = args.model.as_deref().unwrap_or_default();
        let (packed, adapter) = (args.quantize.quantization()?, args.adapter.as_deref());
        let settings = model_settings(model, model_folder, packed, adapter)?.asking(
            &self.data,
            self.problems.len(),
            args.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
        )?;
        Ok(match &self.shots {
            Some((shots, sha256)) => {
                settings.with("shots", *shots).with("shots_sha256", sha256.as_str())
            }
            None => settings.with("prompt_template", self.template.as_str()),
        })
    }
}

/// How answers are scored.
struct Scoring {
    task: Task,
    sandbox: Option<Sandbox>,
    mode: ProgressMode,
}

impl Scoring {
    /// Scores `predictions`, writes all there is to say of them, and prints the table.
    fn finish(
        &self,
        folder: &Folder,
        predictions: &[Prediction],
        problems: Option<&[Problem]>,
        settings: Settings,
        too_long: &[usize],
    ) -> Result<()> {
        let (judged, outcomes) = match &self.sandbox {
            Some(sandbox) => run_programs(sandbox, predictions, self.mode)?,
            None => (judge_all(predictions, problems, self.task.scorers()), Vec::new()),
        };
        let mut results = Results::new(self.task.name(), &judged, &self.task.rules(), settings);
        if !outcomes.is_empty() {
            let failed = outcomes.iter().filter(|outcome| outcome.output().is_none()).count();
            results.more.insert("programs_failed".into(), failed.into());
            write_programs(&folder.file("programs.json"), predictions, &outcomes)?;
        }
        if !too_long.is_empty() {
            results.more.insert("prompts_too_long".into(), json!(too_long));
            let count = too_long.len();
            if self.mode != ProgressMode::Quiet {
                eprintln!(
                    "note: {count} prompts leave no room for an answer in this model, and count as wrong (results.json lists them)"
                );
            }
        }
        results.write(&folder.0, &judged)?;
        let page = results_page(&results, &[]);
        write_evaluation_page(&folder.file("index.html"), &page)?;
        print_line(&results.table())
    }
}
