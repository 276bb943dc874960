//! Checks that healthy golden runs raise no alarm, and that the same runs made ill do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arithmo::alarms::{Point, alarms};
use serde_json::{Map, Value};

use crate::support;

type Curves = BTreeMap<String, Vec<Point>>;

/// Reads the curves of a golden run.
fn curves(trace: &Path) -> Curves {
    let mut curves = Curves::new();
    for line in fs::read_to_string(trace).unwrap().lines() {
        let line: Map<String, Value> = serde_json::from_str(line).unwrap();
        let step = line["step"].as_f64().unwrap();
        for (key, value) in line.iter().filter_map(|(key, value)| Some((key, value.as_f64()?))) {
            curves.entry(key.clone()).or_default().push((step, value));
        }
    }
    curves
}

fn names(curves: &Curves) -> Vec<&'static str> {
    let found = alarms(&|key| curves.get(key).map_or(&[], Vec::as_slice));
    found.iter().map(|alarm| alarm.name).collect()
}

/// Returns the traces of the golden runs in `folder`.
fn traces(folder: &Path) -> Vec<PathBuf> {
    let names = support::file_names(folder).into_iter();
    let traces = names.map(|name| folder.join(name).join("trace.jsonl"));
    traces.filter(|trace| trace.is_file()).collect()
}

#[test]
fn golden_runs_in_the_tree_raise_no_alarm() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let traces = [traces(&root.join("trl")), traces(&root.join("control"))].concat();
    assert_eq!(traces.len(), 6);
    for trace in traces {
        assert_eq!(names(&curves(&trace)), [""; 0], "{}", trace.display());
    }
}

/// The runs of 60 steps are long enough for every alarm. With both rewards falling by 0.3 per step the chosen one falls, with all
/// pairs right by a margin of 6 they saturate, and without a gradient they do not move.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn all_golden_runs_raise_no_alarm_unless_made_ill() {
    let Some(reference) = support::shared("reference") else { return };
    let mut long = 0;
    for group in ["trl", "optim", "adapter", "control"] {
        for trace in traces(&reference.join(group)) {
            let healthy = curves(&trace);
            assert_eq!(names(&healthy), [""; 0], "{}", trace.display());
            if healthy["loss"].len() < 60 {
                continue;
            }
            long += 1;
            let ill = |keys: &[&str], change: fn(Point) -> f64| {
                let mut ill = healthy.clone();
                for key in keys {
                    let points = ill.get_mut(*key).unwrap();
                    points.iter_mut().for_each(|point| point.1 = change(*point));
                }
                names(&ill)
            };
            let rewards = ["rewards/chosen", "rewards/rejected"];
            assert!(ill(&rewards, |point| point.1 - 0.3 * point.0).contains(&"chosen-falls"));
            let sure = ["rewards/margins", "rewards/accuracies"];
            assert!(ill(&sure, |point| point.1.abs().max(6.0)).contains(&"rewards-saturate"));
            assert!(ill(&["grad_norm"], |_| 0.0).contains(&"adapter-did-not-move"));
        }
    }
    assert!(long >= 4, "{long}");
}
