//! Implements `arithmo evaluate gsm8k`, `gsm8k-pot` and `math`: generates answers, or reads them from a file, and scores
//! them.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use serde_json::{Value, json};

use super::pages::results_page;
use super::{AnswersArgs, AnswersTask, missing};
use crate::cli::print_line;
use crate::cli::template::TemplateArgs;
use crate::data::prompt::PromptTemplate;
use crate::data::prompt_format::PromptFormat;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::answers::{ForeignPrompt, STOP_STRINGS};
use crate::eval::folder::{Folder, answers_key};
use crate::eval::judged::{Results, judge_all};
use crate::eval::pot::{run_programs, write_programs};
use crate::eval::predict::{Answer, Answering, prompts, too_long};
use crate::eval::predictions::{
    Prediction, check_same_problems, predictions, read_predictions, write_predictions,
};
use crate::eval::problems::{Problem, read_problems};
use crate::eval::sandbox::Sandbox;
use crate::eval::settings::{ResultKey, Settings};
use crate::eval::store::Store;
use crate::eval::task::Task;
use crate::generate::{FinishReason, GenerateConfig, stop_ids};
use crate::model::config::DecoderConfig;
use crate::model::file_hash::hash_file;
use crate::output::{Lock, check, remove};
use crate::progress::ProgressMode;
use crate::report::evaluation::write_evaluation_page;

/// Default of `--max-new-tokens`, as in the original project.
const MAX_NEW_TOKENS: usize = 1024;

/// Names of the files that scoring a predictions file writes.
const SCORED: [&str; 4] = ["results.json", "verdicts.jsonl", "programs.json", "index.html"];

/// Scores the predictions in `file` and writes the results beside it or to `--output`. No model runs.
///
/// # Errors
/// The file is not valid, it does not answer the problems of `--data`, or results of other predictions exist and may not be
/// replaced.
pub(super) fn score_file(
    evaluation: &AnswersTask<'_>,
    file: &Path,
    mode: ProgressMode,
) -> Result<()> {
    let AnswersTask { task, args, .. } = *evaluation;
    let sandbox = evaluation.sandbox()?;
    let foreign = foreign_prompt(file, &args.template, task)?;
    let mut predictions = read_predictions(file, &foreign)?;
    let problems = args.data.as_deref().map(|data| problems(args, data)).transpose()?;
    match &problems {
        Some(problems) => check_same_problems(file, &predictions, problems)?,
        None => predictions.truncate(args.output.limit.unwrap_or(usize::MAX)),
    }
    let beside = || file.parent().map(Path::to_path_buf).unwrap_or_default();
    let folder = Folder(args.output.output.clone().unwrap_or_else(beside));
    let mut scored = Settings::default()
        .with("predictions", file.display().to_string())
        .with("predictions_sha256", hash_file(file)?.sha256);
    if let ForeignPrompt::Given(template) = foreign {
        scored = scored.with("prompt_template", String::from(template));
    }
    folder.check(&SCORED, evaluation.inputs())?;
    // If this program generated the predictions, their settings are kept when they are scored again.
    let own = |old: &Value| folder.predictions() == *file && old["task"] == task.name();
    let old = folder.results()?;
    let again = |old: &Value| {
        let same = |name: &str| old["settings"][name] == scored.0[name];
        own(old) || same("predictions_sha256") && old["task"] == task.name()
    };
    if old.as_ref().is_some_and(|old| !again(old)) && !args.output.overwrite {
        return Err(check::exists_error(&folder.file("results.json")));
    }
    let _lock = Lock::folder(&folder.0)?;
    let old = old.filter(own).unwrap_or_default();
    let settings = serde_json::from_value(old["settings"].clone()).unwrap_or(scored);
    let too_long: Vec<usize> =
        serde_json::from_value(old["prompts_too_long"].clone()).unwrap_or_default();
    let scoring = Scoring { task, sandbox, mode };
    let problems = problems.as_deref();
    scoring.score_and_report(&folder, &predictions, problems, settings, &too_long)
}

/// Returns the prompt template of the predictions in `file`: the one given by flags, else the one in the results beside the
/// file, else the task's default.
pub(super) fn foreign_prompt(
    file: &Path,
    given: &TemplateArgs,
    task: Task,
) -> Result<ForeignPrompt> {
    if let Some(template) = given.given()? {
        return Ok(ForeignPrompt::Given(template));
    }
    let beside = Folder(file.parent().map(Path::to_path_buf).unwrap_or_default());
    let settings = if beside.predictions() == *file {
        beside.settings()?.unwrap_or_default()
    } else {
        Settings::default()
    };
    let template = settings.0.get("prompt_template").and_then(Value::as_str);
    let template = template.and_then(|text| PromptTemplate::new(text).ok());
    template.map_or_else(|| task.template(), Ok).map(ForeignPrompt::Usual)
}

/// Generates the model's answers to the problems, continuing an earlier evaluation, and scores them.
pub(super) fn run<B: TrainBackend>(
    evaluation: &AnswersTask<'_>,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let AnswersTask { task, args, .. } = *evaluation;
    // Everything that can be checked without the weights is checked before they are loaded.
    let scoring = Scoring { task, sandbox: evaluation.sandbox()?, mode };
    let mut questions = Questions::read(evaluation)?;
    let mut config = questions.config(args);
    config.validate()?;
    let model_args = args.model_args()?;
    let model_folder = model_args.folder(mode)?;
    let tokenizer = Tokenizer::from_folder(&model_folder)?;
    questions.ask_in_chat(evaluation, &tokenizer)?;
    let special_tokens = questions.format.adds_special_tokens();
    let prompts = prompts(&questions.problems, &questions.format, &questions.solved)?;
    let model = model_args.evaluated_model(&model_folder)?.settings()?;
    let key = questions.key(model, config.max_new_tokens);
    let folder = args.output.folder(task);
    folder.check(&Folder::FILES, evaluation.inputs())?;
    let _lock = Lock::folder(&folder.0)?;
    let shape = DecoderConfig::load(&model_folder)?;
    let too_long = too_long(&prompts, &tokenizer, special_tokens, shape.max_position_embeddings)?;
    // Remove the old results only once everything that the new evaluation needs is loaded.
    let mut loaded = None;
    if args.output.overwrite {
        loaded = Some(model_args.load::<B>(&model_folder, mode, device)?);
        folder.clear()?;
    }
    let problems = Some(&questions.problems[..]);
    let rows_done = folder.rows_done(&key)?;
    let before = match rows_done {
        0 => Vec::new(),
        _ => read_predictions(&folder.predictions(), &questions.foreign_prompt())?,
    };
    if rows_done == questions.problems.len() {
        if mode != ProgressMode::Quiet {
            let place = folder.0.display();
            say!("{place}: is complete; its answers are scored again");
        }
        check_same_problems(&folder.predictions(), &before, &questions.problems)?;
        scoring.score_and_report(&folder, &before, problems, key.settings(), &too_long)?;
        // It exists if an earlier process was killed right after it wrote the results.
        return remove(&folder.partial());
    }
    let mut store = Store::open(&folder.partial(), &key, questions.problems.len())?;
    copy_answers(&before, &mut store)?;
    if store.done().len() < questions.problems.len() {
        let load = || model_args.load::<B>(&model_folder, mode, device);
        let model = loaded.map_or_else(load, Ok)?;
        config.eos_ids = stop_ids(&model_folder, &model.config, tokenizer.eos_id())?;
        let answering = Answering {
            model: &model,
            tokenizer: &tokenizer,
            special_tokens,
            config: &config,
            scorers: if task == Task::Gsm8kPot { &[] } else { task.scorers() },
            progress: mode,
        };
        answering.answer(&questions.problems, &prompts, &too_long, &mut store)?;
    }
    let (answers, partial) = store.finish()?;
    let predictions = predictions(&questions.problems, prompts, answers);
    write_predictions(&folder.predictions(), &predictions)?;
    let problems = Some(&questions.problems[..]);
    scoring.score_and_report(&folder, &predictions, problems, key.settings(), &too_long)?;
    partial.remove()
}

/// Adds the answers of an earlier evaluation of fewer problems to `store`.
fn copy_answers(before: &[Prediction], store: &mut Store<Answer>) -> Result<()> {
    for (index, prediction) in before.iter().enumerate() {
        if !store.done().contains_key(&index) {
            let answer = Answer {
                completion: prediction.completion.clone(),
                finish_reason: prediction.finish_reason.unwrap_or(FinishReason::Eos),
            };
            store.put(index, answer)?;
        }
    }
    Ok(())
}

/// Reads the problems of a file, only the first `--limit` ones if that is given.
fn problems(args: &AnswersArgs, data: &Path) -> Result<Vec<Problem>> {
    let mut problems = read_problems(data)?;
    problems.truncate(args.output.limit.unwrap_or(usize::MAX));
    Ok(problems)
}

/// Returns an error if a solved example is also one of the problems, whose answer the prompt would then contain.
fn refuse_leaked_examples(file: &Path, solved: &[Problem], problems: &[Problem]) -> Result<()> {
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

/// The problems of an evaluation, and how they are asked.
struct Questions {
    data: PathBuf,
    problems: Vec<Problem>,
    format: PromptFormat,
    /// Solved examples before each question.
    solved: Vec<Problem>,
    /// Number and hash of the solved examples.
    shots: Option<(usize, String)>,
}

impl Questions {
    /// Reads the problems and the solved examples, to be asked in a template of text.
    fn read(evaluation: &AnswersTask<'_>) -> Result<Self> {
        let AnswersTask { task, args, shots: examples, .. } = *evaluation;
        let data = args.data.clone().ok_or_else(|| missing("--data"))?;
        let problems = problems(args, &data)?;
        let template = match args.template.given()? {
            Some(template) => template,
            None => task.template()?,
        };
        let (mut solved, mut shots) = (Vec::new(), None);
        if let Some((count, file)) = examples {
            solved = read_problems(file)?;
            if solved.len() < count {
                let problem = format!("holds {} problems, --shots asks for {count}", solved.len());
                return Err(Error::file(file, problem, "lower --shots"));
            }
            solved.truncate(count);
            refuse_leaked_examples(file, &solved, &problems)?;
            shots = Some((count, hash_file(file)?.sha256));
        }
        Ok(Self { data, problems, format: template.into(), solved, shots })
    }

    /// Asks in the model's chat template if it has one, unless another template is given or there are solved examples.
    fn ask_in_chat(&mut self, evaluation: &AnswersTask<'_>, tokenizer: &Tokenizer) -> Result<()> {
        let AnswersTask { task, args, .. } = *evaluation;
        if self.shots.is_none() {
            let text = task.template()?;
            self.format = args.chat.format(&args.template, tokenizer, task.request(), text)?;
        }
        Ok(())
    }

    /// Returns the settings of generation, without end tokens.
    fn config(&self, args: &AnswersArgs) -> GenerateConfig {
        let stop = match self.shots {
            Some(_) => STOP_STRINGS.map(str::to_string).to_vec(),
            None => Vec::new(),
        };
        GenerateConfig {
            max_new_tokens: args.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
            batch_size: args.output.batch_size,
            stop,
            ..GenerateConfig::default()
        }
    }

    /// Returns the template for reading predictions that were made with these prompts.
    fn foreign_prompt(&self) -> ForeignPrompt {
        ForeignPrompt::usual(&self.format)
    }

    /// Returns the key that identifies the model's answers to these questions.
    fn key(&self, model: Settings, max_new_tokens: usize) -> ResultKey {
        let key = answers_key(model, &self.data, &self.problems, max_new_tokens);
        match &self.shots {
            Some((shots, sha256)) => {
                key.with("shots", *shots).with("shots_sha256", sha256.as_str())
            }
            None => key.with("prompt_template", self.format.identity()),
        }
    }
}

/// Scores answers and writes the results.
struct Scoring {
    task: Task,
    sandbox: Option<Sandbox>,
    mode: ProgressMode,
}

impl Scoring {
    /// Scores `predictions`, after running their programs if the task needs that. Writes the results, the verdicts and the
    /// page to `folder`, and prints the table.
    ///
    /// # Errors
    /// A program cannot be run, a file cannot be written, or the user interrupts.
    fn score_and_report(
        &self,
        folder: &Folder,
        predictions: &[Prediction],
        problems: Option<&[Problem]>,
        settings: Settings,
        too_long: &[usize],
    ) -> Result<()> {
        let (judged, outcomes) = match &self.sandbox {
            Some(sandbox) => {
                let partial = folder.file("programs.partial.jsonl");
                run_programs(sandbox, predictions, &partial, self.mode)?
            }
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
                say!(
                    "note: {count} prompts leave no room for an answer in this model, and count as wrong (results.json lists them)"
                );
            }
        }
        results.write(&folder.0, &judged)?;
        let page = results_page(&results, &judged, self.task, &[]);
        write_evaluation_page(&folder.file("index.html"), &page)?;
        print_line(&results.table())
    }
}
