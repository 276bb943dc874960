//! Tests of `arithmo devices` and `--device` as a user calls them.

use std::process::{Command, Output};

use serde_json::Value;

fn arithmo(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arithmo"));
    command.args(arguments);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.output().unwrap()
}

fn devices() -> Vec<Value> {
    let output = arithmo(&["devices", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    json["devices"].as_array().unwrap().clone()
}

#[test]
fn the_cpu_is_listed_and_one_device_is_marked_as_auto() {
    let devices = devices();
    let cpu = devices.iter().find(|d| d["backend"] == "ndarray").unwrap();
    assert_eq!((&cpu["index"], &cpu["kind"]), (&0.into(), &"CPU".into()));
    assert_eq!(cpu["dtypes"], serde_json::json!(["f32"]));
    if cfg!(target_os = "linux") {
        assert!(cpu["free_bytes"].as_u64() <= cpu["memory_bytes"].as_u64());
        assert!(cpu["free_bytes"].as_u64() > Some(0));
    }
    assert_eq!(devices.iter().filter(|d| d["auto"] == true).count(), 1);
    let table = arithmo(&["devices"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("ndarray  0      "), "{table}");
    assert!(table.contains(cpu["name"].as_str().unwrap()), "{table}");
    assert_eq!(table.lines().filter(|l| l.starts_with("* ")).count(), 2);
}

/// Checks that a device can be given by number or name, and that the error for an absent one lists those present.
#[test]
fn a_device_is_chosen_by_number_or_name() {
    let devices = devices();
    let cpu = devices.iter().find(|d| d["backend"] == "ndarray").unwrap();
    let name = cpu["name"].as_str().unwrap();
    let merge = |device: &str| {
        let absent = ["--model", "no-such", "--adapter", "none", "--output", "none"];
        let start = ["merge", "--backend", "ndarray", "--device", device];
        let output = arithmo(&[&start[..], &absent].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    for wanted in ["1", "no such card"] {
        let message = merge(wanted);
        let parts = [
            format!("error: --device: no device `{wanted}` among ndarray 0 ({name})"),
            "help: ".to_string(),
            "arithmo devices".to_string(),
        ];
        for part in parts {
            assert!(message.contains(&part), "{part}: {message}");
        }
    }
    // The device is accepted, so the error is about the model.
    for wanted in ["0", &name[..name.len() - 1].to_uppercase()] {
        let message = merge(wanted);
        assert!(!message.contains("--device"), "{message}");
    }
}
