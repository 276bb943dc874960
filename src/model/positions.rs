//! What positions mean to the layers: rotary angles (arXiv 2104.09864), and how far back a token sees.

use arithmo_backends::{RotaryAngles, TrainBackend};
use burn::tensor::{Int, Tensor, TensorData};

/// The angle of every position and frequency, made once on the host in f32 as Hugging Face does, and the window.
#[derive(Clone, Debug)]
pub struct PositionTable<B: TrainBackend> {
    /// `[positions, Dh/2]`
    cos: Tensor<B, 2>,
    /// `[positions, Dh/2]`
    sin: Tensor<B, 2>,
    /// Sliding window `w`: position `i` sees `j` with `i - w < j <= i`. `None`: no limit.
    pub window: Option<usize>,
}

impl<B: TrainBackend> PositionTable<B> {
    /// Angles `position / theta^(2i / Dh)` for `positions` positions and heads of width `head_dim`.
    pub fn new(
        positions: usize,
        head_dim: usize,
        theta: f64,
        window: Option<usize>,
        device: &B::Device,
    ) -> Self {
        let half = head_dim / 2;
        let frequency = |i: usize| 1.0 / (theta as f32).powf(2.0 * i as f32 / head_dim as f32);
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos(), a.sin())).unzip();
        let tensor = |values| Tensor::from_data(TensorData::new(values, [positions, half]), device);
        Self { cos: tensor(cos), sin: tensor(sin), window }
    }

    /// Angles of `positions` `[T]`, each below [`Self::positions`].
    pub fn angles(&self, positions: &Tensor<B, 1, Int>) -> RotaryAngles<B> {
        RotaryAngles {
            cos: self.cos.clone().select(0, positions.clone()),
            sin: self.sin.clone().select(0, positions.clone()),
        }
    }

    /// Number of positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.dims()[0]
    }
}
