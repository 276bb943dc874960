//! Builds what the training loop needs from a run's configuration: the encoded data, the learner and the manifest.

use std::collections::BTreeMap;
use std::path::Path;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Element};
use serde_json::{Value, json};

use crate::config::{
    GradientCheckpointing, InitLoraWeights, Reference as ReferenceChoice, RunConfig, TargetModules,
};
use crate::data::encode::{EncodeConfig, EncodeReport, EncodedPair};
use crate::data::lengths::histogram;
use crate::data::prompt::PromptTemplate;
use crate::data::sample::Sample;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::lora::adapter::{self, WEIGHTS};
use crate::lora::config::LoraInit;
use crate::lora::{self, LoraConfig, loftq};
use crate::model::config::MistralConfig;
use crate::model::dtype::{Purpose, choose};
use crate::model::file_hash::hash_file;
use crate::model::mistral::Mistral;
use crate::model::quantize::cache::Cache;
use crate::model::weights::WeightFiles;
use crate::model::{limits, load};
use crate::objective::dpo::ReferenceTiming;
use crate::objective::reference::Reference;
use crate::objective::sft::Sft;
use crate::progress::ProgressMode;
use crate::train::manifest::{RunManifest, StartingModel};
use crate::train::optimizer::{Optimizer, Rule};
use crate::train::parameters::train_all;
use crate::train::resume::STEPS;
use crate::train::sampler::Sampler;
use crate::train::step::{Activations, Learner, StepConfig};

/// Fraction of the free memory that kept activations may take. The rest is for the temporaries of a layer.
pub(crate) const ACTIVATIONS_SHARE: f64 = 0.6;

/// Number of weights above which a model recomputes activations under `gradient_checkpointing = "auto"` if the device does
/// not report its free memory.
pub(crate) const RECOMPUTE_ABOVE: usize = 1_000_000_000;

/// Number of tokens per bucket of the length histograms.
const LENGTH_BUCKET: usize = 64;

/// The encoded data of a run.
#[derive(Clone, Debug)]
pub struct RunData<S = EncodedPair> {
    /// Training samples in file order.
    pub train: Vec<S>,
    /// Held-out samples. Empty without `data.eval_file`.
    pub eval: Vec<S>,
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
    let model = MistralConfig::load(model_folder)?;
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
    Ok(RunData { train, eval, train_report, eval_report })
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
    })
}

/// Loads the model, attaches the adapter, and creates reference and optimizer. `memory` is the device memory in bytes that
/// the run may use, or `None` for all of it.
///
/// # Errors
/// The model or the starting adapter cannot be loaded or do not fit together.
pub fn learner<B: TrainBackend>(
    config: &RunConfig,
    model_folder: &Path,
    mode: ProgressMode,
    memory: Option<u64>,
    device: &B::Device,
) -> Result<(Learner<B>, Option<LoraConfig>)> {
    let (policy, lora) = policy::<B>(config, model_folder, mode, device)?;
    // Weights are never changed in place, so that the base stays the original model even if all weights are trained.
    let reference = match (config.dpo.reference, &config.lora.adapter) {
        (ReferenceChoice::Initial, _) | (ReferenceChoice::Auto, Some(_)) => {
            Reference::initial(policy.valid())
        }
        _ => Reference::base(policy.valid()),
    };
    let (loss, timing) = (config.dpo.loss(), reference_timing(config));
    let step = step_config(config, lora.as_ref(), &policy, memory, device);
    let optimizer = Optimizer::new(Rule::of(&config.train)?);
    Ok((Learner::dpo(policy, optimizer, loss, reference, timing, step, device), lora))
}

/// Returns when the reference is computed. A second epoch needs its log-probabilities again, and since every run can be
/// extended to a second epoch, they are kept in the first. An extended run then has the same result as one that had this
/// length from the start.
fn reference_timing(config: &RunConfig) -> ReferenceTiming {
    if config.dpo.reference_free {
        return ReferenceTiming::EveryStep;
    }
    config.reference_batch_size().map_or(ReferenceTiming::Once, ReferenceTiming::Before)
}

/// Loads the model and creates the learner for supervised fine-tuning. `memory` is the device memory in bytes that the run
/// may use, or `None` for all of it.
///
/// # Errors
/// Same as [`learner`].
pub fn sft_learner<B: TrainBackend>(
    config: &RunConfig,
    model_folder: &Path,
    mode: ProgressMode,
    memory: Option<u64>,
    device: &B::Device,
) -> Result<(Learner<B, Sft>, Option<LoraConfig>)> {
    let (policy, lora) = policy::<B>(config, model_folder, mode, device)?;
    let step = step_config(config, lora.as_ref(), &policy, memory, device);
    let optimizer = Optimizer::new(Rule::of(&config.train)?);
    Ok((Learner::new(policy, optimizer, Sft, step, device), lora))
}

/// Loads the model and makes its trained tensors require a gradient: an adapter, whose settings are returned, or all
/// weights.
fn policy<B: TrainBackend>(
    config: &RunConfig,
    model_folder: &Path,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<(Mistral<Autodiff<B>>, Option<LoraConfig>)> {
    let shape = MistralConfig::load(model_folder)?;
    if !config.model.use_peft {
        limits::check_whole::<B>(&shape, device)?;
        let dtype = full_dtype::<B>();
        let policy = if config.model.from_scratch {
            load::random(shape, config.seed, dtype, device)?
        } else {
            load::load(model_folder, dtype, device)?
        };
        if let Some(format) = policy.config.quantization {
            return Err(Error::file(
                model_folder,
                format!(
                    "the weights are quantized as {} and cannot be trained themselves",
                    format.name()
                ),
                "set model.use_peft = true to train an adapter on them, or give the full-precision model",
            ));
        }
        return Ok((train_all(policy), None));
    }
    let dtype = choose::<B>(&shape, config.model.dtype.dtype(), Purpose::Hold, device)?;
    let (quantize, cache) = (config.model.quantize(), Cache::from_env(mode));
    limits::check::<B>(&shape, quantize, dtype, device)?;
    if config.lora.uses_loftq() {
        limits::check_whole::<B>(&shape, device)?;
    }
    let mut policy = load::load_as::<Autodiff<B>>(model_folder, dtype, quantize, &cache, device)?;
    let lora = match &config.lora.adapter {
        Some(folder) => {
            let lora = adapter::load(&mut policy, folder, device)?;
            check_against_adapter(config, &lora, &policy)?;
            lora
        }
        None => {
            let lora = lora_config(config);
            lora::linear::attach(&mut policy, &lora, config.seed, device)?;
            if lora.init == LoraInit::LoftQ {
                let files = WeightFiles::open(model_folder)?;
                loftq::start::<B>(&mut policy, &lora, config.seed, &files, mode, device)?;
            }
            lora
        }
    };
    Ok((policy, Some(lora)))
}

/// Returns the dtype of weights that are trained themselves: the backend's own, f32.
fn full_dtype<B: TrainBackend>() -> DType {
    <B::FloatElem as Element>::dtype()
}

/// Checks that no key of `[lora]` contradicts the starting adapter, which has its own settings. A key with its default value
/// is ignored.
///
/// # Errors
/// A key has another value than its default and than the adapter.
fn check_against_adapter<B: TrainBackend>(
    config: &RunConfig,
    adapter: &LoraConfig,
    policy: &Mistral<Autodiff<B>>,
) -> Result<()> {
    let (requested, default) = (lora_config(config), lora_config(&RunConfig::default()));
    let sites = |lora: &LoraConfig| -> Result<Vec<bool>> {
        let names = policy.projections().map(|(name, _)| name);
        names.map(|name| lora.target_modules.matches(&name)).collect()
    };
    let (requested_sites, adapter_sites) = (sites(&requested)?, sites(adapter)?);
    let differs = [
        ("lora.r", requested.r != default.r && requested.r != adapter.r),
        (
            "lora.lora_alpha",
            requested.lora_alpha != default.lora_alpha
                && requested.lora_alpha != adapter.lora_alpha,
        ),
        (
            "lora.lora_dropout",
            requested.lora_dropout != default.lora_dropout
                && requested.lora_dropout != adapter.lora_dropout,
        ),
        ("lora.use_rslora", requested.use_rslora && !adapter.use_rslora),
        (
            "lora.target_modules",
            requested.target_modules != default.target_modules && requested_sites != adapter_sites,
        ),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((key, _)) => Err(Error::invalid(
            key,
            "differs from the settings of the adapter in lora.adapter, which are used",
            format!("remove {key}, or lora.adapter"),
        )),
        None => Ok(()),
    }
}

/// Returns the settings of a new adapter from the configuration.
pub fn lora_config(config: &RunConfig) -> LoraConfig {
    let lora = &config.lora;
    LoraConfig {
        r: lora.r,
        lora_alpha: lora.lora_alpha,
        lora_dropout: lora.lora_dropout,
        target_modules: match &lora.target_modules {
            TargetModules::Names(names) => lora::TargetModules::Names(names.clone()),
            TargetModules::AllLinear => lora::TargetModules::AllLinear,
        },
        use_rslora: lora.use_rslora,
        init: match lora.init_lora_weights {
            InitLoraWeights::Gaussian => LoraInit::Gaussian,
            InitLoraWeights::KaimingUniform => LoraInit::KaimingUniform,
            InitLoraWeights::LoftQ => LoraInit::LoftQ,
        },
    }
}

/// Returns the settings of a step from the configuration and the device.
fn step_config<B: TrainBackend>(
    config: &RunConfig,
    lora: Option<&LoraConfig>,
    policy: &Mistral<Autodiff<B>>,
    memory: Option<u64>,
    device: &B::Device,
) -> StepConfig {
    let train = &config.train;
    let dropout = lora.is_some_and(|lora| lora.lora_dropout > 0.0) && train.dropout_is_active();
    StepConfig {
        max_grad_norm: (train.max_grad_norm > 0.0).then_some(train.max_grad_norm),
        activations: match train.gradient_checkpointing {
            GradientCheckpointing::On => Activations::Recompute,
            GradientCheckpointing::Off => Activations::Keep,
            GradientCheckpointing::Auto => choose_activations::<B>(policy, memory, device),
        },
        pass_tokens: train.max_tokens_per_pass.unwrap_or_else(|| {
            let max_buffer = B::buffer_limits(device).map(|limits| limits.binding);
            let size = policy.dtype().size();
            let bytes_per_token = policy.config.widest_bytes_per_token(size);
            fitting_tokens(B::pass_tokens(), max_buffer, bytes_per_token)
        }),
        dropout_seed: dropout.then_some(config.seed),
    }
}

/// Reduces `tokens` so that a tensor of `bytes_per_token` bytes per token fits into one buffer of at most `max_buffer`
/// bytes. Returns at least 1.
pub fn fitting_tokens(tokens: usize, max_buffer: Option<u64>, bytes_per_token: usize) -> usize {
    match max_buffer {
        Some(bytes) => tokens.min((bytes / bytes_per_token.max(1) as u64) as usize).max(1),
        None => tokens,
    }
}

/// Chooses which layers keep their activations under `gradient_checkpointing = "auto"`: as many as fit into the memory that
/// is free once the model is loaded. If the device does not report its free memory, all layers of small models and none of
/// large models do. `memory` is the device memory in bytes that the run may use, or `None` for all of it.
pub fn choose_activations<B: TrainBackend>(
    policy: &Mistral<Autodiff<B>>,
    memory: Option<u64>,
    device: &B::Device,
) -> Activations {
    let used = B::peak_memory_bytes(device).unwrap_or(0);
    let remaining = memory.map(|memory| memory.saturating_sub(used));
    let available = B::available_memory_bytes(device);
    match remaining.into_iter().chain(available).min() {
        Some(available) => Activations::Fit {
            available: (available as f64 * ACTIVATIONS_SHARE) as u64,
            per_token: policy.block_bytes_per_token() as u64,
        },
        None if weights(&policy.config) > RECOMPUTE_ABOVE => Activations::Recompute,
        None => Activations::Keep,
    }
}

/// Returns the number of weights of a model of this shape.
pub fn weights(config: &MistralConfig) -> usize {
    config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// Returns the sampler of the training data.
pub fn sampler<S>(config: &RunConfig, data: &RunData<S>) -> Sampler {
    Sampler {
        samples: data.train.len(),
        batch_size: config.train.per_device_train_batch_size,
        accumulation: config.train.gradient_accumulation_steps,
        shuffle_seed: config.data.shuffle.then_some(config.seed),
    }
}

/// Creates the manifest of the run: configuration, model, data and counts.
///
/// # Errors
/// A file that was read before cannot be read again for hashing.
pub fn manifest<B: TrainBackend, S: Sample>(
    config: &RunConfig,
    data: &RunData<S>,
    model_folder: &Path,
    device: &B::Device,
) -> Result<RunManifest> {
    let model = StartingModel::of(model_folder, config)?;
    let device = format!("{} {device:?}", B::name(device));
    let mut manifest = RunManifest::new(config.clone(), model, &device);
    let eval_hash = config.data.eval_file.as_deref().map(hash_file).transpose()?;
    let adapter = config.lora.adapter.as_deref().map(|folder| hash_file(&folder.join(WEIGHTS)));
    manifest.data = json!({
        "adapter": adapter.transpose()?,
        "train_file": hash_file(&config.data.train_file)?,
        "eval_file": eval_hash,
        "train": data.train_report,
        "eval": data.eval_report,
        "lengths": lengths(&data.train),
    });
    let steps = config.train.total_steps(data.train.len()) as u64;
    manifest.counts = BTreeMap::from([
        (format!("train_{}", S::NAME), data.train.len() as u64),
        (format!("eval_{}", S::NAME), data.eval.len() as u64),
        (STEPS.to_string(), steps),
    ]);
    Ok(manifest)
}

/// Returns histograms of the numbers of tokens in prompts and in completions without their prompt.
fn lengths<S: Sample>(samples: &[S]) -> Value {
    let side = |index: usize| samples.iter().filter_map(move |s| s.sides().get(index).copied());
    let prompts = histogram(side(0).map(|side| side.completion_start), LENGTH_BUCKET);
    let mut lengths = json!({"bucket_size": LENGTH_BUCKET, "prompt": prompts});
    for (index, name) in S::SIDES.iter().enumerate() {
        let completions = side(index).map(|side| side.ids.len() - side.completion_start);
        lengths[*name] = json!(histogram(completions, LENGTH_BUCKET));
    }
    lengths
}
