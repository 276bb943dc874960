//! The frequencies of rotary embeddings (arXiv 2104.09864), scaled as in transformers' `modeling_rope_utils.py` and
//! computed like there: on the host, in f32.

use std::f64::consts::PI;

use super::switches::{LongRope, RopeScaling, Yarn};

/// The rotary frequencies of a kind of layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Returns one frequency per pair of the features that are rotated, `head_dim` per head.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let power = |i: usize| (self.theta as f32).powf(2.0 * i as f32 / head_dim as f32);
        let unscaled = (0..head_dim / 2).map(|i| 1.0 / power(i));
        match &self.scaling {
            RopeScaling::None => unscaled.collect(),
            RopeScaling::Linear { factor } => unscaled.map(|f| f / *factor as f32).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let bounds = [*low_freq_factor as f32, *high_freq_factor as f32];
                let length = *original_max_position_embeddings as f32;
                unscaled.map(|f| llama3(f, *factor as f32, bounds, length)).collect()
            }
            RopeScaling::Yarn(yarn) => {
                let ramp = yarn.ramp(self.theta, head_dim);
                (0..head_dim / 2)
                    .map(|i| {
                        let (kept, stretched) =
                            (1.0 / power(i), 1.0 / (yarn.factor as f32 * power(i)));
                        let kept_part = 1.0 - ramp[i];
                        stretched * (1.0 - kept_part) + kept * kept_part
                    })
                    .collect()
            }
            RopeScaling::LongRope(longrope) => {
                let stretched = |(i, factor): (usize, &f64)| 1.0 / (*factor as f32 * power(i));
                longrope.short_factor.iter().enumerate().map(stretched).collect()
            }
        }
    }

    /// Returns the factor on sines and cosines.
    pub fn attention_factor(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor() as f32,
            RopeScaling::LongRope(longrope) => longrope.attention_factor() as f32,
            _ => 1.0,
        }
    }
}

/// Stretches one frequency as Llama 3.1 does: by the whole factor if its wave is long, not at all if it is short, and
/// in between by an interpolation of the two.
fn llama3(frequency: f32, factor: f32, [low, high]: [f32; 2], length: f32) -> f32 {
    let wavelength = 2.0 * PI as f32 / frequency;
    if wavelength > length / low {
        frequency / factor
    } else if wavelength < length / high {
        frequency
    } else {
        let smooth = (length / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

impl Yarn {
    /// Returns, for each frequency, by how much it is stretched: 0 for not at all, 1 for the whole factor.
    fn ramp(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        let length = self.original_max_position_embeddings as f64;
        // The frequency that makes this number of rotations over the first training phase's length.
        let index = |rotations: f64| {
            head_dim as f64 * (length / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (index(self.beta_fast), index(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        if low == high {
            // As in transformers, against a division by zero.
            high += 0.001;
        }
        let span = (high - low) as f32;
        (0..head_dim / 2).map(|i| ((i as f32 - low as f32) / span).clamp(0.0, 1.0)).collect()
    }

    /// Returns the factor on sines and cosines.
    fn attention_factor(&self) -> f64 {
        let derived = |weight: f64| {
            if self.factor <= 1.0 { 1.0 } else { 0.1 * weight * self.factor.ln() + 1.0 }
        };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(factor), _, _) => factor,
            (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                derived(mscale) / derived(all)
            }
            _ => derived(1.0),
        }
    }
}

impl LongRope {
    /// Returns the factor on sines and cosines.
    fn attention_factor(&self) -> f64 {
        let original = self.original_max_position_embeddings as f64;
        let ratio = self.max_position_embeddings as f64 / original;
        match (self.attention_factor, self.factor.unwrap_or(ratio)) {
            (Some(given), _) => given,
            (None, factor) if factor <= 1.0 => 1.0,
            (None, factor) => (1.0 + factor.ln() / original.ln()).sqrt(),
        }
    }
}
