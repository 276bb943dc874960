//! The shared suite on wgpu. In CI the driver is Mesa's lavapipe, which is Vulkan on the CPU.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

use std::sync::OnceLock;

use arithmo_backends::{BackendKind, wgpu::Gpu};

mod suite;

/// Whether the default device starts; where it does not, says so.
fn starts() -> bool {
    static STARTS: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTS.get_or_init(|| BackendKind::Wgpu.start());
    if let Err(reason) = started {
        eprintln!("SKIPPED: wgpu {reason}");
    }
    started.is_ok()
}

#[test]
fn operations_and_their_gradients_match_f64() {
    if !starts() {
        return;
    }
    let device = Default::default();
    suite::ops::linear::<Gpu>(&device);
    suite::ops::adapted_linear::<Gpu>(&device);
    suite::ops::row_wise::<Gpu>(&device);
    suite::ops::attention::<Gpu>(&device);
    suite::ops::log_probs::<Gpu>(&device);
    suite::ops::most_likely::<Gpu>(&device);
}

#[test]
fn forward_matches_transformers() {
    if !starts() {
        return;
    }
    let device = Default::default();
    for name in ["tiny-a", "tiny-b", "tiny-c"] {
        suite::forward::padded_batches::<Gpu>(name, &device);
        suite::forward::hidden_states::<Gpu>(name, &device);
    }
}

#[test]
fn training_equals_the_cpu() {
    if !starts() {
        return;
    }
    let device = Default::default();
    suite::step::training_equals_the_cpu::<Gpu>(false, &device);
    suite::step::training_equals_the_cpu::<Gpu>(true, &device);
    suite::step::gradients_equal_the_cpu::<Gpu>(false, &device);
    suite::step::gradients_equal_the_cpu::<Gpu>(true, &device);
}

/// The first steps of golden runs; all of them are replayed on the CPU.
#[test]
fn training_matches_trl() {
    if !starts() {
        return;
    }
    let device = Default::default();
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

/// As above, on bases in four bits: packed by us, and bitsandbytes' own run.
#[test]
fn training_on_packed_bases_matches_trl() {
    if !starts() {
        return;
    }
    let device = Default::default();
    for (name, recompute) in
        [("nf4_dequantised_base", true), ("nf4_double_quant_base", false), ("qlora_bnb_cpu", false)]
    {
        suite::traces::replay::<Gpu>(name, 3, recompute, &device);
    }
}

/// Greedy ids, the key-value cache, rows that come and go; the rest of generation runs on the host.
#[test]
fn generation_matches_transformers() {
    if !starts() {
        return;
    }
    let device = Default::default();
    suite::generate::equals_transformers::<Gpu>("tiny-b", &device);
    suite::generate::equals_no_cache::<Gpu>(&device);
    suite::generate::does_not_depend_on_the_batch::<Gpu>(&device);
}

#[test]
fn packed_weights_are_bitsandbytes_own() {
    if !starts() {
        return;
    }
    suite::packed::golden::<Gpu>(&Default::default());
    suite::packed::projections::<Gpu>(&Default::default());
}

#[test]
fn a_model_in_pieces_equals_the_whole() {
    if !starts() {
        return;
    }
    // Floats and plain scales, too, on the CPU.
    suite::split::equals_whole::<Gpu>(&suite::split::CASES[1..3], &Default::default());
}

#[test]
fn log_probs_of_a_huge_vocabulary() {
    if !starts() {
        return;
    }
    suite::ops::log_probs_of_a_huge_vocabulary::<Gpu>(&Default::default());
}

#[test]
fn base_weights_may_be_f16() {
    if !starts() {
        return;
    }
    let device = Default::default();
    if !suite::step::half_precision::<Gpu>(&device) {
        eprintln!("SKIPPED: this adapter does not compute in f16");
    }
}

/// The pages that the pools reserve, beside what the plan says of them.
#[test]
fn plans_are_within_five_percent_of_what_runs_take() {
    if !starts() {
        return;
    }
    suite::plan::within_five_percent("wgpu", suite::plan::CASES);
}

#[test]
fn peak_memory_is_plausible() {
    if !starts() {
        return;
    }
    let device = Default::default();
    suite::step::peak_memory_covers_tensors::<Gpu>(&device);
}

/// The program itself, with the software driver or, as the second argument, without any driver.
fn arithmo(arguments: &[&str], driver: bool) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_arithmo"));
    if !driver {
        // The loader's present name for it and its former one.
        command.env("VK_DRIVER_FILES", "/nonexistent");
        command.env("VK_ICD_FILENAMES", "/nonexistent");
    }
    command.args(arguments).output().unwrap()
}

#[test]
fn score_equals_the_cpu() {
    if !starts() {
        return;
    }
    let Some(model) = suite::golden::reference("models/tiny-a") else {
        return;
    };
    let data = suite::golden::reference("trl/_data/pairs_eval.jsonl").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["wgpu", "ndarray"].map(|backend| {
        let output = folder.path().join(backend);
        let mut command = vec!["score", "--per-token", "--backend", backend];
        command.extend(["--model", model.to_str().unwrap()]);
        command.extend(["--data", data.to_str().unwrap()]);
        command.extend(["--output", output.to_str().unwrap()]);
        let run = arithmo(&command, true);
        assert!(run.status.success(), "{run:?}");
        suite::golden::json_lines(&output)
    });
    assert!(ours.len() > 10 && ours.len() == theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        for side in ["chosen", "rejected"] {
            let [ours, theirs] = [ours, theirs].map(|line| {
                let tokens = line[format!("token_logps/{side}")].as_array().unwrap();
                tokens.iter().map(|v| v.as_f64().unwrap() as f32).collect::<Vec<_>>()
            });
            suite::golden::assert_close(side, &ours, &theirs, 5e-5);
        }
    }
}

/// A backend that cannot start says so in one message and exits with 1; `auto` goes on to one that can.
#[test]
fn a_missing_driver_is_one_clear_message() {
    let score = ["score", "--model", "none", "--data", "none", "--output", "none", "--backend"];
    let said = |backend: &str| {
        let run = arithmo(&[&score[..], &[backend]].concat(), false);
        assert_eq!(run.status.code(), Some(1), "{run:?}");
        assert!(run.stdout.is_empty());
        let message = String::from_utf8(run.stderr).unwrap();
        assert!(!message.contains("panicked"), "{message}");
        message
    };
    let message = said("wgpu");
    assert!(message.starts_with("error: --backend: wgpu finds no Vulkan"), "{message}");
    // The next thing that is wrong is the model.
    let message = said("auto");
    assert!(!message.contains("--backend"), "{message}");
    if cfg!(feature = "cuda") && BackendKind::Cuda.start().is_err() {
        let message = said("cuda");
        assert!(message.starts_with("error: --backend: cuda finds no NVIDIA"), "{message}");
    }
}
