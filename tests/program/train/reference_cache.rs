//! Checks that the reference's log-probabilities of an earlier run are used only if they are right.

use std::fs;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::{ProcessOutput, Workshop};

/// Returns the only file in the cache.
fn cached_file(workshop: &Workshop) -> PathBuf {
    let files = fs::read_dir(workshop.path("cache/arithmo/reference")).unwrap();
    let files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_second_run_reads_the_log_probabilities_of_the_first() {
    let workshop = Workshop::new();
    let train = |setting: &str| {
        let _ = fs::remove_dir_all(workshop.path("run"));
        let settings = ["dpo.precompute_ref_log_probs=true", setting];
        let mut command = workshop.command(&settings, &[]);
        command.env("XDG_CACHE_HOME", workshop.path("cache"));
        let ended = ProcessOutput::new(command.output().unwrap());
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        (ended.stderr, workshop.result())
    };
    let (said, first) = train("dpo.beta=0.1");
    assert!(!said.contains("earlier run"), "{said}");
    let file = cached_file(&workshop);
    let (said, again) = train("dpo.beta=0.1");
    assert!(said.contains("those of an earlier run"), "{said}");
    assert_eq!(again, first);
    // Another beta, learning rate or rank has the same reference; another prompt has not.
    let (said, other) = train("train.learning_rate=1e-3");
    assert!(said.contains("those of an earlier run") && other != first, "{said}");

    // Values that are wrong although the checksum is right are found by computing the first batch again.
    let whole = fs::read(&file).unwrap();
    let start = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let (header, data) = whole.split_at(start);
    let mut wrong = data.to_vec();
    wrong[3] ^= 1;
    let (length, text) = header.split_at(8);
    let text = String::from_utf8(text.to_vec()).unwrap().replace(&hex(data), &hex(&wrong));
    fs::write(&file, [length, text.as_bytes(), &wrong].concat()).unwrap();
    let (said, again) = train("dpo.beta=0.1");
    assert!(said.contains("does not agree with values computed again"), "{said}");
    assert_eq!(again, first);
    // A file that is cut off is written again.
    fs::write(&file, &whole[..start + 5]).unwrap();
    let (said, again) = train("dpo.beta=0.1");
    assert!(!said.contains("earlier run"), "{said}");
    assert_eq!((again, fs::read(&file).unwrap()), (first, whole));

    let (said, _) = train("data.prompt_template=Q: {prompt}");
    assert!(!said.contains("earlier run"), "{said}");
    let files = fs::read_dir(workshop.path("cache/arithmo/reference")).unwrap();
    assert_eq!(files.count(), 2);
}
