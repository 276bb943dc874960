//! Attaches low-rank branches to a model's projections.

use std::collections::BTreeSet;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::biases::Biases;
use super::config::{BranchConfig, LoraConfig, LoraInit};
use super::modules::{Patterns, TargetModules};
use super::parameters::{self, set_trained_parameters};
use super::saved::{SavedWeights, attach_saved, saved_modules};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::decoder::Decoder;
use crate::model::linear::{Dora, Linear, LowRank, frozen_param};
use crate::model::names::TensorRole;

/// Attaches a new branch to every targeted projection, `lora_a` random from `seed` and `lora_b` zero, and makes copies of
/// the modules that are trained in full. The model's output does not change.
///
/// # Errors
/// No projection is targeted, a listed name targets none (a misspelled module must not be ignored), or those of
/// [`saved_modules`].
pub fn attach<B: TrainBackend>(
    model: &mut Decoder<B>,
    config: &LoraConfig,
    seed: u64,
    device: &B::Device,
) -> Result<()> {
    check(&model.config, config)?;
    for (site, (name, linear)) in model.projections_mut().enumerate() {
        if let Some(BranchConfig { r, scaling }) = config.at(&name)? {
            let (d_out, d_in) = linear.dims();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(site as u64);
            let a = initial_a(config, [r, d_in], &mut rng);
            let b = TensorData::new(vec![0f32; d_out * r], [d_out, r]);
            let bias = config.lora_bias.then(|| TensorData::new(vec![0f32; d_out], [d_out]));
            let branch = Branch { a, b, bias, magnitude: None, scaling };
            attach_one(linear, config, site, branch, device);
        }
    }
    attach_saved(model, config, (SavedWeights::new(), Biases::new()), device)
}

/// The weights of one branch on the host, in f32, and its scaling.
#[derive(Clone, Debug)]
pub struct Branch {
    /// `lora_a`, `[r, D_in]`.
    pub a: TensorData,
    /// `lora_b`, `[D_out, r]`.
    pub b: TensorData,
    /// Bias of `lora_b`, `[D_out]`.
    pub bias: Option<TensorData>,
    /// The magnitudes of DoRA, `[D_out]`. `None` without DoRA, and for a new branch, whose magnitudes are the row norms
    /// of `W + scaling * B A`.
    pub magnitude: Option<TensorData>,
    /// Factor on the branch's output.
    pub scaling: f64,
}

/// Attaches a branch, with the dropout of `config` and with magnitudes if it is one of DoRA, to the projection number
/// `site` of the model.
pub(super) fn attach_one<B: TrainBackend>(
    linear: &mut Linear<B>,
    config: &LoraConfig,
    site: usize,
    branch: Branch,
    device: &B::Device,
) {
    let [lora_a, lora_b] = [branch.a, branch.b].map(|data| param(data, device));
    let mut lora = LowRank {
        lora_a,
        lora_b,
        lora_b_bias: branch.bias.map(|data| param(data, device)),
        scaling: branch.scaling,
        dropout: config.lora_dropout,
        site: site as u64,
        dora: None,
        initial: None,
    };
    if config.use_dora {
        let norms = linear.row_norms(&lora);
        let magnitude = match branch.magnitude {
            Some(data) => param(data, device),
            None => Param::from_tensor(norms.clone()),
        };
        lora.dora = Some(Dora { magnitude, norms: frozen_param(norms) });
    }
    linear.lora = Some(lora);
}

fn param<B: TrainBackend, const D: usize>(
    data: TensorData,
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Param::from_tensor(Tensor::from_data(data.convert::<B::FloatElem>(), device))
}

/// Returns the names and values of the adapter's tensors: see [`Parameter`](super::parameters::Parameter).
pub fn adapter_parameters<B: TrainBackend>(model: &Decoder<B>) -> Vec<(String, Tensor<B, 2>)> {
    let all = parameters::adapter_parameters(model).into_iter();
    all.map(|parameter| (parameter.name, parameter.value)).collect()
}

/// Replaces the adapter's tensors by `values`, in the order of [`adapter_parameters`]; they stay trainable.
///
/// # Panics
/// Panics if their number or shapes differ, or if other tensors are trained.
pub fn set_adapter_parameters<B: TrainBackend>(
    model: &mut Decoder<Autodiff<B>>,
    values: Vec<Tensor<B, 2>>,
) {
    set_trained_parameters(model, values);
}

/// Returns the number of trainable weights.
pub fn trainable<B: TrainBackend>(model: &Decoder<B>) -> usize {
    adapter_parameters(model).iter().map(|(_, tensor)| tensor.shape().num_elements()).sum()
}

/// Draws the initial `lora_a` of a shape `[r, D_in]`.
fn initial_a(config: &LoraConfig, [r, d_in]: [usize; 2], rng: &mut ChaCha8Rng) -> TensorData {
    let mut uniform = || (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0;
    let bound = 1.0 / (d_in as f64).sqrt();
    let deviation = 1.0 / r as f64;
    let values = (0..r * d_in).map(|_| match config.init {
        LoraInit::Gaussian => {
            let radius = (-2.0 * uniform().ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform()).cos() * deviation) as f32
        }
        _ => ((uniform() * 2.0 - 1.0) * bound) as f32,
    });
    TensorData::new(values.collect::<Vec<_>>(), [r, d_in])
}

/// Checks that the adapter suits a model of shape `model`: some projection gets a branch, each listed name has an effect,
/// the patterns of ranks and alphas keep their meaning in a saved adapter, and the modules that are trained in full can
/// be.
///
/// # Errors
/// One of these does not hold. The error names the key of `[lora]`.
pub fn check(model: &DecoderConfig, config: &LoraConfig) -> Result<()> {
    let tensors = model.tensors();
    let projections = tensors.iter().filter(|tensor| tensor.is_projection());
    let names: Vec<String> = projections.map(|tensor| tensor.module().to_string()).collect();
    check_targets(&names, config)?;
    check_patterns(&names, config).map_err(|error| error.within("lora."))?;
    check_other_modules(model, config).map_err(|error| error.within("lora."))?;
    saved_modules(model, config).map_err(|error| error.within("lora."))?;
    Ok(())
}

/// Checks that no module is targeted that cannot have a branch: the embedding, the head or a norm.
pub(super) fn check_other_modules(model: &DecoderConfig, config: &LoraConfig) -> Result<()> {
    if config.target_modules == TargetModules::AllLinear {
        return Ok(());
    }
    let belongs_to_projection =
        |role: TensorRole| matches!(role, TensorRole::Projection | TensorRole::Bias);
    let tensors = model.tensors();
    for tensor in tensors.iter().filter(|tensor| !belongs_to_projection(tensor.role)) {
        let module = tensor.module();
        if config.at(module)?.is_some() {
            return Err(Error::invalid(
                "target_modules",
                format!(
                    "{module} is targeted, and only the projections of the layers can have a branch"
                ),
                "leave it out; modules_to_save trains such a module in full",
            ));
        }
    }
    Ok(())
}

/// Checks that one of the projections `names` gets a branch, and that each listed name has an effect.
fn check_targets(names: &[String], config: &LoraConfig) -> Result<()> {
    let last = |name: &String| name.rsplit('.').next().map(String::from);
    let mut known: Vec<String> = names.iter().filter_map(last).collect();
    let mut seen = BTreeSet::new();
    known.retain(|name| seen.insert(name.clone()));
    let known = format!("use some of {}", known.join(", "));
    let targets = "lora.target_modules";
    let wanted = match &config.target_modules {
        TargetModules::Names(targets) => targets.as_slice(),
        _ => &[],
    };
    for target in wanted {
        let single = TargetModules::Names(vec![target.clone()]);
        if !any(names, |name| single.matches(name))? {
            let problem = format!("`{target}` matches no projection of this model");
            return Err(Error::invalid(targets, problem, format!("{known}, or \"all-linear\"")));
        }
    }
    if !any(names, |name| config.target_modules.matches(name))? {
        let problem = match &config.target_modules {
            TargetModules::Pattern(pattern) => {
                format!("`{pattern}` matches no projection of this model")
            }
            _ => "is empty".to_string(),
        };
        return Err(Error::invalid(targets, problem, known));
    }
    if !any(names, |name| Ok(config.at(name)?.is_some()))? {
        return Err(Error::invalid(
            targets,
            "no projection is left: lora.exclude_modules, lora.layers_to_transform or lora.modules_to_save leaves out all of them",
            "change one of these keys",
        ));
    }
    Ok(())
}

/// Checks that each pattern of ranks and alphas matches one of the projections `names` that has a branch, and that
/// patterns do not contradict each other.
fn check_patterns(names: &[String], config: &LoraConfig) -> Result<()> {
    let mut with_branch = Vec::new();
    for name in names {
        if config.at(name)?.is_some() {
            with_branch.push(name.clone());
            config.rank_pattern.check_one_value("rank_pattern", name)?;
            config.alpha_pattern.check_one_value("alpha_pattern", name)?;
        }
    }
    let ranks = config.rank_pattern.0.iter().map(|(pattern, _)| ("rank_pattern", pattern));
    let alphas = config.alpha_pattern.0.iter().map(|(pattern, _)| ("alpha_pattern", pattern));
    for (key, pattern) in ranks.chain(alphas) {
        let single = Patterns(vec![(pattern.clone(), ())]);
        if !any(&with_branch, |name| Ok(single.get(key, name)?.is_some()))? {
            return Err(Error::invalid(
                key,
                format!("`{pattern}` matches no projection that gets an adapter"),
                "remove it, or write the end of a module's name, such as `layers.1.self_attn.q_proj`",
            ));
        }
    }
    Ok(())
}

/// Returns whether `holds` is true for one of `names`.
fn any(names: &[String], holds: impl Fn(&str) -> Result<bool>) -> Result<bool> {
    for name in names {
        if holds(name)? {
            return Ok(true);
        }
    }
    Ok(false)
}
