//! Makes the learner of a run from its configuration.

use std::path::Path;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use crate::adapter::LoraConfig;
use crate::config::{GradientCheckpointing, Reference as ReferenceChoice, RunConfig};
use crate::error::Result;
use crate::model::mistral::Mistral;
use crate::objective::dpo::ReferenceTiming;
use crate::objective::reference::Reference;
use crate::objective::sft::Sft;
use crate::progress::ProgressMode;
use crate::train::activations::{Activations, choose_activations, fitting_tokens};
use crate::train::checkpoint::Checkpoint;
use crate::train::optimizer::{Groups, Optimizer};
use crate::train::parameters::trained_parameters;
use crate::train::policy::policy;
use crate::train::step::{Learner, StepConfig};

/// Loads the model, attaches the adapter, and creates reference and optimizer. `memory` is the device memory in bytes that
/// the run may use, or `None` for all of it.
///
/// # Errors
/// The model or the starting adapter cannot be loaded or do not fit together.
pub fn dpo_learner<B: TrainBackend>(
    config: &RunConfig,
    model_folder: &Path,
    resumed: Option<&Checkpoint>,
    mode: ProgressMode,
    memory: Option<u64>,
    device: &B::Device,
) -> Result<(Learner<B>, Option<LoraConfig>)> {
    let (policy, lora) = policy::<B>(config, model_folder, resumed, mode, device)?;
    // Weights are never changed in place, so that the base stays the original model even if all weights are trained.
    let reference = match (config.dpo.reference, &config.lora.adapter) {
        _ if config.dpo.sync_ref_model => Reference::following(&policy, config.dpo.sync()),
        (ReferenceChoice::Initial, _) | (ReferenceChoice::Auto, Some(_)) => {
            Reference::initial(policy.valid())
        }
        _ => Reference::base(policy.valid()),
    };
    let (loss, timing) = (config.dpo.loss(), reference_timing(config));
    let step = step_config(config, lora.as_ref(), &policy, memory, device);
    let optimizer = optimizer(config, &policy)?;
    Ok((Learner::dpo(policy, optimizer, loss, reference, timing, step, device), lora))
}

/// Returns when the reference is computed. A second epoch needs its log-probabilities again, and since every run can be
/// extended to a second epoch, they are kept in the first. An extended run then has the same result as one that had this
/// length from the start.
fn reference_timing(config: &RunConfig) -> ReferenceTiming {
    if config.dpo.reference_free || config.dpo.sync_ref_model {
        return ReferenceTiming::EveryStep;
    }
    config.reference_batch_size().map_or(ReferenceTiming::Once, ReferenceTiming::Before)
}

/// Loads the model and creates the learner for supervised fine-tuning. `memory` is the device memory in bytes that the run
/// may use, or `None` for all of it.
///
/// # Errors
/// Same as [`dpo_learner`].
pub fn sft_learner<B: TrainBackend>(
    config: &RunConfig,
    model_folder: &Path,
    resumed: Option<&Checkpoint>,
    mode: ProgressMode,
    memory: Option<u64>,
    device: &B::Device,
) -> Result<(Learner<B, Sft>, Option<LoraConfig>)> {
    let (policy, lora) = policy::<B>(config, model_folder, resumed, mode, device)?;
    let step = step_config(config, lora.as_ref(), &policy, memory, device);
    let optimizer = optimizer(config, &policy)?;
    Ok((Learner::new(policy, optimizer, Sft, step, device), lora))
}

/// Returns the optimizer of a run, with the groups of the trained parameters.
fn optimizer<B: TrainBackend>(
    config: &RunConfig,
    policy: &Mistral<Autodiff<B>>,
) -> Result<Optimizer<B>> {
    let groups = Groups::of(config, &trained_parameters(policy));
    Ok(Optimizer::of(config)?.with_groups(groups))
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
