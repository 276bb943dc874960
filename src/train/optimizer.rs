//! AdamW with torch's arithmetic, and gradient clipping by the global norm, for a list of named matrices.
//!
//! Burn 0.21's `AdamW` is not used because the state must be saved and restored bit for bit by name, and because it
//! computes `1 - beta^t` in f32, which makes the first steps with `beta2 = 0.999` wrong by more than 1e-5 of their size.

use std::collections::BTreeMap;

use arithmo_backends::{AdamWFactors, AdamWTensor, TrainBackend};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use crate::config::TrainSection;
use crate::error::{Error, Result};
use crate::train::checkpoint::NamedTensors;

/// Hyperparameters of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// Term added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay: each step first multiplies a parameter by `1 - lr * weight_decay`. The weights of norms are
    /// not decayed, as in transformers' `Trainer`.
    pub weight_decay: f64,
}

impl AdamWConfig {
    /// Computes the factors of step `step` (from 1) for the parameter `name` at learning rate `lr`.
    fn factors(&self, lr: f64, step: u64, name: &str) -> AdamWFactors {
        let weight_decay = if name.contains("norm.") { 0.0 } else { self.weight_decay };
        AdamWFactors {
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            shrink: 1.0 - lr * weight_decay,
            step_size: lr / (1.0 - self.beta1.powf(step as f64)),
            root_correction: (1.0 - self.beta2.powf(step as f64)).sqrt(),
        }
    }
}

impl From<&TrainSection> for AdamWConfig {
    fn from(train: &TrainSection) -> Self {
        Self {
            beta1: train.adam_beta1,
            beta2: train.adam_beta2,
            epsilon: train.adam_epsilon,
            weight_decay: train.weight_decay,
        }
    }
}

/// A parameter and its gradient, the input of [`AdamW::step`].
#[derive(Clone, Debug)]
pub struct NamedUpdate<B: Backend> {
    /// Name of the parameter, under which its moments are kept.
    pub name: String,
    /// Parameter, `[rows, columns]`.
    pub param: Tensor<B, 2>,
    /// Clipped gradient of the same shape and type.
    pub grad: Tensor<B, 2>,
}

/// Optimizer state of one parameter.
#[derive(Clone, Debug)]
struct Moments<B: Backend> {
    /// Number of steps that updated this parameter.
    step: u64,
    /// Running mean of the gradient.
    exp_avg: Tensor<B, 2>,
    /// Running mean of the squared gradient.
    exp_avg_sq: Tensor<B, 2>,
}

/// AdamW with torch's order of operations ([`arithmo_backends::ops::adamw`]). `B` is the inner backend, without autodiff. A
/// step transfers nothing from the device.
#[derive(Clone, Debug)]
pub struct AdamW<B: Backend> {
    config: AdamWConfig,
    state: BTreeMap<String, Moments<B>>,
}

impl<B: TrainBackend> AdamW<B> {
    /// Creates an optimizer without state.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, state: BTreeMap::new() }
    }

    /// Runs one step at learning rate `lr`. Returns the new parameters in the order of `updates`.
    pub fn step(&mut self, lr: f64, updates: Vec<NamedUpdate<B>>) -> Vec<Tensor<B, 2>> {
        let mut steps = Vec::with_capacity(updates.len());
        let mut tensors = Vec::with_capacity(updates.len());
        for NamedUpdate { name, param, grad } in updates {
            let moments = self.state.remove(&name).unwrap_or_else(|| Moments {
                step: 0,
                exp_avg: grad.zeros_like(),
                exp_avg_sq: grad.zeros_like(),
            });
            let step = moments.step + 1;
            tensors.push(AdamWTensor {
                param,
                grad,
                exp_avg: moments.exp_avg,
                exp_avg_sq: moments.exp_avg_sq,
                factors: self.config.factors(lr, step, &name),
            });
            steps.push((name, step));
        }
        let updates = B::adamw(tensors).into_iter().zip(steps);
        let updates = updates.map(|(update, (name, step))| {
            let moments = Moments { step, exp_avg: update.exp_avg, exp_avg_sq: update.exp_avg_sq };
            self.state.insert(name, moments);
            update.param
        });
        updates.collect()
    }

    /// Returns the state: `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step` (one i64) per parameter, sorted by name.
    pub fn export(&self) -> NamedTensors {
        let mut tensors = Vec::with_capacity(3 * self.state.len());
        for (name, moments) in &self.state {
            let step = TensorData::new(vec![moments.step as i64], [1]);
            tensors.push((format!("{name}.exp_avg"), moments.exp_avg.to_data()));
            tensors.push((format!("{name}.exp_avg_sq"), moments.exp_avg_sq.to_data()));
            tensors.push((format!("{name}.step"), step));
        }
        tensors
    }

    /// Restores the optimizer from the `tensors` that [`AdamW::export`] returned, bit for bit.
    ///
    /// # Errors
    /// A tensor is missing, unknown, or of the wrong shape or type.
    pub fn import(config: AdamWConfig, tensors: NamedTensors, device: &B::Device) -> Result<Self> {
        let mut tensors: BTreeMap<String, TensorData> = tensors.into_iter().collect();
        let names: Vec<String> = tensors
            .keys()
            .filter_map(|key| key.strip_suffix(".step").map(str::to_string))
            .collect();
        let mut state = BTreeMap::new();
        for name in names {
            let step = take(&mut tensors, &format!("{name}.step"))?;
            let step = step_count(&name, &step)?;
            let exp_avg = matrix(&mut tensors, &format!("{name}.exp_avg"), device)?;
            let exp_avg_sq = matrix(&mut tensors, &format!("{name}.exp_avg_sq"), device)?;
            if exp_avg.dims() != exp_avg_sq.dims() {
                return Err(wrong_state(&name, "its two moments differ in shape"));
            }
            let moments = Moments { step, exp_avg, exp_avg_sq };
            state.insert(name, moments);
        }
        match tensors.keys().next() {
            Some(key) => Err(wrong_state(key, "is not part of an optimizer state")),
            None => Ok(Self { config, state }),
        }
    }
}

/// Returns the error for an invalid tensor of the optimizer state.
fn wrong_state(name: &str, problem: &str) -> Error {
    let remedy = "resume from another checkpoint, or start again with --overwrite";
    Error::invalid(format!("optimizer state: {name}"), problem, remedy)
}

fn take(tensors: &mut BTreeMap<String, TensorData>, key: &str) -> Result<TensorData> {
    tensors.remove(key).ok_or_else(|| wrong_state(key, "is missing"))
}

/// Reads the step count of a parameter.
fn step_count(name: &str, data: &TensorData) -> Result<u64> {
    match data.as_slice::<i64>() {
        Ok([step]) if *step >= 1 => Ok(step.unsigned_abs()),
        _ => Err(wrong_state(name, "its step is not a positive number")),
    }
}

/// Takes a matrix of floats out of `tensors` and moves it to the device.
fn matrix<B: Backend>(
    tensors: &mut BTreeMap<String, TensorData>,
    key: &str,
    device: &B::Device,
) -> Result<Tensor<B, 2>> {
    let data = take(tensors, key)?;
    if data.shape.len() != 2 || !matches!(data.dtype, DType::F32 | DType::F64) {
        return Err(wrong_state(key, "is not a matrix of floats"));
    }
    let dtype = data.dtype;
    Ok(Tensor::from_data(data, (device, dtype)))
}

/// Computes the L2 norm of all gradients as one vector, `[1]`: the norm of their norms, like torch's `clip_grad_norm_`.
/// Returns zero if there are no gradients.
pub fn global_norm<B: Backend>(grads: &[Tensor<B, 2>]) -> Tensor<B, 1> {
    let squares: Vec<Tensor<B, 1>> = grads.iter().map(|grad| grad.clone().square().sum()).collect();
    if squares.is_empty() {
        Tensor::zeros([1], &B::Device::default())
    } else {
        Tensor::cat(squares, 0).sum().sqrt()
    }
}

/// Computes `min(1, max_norm / (norm + 1e-6))`, `[1]`, by which torch multiplies every gradient.
fn clip_coefficient<B: Backend>(norm: Tensor<B, 1>, max_norm: f64) -> Tensor<B, 1> {
    norm.add_scalar(1e-6).recip().mul_scalar(max_norm).clamp_max(1.0)
}

/// Scales `grads` so that their global norm is at most `max_norm`. They are unchanged if `max_norm` is 0. Returns them and
/// the norm before clipping.
///
/// A norm that is not finite is not detected here, because that would need a device sync. The caller must check the norm
/// before it applies the gradients.
pub fn clip_by_global_norm<B: Backend>(
    grads: Vec<Tensor<B, 2>>,
    max_norm: f64,
) -> (Vec<Tensor<B, 2>>, Tensor<B, 1>) {
    let norm = global_norm(&grads);
    if max_norm <= 0.0 {
        return (grads, norm);
    }
    let coefficient = clip_coefficient(norm.clone(), max_norm).unsqueeze::<2>();
    let grads = grads.into_iter().map(|grad| grad * coefficient.clone()).collect();
    (grads, norm)
}
