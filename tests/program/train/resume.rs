//! Checks that killed, interrupted and damaged runs end with the same results as an undisturbed run.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{ProcessOutput, STEPS, Workshop, metrics};
use crate::signal::send;

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn logged_lines(run: &Path) -> usize {
    let bytes = fs::read(run.join("metrics.jsonl")).unwrap_or_default();
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// Waits until `child` has logged `lines` lines, and then for `extra`. Returns whether it is still running.
fn wait_for(child: &mut Child, run: &Path, lines: usize, extra: Duration) -> bool {
    while logged_lines(run) < lines {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        sleep(Duration::from_millis(1));
    }
    sleep(extra);
    child.try_wait().unwrap().is_none()
}

/// Runs `train` and kills it a little after `lines` logged lines. Repeats this if the run ends before it is killed.
fn kill_once(
    workshop: &Workshop,
    settings: &[&str],
    flags: &[&str],
    lines: usize,
    rng: &mut ChaCha8Rng,
) {
    let extra = Duration::from_millis(u64::from(rng.next_u32() % 40));
    for attempt in 0..50u32 {
        let mut child = start(workshop.command(settings, flags));
        let running = wait_for(&mut child, &workshop.path("run"), lines, extra / (attempt + 1));
        child.kill().unwrap();
        let ended = ProcessOutput::new(child.wait_with_output().unwrap());
        if running && ended.status.is_none() {
            return;
        }
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        let _ = fs::remove_dir_all(workshop.path("run"));
    }
    panic!("the run always ended before it was killed");
}

/// Compares `kills` runs, each killed once or twice at random times and resumed, with an undisturbed run.
fn check_killed_runs(settings: &[&str], kills: usize, seed: u64) {
    let workshop = Workshop::new();
    workshop.trained(settings, &[]);
    let (whole, lines) = (workshop.result(), logged_lines(&workshop.path("run")));
    assert!(whole.metrics.len() >= STEPS / 3);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for kill in 0..kills {
        fs::remove_dir_all(workshop.path("run")).unwrap();
        let first = rng.next_u32() as usize % (lines - 1);
        kill_once(&workshop, settings, &[], first, &mut rng);
        if kill % 2 == 1 {
            let mut child = start(workshop.command(settings, &["--resume"]));
            let second = first + 1 + rng.next_u32() as usize % 2;
            wait_for(&mut child, &workshop.path("run"), second, Duration::ZERO);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let ended = workshop.trained(settings, &["--resume"]);
        let mut warnings = ended.stderr.lines().filter(|line| line.contains("warning"));
        let is_expected = |line: &str| {
            line.contains("dpo.reference: PiSSA") || line.contains("lora: vLLM does not serve")
        };
        assert!(warnings.all(is_expected), "killed at {first}: {}", ended.stderr);
        assert_eq!(workshop.result(), whole, "kill {kill}, at {first} of {lines} lines");
        assert_eq!(workshop.unfinished_files(), [""; 0]);
    }
}

#[test]
fn killed_with_a_checkpoint_every_step() {
    let settings = ["train.save_steps=1", "train.save_total_limit=1"];
    check_killed_runs(&settings, 4, 1);
}

/// Checks runs whose logged lines are means of three steps with checkpoints between them, and whose dropout draws
/// random numbers.
#[test]
fn killed_between_logged_lines_with_dropout() {
    let settings = [
        "train.save_steps=2",
        "train.logging_steps=3",
        "train.disable_dropout=false",
        "lora.lora_dropout=0.3",
        "train.gradient_checkpointing=true",
    ];
    check_killed_runs(&settings, 3, 2);
}

/// Checks that magnitudes and their optimizer state are restored, and the row norms with them.
#[test]
fn killed_with_magnitudes_and_dropout() {
    let settings = [
        "train.save_steps=2",
        "lora.use_dora=true",
        "lora.target_modules=all-linear",
        "train.disable_dropout=false",
        "lora.lora_dropout=0.2",
        "train.weight_decay=0.1",
    ];
    check_killed_runs(&settings, 3, 5);
}

/// Checks that a resumed run has the very residual base of its start.
#[test]
fn killed_with_an_adapter_that_took_a_part_of_the_base() {
    for (init, reference) in [("pissa", "base"), ("pissa_niter_2", "initial"), ("olora", "base")] {
        let init = format!("lora.init_lora_weights={init}");
        let reference = format!("dpo.reference={reference}");
        check_killed_runs(&["train.save_steps=2", "lora.r=3", &init, &reference], 1, 6);
    }
    let both = [
        "train.save_steps=3",
        "lora.init_lora_weights=pissa",
        "lora.use_dora=true",
        "lora.rank_pattern={ q_proj = 2 }",
        "lora.modules_to_save=[\"norm\"]",
    ];
    check_killed_runs(&both, 1, 7);
}

#[test]
fn killed_with_a_precomputed_reference_and_evaluation() {
    let held_out = super::tiny::fixture("tiny/held-out.jsonl");
    let eval = format!("data.eval_file={}", held_out.display());
    let settings = [
        "train.save_steps=2",
        "dpo.precompute_ref_log_probs=true",
        "dpo.precompute_ref_batch_size=3",
        "train.eval_steps=4",
        "train.per_device_eval_batch_size=2",
        &eval,
    ];
    check_killed_runs(&settings, 3, 3);
}

/// Checks runs with LoRA+ that train modules in full and biases beside branches of different ranks.
#[test]
fn killed_with_modules_trained_in_full_and_two_learning_rates() {
    let settings = [
        "train.save_steps=1",
        "lora.modules_to_save=[\"lm_head\", \"embed_tokens\", \"norm\"]",
        "lora.loraplus_lr_ratio=8",
        "lora.loraplus_weight_decay=0.1",
        "lora.lora_bias=true",
        "lora.rank_pattern={ v_proj = 2 }",
    ];
    check_killed_runs(&settings, 3, 4);
}

#[test]
fn killed_with_a_reference_that_follows() {
    let settings = [
        "train.save_steps=1",
        "dpo.sync_ref_model=true",
        "dpo.ref_model_sync_steps=2",
        "dpo.ref_model_mixup_alpha=0.3",
    ];
    check_killed_runs(&settings, 3, 4);
}

/// Checks the other methods. With KTO, some micro-batches have examples of one class only, whose metrics are absent in them.
#[test]
fn killed_with_other_methods() {
    let interval = ["train.save_steps=2", "train.logging_steps=3"];
    for (seed, method) in (4..).zip(["kto", "orpo", "cpo"]) {
        let method = format!("method={method}");
        check_killed_runs(&[interval[0], interval[1], &method], 2, seed);
    }
    let precomputed = ["method=kto", "kto.precompute_ref_log_probs=true", "data.shuffle=false"];
    check_killed_runs(&[&interval[..], &precomputed].concat(), 2, 7);
}

#[test]
fn a_damaged_checkpoint_is_skipped_and_the_one_before_is_used() {
    let workshop = Workshop::new();
    let settings = ["train.save_steps=4", "train.save_total_limit=2"];
    workshop.trained(&settings, &[]);
    let whole = workshop.result();
    let checkpoint =
        |step: usize, file: &str| workshop.path(&format!("run/checkpoints/step-{step}/{file}"));

    let cut = checkpoint(STEPS, "adapter_model.safetensors");
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let ended = workshop.trained(&settings, &["--resume"]);
    let skipped = format!("step-{STEPS}: skipped, not a complete checkpoint");
    assert!(ended.stderr.contains(&skipped), "{}", ended.stderr);
    assert_eq!(workshop.result(), whole);

    let flipped = checkpoint(STEPS, "optimizer.safetensors");
    let mut bytes = fs::read(&flipped).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&flipped, bytes).unwrap();
    fs::remove_file(checkpoint(12, "state.json")).unwrap();
    let ended = workshop.trained(&settings, &["--resume"]);
    for part in [&skipped, "SHA-256 differs", "step-12: skipped", "state.json"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    assert_eq!(workshop.result(), whole);
    assert_eq!(workshop.unfinished_files(), [""; 0]);
}

#[test]
fn ctrl_c_finishes_the_step_saves_and_exits_130() {
    let workshop = Workshop::new();
    let settings = ["train.logging_steps=3"];
    workshop.trained(&settings, &[]);
    let whole = workshop.result();
    let run = workshop.path("run");
    let mut ended = None;
    for _ in 0..50 {
        fs::remove_dir_all(&run).unwrap();
        let mut child = start(workshop.command(&settings, &[]));
        if wait_for(&mut child, &run, 1, Duration::ZERO) {
            send("INT", &child);
        }
        let now = ProcessOutput::new(child.wait_with_output().unwrap());
        if now.status != Some(0) {
            ended = Some(now);
            break;
        }
    }
    let ended = ended.unwrap_or_else(|| panic!("the run always ended before it was interrupted"));
    assert_eq!(ended.status, Some(130), "{ended:?}");
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("--resume"), "{}", ended.stderr);
    assert!(!run.join("adapter").exists());
    let saved: Vec<_> = fs::read_dir(run.join("checkpoints")).unwrap().collect();
    assert_eq!(saved.len(), 1, "there must be one checkpoint, although save_steps is 0");
    let before = metrics(&run);
    assert_eq!(before, whole.metrics[..before.len()]);
    workshop.trained(&settings, &["--resume"]);
    assert_eq!(workshop.result(), whole);
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let workshop = Workshop::new();
    workshop.trained(&[], &[]);
    let whole = workshop.result();
    workshop.trained(&[], &["--resume"]);
    assert_eq!(workshop.result(), whole);
}

#[test]
fn an_existing_run_is_refused_resumed_or_overwritten() {
    let workshop = Workshop::new();
    workshop.trained(&["train.save_steps=5"], &[]);
    let whole = workshop.result();
    let manifest = fs::read(workshop.path("run/manifest.json")).unwrap();
    let unchanged = || {
        assert_eq!(workshop.result(), whole);
        assert_eq!(fs::read(workshop.path("run/manifest.json")).unwrap(), manifest);
    };
    workshop.train(&[], &[]).refused(&["already holds a run", "--resume", "--overwrite"]);
    unchanged();
    let both = workshop.train(&[], &["--resume", "--overwrite"]);
    assert_eq!(both.status, Some(2), "{both:?}");
    let changed = ["train.learning_rate=1e-4", "lora.r=4"];
    let ended = workshop.train(&changed, &["--resume"]);
    ended.refused(&["manifest.json", "train.learning_rate: 0.005 -> 0.0001", "lora.r: 3 -> 4"]);
    unchanged();
    // Settings that change no weights may change.
    workshop.trained(&["train.save_steps=7", "train.gradient_checkpointing=true"], &["--resume"]);
    unchanged();

    let pairs = fs::read_to_string(workshop.path("pairs.jsonl")).unwrap();
    fs::write(workshop.path("pairs.jsonl"), pairs.replacen("What is", "How much is", 1)).unwrap();
    workshop.train(&["train.save_steps=5"], &["--resume"]).refused(&["the data"]);
    unchanged();
    fs::write(workshop.path("pairs.jsonl"), pairs).unwrap();

    fs::write(workshop.path("run/notes.txt"), "mine").unwrap();
    workshop.trained(&["train.save_steps=5", "seed=7"], &["--overwrite"]);
    assert_ne!(workshop.result().adapter, whole.adapter);
    workshop.trained(&["train.save_steps=5"], &["--overwrite"]);
    assert_eq!(workshop.result(), whole);
    assert_eq!(fs::read_to_string(workshop.path("run/notes.txt")).unwrap(), "mine");

    fs::remove_file(workshop.path("run/manifest.json")).unwrap();
    workshop.train(&[], &["--resume"]).refused(&["no manifest.json", "choose another output_dir"]);
}
