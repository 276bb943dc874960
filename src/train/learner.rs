//! Makes the learner of a run from its configuration.

use std::path::Path;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use crate::adapter::LoraConfig;
use crate::config::{GradientCheckpointing, Method, Reference as ReferenceChoice, RunConfig};
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::objective::Objective;
use crate::objective::cpo::Cpo;
use crate::objective::dpo::{Dpo, ReferenceTiming};
use crate::objective::kto::{Kto, KtoSettings};
use crate::objective::orpo::Orpo;
use crate::objective::reference::Reference;
use crate::objective::sft::Sft;
use crate::progress::ProgressMode;
use crate::train::activations::{Activations, choose_activations, fitting_tokens};
use crate::train::checkpoint::Checkpoint;
use crate::train::optimizer::{Groups, Optimizer};
use crate::train::parameters::trained_parameters;
use crate::train::policy::policy;
use crate::train::step::{Learner, StepConfig, equals_reference};

/// Loads the models of a run for any objective.
#[derive(Clone, Copy, Debug)]
pub struct Loader<'a, B: TrainBackend> {
    /// The configuration of the run.
    pub config: &'a RunConfig,
    /// How progress is shown.
    pub mode: ProgressMode,
    /// The device memory in bytes that the run may use; `None` for all of it.
    pub memory: Option<u64>,
    /// The device.
    pub device: &'a B::Device,
}

/// A learner, with the settings of the adapter if one is trained.
pub type Loaded<B, O> = (Learner<B, O>, Option<LoraConfig>);

impl<B: TrainBackend> Loader<'_, B> {
    /// Loads the model, attaches the adapter, and creates reference and optimizer for preference optimization. A run that
    /// continues from the checkpoint `resumed` starts from the adapter whose initialization it holds.
    ///
    /// # Errors
    /// The model or the starting adapter cannot be loaded or do not fit together.
    pub fn dpo(
        &self,
        model_folder: &Path,
        resumed: Option<&Checkpoint>,
    ) -> Result<Loaded<B, Dpo<B>>> {
        let (policy, lora, step) = self.policy(model_folder, resumed)?;
        let (loss, timing) = (self.config.dpo.loss(), reference_timing(self.config));
        let optimizer = optimizer(self.config, &policy)?;
        let reference = reference(self.config, &policy);
        Ok((Learner::dpo(policy, optimizer, loss, reference, timing, step, self.device), lora))
    }

    /// Does the same for KTO.
    ///
    /// # Errors
    /// Same as [`Self::dpo`].
    pub fn kto(
        &self,
        model_folder: &Path,
        resumed: Option<&Checkpoint>,
    ) -> Result<Loaded<B, Kto<B>>> {
        let config = self.config;
        self.learner(model_folder, resumed, |policy, step| {
            let reference = reference(config, policy);
            let timing = config.precompute_sizes();
            Kto {
                settings: KtoSettings {
                    loss_type: config.kto.loss_type,
                    beta: config.kto.beta,
                    desirable_weight: config.kto.desirable_weight,
                    undesirable_weight: config.kto.undesirable_weight,
                    block: config.train.per_device_train_batch_size,
                    max_length: config.data.max_length.min(policy.config.max_position_embeddings),
                },
                starts_as_reference: equals_reference(policy, &reference, step),
                reference,
                timing: timing.map_or(ReferenceTiming::EveryStep, ReferenceTiming::Before),
            }
        })
    }

    /// Does the same for ORPO.
    ///
    /// # Errors
    /// Same as [`Self::dpo`].
    pub fn orpo(
        &self,
        model_folder: &Path,
        resumed: Option<&Checkpoint>,
    ) -> Result<Loaded<B, Orpo>> {
        let beta = self.config.orpo.beta;
        self.learner(model_folder, resumed, |_, _| Orpo { beta })
    }

    /// Does the same for CPO and its relatives.
    ///
    /// # Errors
    /// Same as [`Self::dpo`].
    pub fn cpo(&self, model_folder: &Path, resumed: Option<&Checkpoint>) -> Result<Loaded<B, Cpo>> {
        self.learner(model_folder, resumed, |_, _| self.config.cpo.objective())
    }

    /// Does the same for supervised fine-tuning.
    ///
    /// # Errors
    /// Same as [`Self::dpo`].
    pub fn sft(&self, model_folder: &Path, resumed: Option<&Checkpoint>) -> Result<Loaded<B, Sft>> {
        self.learner(model_folder, resumed, |_, _| Sft)
    }

    /// Loads the model and creates the learner of an objective.
    fn learner<O: Objective<B>>(
        &self,
        model_folder: &Path,
        resumed: Option<&Checkpoint>,
        objective: impl Fn(&Decoder<Autodiff<B>>, &StepConfig) -> O,
    ) -> Result<Loaded<B, O>> {
        let (policy, lora, step) = self.policy(model_folder, resumed)?;
        let objective = objective(&policy, &step);
        let optimizer = optimizer(self.config, &policy)?;
        Ok((Learner::new(policy, optimizer, objective, step, self.device), lora))
    }

    /// Loads the model and chooses the settings of a step.
    fn policy(
        &self,
        model_folder: &Path,
        resumed: Option<&Checkpoint>,
    ) -> Result<(Decoder<Autodiff<B>>, Option<LoraConfig>, StepConfig)> {
        let (config, mode, device) = (self.config, self.mode, self.device);
        let (policy, lora) = policy::<B>(config, model_folder, resumed, mode, device)?;
        let step = step_config(self.config, lora.as_ref(), &policy, self.memory, self.device);
        Ok((policy, lora, step))
    }
}

/// Creates the reference of `policy`.
fn reference<B: TrainBackend>(config: &RunConfig, policy: &Decoder<Autodiff<B>>) -> Reference<B> {
    // Weights are never changed in place, so that the base stays the original model even if all weights are trained.
    match (config.reference(), &config.lora.adapter) {
        _ if config.method == Method::Dpo && config.dpo.sync_ref_model => {
            Reference::following(policy, config.dpo.sync())
        }
        (Some(ReferenceChoice::Initial), _) | (Some(ReferenceChoice::Auto), Some(_)) => {
            Reference::initial(policy.valid())
        }
        _ => Reference::base(policy.valid()),
    }
}

/// Returns when the reference is computed. A second epoch needs its log-probabilities again, and since every run can be
/// extended to a second epoch, they are kept in the first. An extended run then has the same result as one that had this
/// length from the start.
fn reference_timing(config: &RunConfig) -> ReferenceTiming {
    if config.dpo.reference_free || config.dpo.sync_ref_model {
        return ReferenceTiming::EveryStep;
    }
    config.precompute_sizes().map_or(ReferenceTiming::Once, ReferenceTiming::Before)
}

/// Returns the optimizer of a run, with the groups of the trained parameters.
fn optimizer<B: TrainBackend>(
    config: &RunConfig,
    policy: &Decoder<Autodiff<B>>,
) -> Result<Optimizer<B>> {
    let groups = Groups::of(config, &trained_parameters(policy));
    Ok(Optimizer::of(config)?.with_groups(groups))
}

/// Returns the settings of a step from the configuration and the device.
fn step_config<B: TrainBackend>(
    config: &RunConfig,
    lora: Option<&LoraConfig>,
    policy: &Decoder<Autodiff<B>>,
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
