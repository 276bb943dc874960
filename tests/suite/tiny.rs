//! Tiny models of our own, with random weights.

use std::path::Path;

use arithmo::model::config::MistralConfig;
use arithmo::model::save::{OutTensor, save_folder};
use burn::tensor::DType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Numbers in `[-bound, bound]`.
pub fn uniform(seed: u64, count: usize, bound: f32) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || rng.next_u32() as f32 / u32::MAX as f32;
    (0..count).map(|_| (2.0 * unit() - 1.0) * bound).collect()
}

/// Writes a model folder of `shape`, in many shards, its weights stored as `dtype`.
pub fn write_model(folder: &Path, shape: &MistralConfig, dtype: DType) {
    let tensors = (0..).zip(shape.tensors()).map(|(seed, (name, shape))| {
        let values = uniform(seed, shape.iter().product(), 0.4);
        OutTensor::new(name, shape, dtype, || Ok(values))
    });
    save_folder(folder, shape, tensors.collect::<Vec<_>>(), 4000, None).unwrap();
}

/// As [`write_model`] in f32, with a NaN as element 5 of the weight `name`.
pub fn write_not_finite(folder: &Path, shape: &MistralConfig, name: &str) {
    let tensors = (0..).zip(shape.tensors()).map(|(seed, (tensor, shape))| {
        let mut values = uniform(seed, shape.iter().product(), 0.4);
        if tensor == name {
            values[5] = f32::NAN;
        }
        OutTensor::new(tensor, shape, DType::F32, || Ok(values))
    });
    save_folder(folder, shape, tensors.collect::<Vec<_>>(), 4000, None).unwrap();
}
