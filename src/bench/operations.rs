//! Times each operation of a step alone, at the shapes that it has in the step.
//!
//! An operation alone has the whole device and overlaps with no other, so the sum is close to the
//! time of a step but not equal to it.

use arithmo_backends::{Adapter, LogProbStats, Projection, Rotation, TrainBackend};
use burn::module::AutodiffModule;
use burn::tensor::{Distribution, Tensor, TensorData};
use serde_json::{Value, json};

use super::step::{Run, Setup};
use crate::adapter::lora::adapter_parameters;
use crate::data::batch::PackedBatch;
use crate::doctor::speed::median_seconds;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::linear::Linear;
use crate::objective::log_probs::DeviceBatch;
use crate::objective::pass::{mean_weights, passes};
use crate::train::optimizer::{AdamW, NamedUpdate, Optimizer, clip_by_global_norm};

/// Seconds that a step spends in each class of operations.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OperationTimes {
    /// Frozen weights and their LoRA branches.
    projections: f64,
    attention: f64,
    /// Norms, rotations and gates.
    elementwise: f64,
    /// Log-probabilities.
    head: f64,
    /// Clipping and AdamW.
    optimizer: f64,
}

impl OperationTimes {
    /// Returns the classes with their names.
    fn named(&self) -> [(&'static str, f64); 5] {
        [
            ("projections", self.projections),
            ("attention", self.attention),
            ("elementwise", self.elementwise),
            ("head", self.head),
            ("optimizer", self.optimizer),
        ]
    }

    /// Returns the sum of all classes.
    fn sum(&self) -> f64 {
        self.named().iter().map(|(_, seconds)| seconds).sum()
    }

    /// Returns the header of the table.
    pub(super) fn header() -> String {
        let names = Self::default().named();
        let names = names.map(|(name, _)| format!("{name:>20}")).concat();
        format!("{:>7}{names}{:>12}{:>10}", "tokens", "together", "step")
    }

    /// Returns the times of a run as a line of the table.
    pub(super) fn line(&self, run: &Run) -> String {
        let sum = self.sum();
        let parts = self.named().map(|(_, seconds)| {
            let share = 100.0 * seconds / sum;
            format!("{:>12.1} ({share:>3.0} %)", seconds * 1e3)
        });
        let (sum, step) = (sum * 1e3, run.seconds * 1e3);
        format!("{:>7}{}{sum:>12.1}{step:>10.1}", run.tokens, parts.concat())
    }

    /// Returns the times as a JSON object.
    pub(super) fn json(&self) -> Value {
        let named = self.named().into_iter();
        named.map(|(name, seconds)| (name.to_string(), json!(seconds))).collect()
    }
}

/// Times the operations of the first pass of a step; the other passes are estimated from their
/// tokens.
///
/// # Errors
/// The device fails, or the user interrupts.
pub(super) fn time_operations<B: TrainBackend>(
    setup: &Setup<B>,
    run: &Run,
    device: &B::Device,
) -> Result<OperationTimes> {
    let step = [run.pairs.iter().collect::<Vec<_>>()];
    let passes = passes(&step, &mean_weights(&step), B::pass_tokens());
    let Some(first) = passes.first() else {
        return Ok(OperationTimes::default());
    };
    let (batch, model) = (PackedBatch::new(&first.pairs), setup.learner.policy.valid());
    let table = model.position_table(setup.config.max_position_embeddings, device);
    let pass = Pass {
        batch: DeviceBatch::new(&batch, &table, device),
        host: &batch,
        model: &model,
        setup,
        device,
        reference: if run.precomputed { 0.0 } else { 1.0 },
        policy: 1.0 + run.recomputed,
    };
    let passes = run.tokens as f64 / batch.tokens.length as f64;
    Ok(OperationTimes {
        projections: passes * pass.projections()?,
        attention: passes * pass.attention()?,
        elementwise: passes * pass.elementwise()?,
        head: passes * pass.head()?,
        optimizer: pass.optimizer()?,
    })
}

/// One forward and backward pass over all layers.
struct Pass<'a, B: TrainBackend> {
    batch: DeviceBatch<B>,
    host: &'a PackedBatch,
    model: &'a Decoder<B>,
    setup: &'a Setup<B>,
    device: &'a B::Device,
    /// Forward passes of the reference.
    reference: f64,
    /// Forward passes of the policy, including the fraction of layers that is recomputed.
    policy: f64,
}

impl<B: TrainBackend> Pass<'_, B> {
    /// Returns the number of tokens in the pass.
    fn tokens(&self) -> usize {
        self.host.tokens.length
    }

    /// Returns how often the operations of a layer occur: those computed for all tokens, and those
    /// that the last layer computes only for predicting tokens.
    fn layers(&self) -> [f64; 2] {
        let layers = self.model.layers.len() as f64;
        let predicting = self.host.queries.len() as f64 / self.tokens() as f64;
        [layers, layers - 1.0 + predicting]
    }

    /// Returns a random matrix in the type of the weights.
    fn random(&self, rows: usize, width: usize) -> Tensor<B, 2> {
        let place = (self.device, self.setup.dtype);
        Tensor::random([rows, width], Distribution::Uniform(-1.0, 1.0), place)
    }

    /// Returns the seconds of `times` repetitions of `compute`.
    fn seconds<T>(&self, times: f64, compute: impl Fn() -> T) -> Result<f64> {
        if times > 0.0 {
            Ok(times * median_seconds::<B, _>(self.device, compute)?)
        } else {
            Ok(0.0)
        }
    }

    /// Times the projections of all layers.
    fn projections(&self) -> Result<f64> {
        let layer = &self.model.layers[0];
        let [qkv, o, gate_up, down] = layer.projection_groups();
        let [all, fewer_rows_last] = self.layers();
        let groups = [
            (qkv, false, all),
            (o, true, fewer_rows_last),
            (gate_up, false, fewer_rows_last),
            (down, true, fewer_rows_last),
        ];
        let mut seconds = 0.0;
        for (linears, residual, times) in groups {
            seconds += times * self.projection(&linears, residual)?;
        }
        Ok(seconds)
    }

    /// Times projections of one input in all passes.
    fn projection(&self, linears: &[&Linear<B>], residual: bool) -> Result<f64> {
        let (width, d_in) =
            (linears.iter().map(|linear| linear.dims().0).sum(), linears[0].dims().1);
        let [base, adapted] = [false, true].map(|with_branch| {
            let projections = linears.iter().map(|linear| Projection {
                weight: linear.weight.val(),
                adapter: branch(linear).filter(|_| with_branch),
            });
            projections.collect::<Vec<_>>()
        });
        let (x, dy) = (self.random(self.tokens(), d_in), self.random(self.tokens(), width));
        let residual = residual.then(|| dy.clone());
        let forward = |p: &[Projection<B>]| B::adapted_linear(x.clone(), p, residual.clone());
        let low = forward(&adapted).low;
        Ok(self.seconds(self.policy, || forward(&adapted))?
            + self.seconds(self.reference, || forward(&base))?
            + self.seconds(1.0, || {
                B::adapted_linear_backward(Some(x.clone()), &adapted, low.clone(), dy.clone(), true)
            })?)
    }

    /// Times the attention of all layers.
    fn attention(&self) -> Result<f64> {
        let (config, mask) = (self.setup.config.attention(), &self.batch.input.context.masks[0]);
        let qkv = self.random(self.tokens(), config.qkv_width());
        let dy = self.random(self.tokens(), config.heads * config.head_dim);
        let forward = || B::self_attention(qkv.clone(), mask, &config);
        let attended = forward();
        let [_, fewer_rows_last] = self.layers();
        let seconds = self.seconds(self.policy + self.reference, forward)?
            + self.seconds(1.0, || {
                let (qkv, attended) = (qkv.clone(), attended.clone());
                B::self_attention_backward(qkv, attended, dy.clone(), mask, &config)
            })?;
        Ok(fewer_rows_last * seconds)
    }

    /// Times norms, rotations and gates of all layers.
    fn elementwise(&self) -> Result<f64> {
        let (config, heads) = (&self.setup.config, self.setup.config.attention());
        let ([all, fewer_rows_last], forward) = (self.layers(), self.policy + self.reference);
        let rotated_heads = heads.heads + heads.kv_heads;
        let norm = &self.model.norm;
        let (weight, epsilon) = (norm.weight.val(), config.rms_norm_eps);
        let x = self.random(self.tokens(), config.hidden_size);
        let rotated = self.random(self.tokens(), rotated_heads * config.rotary_dim());
        let gate_up = self.random(self.tokens(), 2 * config.intermediate_size);
        let d_gated = self.random(self.tokens(), config.intermediate_size);
        let angles = &self.batch.input.context.angles[0];
        let norm = self.seconds(forward, || B::rms_norm(x.clone(), weight.clone(), epsilon))?
            + self.seconds(1.0, || {
                B::rms_norm_backward(x.clone(), weight.clone(), epsilon, x.clone())
            })?;
        let rotate = |rotation| B::rope(rotated.clone(), angles, rotated_heads, rotation);
        let rope = self.seconds(forward, || rotate(Rotation::Forward))?
            + self.seconds(1.0, || rotate(Rotation::Inverse))?;
        let swiglu = self.seconds(forward, || B::swiglu(gate_up.clone()))?
            + self.seconds(1.0, || B::swiglu_backward(gate_up.clone(), d_gated.clone()))?;
        Ok((all + fewer_rows_last) * norm + all * rope + fewer_rows_last * swiglu)
    }

    /// Times the log-probabilities.
    fn head(&self) -> Result<f64> {
        let targets: Vec<i64> = self.host.targets.clone();
        let shape = [targets.len()];
        let data = TensorData::new(targets, shape);
        let targets = Tensor::from_data(data, self.device);
        let hidden = self.random(shape[0], self.setup.config.hidden_size);
        let score = |stats, slopes| {
            let (hidden, targets) = (hidden.clone(), targets.clone());
            B::completion_log_probs(hidden, self.model.head(), targets, stats, slopes)
        };
        Ok(self.seconds(1.0, || score(LogProbStats::All, true))?
            + self.seconds(self.reference, || score(LogProbStats::None, false))?)
    }

    /// Times gradient clipping and AdamW.
    fn optimizer(&self) -> Result<f64> {
        let parameters = adapter_parameters(self.model);
        let grads: Vec<_> = parameters.iter().map(|(_, p)| p.ones_like()).collect();
        let step = |optimizer: &mut Optimizer<B>| {
            let (clipped, _) = clip_by_global_norm(grads.clone(), 1.0);
            let updates = parameters.iter().zip(clipped);
            let updates = updates.map(|((name, param), grad)| NamedUpdate {
                name: name.clone(),
                param: param.clone(),
                grad,
            });
            optimizer.step(1e-6, updates.collect())
        };
        let mut optimizer =
            Optimizer::new(AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 });
        step(&mut optimizer);
        self.seconds(1.0, || step(&mut optimizer.clone()))
    }
}

/// Returns the LoRA branch of a projection as an adapter, if it has one.
fn branch<B: TrainBackend>(linear: &Linear<B>) -> Option<Adapter<B>> {
    linear.lora.as_ref().map(|lora| Adapter {
        a: lora.lora_a.val(),
        b: lora.lora_b.val(),
        scaling: lora.scaling,
        dropout_mask: None,
    })
}
