//! Rotary position embedding (arXiv 2104.09864), in Hugging Face's half-split order: feature `i` turns with `i + Dh/2`.

use arithmo_backends::TrainBackend;
use burn::tensor::{Int, Tensor, TensorData};

/// Cosines and sines of a batch's positions.
#[derive(Clone, Debug)]
pub struct Rotary<B: TrainBackend> {
    /// `[B, S, 1, Dh/2]`
    cos: Tensor<B, 4>,
    /// `[B, S, 1, Dh/2]`
    sin: Tensor<B, 4>,
}

/// The angle of every position and frequency, made once on the host in f32 as Hugging Face does.
#[derive(Clone, Debug)]
pub struct RotaryTable<B: TrainBackend> {
    /// `[positions, Dh/2]`
    cos: Tensor<B, 2>,
    /// `[positions, Dh/2]`
    sin: Tensor<B, 2>,
}

impl<B: TrainBackend> RotaryTable<B> {
    /// Angles `position / theta^(2i / Dh)` for `positions` positions and heads of width `head_dim`.
    pub fn new(positions: usize, head_dim: usize, theta: f64, device: &B::Device) -> Self {
        let half = head_dim / 2;
        let frequency = |i: usize| 1.0 / (theta as f32).powf(2.0 * i as f32 / head_dim as f32);
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos(), a.sin())).unzip();
        let tensor = |values| Tensor::from_data(TensorData::new(values, [positions, half]), device);
        Self {
            cos: tensor(cos),
            sin: tensor(sin),
        }
    }

    /// Rows of the table for `positions` `[B, S]`, each below [`Self::positions`].
    pub fn at(&self, positions: Tensor<B, 2, Int>) -> Rotary<B> {
        let [batch, length] = positions.dims();
        let [_, half] = self.cos.dims();
        let flat = positions.reshape([batch * length]);
        let rows = |t: &Tensor<B, 2>| {
            t.clone()
                .select(0, flat.clone())
                .reshape([batch, length, 1, half])
        };
        Rotary {
            cos: rows(&self.cos),
            sin: rows(&self.sin),
        }
    }

    /// Number of positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.dims()[0]
    }
}

impl<B: TrainBackend> Rotary<B> {
    /// Turns each head of `x` `[B, S, H, Dh]` by its token's angles.
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let (dtype, half) = (x.dtype(), x.dims()[3] / 2);
        let (cos, sin) = (self.cos.clone().cast(dtype), self.sin.clone().cast(dtype));
        let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let first = a.clone() * cos.clone() - b.clone() * sin.clone();
        let second = b * cos + a * sin;
        Tensor::cat(vec![first, second], 3)
    }

    /// The same angles for an autodiff backend over `B` (handles only).
    pub fn to_autodiff<A>(&self) -> Rotary<A>
    where
        A: TrainBackend + burn::tensor::backend::AutodiffBackend<InnerBackend = B>,
    {
        Rotary {
            cos: Tensor::from_inner(self.cos.clone()),
            sin: Tensor::from_inner(self.sin.clone()),
        }
    }
}
