//! AdamW as torch computes it, and clipping by the global norm, over a list of named matrices.
//!
//! Our own because the state must be written and read back bit for bit by name, and because Burn 0.21's `AdamW` takes
//! `1 - beta^t` in f32, where the first steps of `beta2 = 0.999` are off by more than 1e-5 of their size.

use std::collections::BTreeMap;

use arithmo_backends::{AdamWFactors, AdamWTensor, TrainBackend};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use crate::config::TrainSection;
use crate::error::{Error, Result};
use crate::train::checkpoint::NamedTensors;

/// The numbers of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay: each step first multiplies a parameter by `1 - lr * weight_decay`; not the weights of
    /// norms, as in transformers' `Trainer`.
    pub weight_decay: f64,
}

impl AdamWConfig {
    /// The numbers of step `step`, from 1, of the parameter `name` at learning rate `lr`.
    fn factors(&self, lr: f64, step: u64, name: &str) -> AdamWFactors {
        let weight_decay = match name.contains("norm.") {
            true => 0.0,
            false => self.weight_decay,
        };
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

/// A parameter on its way through [`AdamW::step`].
#[derive(Clone, Debug)]
pub struct NamedUpdate<B: Backend> {
    /// The name its moments are kept under.
    pub name: String,
    /// The parameter, `[rows, columns]`.
    pub param: Tensor<B, 2>,
    /// Its gradient, same shape and type, clipped already.
    pub grad: Tensor<B, 2>,
}

/// What is remembered of one parameter.
#[derive(Clone, Debug)]
struct Moments<B: Backend> {
    /// Steps this parameter has taken.
    step: u64,
    /// Running mean of the gradient.
    exp_avg: Tensor<B, 2>,
    /// Running mean of its square.
    exp_avg_sq: Tensor<B, 2>,
}

/// AdamW with torch's order of operations ([`arithmo_backends::ops::adamw`]); `B` is the inner backend, without autodiff,
/// and nothing leaves the device in a step.
#[derive(Clone, Debug)]
pub struct AdamW<B: Backend> {
    config: AdamWConfig,
    state: BTreeMap<String, Moments<B>>,
}

impl<B: TrainBackend> AdamW<B> {
    /// An optimizer that has seen nothing.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, state: BTreeMap::new() }
    }

    /// One step at learning rate `lr`; gives the new parameters in the order of `updates`.
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

    /// The state: per parameter `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step` (one i64), sorted by name.
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

    /// The optimizer whose [`AdamW::export`] gave `tensors`, bit for bit.
    ///
    /// # Errors
    /// A tensor is missing, left over, or of the wrong shape or type.
    pub fn import(config: AdamWConfig, tensors: NamedTensors, device: &B::Device) -> Result<Self> {
        let mut tensors: BTreeMap<String, TensorData> = tensors.into_iter().collect();
        let names: Vec<String> = tensors
            .keys()
            .filter_map(|key| key.strip_suffix(".step").map(str::to_string))
            .collect();
        let mut state = BTreeMap::new();
        for name in names {
            let step = take(&mut tensors, &format!("{name}.step"))?;
            let step = one_step(&name, &step)?;
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

fn wrong_state(name: &str, problem: &str) -> Error {
    let remedy = "resume from another checkpoint, or start again with --overwrite";
    Error::invalid(format!("optimizer state: {name}"), problem, remedy)
}

fn take(tensors: &mut BTreeMap<String, TensorData>, key: &str) -> Result<TensorData> {
    tensors.remove(key).ok_or_else(|| wrong_state(key, "is missing"))
}

fn one_step(name: &str, data: &TensorData) -> Result<u64> {
    match data.as_slice::<i64>() {
        Ok([step]) if *step >= 1 => Ok(step.unsigned_abs()),
        _ => Err(wrong_state(name, "its step is not a positive number")),
    }
}

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

/// The L2 norm of all gradients taken as one vector, `[1]`, before clipping: the norm of their norms, as torch's
/// `clip_grad_norm_` computes it. Zero for no gradients.
pub fn global_norm<B: Backend>(grads: &[Tensor<B, 2>]) -> Tensor<B, 1> {
    let squares: Vec<Tensor<B, 1>> = grads.iter().map(|grad| grad.clone().square().sum()).collect();
    match squares.is_empty() {
        true => Tensor::zeros([1], &B::Device::default()),
        false => Tensor::cat(squares, 0).sum().sqrt(),
    }
}

/// `min(1, max_norm / (norm + 1e-6))`, `[1]`: what torch multiplies every gradient with.
fn clip_coefficient<B: Backend>(norm: Tensor<B, 1>, max_norm: f64) -> Tensor<B, 1> {
    norm.add_scalar(1e-6).recip().mul_scalar(max_norm).clamp_max(1.0)
}

/// Scales `grads` so that their global norm is at most `max_norm` (0: left as they are), and gives the norm before it.
///
/// A norm that is not finite is not caught here, where it would cost a device sync: whoever reads the norm must stop.
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
