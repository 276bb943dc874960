//! The shared suite on the CPU.

mod suite;

type B = burn_ndarray::NdArray<f32>;

#[test]
fn forward_matches_transformers() {
    for name in ["tiny-a", "tiny-b", "tiny-c"] {
        suite::forward::padded_batches::<B>(name, &Default::default());
        suite::forward::hidden_states::<B>(name, &Default::default());
    }
}

#[test]
fn operations_and_their_gradients_match_f64() {
    suite::ops::linear::<B>(&Default::default());
    suite::ops::adapted_linear::<B>(&Default::default());
    suite::ops::row_wise::<B>(&Default::default());
    suite::ops::attention::<B>(&Default::default());
    suite::ops::log_probs::<B>(&Default::default());
    suite::ops::most_likely::<B>(&Default::default());
}

#[test]
fn packed_weights_are_bitsandbytes_own() {
    suite::packed::golden::<B>(&Default::default());
    suite::packed::projections::<B>(&Default::default());
}

#[test]
fn a_model_in_pieces_equals_the_whole() {
    suite::split::equals_whole::<B>(&suite::split::CASES, &Default::default());
}

/// With and without gradient checkpointing; the other half of what the other backends are compared with.
#[test]
fn recomputing_changes_nothing() {
    suite::step::training_equals_the_cpu::<B>(true, &Default::default());
    suite::step::gradients_equal_the_cpu::<B>(true, &Default::default());
}

#[test]
fn peak_memory_is_plausible() {
    suite::step::peak_memory_covers_tensors::<B>(&Default::default());
}

#[test]
fn generation_matches_transformers() {
    for name in ["tiny-a", "tiny-b", "tiny-c"] {
        suite::generate::equals_transformers::<B>(name, &Default::default());
    }
}

#[test]
fn generation_with_a_cache_equals_generation_without() {
    suite::generate::equals_no_cache::<B>(&Default::default());
}

#[test]
fn generation_stops_row_by_row() {
    suite::generate::stops_row_by_row::<B>(&Default::default());
}

#[test]
fn generation_does_not_depend_on_the_batch() {
    suite::generate::does_not_depend_on_the_batch::<B>(&Default::default());
}

#[test]
fn sampling_is_reproducible() {
    suite::generate::samples_reproducibly::<B>(&Default::default());
}

#[test]
fn generation_respects_the_models_limits() {
    suite::generate::respects_the_models_limits::<B>(&Default::default());
    suite::generate::refuses_bad_settings::<B>(&Default::default());
}

/// The golden runs this version supports, step by step; in groups, so that they share the cores.
mod training_matches_trl {
    use super::*;

    fn replay(names: &[&str]) {
        for name in names {
            suite::traces::replay::<B>(name, usize::MAX, false, &Default::default());
        }
    }

    #[test]
    fn from_b_zero() {
        replay(&["a_sigmoid_lr5e-5", "a_sigmoid_lr5e-3"]);
    }

    #[test]
    fn from_b_zero_with_a_sliding_window() {
        replay(&["b_sigmoid_lr5e-5", "b_sigmoid_lr5e-3"]);
    }

    #[test]
    fn from_nonzero_b() {
        replay(&["a_sigmoid_lr5e-3_nonzero_b", "b_sigmoid_lr5e-3_nonzero_b"]);
    }

    #[test]
    fn from_an_adapter() {
        replay(&["a_continue_adapter"]);
    }

    #[test]
    fn with_every_loss_of_this_version() {
        replay(&[
            "loss_sigmoid",
            "loss_sigmoid_batch12",
            "loss_sigmoid_ls0.1",
            "loss_sigmoid_norm",
        ]);
    }

    #[test]
    fn with_every_batching_and_truncation() {
        replay(&[
            "batch2_accum2",
            "batch4_accum1",
            "b_batch4_accum1",
            "max_length96",
            "keep_end_truncation",
            "dropped_and_partial_accum",
        ]);
    }

    #[test]
    fn with_every_optimizer_setting_and_evaluation() {
        replay(&[
            "optim_constant_with_warmup",
            "optim_no_clip_linear",
            "optim_wd_betas_clip",
            "with_eval",
            "precompute_ref",
            "precompute_ref_batch4",
        ]);
    }

    #[test]
    fn with_every_adapter_shape() {
        replay(&[
            "lora_rslora",
            "lora_all_linear",
            "lora_attention_r4",
            "b_all_linear_lr5e-5",
            "lora_dropout0.5_is_disabled",
        ]);
    }

    #[test]
    fn on_packed_bases() {
        replay(&["nf4_dequantised_base", "nf4_double_quant_base", "qlora_bnb_cpu"]);
    }
}
