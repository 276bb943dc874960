//! Parameter groups: how the learning rate and the weight decay of single parameters differ.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;

use crate::adapter::parameters::{Parameter, Role};
use crate::config::RunConfig;

/// The learning rate and the decay of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Factor on the learning rate.
    pub rate: f64,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// The group of each parameter by name.
#[derive(Clone, Debug, Default)]
pub struct Groups(BTreeMap<String, Group>);

impl Groups {
    /// Creates the groups of parameters by name.
    pub fn new(groups: BTreeMap<String, Group>) -> Self {
        Self(groups)
    }

    /// Returns the groups of a run's trained `parameters`: those of LoRA+ if the run uses it, else those of
    /// transformers' `Trainer`.
    pub fn of<B: Backend>(config: &RunConfig, parameters: &[Parameter<B>]) -> Self {
        let Some(ratio) = config.lora.loraplus_lr_ratio else {
            return Self::default();
        };
        let groups = parameters
            .iter()
            .map(|parameter| (parameter.name.clone(), lora_plus(parameter, ratio)));
        Self(groups.collect())
    }

    /// Returns the group of the parameter `name`; by default that of transformers' `Trainer`, which decays all weights
    /// except those of norms and biases.
    pub fn get(&self, name: &str) -> Group {
        let plain =
            || Group { rate: 1.0, decays: !name.contains("norm.") && !name.contains("bias") };
        self.0.get(name).copied().unwrap_or_else(plain)
    }
}

/// Returns the group of LoRA+ (Hayou et al. 2024, arXiv 2402.12354), as PEFT's `create_loraplus_optimizer`: `lora_b` and
/// every vector have the rate times `ratio`. All weights decay, those of norms too, and biases do not.
fn lora_plus<B: Backend>(parameter: &Parameter<B>, ratio: f64) -> Group {
    let is_fast = parameter.role == Role::LoraB || parameter.is_vector();
    let rate = if is_fast { ratio } else { 1.0 };
    Group { rate, decays: !parameter.name.contains("bias") }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;

    type B = burn_ndarray::NdArray<f32>;

    /// The groups A, B and B without decay of PEFT's `create_loraplus_optimizer`.
    #[test]
    fn groups_of_lora_plus_are_pefts() {
        let parameter = |name: &str, role, shape: &[usize]| Parameter::<B> {
            name: name.to_string(),
            role,
            shape: shape.to_vec(),
            value: Tensor::zeros([shape.iter().product(), 1], &Default::default()),
        };
        let parameters = [
            parameter("q_proj.lora_A.weight", Role::LoraA, &[2, 3]),
            parameter("q_proj.lora_B.weight", Role::LoraB, &[4, 2]),
            parameter("q_proj.lora_B.bias", Role::LoraBias, &[4]),
            parameter("q_proj.lora_magnitude_vector", Role::Magnitude, &[4]),
            parameter("lm_head.weight", Role::Saved, &[5, 3]),
            parameter("model.norm.weight", Role::Saved, &[3]),
        ];
        let mut config = RunConfig::default();
        let groups = |config: &RunConfig| {
            let groups = Groups::of(config, &parameters);
            parameters.each_ref().map(|parameter| {
                let Group { rate, decays } = groups.get(&parameter.name);
                (rate, decays)
            })
        };
        let trainer =
            [(1.0, true), (1.0, true), (1.0, false), (1.0, true), (1.0, true), (1.0, false)];
        assert_eq!(groups(&config), trainer);
        config.lora.loraplus_lr_ratio = Some(16.0);
        let lora_plus =
            [(1.0, true), (16.0, true), (16.0, false), (16.0, true), (1.0, true), (16.0, true)];
        assert_eq!(groups(&config), lora_plus);
    }
}
