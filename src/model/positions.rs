//! Position-dependent inputs of the layers: rotary angles (arXiv 2104.09864) and the sliding window.

use arithmo_backends::{RotaryAngles, TrainBackend};
use burn::tensor::{Tensor, TensorData};

/// Number of positions whose angles are tabulated: 16 MiB for heads of 128. Some models allow a million positions or
/// more, which hardly any text uses.
const TABULATED: usize = 1 << 15;

/// The rotary angles of every position and frequency, computed on the host in f32 as Hugging Face does, and the
/// window.
#[derive(Clone, Debug)]
pub struct PositionTable<B: TrainBackend> {
    /// `[min(positions, TABULATED), Dh/2]`
    cos: Tensor<B, 2>,
    /// `[min(positions, TABULATED), Dh/2]`
    sin: Tensor<B, 2>,
    /// One frequency per pair of features.
    frequencies: Vec<f32>,
    positions: usize,
    /// Sliding window `w`: position `i` attends to `j` with `i - w < j <= i`. `None` means no window.
    pub window: Option<usize>,
}

impl<B: TrainBackend> PositionTable<B> {
    /// Tabulates the angles `position / theta^(2i / Dh)` for `positions` positions and heads of width `head_dim`.
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
        let tabulated: Vec<i64> = (0..positions.min(TABULATED) as i64).collect();
        let RotaryAngles { cos, sin } = compute(&tabulated, &frequencies, device);
        Self { cos, sin, frequencies, positions, window }
    }

    /// Returns the angles of `positions` `[T]`, each below [`Self::positions`].
    pub fn angles(&self, positions: &[i64], device: &B::Device) -> RotaryAngles<B> {
        let last = positions.iter().max().copied().unwrap_or(0);
        if last >= TABULATED as i64 {
            return compute(positions, &self.frequencies, device);
        }
        let count = positions.len();
        let positions = TensorData::new(positions.to_vec(), [count]);
        let positions = Tensor::from_data(positions, device);
        RotaryAngles {
            cos: self.cos.clone().select(0, positions.clone()),
            sin: self.sin.clone().select(0, positions),
        }
    }

    /// Returns the number of positions that the table covers.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

/// Computes the angles of `positions`, `[T, Dh/2]`.
fn compute<B: TrainBackend>(
    positions: &[i64],
    frequencies: &[f32],
    device: &B::Device,
) -> RotaryAngles<B> {
    let shape = [positions.len(), frequencies.len()];
    let table = |function: fn(f32) -> f32| {
        let position_angles = |p: &i64| {
            let p = *p as f32;
            frequencies.iter().map(move |f| p * f)
        };
        let angles = positions.iter().flat_map(position_angles);
        let values: Vec<f32> = angles.map(function).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    };
    RotaryAngles { cos: table(f32::cos), sin: table(f32::sin) }
}

#[cfg(test)]
mod tests {
    use burn_ndarray::NdArray;

    use super::*;

    /// Positions beyond the table get the same angles as a full table would hold; a table of 2^32 positions needs no
    /// more memory.
    #[test]
    fn positions_beyond_the_table_are_computed_on_demand() {
        type B = NdArray<f32>;
        let device = Default::default();
        let table = PositionTable::<B>::new(1 << 32, 4, 10_000.0, None, &device);
        assert_eq!(table.positions(), 1 << 32);
        let near = table.angles(&[0, 3, 32_767], &device);
        let far = table.angles(&[3, 32_768, 2_000_000], &device);
        let cos = |angles: &RotaryAngles<B>| angles.cos.to_data().to_vec::<f32>().unwrap();
        // Frequencies 1 and 1/100.
        let angle = |position: f32| [position.cos(), (position * (1.0 / 100.0)).cos()];
        assert_eq!(cos(&near)[2..4], angle(3.0));
        assert_eq!(cos(&far), [angle(3.0), angle(32_768.0), angle(2_000_000.0)].concat());
    }
}
