//! Attaches low-rank branches to a model's projections.

use arithmo_backends::TrainBackend;
use burn::module::Param;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::config::{BranchConfig, LoraConfig, LoraInit};
use super::modules::{Patterns, TargetModules};
use crate::error::{Error, Result};
use crate::model::linear::{Linear, LowRank};
use crate::model::mistral::Mistral;

/// Attaches a new branch to every targeted projection: `lora_a` random from `seed`, `lora_b` zero, so that the
/// model's output does not change.
///
/// # Errors
/// No projection is targeted, or a listed name targets none (a misspelled module must not be ignored).
pub fn attach<B: TrainBackend>(
    model: &mut Mistral<B>,
    config: &LoraConfig,
    seed: u64,
    device: &B::Device,
) -> Result<()> {
    check_targets(model, config)?;
    for (site, (name, linear)) in model.projections_mut().enumerate() {
        if let Some(BranchConfig { r, scaling }) = config.at(&name)? {
            let (d_out, d_in) = linear.dims();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(site as u64);
            let a = initial_a(config, [r, d_in], &mut rng);
            let b = TensorData::new(vec![0f32; d_out * r], [d_out, r]);
            attach_one(linear, config.lora_dropout, site, Branch { a, b, scaling }, device);
        }
    }
    Ok(())
}

/// The weights and the scaling of one branch.
#[derive(Clone, Debug)]
pub struct Branch {
    /// `lora_a`, `[r, D_in]`.
    pub a: TensorData,
    /// `lora_b`, `[D_out, r]`.
    pub b: TensorData,
    /// Factor on the branch's output.
    pub scaling: f64,
}

/// Attaches a branch with the given dropout to the projection number `site` of the model.
pub(super) fn attach_one<B: TrainBackend>(
    linear: &mut Linear<B>,
    dropout: f64,
    site: usize,
    branch: Branch,
    device: &B::Device,
) {
    let [lora_a, lora_b] = [branch.a, branch.b]
        .map(|data| Param::from_tensor(Tensor::from_data(data.convert::<B::FloatElem>(), device)));
    let (scaling, site) = (branch.scaling, site as u64);
    linear.lora = Some(LowRank { lora_a, lora_b, scaling, dropout, site });
}

/// Returns the trainable tensors in a fixed order, with PEFT's names below `base_model.model.`
/// (`model.layers.0.self_attn.q_proj.lora_A.weight`): `lora_a` `[r, D_in]`, then `lora_b` `[D_out, r]`.
pub fn adapter_parameters<B: TrainBackend>(model: &Mistral<B>) -> Vec<(String, Tensor<B, 2>)> {
    let with_branch = model
        .projections()
        .filter_map(|(name, linear)| linear.lora.as_ref().map(|lora| (name, lora)));
    with_branch
        .flat_map(|(name, lora)| {
            [
                (format!("{name}.lora_A.weight"), lora.lora_a.val()),
                (format!("{name}.lora_B.weight"), lora.lora_b.val()),
            ]
        })
        .collect()
}

/// Replaces the trainable tensors by `values`, in the order of [`adapter_parameters`]; they stay trainable.
///
/// # Panics
/// Panics if there are fewer values than tensors, or if shapes differ.
pub fn set_adapter_parameters<B>(model: &mut Mistral<B>, values: Vec<Tensor<B::InnerBackend, 2>>)
where
    B: TrainBackend + AutodiffBackend,
{
    let mut values = values.into_iter();
    let mut replace = |param: &mut Param<Tensor<B, 2>>| {
        let value = values.next();
        assert!(value.is_some(), "set_adapter_parameters: too few values");
        if let Some(value) = value {
            assert_eq!(value.dims(), param.dims(), "set_adapter_parameters: shape of {}", param.id);
            *param = Param::initialized(param.id, Tensor::from_inner(value).require_grad());
        }
    };
    for (_, linear) in model.projections_mut() {
        if let Some(lora) = &mut linear.lora {
            replace(&mut lora.lora_a);
            replace(&mut lora.lora_b);
        }
    }
}

/// Returns the number of trainable weights.
pub fn trainable<B: TrainBackend>(model: &Mistral<B>) -> usize {
    adapter_parameters(model).iter().map(|(_, tensor)| tensor.shape().num_elements()).sum()
}

/// Draws the initial `lora_a` of a shape `[r, D_in]`.
fn initial_a(config: &LoraConfig, [r, d_in]: [usize; 2], rng: &mut ChaCha8Rng) -> TensorData {
    let mut uniform = || (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0;
    let bound = 1.0 / (d_in as f64).sqrt();
    let deviation = 1.0 / r as f64;
    let values = (0..r * d_in).map(|_| match config.init {
        LoraInit::KaimingUniform | LoraInit::LoftQ => ((uniform() * 2.0 - 1.0) * bound) as f32,
        LoraInit::Gaussian => {
            let radius = (-2.0 * uniform().ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform()).cos() * deviation) as f32
        }
    });
    TensorData::new(values.collect::<Vec<_>>(), [r, d_in])
}

/// Checks that some projection gets a branch, that each listed name has an effect, and that the patterns of ranks and
/// alphas keep their meaning in a saved adapter.
fn check_targets<B: TrainBackend>(model: &Mistral<B>, config: &LoraConfig) -> Result<()> {
    let names: Vec<String> = model.projections().map(|(name, _)| name).collect();
    let known = "use some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
    let targets = "lora.target_modules";
    let wanted = match &config.target_modules {
        TargetModules::Names(targets) => targets.as_slice(),
        _ => &[],
    };
    for target in wanted {
        let single = TargetModules::Names(vec![target.clone()]);
        if !any(&names, |name| single.matches(name))? {
            let problem = format!("`{target}` matches no projection of this model");
            return Err(Error::invalid(targets, problem, format!("{known}, or \"all-linear\"")));
        }
    }
    if !any(&names, |name| config.target_modules.matches(name))? {
        let problem = match &config.target_modules {
            TargetModules::Pattern(pattern) => {
                format!("`{pattern}` matches no projection of this model")
            }
            _ => "is empty".to_string(),
        };
        return Err(Error::invalid(targets, problem, known));
    }
    if !any(&names, |name| Ok(config.at(name)?.is_some()))? {
        return Err(Error::invalid(
            targets,
            "no projection is left: lora.exclude_modules or lora.layers_to_transform leaves out all of them",
            "change one of these keys",
        ));
    }
    check_patterns(&names, config)
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
                format!("lora.{key}"),
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
