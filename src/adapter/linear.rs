//! Attaches low-rank branches to a model's projections, and accesses their weights by name.

use arithmo_backends::TrainBackend;
use burn::module::Param;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::config::{LoraConfig, LoraInit};
use crate::error::{Error, Result};
use crate::model::linear::{Dora, Linear, LowRank, frozen_param};
use crate::model::mistral::Mistral;

/// Name of DoRA's magnitudes in PEFT's files, below the module's name.
pub(super) const MAGNITUDE: &str = "lora_magnitude_vector";

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
        if config.target_modules.matches(&name)? {
            let (d_out, d_in) = linear.dims();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(site as u64);
            let a = initial_a(config, d_in, &mut rng);
            let b = TensorData::new(vec![0f32; d_out * config.r], [d_out, config.r]);
            attach_one(linear, config, site, Branch { a, b, magnitude: None }, device);
        }
    }
    Ok(())
}

/// The weights of one branch on the host, in f32.
#[derive(Clone, Debug)]
pub struct Branch {
    /// `lora_a`, `[r, D_in]`.
    pub a: TensorData,
    /// `lora_b`, `[D_out, r]`.
    pub b: TensorData,
    /// The magnitudes of DoRA, `[D_out]`. `None` without DoRA, and for a new branch, whose magnitudes are the row norms
    /// of `W + scaling * B A`.
    pub magnitude: Option<TensorData>,
}

/// Attaches a branch with the given weights to one projection.
pub(super) fn attach_one<B: TrainBackend>(
    linear: &mut Linear<B>,
    config: &LoraConfig,
    site: usize,
    branch: Branch,
    device: &B::Device,
) {
    let [lora_a, lora_b] = [branch.a, branch.b]
        .map(|data| Param::from_tensor(Tensor::from_data(data.convert::<B::FloatElem>(), device)));
    let mut lora = LowRank {
        lora_a,
        lora_b,
        scaling: config.scaling(),
        dropout: config.lora_dropout,
        site: site as u64,
        dora: None,
        initial: None,
    };
    if config.use_dora {
        let norms = linear.row_norms(&lora);
        let magnitude = match branch.magnitude {
            Some(data) => Tensor::from_data(data.convert::<B::FloatElem>(), device),
            None => norms.clone(),
        };
        lora.dora =
            Some(Dora { magnitude: Param::from_tensor(magnitude), norms: frozen_param(norms) });
    }
    linear.lora = Some(lora);
}

/// Returns the trainable tensors in a fixed order, with PEFT's names below `base_model.model.`
/// (`model.layers.0.self_attn.q_proj.lora_A.weight`): `lora_a` `[r, D_in]`, then `lora_b` `[D_out, r]`, then the
/// magnitudes of DoRA as `[1, D_out]`.
pub fn adapter_parameters<B: TrainBackend>(model: &Mistral<B>) -> Vec<(String, Tensor<B, 2>)> {
    let with_branch = model
        .projections()
        .filter_map(|(name, linear)| linear.lora.as_ref().map(|lora| (name, lora)));
    with_branch
        .flat_map(|(name, lora)| {
            let magnitude = lora
                .dora
                .as_ref()
                .map(|dora| (format!("{name}.{MAGNITUDE}"), dora.magnitude.val().unsqueeze::<2>()));
            let matrices = [
                (format!("{name}.lora_A.weight"), lora.lora_a.val()),
                (format!("{name}.lora_B.weight"), lora.lora_b.val()),
            ];
            matrices.into_iter().chain(magnitude)
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
    for (_, linear) in model.projections_mut() {
        if let Some(lora) = &mut linear.lora {
            replace(&mut lora.lora_a, &mut values);
            replace(&mut lora.lora_b, &mut values);
            if let Some(dora) = &mut lora.dora {
                replace(&mut dora.magnitude, &mut values);
            }
        }
        linear.update_norms();
    }
}

/// Replaces a trainable tensor by the next of `values`, which is a matrix of as many values.
fn replace<B, const D: usize>(
    param: &mut Param<Tensor<B, D>>,
    values: &mut impl Iterator<Item = Tensor<B::InnerBackend, 2>>,
) where
    B: TrainBackend + AutodiffBackend,
{
    let value = values.next();
    assert!(value.is_some(), "set_adapter_parameters: too few values");
    if let Some(value) = value {
        let old = param.val().dims();
        let same = value.dims().into_iter().rev().take(D).rev().eq(old);
        assert!(same, "set_adapter_parameters: shape of {}", param.id);
        let value = Tensor::<B, D>::from_inner(value.reshape(old));
        *param = Param::initialized(param.id, value.require_grad());
    }
}

/// Returns the number of trainable weights.
pub fn trainable<B: TrainBackend>(model: &Mistral<B>) -> usize {
    adapter_parameters(model).iter().map(|(_, tensor)| tensor.shape().num_elements()).sum()
}

/// Draws the initial `lora_a` `[r, D_in]`.
fn initial_a(config: &LoraConfig, d_in: usize, rng: &mut ChaCha8Rng) -> TensorData {
    let mut uniform = || (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0;
    let bound = 1.0 / (d_in as f64).sqrt();
    let deviation = 1.0 / config.r as f64;
    let values = (0..config.r * d_in).map(|_| match config.init {
        LoraInit::Gaussian => {
            let radius = (-2.0 * uniform().ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform()).cos() * deviation) as f32
        }
        _ => ((uniform() * 2.0 - 1.0) * bound) as f32,
    });
    TensorData::new(values.collect::<Vec<_>>(), [config.r, d_in])
}

/// Checks that there are targets, and that each of them matches a projection of the model.
fn check_targets<B: TrainBackend>(model: &Mistral<B>, config: &LoraConfig) -> Result<()> {
    use super::config::TargetModules::{AllLinear, Names, Pattern};
    let single = |name: &String| Names(vec![name.clone()]);
    let wanted = match &config.target_modules {
        Names(names) => names.iter().map(single).collect(),
        other => vec![other.clone()],
    };
    for target in &wanted {
        let mut hits = 0;
        for (name, _) in model.projections() {
            hits += usize::from(target.matches(&name)?);
        }
        let shown = match target {
            AllLinear => "all-linear".to_string(),
            Names(names) => names.join(", "),
            Pattern(pattern) => pattern.clone(),
        };
        if hits == 0 {
            return Err(Error::invalid(
                "lora.target_modules",
                format!("`{shown}` matches no projection of this model"),
                "use some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or \"all-linear\"",
            ));
        }
    }
    if wanted.is_empty() {
        return Err(Error::invalid("lora.target_modules", "is empty", "name at least one module"));
    }
    Ok(())
}
