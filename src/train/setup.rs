//! From a run's configuration to what the loop needs: encoded pairs, then model, adapter, reference, optimizer.

use std::collections::BTreeMap;
use std::path::Path;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Element};
use serde_json::{Value, json};

use crate::config::{
    GradientCheckpointing, InitLoraWeights, LossType, Reference as ReferenceChoice, RunConfig,
    TargetModules,
};
use crate::data::encode::{EncodeConfig, EncodeReport, EncodedPair};
use crate::data::prompt::PromptTemplate;
use crate::data::sample::Sample;
use crate::data::tokenizer::Tokenizer;
use crate::dpo::loss::{DpoLoss, DpoLossType};
use crate::dpo::reference::Reference;
use crate::error::{Error, Result};
use crate::lora::adapter::{self, WEIGHTS};
use crate::lora::config::LoraInit;
use crate::lora::{self, LoraConfig, loftq};
use crate::model::config::MistralConfig;
use crate::model::dtype::{Purpose, choose};
use crate::model::mistral::Mistral;
use crate::model::quantize::cache::Cache;
use crate::model::weights::WeightFiles;
use crate::model::{limits, load};
use crate::progress::ProgressMode;
use crate::train::learner::{Activations, Learner, LearnerConfig, StepConfig};
use crate::train::manifest::{ModelIdentity, RunManifest, hash_file};
use crate::train::optimizer::{AdamW, AdamWConfig};
use crate::train::parameters::train_all;
use crate::train::sampler::Sampler;
use crate::train::sft::SftLearner;

/// Of the memory that is left, what kept activations may take; the rest is for what a block computes on the way.
pub(crate) const ACTIVATIONS_SHARE: f64 = 0.6;

/// Models above this many weights recompute activations under `gradient_checkpointing = "auto"` where the device does not
/// tell how much memory is left.
pub(crate) const RECOMPUTE_ABOVE: usize = 1_000_000_000;

/// Tokens in a bucket of the length histograms.
const LENGTH_BUCKET: usize = 64;

/// The encoded data of a run.
#[derive(Clone, Debug)]
pub struct RunData<S = EncodedPair> {
    /// Training pairs (or examples), in file order.
    pub train: Vec<S>,
    /// Held-out ones; empty without `data.eval_file`.
    pub eval: Vec<S>,
    /// What encoding did to the training pairs.
    pub train_report: EncodeReport,
    /// What encoding did to the held-out pairs.
    pub eval_report: Option<EncodeReport>,
}

/// Reads and encodes the pairs, and refuses those that would train on nothing (see [`EncodeReport::check`]); `reported`
/// hears what became of each file's pairs before that.
///
/// # Errors
/// A file cannot be read, pairs are refused, or ids or lengths do not fit the model.
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
        let encoded = encoded.settle(data.allow_empty_completions, data.skip_untrainable)?;
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

/// How the configuration encodes pairs.
///
/// # Errors
/// `data.prompt_template` is not a template.
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

/// Loads the model, attaches the adapter, and sets up reference and optimizer; `memory`: bytes of the device that the run is
/// to do with, if not all.
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
    // Weights are never changed in place: where all are trained, the base is the model as it was.
    let reference = match (config.dpo.reference, &config.lora.adapter) {
        (ReferenceChoice::Initial, _) | (ReferenceChoice::Auto, Some(_)) => {
            Reference::initial(policy.valid())
        }
        _ => Reference::base(policy.valid()),
    };
    let learner_config = LearnerConfig {
        loss: dpo_loss(config)?,
        step: step_config(config, lora.as_ref(), &policy, memory, device),
    };
    let optimizer = AdamW::new(AdamWConfig::from(&config.train));
    let learner = Learner::new(policy, reference, optimizer, learner_config, device);
    Ok((learner, lora))
}

/// As [`learner`], for supervised fine-tuning.
///
/// # Errors
/// As [`learner`].
pub fn sft_learner<B: TrainBackend>(
    config: &RunConfig,
    model_folder: &Path,
    mode: ProgressMode,
    memory: Option<u64>,
    device: &B::Device,
) -> Result<(SftLearner<B>, Option<LoraConfig>)> {
    let (policy, lora) = policy::<B>(config, model_folder, mode, device)?;
    let step = step_config(config, lora.as_ref(), &policy, memory, device);
    let optimizer = AdamW::new(AdamWConfig::from(&config.train));
    Ok((SftLearner::new(policy, optimizer, step, device), lora))
}

/// The model with what is trained of it: an adapter, whose settings are given back, or all weights.
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
        let policy = match config.model.from_scratch {
            true => load::random(shape, config.seed, dtype, device)?,
            false => load::load(model_folder, dtype, device)?,
        };
        if let Some(packed) = policy.config.quantization {
            return Err(Error::file(
                model_folder,
                format!(
                    "the weights are packed as {}, and cannot be trained themselves",
                    packed.name()
                ),
                "set model.use_peft = true to train an adapter on them, or give the full-precision model",
            ));
        }
        return Ok((train_all(policy), None));
    }
    let dtype = choose::<B>(&shape, config.model.dtype.dtype(), Purpose::Hold, device)?;
    let (to, cache) = (config.model.quantize(), Cache::of_user(mode));
    limits::check::<B>(&shape, to, dtype, device)?;
    if config.lora.starts_by_loftq() {
        limits::check_whole::<B>(&shape, device)?;
    }
    let mut policy = load::load_as::<Autodiff<B>>(model_folder, dtype, to, &cache, device)?;
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

/// The type of weights that are trained themselves: the backend's own, f32.
fn full_dtype<B: TrainBackend>() -> DType {
    <B::FloatElem as Element>::dtype()
}

/// A starting adapter brings its own settings: a key of `[lora]` that says otherwise (and not merely its default)
/// must not be ignored.
fn check_against_adapter<B: TrainBackend>(
    config: &RunConfig,
    adapter: &LoraConfig,
    policy: &Mistral<Autodiff<B>>,
) -> Result<()> {
    let (asked, default) = (lora_config(config), lora_config(&RunConfig::default()));
    let sites = |lora: &LoraConfig| -> Result<Vec<bool>> {
        let names = policy.projections().map(|(name, _)| name);
        names.map(|name| lora.target_modules.matches(&name)).collect()
    };
    let (of_asked, of_adapter) = (sites(&asked)?, sites(adapter)?);
    let differs = [
        ("lora.r", asked.r != default.r && asked.r != adapter.r),
        (
            "lora.lora_alpha",
            asked.lora_alpha != default.lora_alpha && asked.lora_alpha != adapter.lora_alpha,
        ),
        (
            "lora.lora_dropout",
            asked.lora_dropout != default.lora_dropout
                && asked.lora_dropout != adapter.lora_dropout,
        ),
        ("lora.use_rslora", asked.use_rslora && !adapter.use_rslora),
        (
            "lora.target_modules",
            asked.target_modules != default.target_modules && of_asked != of_adapter,
        ),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((key, _)) => Err(Error::invalid(
            key,
            "differs from the adapter that lora.adapter starts from, whose own settings hold",
            format!("remove {key}, or lora.adapter"),
        )),
        None => Ok(()),
    }
}

/// The adapter the configuration asks for, where it starts none from a folder.
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

/// One preference loss, and perhaps `sft`, each with its weight.
fn dpo_loss(config: &RunConfig) -> Result<DpoLoss> {
    let dpo = &config.dpo;
    let weight = |index: usize| {
        let weights = dpo.loss_weights.as_ref();
        weights.and_then(|weights| weights.get(index)).copied().unwrap_or(1.0)
    };
    let (mut preference, mut sft_weight) = (None, 0.0);
    for (index, loss) in dpo.loss_type.iter().enumerate() {
        match loss {
            LossType::Sigmoid => preference = Some((DpoLossType::Sigmoid, weight(index))),
            LossType::SigmoidNorm => preference = Some((DpoLossType::SigmoidNorm, weight(index))),
            LossType::Sft => sft_weight = weight(index),
            other => {
                let problem = format!("{other:?} is not built yet");
                return Err(Error::invalid("dpo.loss_type", problem, "use \"sigmoid\""));
            }
        }
    }
    let (loss_type, weight) = preference.unwrap_or((DpoLossType::Sigmoid, 0.0));
    Ok(DpoLoss { loss_type, beta: dpo.beta, weight, sft_weight })
}

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
            GradientCheckpointing::Auto => what_fits::<B>(policy, memory, device),
        },
        pass_tokens: train.max_tokens_per_pass.unwrap_or_else(|| {
            let longest = B::buffer_limits(device).map(|limits| limits.binding);
            let size = policy.dtype().size();
            let widest = policy.config.widest_bytes_per_token(size);
            fitting_tokens(B::pass_tokens(), longest, widest)
        }),
        dropout_seed: dropout.then_some(config.seed),
    }
}

/// As many of `tokens` tokens as lie in one piece of at most `longest` bytes, where one of them takes `widest`.
pub fn fitting_tokens(tokens: usize, longest: Option<u64>, widest: usize) -> usize {
    match longest {
        Some(bytes) => tokens.min((bytes / widest.max(1) as u64) as usize).max(1),
        None => tokens,
    }
}

/// `gradient_checkpointing = "auto"`: as many blocks keep their activations as fit into the memory that is left once the
/// model is loaded; where the device does not tell, all do for small models and none for large ones. `memory`: bytes that
/// all is to fit into, if not the whole device.
pub fn what_fits<B: TrainBackend>(
    policy: &Mistral<Autodiff<B>>,
    memory: Option<u64>,
    device: &B::Device,
) -> Activations {
    let taken = B::peak_memory_bytes(device).unwrap_or(0);
    let left = memory.map(|memory| memory.saturating_sub(taken));
    let available = B::available_memory_bytes(device);
    match left.into_iter().chain(available).min() {
        Some(available) => Activations::Fit {
            available: (available as f64 * ACTIVATIONS_SHARE) as u64,
            per_token: policy.block_bytes_per_token() as u64,
        },
        None if weights(&policy.config) > RECOMPUTE_ABOVE => Activations::Recompute,
        None => Activations::Keep,
    }
}

/// Weights of a model of this shape.
pub fn weights(config: &MistralConfig) -> usize {
    config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// The order of the training data.
pub fn sampler<S>(config: &RunConfig, data: &RunData<S>) -> Sampler {
    Sampler {
        samples: data.train.len(),
        batch_size: config.train.per_device_train_batch_size,
        accumulation: config.train.gradient_accumulation_steps,
        shuffle_seed: config.data.shuffle.then_some(config.seed),
    }
}

/// What identifies the run: configuration, model, data, counts.
///
/// # Errors
/// A file that was read a moment ago cannot be read again.
pub fn manifest<B: TrainBackend, S: Sample>(
    config: &RunConfig,
    data: &RunData<S>,
    model_folder: &Path,
    device: &B::Device,
) -> Result<RunManifest> {
    let identity = ModelIdentity::of(model_folder)?;
    let device = format!("{} {device:?}", B::name(device));
    let mut manifest = RunManifest::new(config.clone(), identity, &device);
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
        ("optimizer_steps".to_string(), steps),
    ]);
    Ok(manifest)
}

/// Histograms of token counts: prompts, and completions without their prompt.
fn lengths<S: Sample>(samples: &[S]) -> Value {
    let histogram = |lengths: &mut dyn Iterator<Item = usize>| {
        let mut buckets = Vec::new();
        for length in lengths {
            let bucket = length / LENGTH_BUCKET;
            if buckets.len() <= bucket {
                buckets.resize(bucket + 1, 0u64);
            }
            buckets[bucket] += 1;
        }
        buckets
    };
    let side = |index: usize| samples.iter().filter_map(move |s| s.sides().get(index).copied());
    let prompts = &mut side(0).map(|side| side.completion_start);
    let mut lengths = json!({"bucket_size": LENGTH_BUCKET, "prompt": histogram(prompts)});
    for (index, name) in S::SIDES.iter().enumerate() {
        let completions = &mut side(index).map(|side| side.ids.len() - side.completion_start);
        lengths[*name] = json!(histogram(completions));
    }
    lengths
}
