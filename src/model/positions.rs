//! Position-dependent inputs of the layers: rotary angles (arXiv 2104.09864), sliding windows and factors on queries.

use arithmo_backends::{RotaryAngles, TrainBackend};
use burn::tensor::{Tensor, TensorData};

use super::config::DecoderConfig;
use super::rope::Rope;
use super::switches::QueryGrowth;

/// Number of positions whose angles are tabulated: 16 MiB for heads of 128. Some models allow a million positions or
/// more, which hardly any text uses.
const TABULATED: usize = 1 << 15;

/// Returns how many of `positions` positions are tabulated.
pub fn tabulated(positions: usize) -> usize {
    positions.min(TABULATED)
}

/// The rotary angles of every position and frequency, computed on the host in f32 as Hugging Face does, and the
/// windows.
#[derive(Clone, Debug)]
pub struct PositionTable<B: TrainBackend> {
    /// One table for each of [`DecoderConfig::ropes`].
    ropes: Vec<RopeTable<B>>,
    positions: usize,
    /// Sliding windows `w` of the layers: position `i` attends to `j` with `i - w < j <= i`. `None` means no window. See
    /// [`DecoderConfig::windows`].
    pub windows: Vec<Option<usize>>,
    query_growth: Option<QueryGrowth>,
}

/// The angles of one kind of layers.
#[derive(Clone, Debug)]
struct RopeTable<B: TrainBackend> {
    /// `[min(positions, TABULATED), Dh/2]` each.
    tabulated: RotaryAngles<B>,
    /// One frequency per pair of features.
    frequencies: Vec<f32>,
    /// Factor on cosines and sines.
    factor: f32,
}

impl<B: TrainBackend> PositionTable<B> {
    /// Tabulates the angles `position * frequency` of `positions` positions for a model of this shape.
    pub fn new(config: &DecoderConfig, positions: usize, device: &B::Device) -> Self {
        let tabulated: Vec<i64> = (0..tabulated(positions) as i64).collect();
        let table = |rope: Rope| {
            let frequencies = rope.frequencies(config.rotary_dim());
            let factor = rope.attention_factor();
            let tabulated = compute(&tabulated, &frequencies, factor, device);
            RopeTable { tabulated, frequencies, factor }
        };
        Self {
            ropes: config.ropes().into_iter().map(table).collect(),
            positions,
            windows: config.windows(),
            query_growth: config.switches.query_growth,
        }
    }

    /// Returns the angles of `positions` `[T]`, each below [`Self::positions`], for each kind of layers.
    pub fn angles(&self, positions: &[i64], device: &B::Device) -> Vec<RotaryAngles<B>> {
        let last = positions.iter().max().copied().unwrap_or(0);
        if last >= TABULATED as i64 {
            let computed =
                |rope: &RopeTable<B>| compute(positions, &rope.frequencies, rope.factor, device);
            return self.ropes.iter().map(computed).collect();
        }
        let shape = [positions.len()];
        let positions = Tensor::from_data(TensorData::new(positions.to_vec(), shape), device);
        let selected = |rope: &RopeTable<B>| RotaryAngles {
            cos: rope.tabulated.cos.clone().select(0, positions.clone()),
            sin: rope.tabulated.sin.clone().select(0, positions.clone()),
        };
        self.ropes.iter().map(selected).collect()
    }

    /// Returns the factors on the queries at `positions` `[T]` in the form of angles, since multiplying both features of a
    /// pair is a rotation by 0 with a cosine other than 1. Returns `None` if all factors are 1.
    pub fn query_factors(&self, positions: &[i64], device: &B::Device) -> Option<RotaryAngles<B>> {
        let growth = self.query_growth?;
        let factors: Vec<f32> = positions.iter().map(|position| growth.factor(*position)).collect();
        if factors.iter().all(|factor| *factor == 1.0) {
            return None;
        }
        let half = self.ropes.first()?.frequencies.len();
        let shape = [factors.len(), half];
        let cos: Vec<f32> = factors.iter().flat_map(|factor| vec![*factor; half]).collect();
        let cos = Tensor::from_data(TensorData::new(cos, shape), device);
        Some(RotaryAngles { sin: cos.zeros_like(), cos })
    }

    /// Returns the number of positions that the table covers.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

/// Computes the angles of `positions`, `[T, Dh/2]`; cosines and sines are multiplied by `factor`.
fn compute<B: TrainBackend>(
    positions: &[i64],
    frequencies: &[f32],
    factor: f32,
    device: &B::Device,
) -> RotaryAngles<B> {
    let shape = [positions.len(), frequencies.len()];
    let table = |function: fn(f32) -> f32| {
        let position_angles = |p: &i64| {
            let p = *p as f32;
            frequencies.iter().map(move |f| p * f)
        };
        let angles = positions.iter().flat_map(position_angles);
        let values: Vec<f32> = angles.map(|angle| function(angle) * factor).collect();
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
        let text = r#"{"model_type": "mistral", "vocab_size": 7, "hidden_size": 8, "intermediate_size": 4,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}"#;
        let config = DecoderConfig::parse(text, "config.json".as_ref()).unwrap();
        let table = PositionTable::<B>::new(&config, 1 << 32, &device);
        assert_eq!(table.positions(), 1 << 32);
        let near = table.angles(&[0, 3, 32_767], &device);
        let far = table.angles(&[3, 32_768, 2_000_000], &device);
        let cos = |angles: &[RotaryAngles<B>]| angles[0].cos.to_data().to_vec::<f32>().unwrap();
        // Frequencies 1 and 1/100.
        let angle = |position: f32| [position.cos(), (position * (1.0 / 100.0)).cos()];
        assert_eq!(cos(&near)[2..4], angle(3.0));
        assert_eq!(cos(&far), [angle(3.0), angle(32_768.0), angle(2_000_000.0)].concat());
    }
}
