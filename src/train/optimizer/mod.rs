//! Optimizers with the arithmetic of torch and bitsandbytes for a list of named matrices. Each [`UpdateRule`] has a file;
//! [`Optimizer`] keeps the state of every parameter under its name.
//!
//! Burn 0.21's optimizers are not used because the state must be saved and restored bit for bit by name, and because its
//! `AdamW` computes `1 - beta^t` in f32, which makes the first steps with `beta2 = 0.999` wrong by more than 1e-5 of their
//! size.

mod adafactor;
mod adagrad;
mod adamw;
mod ademamix;
mod args;
mod clip;
pub mod eight_bit;
mod groups;
mod lion;
mod rmsprop;
mod rule;
mod sgd;
mod state;

use std::collections::BTreeMap;

use arithmo_backends::TrainBackend;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::adapter::parameters::Parameter;
use crate::config::RunConfig;
use crate::error::Result;
use crate::train::checkpoint::NamedTensors;

use self::eight_bit::{Blocks, MIN_VALUES, PARTS};
use self::state::{ParameterState, StateMatrix, state_matrix, step_count, take, wrong_state};

pub use adafactor::Adafactor;
pub use adagrad::Adagrad;
pub use adamw::AdamW;
pub use ademamix::AdEmaMix;
pub use clip::{clip_by_global_norm, global_norm};
pub use groups::{Group, Groups};
pub use lion::Lion;
pub use rmsprop::RmsProp;
pub use rule::Rule;
pub use sgd::Sgd;

/// How an optimizer changes parameters.
pub trait UpdateRule {
    /// Returns the names of the matrices that the rule keeps for each parameter, under torch's names.
    fn state_names(&self) -> &'static [&'static str];

    /// Returns the shapes of the matrices that the rule keeps for a parameter of shape `dims`.
    fn state_dims(&self, dims: [usize; 2]) -> Vec<[usize; 2]> {
        vec![dims; self.state_names().len()]
    }

    /// Runs one step at learning rate `lr`. Returns the new parameters and states, in the order of `updates`. Nothing is
    /// transferred from the device.
    fn step<B: TrainBackend>(&self, lr: f64, updates: Vec<Update<B>>) -> Vec<Updated<B>>;
}

/// One parameter of a step.
#[derive(Clone, Debug)]
pub struct Update<B: Backend> {
    /// Parameter, `[rows, columns]`.
    pub param: Tensor<B, 2>,
    /// Clipped gradient of the same shape and type.
    pub grad: Tensor<B, 2>,
    /// The matrices of [`UpdateRule::state_names`]; zeros in the first step.
    pub state: Vec<Tensor<B, 2>>,
    /// The number of this step for the parameter, from 1.
    pub step: u64,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// The result of a step for one parameter.
#[derive(Clone, Debug)]
pub struct Updated<B: Backend> {
    /// The new parameter.
    pub param: Tensor<B, 2>,
    /// The new matrices of [`UpdateRule::state_names`].
    pub state: Vec<Tensor<B, 2>>,
}

/// A parameter and its gradient, the input of [`Optimizer::step`].
#[derive(Clone, Debug)]
pub struct NamedUpdate<B: Backend> {
    /// Name of the parameter, under which its state is kept.
    pub name: String,
    /// Parameter, `[rows, columns]`.
    pub param: Tensor<B, 2>,
    /// Clipped gradient of the same shape and type.
    pub grad: Tensor<B, 2>,
}

/// An update rule and the state of every parameter. `B` is the inner backend, without autodiff.
#[derive(Clone, Debug)]
pub struct Optimizer<B: Backend> {
    rule: Rule,
    /// Whether the state of large matrices is kept in 8 bits.
    eight_bit: bool,
    groups: Groups,
    state: BTreeMap<String, ParameterState<B>>,
}

impl<B: TrainBackend> Optimizer<B> {
    /// Creates an optimizer without state.
    pub fn new(rule: impl Into<Rule>) -> Self {
        Self {
            rule: rule.into(),
            eight_bit: false,
            groups: Groups::default(),
            state: BTreeMap::new(),
        }
    }

    /// Creates the optimizer of a run, without state and groups.
    ///
    /// # Errors
    /// Same as [`Rule::of_run`].
    pub fn of(config: &RunConfig) -> Result<Self> {
        let eight_bit = config.train.optim.is_eight_bit();
        Ok(Self { eight_bit, ..Self::new(Rule::of_run(config)?) })
    }

    /// Sets the group of each parameter.
    pub fn with_groups(self, groups: Groups) -> Self {
        Self { groups, ..self }
    }

    /// Returns the group of each parameter.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Runs one step at learning rate `lr`. Returns the new parameters in the order of `updates`. With state in 8 bits, the
    /// parameters are updated one after the other, so that the state of only one of them is in floats at a time.
    pub fn step(&mut self, lr: f64, updates: Vec<NamedUpdate<B>>) -> Vec<Tensor<B, 2>> {
        // The parameters of one rate are updated together. Positive numbers sort like their bits.
        let mut by_rate: BTreeMap<u64, Vec<(usize, bool, NamedUpdate<B>)>> = BTreeMap::new();
        for (index, update) in updates.into_iter().enumerate() {
            let Group { rate, decays } = self.groups.get(&update.name);
            by_rate.entry(rate.to_bits()).or_default().push((index, decays, update));
        }
        let mut params = Vec::new();
        for (rate, updates) in by_rate {
            let lr = lr * f64::from_bits(rate);
            if self.eight_bit {
                let one_by_one = updates.into_iter();
                params.extend(one_by_one.flat_map(|update| self.step_together(lr, vec![update])));
            } else {
                params.extend(self.step_together(lr, updates));
            }
        }
        params.sort_by_key(|(index, _)| *index);
        params.into_iter().map(|(_, param)| param).collect()
    }

    /// Runs one step for parameters with one learning rate. Each comes with its index and whether it decays. Returns the
    /// index and the new value of each.
    fn step_together(
        &mut self,
        lr: f64,
        updates: Vec<(usize, bool, NamedUpdate<B>)>,
    ) -> Vec<(usize, Tensor<B, 2>)> {
        let names = self.rule.state_names();
        let mut steps = Vec::with_capacity(updates.len());
        let mut tensors = Vec::with_capacity(updates.len());
        for (index, decays, NamedUpdate { name, param, grad }) in updates {
            let (step, state) = match self.state.remove(&name) {
                Some(ParameterState { step, matrices }) => {
                    (step + 1, matrices.iter().map(|matrix| matrix.floats(grad.dtype())).collect())
                }
                None => {
                    let options = (&grad.device(), grad.dtype());
                    let dims = self.rule.state_dims(grad.dims()).into_iter();
                    (1, dims.map(|dims| Tensor::zeros(dims, options)).collect())
                }
            };
            tensors.push(Update { param, grad, state, step, decays });
            steps.push((index, name, step));
        }
        let updates = self.rule.step(lr, tensors).into_iter().zip(steps);
        let updates = updates.map(|(updated, (index, name, step))| {
            let matrices = names.iter().zip(updated.state).map(|(kind, matrix)| {
                let [rows, columns] = matrix.dims();
                if self.eight_bit && rows * columns >= MIN_VALUES {
                    StateMatrix::EightBit(Blocks::new(kind, matrix))
                } else {
                    StateMatrix::Float(matrix)
                }
            });
            self.state.insert(name, ParameterState { step, matrices: matrices.collect() });
            (index, updated.param)
        });
        updates.collect()
    }

    /// Returns the state, sorted by name: for each parameter one matrix `NAME.STATE` for each of
    /// [`UpdateRule::state_names`], and `NAME.step` (one i64). A matrix in 8 bits is `NAME.STATE.words` and
    /// `NAME.STATE.absmax` (see [`Blocks`]).
    pub fn export(&self) -> NamedTensors {
        let mut tensors = Vec::new();
        for (name, state) in &self.state {
            for (kind, matrix) in self.rule.state_names().iter().zip(&state.matrices) {
                let name = format!("{name}.{kind}");
                match matrix {
                    StateMatrix::Float(tensor) => tensors.push((name, tensor.to_data())),
                    StateMatrix::EightBit(blocks) => {
                        let data = [blocks.words.to_data(), blocks.absmax.to_data()];
                        let parts = PARTS.into_iter().zip(data);
                        tensors.extend(parts.map(|(part, data)| (format!("{name}.{part}"), data)));
                    }
                }
            }
            let step = TensorData::new(vec![state.step as i64], [1]);
            tensors.push((format!("{name}.step"), step));
        }
        tensors
    }

    /// Restores the state of the parameters `like` from the `tensors` that [`Optimizer::export`] returned, bit for bit.
    ///
    /// # Errors
    /// A tensor is missing, unknown, or of the wrong shape or type.
    pub fn restored(
        mut self,
        tensors: NamedTensors,
        like: &[Parameter<B>],
        device: &B::Device,
    ) -> Result<Self> {
        let mut tensors: BTreeMap<String, TensorData> = tensors.into_iter().collect();
        self.state.clear();
        for Parameter { name, value: param, .. } in like {
            let step = take(&mut tensors, &format!("{name}.step"))?;
            let step = step_count(name, &step)?;
            let kinds = self.rule.state_names().iter().zip(self.rule.state_dims(param.dims()));
            let matrices =
                kinds.map(|(kind, dims)| state_matrix(&mut tensors, (name, kind), dims, device));
            let matrices = matrices.collect::<Result<_>>()?;
            self.state.insert(name.clone(), ParameterState { step, matrices });
        }
        match tensors.keys().next() {
            Some(key) => Err(wrong_state(key, "is not part of an optimizer state")),
            None => Ok(self),
        }
    }
}

/// Returns `grad + weight_decay * param`, the gradient with L2 regularization.
fn regularized<B: Backend>(update: &Update<B>, weight_decay: f64) -> Tensor<B, 2> {
    if weight_decay == 0.0 || !update.decays {
        return update.grad.clone();
    }
    update.grad.clone() + update.param.clone() * weight_decay
}

/// Returns the factor of decoupled weight decay, by which a parameter is multiplied first: `1 - lr * weight_decay`.
fn shrink(lr: f64, weight_decay: f64, decays: bool) -> f64 {
    if decays { 1.0 - lr * weight_decay } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;

    /// Every parameter gets the rate of its group, and the results keep their order.
    #[test]
    fn each_group_has_its_rate() {
        type B = burn_ndarray::NdArray<f64>;
        let one = |value: f64| {
            let data = TensorData::new(vec![value], [1, 1]);
            Tensor::<B, 2>::from_data(data, (&Default::default(), DType::F64))
        };
        let decay = 0.5;
        let rule = Sgd { momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: decay };
        let names = ["b", "a", "c"];
        let group = |rate, decays| Group { rate, decays };
        let groups = [group(4.0, true), group(1.0, true), group(4.0, false)];
        let groups = names.map(String::from).into_iter().zip(groups).collect();
        let mut optimizer = Optimizer::new(Rule::Sgd(rule)).with_groups(Groups::new(groups));
        let update =
            |name: &str| NamedUpdate { name: name.into(), param: one(2.0), grad: one(3.0) };
        let stepped = optimizer.step(0.1, names.map(update).to_vec());
        let stepped: Vec<f64> = Tensor::cat(stepped, 0).into_data().iter::<f64>().collect();
        let expected =
            [2.0 - 0.4 * (3.0 + decay * 2.0), 2.0 - 0.1 * (3.0 + decay * 2.0), 2.0 - 0.4 * 3.0];
        for (ours, expected) in stepped.into_iter().zip(expected) {
            assert!((ours - expected).abs() < 1e-12, "{ours} {expected}");
        }
    }

    /// Two steps of every rule with every state, computed by hand for a parameter of 2 with the gradients 1 and 3.
    #[test]
    fn steps_equal_the_formulas() {
        type B = burn_ndarray::NdArray<f64>;
        let steps = |rule: Rule| {
            let mut optimizer = Optimizer::<B>::new(rule);
            let tensor = |value: f64| {
                let data = TensorData::new(vec![value], [1, 1]);
                Tensor::from_data(data, (&Default::default(), DType::F64))
            };
            let mut param = tensor(2.0);
            for grad in [1.0, 3.0] {
                let update = NamedUpdate { name: "w".into(), param, grad: tensor(grad) };
                param = optimizer.step(0.1, vec![update]).remove(0);
            }
            param.into_data().iter::<f64>().next().unwrap()
        };
        let near = |ours: f64, expected: f64| {
            assert!((ours - expected).abs() < 1e-12, "{ours} {expected}")
        };
        let sgd = Sgd { momentum: 0.5, dampening: 0.2, nesterov: false, weight_decay: 0.0 };
        // Buffers 1 and 0.5 + 0.8 * 3.
        near(steps(Rule::Sgd(sgd)), 2.0 - 0.1 * 1.0 - 0.1 * 2.9);
        let rmsprop =
            RmsProp { alpha: 0.5, epsilon: 1.0, momentum: 0.5, centered: true, weight_decay: 0.0 };
        // Squares 0.5 and 4.75, means 0.5 and 1.75.
        let first = 1.0 / (0.25f64.sqrt() + 1.0);
        let second = 0.5 * first + 3.0 / ((4.75f64 - 1.75 * 1.75).sqrt() + 1.0);
        near(steps(Rule::RmsProp(rmsprop)), 2.0 - 0.1 * first - 0.1 * second);
        let lion = Lion { beta1: 0.9, beta2: 0.5, weight_decay: 0.5 };
        near(steps(Rule::Lion(lion)), (2.0 * 0.95 - 0.1) * 0.95 - 0.1);
        let decayed = Sgd { momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.5 };
        let after_first = 2.0 - 0.1 * (1.0 + 0.5 * 2.0);
        near(steps(Rule::Sgd(decayed)), after_first - 0.1 * (3.0 + 0.5 * after_first));
    }
}
