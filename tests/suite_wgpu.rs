//! Runs the suite on wgpu. In CI the driver is Mesa's lavapipe, which runs Vulkan on the CPU.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

use arithmo_backends::BackendKind;

#[macro_use]
mod suite;

backend_suite!(
    arithmo_backends::wgpu::Gpu,
    BackendKind::Wgpu,
    skip: [
        linear_and_its_gradient: "backends/tests/kernels/main.rs has these cases, and one autodiff serves all backends",
        adapted_linear_and_its_gradients: "see linear_and_its_gradient",
        attention_and_its_gradient: "see linear_and_its_gradient",
        log_probs_and_their_gradient: "see linear_and_its_gradient",
        row_wise_operations_and_their_gradients: "see linear_and_its_gradient",
        golden_runs: "minutes on a software driver; first_steps replays their beginnings",
        a_model_in_pieces_of_other_types: "minutes on a software driver",
        generation_of_another_model: "minutes on a software driver",
        generation_in_bf16: "minutes on a software driver",
        generation_stops_row_by_row: "the rows are stopped on the host",
        generation_respects_the_models_limits: "the limits are checked on the host",
        sampling_is_reproducible: "tokens are drawn on the host",
    ]
);

/// Compares the plan with the pages that the memory pools reserve.
#[test]
fn plans_are_within_five_percent_of_what_runs_take() {
    if !suite::starts(KIND) {
        return;
    }
    // A small model with gradient checkpointing, and a large vocabulary without. All cases take minutes.
    for case in [1, 6] {
        suite::plan::within_five_percent("wgpu", &suite::plan::CASES[case..=case]);
    }
}

/// The program itself, with the software driver or, as the second argument, without any driver.
fn arithmo(arguments: &[&str], driver: bool) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_arithmo"));
    if !driver {
        // The loader's current name for this variable and its former one.
        command.env("VK_DRIVER_FILES", "/nonexistent");
        command.env("VK_ICD_FILENAMES", "/nonexistent");
    }
    command.args(arguments).output().unwrap()
}

#[test]
fn score_equals_the_cpu() {
    if !suite::starts(KIND) {
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

/// Checks that a backend that cannot start prints one error and exits with 1, and that `auto` tries the next backend.
#[test]
fn a_missing_driver_is_one_clear_message() {
    let score = ["score", "--model", "none", "--data", "none", "--output", "none", "--backend"];
    let stderr = |backend: &str| {
        let run = arithmo(&[&score[..], &[backend]].concat(), false);
        assert_eq!(run.status.code(), Some(1), "{run:?}");
        assert!(run.stdout.is_empty());
        let message = String::from_utf8(run.stderr).unwrap();
        assert!(!message.contains("panicked"), "{message}");
        message
    };
    let message = stderr("wgpu");
    assert!(message.starts_with("error: --backend: wgpu finds no Vulkan"), "{message}");
    // `auto` finds a backend, so the error is about the model instead.
    let message = stderr("auto");
    assert!(!message.contains("--backend"), "{message}");
    if cfg!(feature = "cuda") && BackendKind::Cuda.start().is_err() {
        let message = stderr("cuda");
        assert!(message.starts_with("error: --backend: cuda finds no NVIDIA"), "{message}");
    }
}
