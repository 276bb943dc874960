//! Reads and encodes the samples of a run.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::RunConfig;
use crate::data::encode::{EncodeConfig, EncodeReport, EncodedPair};
use crate::data::lengths::histogram;
use crate::data::prompt::PromptTemplate;
use crate::data::sample::Sample;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::train::shown_sample::show_sample;

/// Number of tokens per bucket of the length histograms.
const LENGTH_BUCKET: usize = 64;

/// The encoded data of a run.
#[derive(Clone, Debug)]
pub struct RunData<S = EncodedPair> {
    /// Training samples in file order.
    pub train: Vec<S>,
    /// Held-out samples. Empty without `data.eval_file`.
    pub eval: Vec<S>,
    /// The first training sample as text, a line for each sequence, with what is trained on marked.
    pub shown_sample: Vec<String>,
    /// Report about encoding the training samples.
    pub train_report: EncodeReport,
    /// Report about encoding the held-out samples.
    pub eval_report: Option<EncodeReport>,
}

/// Reads and encodes the training and held-out samples. Calls `reported` with the report of each file before refused
/// samples are treated (see [`EncodeReport::check`]).
///
/// # Errors
/// A file cannot be read, samples are refused, or ids or lengths do not fit the model.
pub fn load_data<S: Sample>(
    config: &RunConfig,
    model_folder: &Path,
    reported: &mut dyn FnMut(&Path, &EncodeReport),
) -> Result<RunData<S>> {
    let model = DecoderConfig::load(model_folder)?;
    let tokenizer = Tokenizer::from_folder(model_folder)?;
    let settings = encode_config(config)?;
    let mut encode = |file: &Path| {
        let encoded = S::load(file, &tokenizer, &settings)?;
        reported(file, &encoded.report);
        let data = &config.data;
        let encoded = encoded.settle(data.allow_empty_completions, data.skip_untrainable);
        let encoded = encoded.map_err(|error| error.at("data", &file.display().to_string()))?;
        encoded.check_fits(model.vocab_size, model.max_position_embeddings)?;
        Ok::<_, Error>((encoded.pairs, encoded.report))
    };
    let (train, train_report) = encode(&config.data.train_file)?;
    let (eval, eval_report) = match config.data.eval_file.as_deref().map(encode).transpose()? {
        Some((pairs, report)) => (pairs, Some(report)),
        None => (Vec::new(), None),
    };
    let first = train.first().map(|sample| show_sample(&tokenizer, sample));
    let shown_sample = first.transpose()?.unwrap_or_default();
    Ok(RunData { train, eval, shown_sample, train_report, eval_report })
}

/// Returns the settings for encoding from the configuration.
///
/// # Errors
/// `data.prompt_template` is not a valid template.
pub fn encode_config(config: &RunConfig) -> Result<EncodeConfig> {
    let data = &config.data;
    Ok(EncodeConfig {
        compat: data.compat,
        max_length: Some(data.max_length),
        max_prompt_length: data.max_prompt_length,
        truncation_mode: data.truncation_mode,
        prompt_template: PromptTemplate::new(&data.prompt_template)?,
        assistant_only_loss: data.assistant_only_loss,
    })
}

/// Returns histograms of the numbers of tokens in prompts and in completions without their prompt.
pub(super) fn lengths<S: Sample>(samples: &[S]) -> Value {
    let side = |index: usize| samples.iter().filter_map(move |s| s.sides().get(index).copied());
    let prompts = histogram(side(0).map(|side| side.completion_start), LENGTH_BUCKET);
    let mut lengths = json!({"bucket_size": LENGTH_BUCKET, "prompt": prompts});
    for (index, name) in S::SIDES.iter().enumerate() {
        let completions = side(index).map(|side| side.ids.len() - side.completion_start);
        lengths[*name] = json!(histogram(completions, LENGTH_BUCKET));
    }
    lengths
}
