//! Stub until the real one arrives.
use burn::tensor::{Tensor, backend::Backend};
use std::collections::BTreeMap;
/// x
#[derive(Clone, Copy, Debug)]
pub struct AdamWConfig {
    /// x
    pub beta1: f64,
    /// x
    pub beta2: f64,
    /// x
    pub epsilon: f64,
    /// x
    pub weight_decay: f64,
}
/// x
#[derive(Debug)]
pub struct AdamW<B: Backend> {
    config: AdamWConfig,
    step: i32,
    state: BTreeMap<String, (Tensor<B, 2>, Tensor<B, 2>)>,
}
impl<B: Backend> AdamW<B> {
    /// x
    pub fn new(config: AdamWConfig) -> Self {
        Self {
            config,
            step: 0,
            state: BTreeMap::new(),
        }
    }
    /// x
    pub fn step(
        &mut self,
        lr: f64,
        params: Vec<(String, Tensor<B, 2>, Tensor<B, 2>)>,
    ) -> Vec<Tensor<B, 2>> {
        self.step += 1;
        let AdamWConfig {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        } = self.config;
        let c1 = 1.0 - beta1.powi(self.step);
        let c2 = (1.0 - beta2.powi(self.step)).sqrt();
        params
            .into_iter()
            .map(|(name, p, g)| {
                let (m, v) = self
                    .state
                    .remove(&name)
                    .unwrap_or_else(|| (g.zeros_like(), g.zeros_like()));
                let m = m * beta1 + g.clone() * (1.0 - beta1);
                let v = v * beta2 + g.square() * (1.0 - beta2);
                self.state.insert(name, (m.clone(), v.clone()));
                let denom = v.sqrt() / c2 + epsilon;
                p * (1.0 - lr * weight_decay) - m / denom * (lr / c1)
            })
            .collect()
    }
}
/// x
pub fn global_norm<B: Backend>(grads: &[Tensor<B, 2>]) -> Tensor<B, 1> {
    let sums = grads.iter().map(|g| g.clone().square().sum()).collect();
    Tensor::cat(sums, 0).sum().sqrt()
}
/// x
pub fn clip_coefficient<B: Backend>(norm: Tensor<B, 1>, max: f64) -> Tensor<B, 1> {
    (norm + 1e-6).recip().mul_scalar(max).clamp_max(1.0)
}
