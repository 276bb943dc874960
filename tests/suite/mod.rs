//! Tests that run on every backend. Each `suite_*.rs` names its backend in [`backend_suite!`].

#![allow(
    unreachable_pub,
    dead_code,
    unused_macros,
    clippy::unwrap_used,
    reason = "every test program uses a part of it, and a test fails by panicking"
)]

use std::sync::OnceLock;

use arithmo_backends::{BackendKind, TrainBackend};

pub mod adapters;
pub mod families;
pub mod forward;
pub mod generate;
pub mod golden;
pub mod not_finite;
pub mod ops;
pub mod packed;
pub mod plan;
pub mod split;
pub mod step;
#[path = "../support/mod.rs"]
pub mod support;
pub mod tiny;
pub mod traces;

/// Tests that a backend leaves out, with the reason. A name stands for all tests whose names begin with it.
pub type Skipped = &'static [(&'static str, &'static str)];

/// Returns whether the default device of the backend starts; where it does not, says so.
pub fn starts(kind: BackendKind) -> bool {
    // A test program has one backend.
    static STARTS: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTS.get_or_init(|| kind.start());
    if let Err(reason) = started {
        eprintln!("SKIPPED: {kind} {reason}");
    }
    started.is_ok()
}

/// Runs a test on the default device, unless the backend does not start or leaves the test out.
pub fn run<B: TrainBackend>(
    kind: BackendKind,
    skipped: Skipped,
    name: &str,
    test: impl FnOnce(&B::Device),
) {
    if let Some((_, reason)) = skipped.iter().find(|(skipped, _)| name.starts_with(skipped)) {
        eprintln!("SKIPPED: {name} on {kind}: {reason}");
    } else if starts(kind) {
        test(&Default::default());
    }
}

/// Defines a test for each function of the suite on a backend, except those that `skip` names with a reason.
macro_rules! backend_suite {
    ($backend:ty, $kind:expr, skip: [$($skipped:ident: $reason:literal),* $(,)?]) => {
        type B = $backend;

        const KIND: arithmo_backends::BackendKind = $kind;
        const SKIPPED: suite::Skipped = &[$((stringify!($skipped), $reason)),*];

        suite_tests! {
            forward_matches_transformers: |device| {
                for name in ["tiny-a", "tiny-b"] {
                    suite::forward::padded_batches::<B>(name, device);
                    suite::forward::hidden_states::<B>(name, device);
                }
            },
            forward_of_other_families_matches_transformers: |device| {
                for name in
                    ["families/qwen2", "families/ministral3", "families/olmo2", "families/phi3"]
                {
                    suite::forward::padded_batches::<B>(name, device);
                    suite::forward::hidden_states::<B>(name, device);
                    suite::generate::equals_transformers::<B>(name, device);
                }
            },
            #[ignore = "compares with data that are not in the tree"]
            forward_of_every_family_matches_transformers: suite::forward::families::<B>,
            training_of_every_family_equals_the_cpu: suite::step::families_equal_the_cpu::<B>,
            #[ignore = "compares with data that are not in the tree"]
            a_model_in_bf16_matches_transformers: |device| {
                suite::forward::padded_batches::<B>("tiny-c", device);
                suite::forward::hidden_states::<B>("tiny-c", device);
            },
            linear_and_its_gradient_match_f64: suite::ops::linear::<B>,
            adapted_linear_and_its_gradients_match_f64: suite::ops::adapted_linear::<B>,
            dropout_masks_equal_the_hosts: suite::ops::dropout_masks::<B>,
            row_wise_operations_and_their_gradients_match_f64: suite::ops::row_wise::<B>,
            attention_and_its_gradient_match_f64: suite::ops::attention::<B>,
            log_probs_and_their_gradient_match_f64: suite::ops::log_probs::<B>,
            what_is_not_finite_passes_through: suite::not_finite::everywhere::<B>,
            #[ignore = "compares with data that are not in the tree"]
            packed_weights_are_bitsandbytes_own: suite::packed::golden::<B>,
            a_model_in_pieces_equals_the_whole:
                |device| suite::split::equals_whole::<B>(&suite::split::CASES[1..3], device),
            a_model_in_pieces_of_other_types_equals_the_whole: |device| {
                suite::split::equals_whole::<B>(&suite::split::CASES[..1], device);
                suite::split::equals_whole::<B>(&suite::split::CASES[3..], device);
            },
            training_equals_the_cpu: |device| {
                suite::step::training_equals_the_cpu::<B>(false, device);
                suite::step::gradients_equal_the_cpu::<B>(false, device);
            },
            recomputing_changes_nothing: |device| {
                suite::step::training_equals_the_cpu::<B>(true, device);
                suite::step::gradients_equal_the_cpu::<B>(true, device);
            },
            base_weights_may_be_f16: |device| suite::step::half_precision::<B>(burn::tensor::DType::F16, device),
            peak_memory_is_plausible: suite::step::peak_memory_covers_tensors::<B>,
            generation_matches_transformers:
                |device| suite::generate::equals_transformers::<B>("tiny-b", device),
            generation_of_another_model_matches_transformers:
                |device| suite::generate::equals_transformers::<B>("tiny-a", device),
            #[ignore = "compares with data that are not in the tree"]
            generation_in_bf16_matches_transformers:
                |device| suite::generate::equals_transformers::<B>("tiny-c", device),
            generation_with_a_cache_equals_generation_without: suite::generate::equals_no_cache::<B>,
            generation_of_every_family_with_a_cache_equals_generation_without:
                suite::generate::families_equal_no_cache::<B>,
            generation_stops_row_by_row: suite::generate::stops_row_by_row::<B>,
            generation_does_not_depend_on_the_batch:
                suite::generate::does_not_depend_on_the_batch::<B>,
            sampling_is_reproducible: suite::generate::samples_reproducibly::<B>,
            generation_respects_the_models_limits: |device| {
                suite::generate::respects_the_models_limits::<B>(device);
                suite::generate::refuses_bad_settings::<B>(device);
            },
            first_steps_match_trl: |device| suite::traces::first_steps::<B>(
                &[("loss_sigmoid", false), ("b_batch4_accum1", true)],
                device,
            ),
            #[ignore = "compares with data that are not in the tree"]
            first_steps_match_trl_in_more_runs: |device| suite::traces::first_steps::<B>(
                &[
                    ("a_sigmoid_lr5e-3_nonzero_b", false),
                    ("b_sigmoid_lr5e-3", true),
                    ("batch4_accum1", false),
                    ("lora_all_linear", false),
                    ("lora_all_linear", true),
                ],
                device,
            ),
            #[ignore = "compares with data that are not in the tree"]
            first_steps_match_trl_on_packed_bases: |device| suite::traces::first_steps::<B>(
                &[
                    ("nf4_dequantised_base", true),
                    ("nf4_double_quant_base", false),
                    ("qlora_bnb_cpu", false),
                ],
                device,
            ),
            // The golden runs this version supports, step by step; in groups, so that they share the cores.
            golden_runs_in_the_tree: |device| suite::traces::replay_all::<B>(
                &["loss_sigmoid", "with_eval", "lora_rslora", "b_batch4_accum1"],
                device,
            ),
            #[ignore = "compares with data that are not in the tree"]
            golden_runs_from_b_zero: |device| suite::traces::replay_all::<B>(
                &["a_sigmoid_lr5e-5", "a_sigmoid_lr5e-3"],
                device,
            ),
            #[ignore = "compares with data that are not in the tree"]
            golden_runs_from_b_zero_with_a_sliding_window: |device| suite::traces::replay_all::<B>(
                &["b_sigmoid_lr5e-5", "b_sigmoid_lr5e-3"],
                device,
            ),
            #[ignore = "compares with data that are not in the tree"]
            golden_runs_from_nonzero_b: |device| suite::traces::replay_all::<B>(
                &["a_sigmoid_lr5e-3_nonzero_b", "b_sigmoid_lr5e-3_nonzero_b"],
                device,
            ),
            #[ignore = "compares with data that are not in the tree"]
            golden_runs_from_an_adapter:
                |device| suite::traces::replay_all::<B>(&["a_continue_adapter"], device),
            #[ignore = "compares with data that are not in the tree"]
            golden_runs_with_every_loss_of_this_version: |device| suite::traces::replay_all::<B>(
                &["loss_sigmoid_batch12", "loss_sigmoid_ls0.1", "loss_sigmoid_norm"],
                device,
            ),
            #[ignore = "compares with data that are not in the tree"]
            golden_runs_with_every_batching_and_truncation: |device| suite::traces::replay_all::<B>(
                &[
                    "batch2_accum2",
                    "batch4_accum1",
                    "max_length96",
                    "keep_end_truncation",
                    "dropped_and_partial_accum",
                ],
                device,
            ),
            #[ignore = "compares with data that are not in the tree"]
            golden_runs_with_every_optimizer_setting_and_evaluation:
                |device| suite::traces::replay_all::<B>(
                    &[
                        "optim_constant_with_warmup",
                        "optim_no_clip_linear",
                        "optim_wd_betas_clip",
                        "precompute_ref",
                        "precompute_ref_batch4",
                    ],
                    device,
                ),
            #[ignore = "compares with data that are not in the tree"]
            golden_runs_with_every_adapter_shape: |device| suite::traces::replay_all::<B>(
                &[
                    "lora_all_linear",
                    "lora_attention_r4",
                    "b_all_linear_lr5e-5",
                    "lora_dropout0.5_is_disabled",
                    "lora_dora",
                    "lora_dora_all_linear_b",
                ],
                device,
            ),
            #[ignore = "compares with data that are not in the tree"]
            golden_runs_on_packed_bases: |device| suite::traces::replay_all::<B>(
                &["nf4_dequantised_base", "nf4_double_quant_base", "qlora_bnb_cpu"],
                device,
            ),
        }
    };
}

/// Defines the tests of [`backend_suite!`].
macro_rules! suite_tests {
    ($($(#[$attribute:meta])* $name:ident: $test:expr),* $(,)?) => {
        $(
            #[test]
            $(#[$attribute])*
            fn $name() {
                suite::run::<B>(KIND, SKIPPED, stringify!($name), $test);
            }
        )*

        #[test]
        fn every_exception_names_a_test() {
            let names = [$(stringify!($name)),*];
            for (skipped, _) in SKIPPED {
                assert!(names.iter().any(|name| name.starts_with(skipped)), "{skipped}");
            }
        }
    };
}
