//! The shared suite on wgpu. In CI the driver is Mesa's lavapipe, which is Vulkan on the CPU.
#![cfg(feature = "wgpu")]

use std::sync::OnceLock;

use arithmo_backends::{BackendKind, wgpu::Gpu};
use burn::tensor::backend::Backend;

mod suite;

/// The default device, or `None`, said plainly, where no driver starts.
fn device() -> Option<<Gpu as Backend>::Device> {
    static STARTS: OnceLock<Result<(), String>> = OnceLock::new();
    match STARTS.get_or_init(|| BackendKind::Wgpu.start()) {
        Ok(()) => Some(Default::default()),
        Err(reason) => {
            eprintln!("SKIPPED: wgpu {reason}");
            None
        }
    }
}

#[test]
fn operations_and_their_gradients_match_f64() {
    let Some(device) = device() else { return };
    suite::ops::linear::<Gpu>(&device);
    suite::ops::attention::<Gpu>(&device);
    suite::ops::log_probs::<Gpu>(&device);
    suite::ops::most_likely::<Gpu>(&device);
}

#[test]
fn forward_matches_transformers() {
    let Some(device) = device() else { return };
    for name in ["tiny-a", "tiny-b", "tiny-c"] {
        suite::forward::padded_batches::<Gpu>(name, &device);
        suite::forward::hidden_states::<Gpu>(name, &device);
    }
}

#[test]
fn training_equals_the_cpu() {
    let Some(device) = device() else { return };
    suite::step::training_equals_the_cpu::<Gpu>(false, &device);
    suite::step::training_equals_the_cpu::<Gpu>(true, &device);
    suite::step::gradients_equal_the_cpu::<Gpu>(false, &device);
    suite::step::gradients_equal_the_cpu::<Gpu>(true, &device);
}

/// The first steps of golden runs; all of them are replayed on the CPU.
#[test]
fn training_matches_trl() {
    let Some(device) = device() else { return };
    for (name, recompute) in [
        ("a_sigmoid_lr5e-3_nonzero_b", false),
        ("b_sigmoid_lr5e-3", true),
        ("batch4_accum1", false),
        ("lora_all_linear", false),
        ("lora_all_linear", true),
    ] {
        suite::traces::replay::<Gpu>(name, 3, recompute, &device);
    }
}

/// Greedy ids, and the key-value cache; the rest of generation runs on the host.
#[test]
fn generation_matches_transformers() {
    let Some(device) = device() else { return };
    suite::generate::equals_transformers::<Gpu>("tiny-b", &device);
    suite::generate::equals_no_cache::<Gpu>(&device);
}

#[test]
fn base_weights_may_be_f16() {
    let Some(device) = device() else { return };
    if !suite::step::half_precision::<Gpu>(&device) {
        eprintln!("SKIPPED: this adapter does not compute in f16");
    }
}

#[test]
fn peak_memory_is_plausible() {
    let Some(device) = device() else { return };
    suite::step::peak_memory_covers_tensors::<Gpu>(&device);
}
