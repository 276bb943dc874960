//! Checks that checkpoints are restored bit for bit, and that truncated, changed or incomplete ones are detected.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use arithmo::train::checkpoint::{Checkpoint, NamedTensors, Snapshot, TrainState};
use arithmo::train::schedule::PlateauState;
use arithmo::train::selection::{BestStep, Selected};
use arithmo::train::steps::{Retention, checkpoint_files, clear_unfinished};
use burn::tensor::{TensorData, bf16};
use serde_json::json;

use crate::support::file_names;

/// A linear congruential generator, which gives the same numbers on every machine.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 32
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }
}

fn tensors(seed: u64) -> NamedTensors {
    let mut noise = Noise(seed);
    // Random bits include NaN with payloads, infinities and subnormals.
    let floats: Vec<f32> = (0..35).map(|_| f32::from_bits(noise.next() as u32)).collect();
    let doubles: Vec<f64> =
        (0..6).map(|_| f64::from_bits(noise.next() << 32 | noise.next())).collect();
    let halves: Vec<bf16> = (0..3).map(|_| bf16::from_bits(noise.next() as u16)).collect();
    vec![
        ("layers.10.lora_A.weight".into(), TensorData::new(floats, [5, 7])),
        ("layers.9.lora_B.weight".into(), TensorData::new(doubles, [2, 3])),
        ("norm".into(), TensorData::new(halves, [3, 1])),
        ("p.step".into(), TensorData::new(vec![noise.next() as i64], [1])),
    ]
}

fn snapshot(step: usize) -> Snapshot {
    Snapshot {
        state: TrainState {
            step,
            epoch: step / 12,
            position: 4 * (step % 12),
            seed: u64::MAX,
            rng: json!({"words": [1, 2, u64::MAX]}),
            num_tokens: 1000 * step as u64,
            seconds: 0.1 + step as f64 / 3.0,
            log_lines: Some(3),
            selected: Selected {
                best: Some(BestStep { step: step / 2, metric: 0.1 + 0.2 }),
                without_improvement: 3,
            },
            plateau: Some(PlateauState::new(1e-4 / 3.0)),
            metrics: json!({"loss": 0.1 + 0.2, "margins": [1e-300, -0.0]}),
        },
        groups: vec![
            ("adapter".into(), tensors(step as u64)),
            ("optimizer".into(), tensors(step as u64 + 7777)),
        ],
        files: vec![("adapter_config.json".into(), b"{\"r\": 16}".to_vec())],
    }
}

/// Compares bits, not numbers, so that NaN equals itself.
fn assert_same_bits(a: &NamedTensors, b: &NamedTensors) {
    assert_eq!(a.len(), b.len());
    for ((name, a), (other, b)) in a.iter().zip(b) {
        assert_eq!((name, &a.shape, a.dtype), (other, &b.shape, b.dtype));
        assert_eq!(a.as_bytes(), b.as_bytes(), "{name}");
    }
}

fn assert_holds(checkpoint: &Checkpoint, step: usize) {
    let expected = snapshot(step);
    assert_eq!(checkpoint.state(), &expected.state);
    for (group, tensors) in &expected.groups {
        assert_same_bits(&checkpoint.tensors(group).unwrap(), tensors);
    }
    assert_eq!(checkpoint.file("adapter_config.json").unwrap(), expected.files[0].1);
}

/// Returns the step of the newest complete checkpoint, and the warnings.
fn newest(folder: &Path) -> (Option<usize>, Vec<String>) {
    let mut warnings = Vec::new();
    let found = Checkpoint::newest_whole(folder, &mut |warning| warnings.push(warning)).unwrap();
    if let Some(checkpoint) = &found {
        assert_holds(checkpoint, checkpoint.state().step);
    }
    (found.map(|checkpoint| checkpoint.state().step), warnings)
}

#[test]
fn checkpoints_are_restored_bit_for_bit_and_the_highest_step_wins() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = folder.path().join("run/checkpoints");
    assert_eq!(newest(&checkpoints), (None, vec![]));
    for step in [9, 100, 10] {
        let saved = Checkpoint::save(&checkpoints, &snapshot(step), 0).unwrap();
        assert_eq!(saved.path(), checkpoints.join(format!("step-{step}")));
        assert_holds(&saved, step);
    }
    assert_eq!(newest(&checkpoints), (Some(100), vec![]));
    let files = file_names(&checkpoints.join("step-9"));
    assert_eq!(
        files,
        [
            "adapter.safetensors",
            "adapter_config.json",
            "checkpoint.json",
            "optimizer.safetensors",
            "state.json"
        ]
    );
    let missing = Checkpoint::newest_whole(&checkpoints, &mut |_| ()).unwrap().unwrap();
    assert!(
        missing.tensors("reference").unwrap_err().to_string().contains("reference.safetensors")
    );
}

#[test]
fn the_newest_checkpoints_are_kept_and_unfinished_ones_removed() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = folder.path();
    fs::create_dir(checkpoints.join(".part-step-7")).unwrap();
    fs::write(checkpoints.join(".part-step-7/adapter.safetensors"), "half").unwrap();
    fs::write(checkpoints.join(".part-file"), "half").unwrap();
    fs::create_dir(checkpoints.join("notes")).unwrap();
    for step in [5, 10, 15] {
        Checkpoint::save(checkpoints, &snapshot(step), 2).unwrap();
    }
    // `.part-file` is no name of a checkpoint, so saving kept this file.
    fs::remove_file(checkpoints.join(".part-file")).unwrap();
    assert_eq!(file_names(checkpoints), ["notes", "step-10", "step-15"]);
    // Saving the same step again, as at the end of a run, changes nothing. With other weights, it replaces the
    // checkpoint.
    let mut again = snapshot(15);
    again.state.seconds = 1e9;
    let kept = Checkpoint::save(checkpoints, &again, 2).unwrap();
    assert_eq!(kept.state(), &snapshot(15).state);
    again.groups[0].1 = tensors(1);
    let replaced = Checkpoint::save(checkpoints, &again, 2).unwrap();
    assert_eq!(replaced.state().seconds, 1e9);
    assert_same_bits(&replaced.tensors("adapter").unwrap(), &tensors(1));
    assert_eq!(file_names(checkpoints), ["notes", "step-10", "step-15"]);
    // Step 15 is broken, so the run continues from 10. It keeps 10 and 11, and replaces 15 when it reaches it.
    fs::remove_file(checkpoints.join("step-15/state.json")).unwrap();
    Checkpoint::save(checkpoints, &snapshot(11), 2).unwrap();
    assert_eq!(file_names(checkpoints), ["notes", "step-10", "step-11", "step-15"]);
    assert_eq!(newest(checkpoints).0, Some(11));
    Checkpoint::save(checkpoints, &snapshot(15), 1).unwrap();
    assert_eq!(file_names(checkpoints), ["notes", "step-15"]);
    assert_eq!(newest(checkpoints), (Some(15), vec![]));
    // The best one stays beside the newest ones, and a limit of 1 keeps both.
    for (step, limit, kept) in [
        (18, 3, ["notes", "step-15", "step-18"].as_slice()),
        (21, 3, &["notes", "step-15", "step-18", "step-21"]),
        (24, 3, &["notes", "step-15", "step-21", "step-24"]),
        (27, 1, &["notes", "step-15", "step-27"]),
    ] {
        Checkpoint::save(checkpoints, &snapshot(step), Retention { limit, best: Some(15) })
            .unwrap();
        assert_eq!(file_names(checkpoints), kept);
    }
    fs::remove_dir_all(checkpoints.join("step-27")).unwrap();
    fs::create_dir(checkpoints.join(".part-old-step-3")).unwrap();
    clear_unfinished(checkpoints).unwrap();
    assert_eq!(file_names(checkpoints), ["notes", "step-15"]);
}

/// Checks that a regular file with a checkpoint's name is kept and does not get in the way.
#[test]
fn a_file_named_like_a_checkpoint_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = folder.path();
    Checkpoint::save(checkpoints, &snapshot(8), 0).unwrap();
    for name in ["step-10", ".part-old-step-9"] {
        fs::write(checkpoints.join(name), "mine").unwrap();
    }
    let (found, warnings) = newest(checkpoints);
    assert!(found == Some(8) && warnings.len() == 1 && warnings[0].contains("step-10: skipped"));
    // These files are the ones that --overwrite removes.
    let files = checkpoint_files(checkpoints).unwrap();
    assert!(
        !files.is_empty() && files.iter().all(|file| file.starts_with(checkpoints.join("step-8")))
    );
    Checkpoint::save(checkpoints, &snapshot(10), 0).unwrap();
    assert_eq!(newest(checkpoints), (Some(10), vec![]));
    assert_eq!(file_names(checkpoints), ["step-10", "step-8", "step-9"]);
    for name in ["step-10/step-10", "step-9"] {
        assert_eq!(fs::read(checkpoints.join(name)).unwrap(), b"mine", "{name}");
    }
}

/// Damages a file of a checkpoint: 0 removes it, 1 truncates it, 2 appends to it, and others flip a random bit.
fn damage(file: &Path, kind: usize, noise: &mut Noise) {
    let mut bytes = fs::read(file).unwrap();
    match kind {
        0 => return fs::remove_file(file).unwrap(),
        1 => bytes.truncate(noise.below(bytes.len())),
        2 => bytes.extend([0; 3]),
        _ => {
            let place = noise.below(bytes.len());
            bytes[place] ^= 1 << noise.below(8);
        }
    }
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_skipped_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = folder.path();
    let mut noise = Noise(3);
    Checkpoint::save(checkpoints, &snapshot(4), 0).unwrap();
    for round in 0..100 {
        Checkpoint::save(checkpoints, &snapshot(8), 0).unwrap();
        let broken = checkpoints.join("step-8");
        let files = file_names(&broken);
        damage(&broken.join(&files[round % files.len()]), round / files.len() % 5, &mut noise);
        let (step, warnings) = newest(checkpoints);
        assert_eq!(step, Some(4), "round {round}: {}", files[round % files.len()]);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("step-8: skipped"), "{warnings:?}");
    }
    damage(&checkpoints.join("step-4/optimizer.safetensors"), 1, &mut noise);
    let (step, warnings) = newest(checkpoints);
    assert_eq!((step, warnings.len()), (None, 2));
    assert!(warnings[1].contains("optimizer.safetensors has"), "{warnings:?}");
}

#[test]
fn a_renamed_checkpoint_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    Checkpoint::save(folder.path(), &snapshot(4), 0).unwrap();
    fs::rename(folder.path().join("step-4"), folder.path().join("step-40")).unwrap();
    fs::create_dir(folder.path().join("step-007")).unwrap();
    let (step, warnings) = newest(folder.path());
    assert_eq!((step, warnings.len()), (None, 1));
    assert!(warnings[0].contains("contains step 4"), "{warnings:?}");
}

#[test]
fn an_unsupported_dtype_is_refused_and_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    Checkpoint::save(folder.path(), &snapshot(4), 1).unwrap();
    let mut wrong = snapshot(5);
    wrong.groups[1].1.push(("odd".into(), TensorData::new(vec![1_i8], [1])));
    let error = Checkpoint::save(folder.path(), &wrong, 1).unwrap_err().to_string();
    assert!(error.contains("odd: type I8"), "{error}");
    assert_eq!(file_names(folder.path()), ["step-4"]);
}

const WRITER_FOLDER: &str = "ARITHMO_TEST_WRITER_FOLDER";

/// Saves checkpoints without end, as the child process of the next test. Without its environment variable, does
/// nothing.
#[test]
fn writer() {
    let Some(folder) = std::env::var_os(WRITER_FOLDER).map(PathBuf::from) else {
        return;
    };
    let first = 1 + newest(&folder).0.unwrap_or(0);
    for step in first.. {
        Checkpoint::save(&folder, &snapshot(step), 2).unwrap();
    }
}

#[test]
fn a_kill_at_any_moment_leaves_a_complete_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut noise = Noise(11);
    let (mut reached, mut left) = (0, 2);
    for _ in 0..10 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoint::writer"])
            .env(WRITER_FOLDER, folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The kill comes at a random time after the first new checkpoint. Only names are read, because the writer
        // removes old checkpoints meanwhile.
        let is_new = |name: &String| {
            name.strip_prefix("step-").is_some_and(|step| step.parse::<usize>().unwrap() > reached)
        };
        while !file_names(folder.path()).iter().any(is_new) {
            assert_eq!(writer.try_wait().unwrap(), None, "the writer has ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(noise.next() % 30_000));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let (step, warnings) = newest(folder.path());
        assert_eq!(warnings, Vec::<String>::new());
        assert!(step.unwrap() > reached);
        reached = step.unwrap();
        let whole =
            file_names(folder.path()).iter().filter(|name| name.starts_with("step-")).count();
        // The writer keeps 2. If it is killed before it removes older ones, there is one more, which the next one removes
        // unless it is killed as early.
        assert!((1..=left + 1).contains(&whole), "{whole} after {left}");
        left = whole.max(2);
    }
    clear_unfinished(folder.path()).unwrap();
    assert!(file_names(folder.path()).iter().all(|name| name.starts_with("step-")));
}
