//! Combines the options of a run: method, losses, divergence, adapter, reference, quantization, activations, optimizer.

use std::collections::BTreeSet;
use std::fs;

use rayon::prelude::*;
use tempfile::TempDir;

use super::{ProcessOutput, Workshop, json_lines, number, program};

/// The values of each option. Every pair of values of two options is in one of the combinations.
const OPTIONS: [&[&[&str]]; 9] = [
    &[
        &["dpo.loss_type=sigmoid"],
        &["dpo.loss_type=hinge"],
        &["dpo.loss_type=ipo"],
        &["dpo.loss_type=exo_pair", "dpo.label_smoothing=0.1"],
        &["dpo.loss_type=nca_pair"],
        &["dpo.loss_type=robust", "dpo.label_smoothing=0.2"],
        &["dpo.loss_type=bco_pair"],
        &["dpo.loss_type=sppo_hard"],
        &["dpo.loss_type=aot"],
        &["dpo.loss_type=aot_unpaired", "dpo.label_smoothing=0.1"],
        &["dpo.loss_type=apo_zero"],
        &["dpo.loss_type=apo_down"],
        &["dpo.loss_type=discopop", "dpo.discopop_tau=0.2"],
        &["dpo.loss_type=sft"],
        &["dpo.loss_type=sigmoid_norm"],
        &["dpo.loss_type=cdpo", "dpo.label_smoothing=0.1"],
        &["dpo.loss_type=dpop", "dpo.dpop_lambda=5"],
        &["dpo.loss_type=[\"ipo\",\"aot\",\"sft\"]", "dpo.loss_weights=[0.5,1,0.1]"],
        &["method=sft"],
        &["method=kto"],
        &["method=kto", "kto.loss_type=apo_zero_unpaired", "kto.precompute_ref_log_probs=true"],
        &["method=orpo"],
        &["method=cpo", "cpo.label_smoothing=0.1"],
        &["method=cpo", "cpo.loss_type=simpo", "cpo.alpha=0.1"],
    ],
    &[
        &[],
        &["dpo.f_divergence_type=forward_kl"],
        &["dpo.f_divergence_type=js_divergence"],
        &["dpo.f_divergence_type=alpha_divergence", "dpo.f_alpha_divergence_coef=0.7"],
    ],
    &[&[], &["dpo.use_weighting=true"], &["dpo.ld_alpha=0.5"], &["dpo.rpo_alpha=0.2"]],
    &[
        &[],
        &["dpo.reference=initial"],
        &["dpo.precompute_ref_log_probs=true"],
        &["dpo.reference_free=true"],
        &["dpo.sync_ref_model=true", "dpo.ref_model_sync_steps=1"],
    ],
    &[
        &[],
        &["lora.use_rslora=true", "lora.target_modules=all-linear"],
        &["lora.init_lora_weights=gaussian"],
        &["lora.use_dora=true", "lora.target_modules=all-linear"],
        &["lora.init_lora_weights=pissa", "lora.r=3", "lora.rank_pattern={ q_proj = 2 }"],
        &[
            "lora.use_dora=true",
            "lora.alpha_pattern={ q_proj = 3 }",
            "lora.modules_to_save=[\"norm\"]",
        ],
        &["lora.init_lora_weights=olora", "lora.use_dora=true"],
        &["model.use_peft=false"],
    ],
    &[&[], &["model.quantization=nf4"], &["model.quantization=int8"]],
    &[&[], &["train.gradient_checkpointing=true"], &["train.max_tokens_per_pass=60"]],
    &[
        &[],
        &["train.optim=rmsprop", "train.optim_args=momentum=0.5"],
        &["train.optim=sgd"],
        &["train.optim=lion_32bit"],
    ],
    &[&[], &["train.disable_dropout=false", "lora.lora_dropout=0.3"]],
];

/// Returns combinations of one value of each option, as indices, in which every two values of two options meet.
fn pairwise() -> Vec<[usize; 9]> {
    let mut missing: BTreeSet<[usize; 4]> = BTreeSet::new();
    for (first, values) in OPTIONS.iter().enumerate() {
        for (second, others) in OPTIONS.iter().enumerate().skip(first + 1) {
            for value in 0..values.len() {
                missing.extend((0..others.len()).map(|other| [first, value, second, other]));
            }
        }
    }
    let mut combinations = Vec::new();
    let mut seed = 1usize;
    while let Some([first, value, second, other]) = missing.pop_first() {
        let mut combination = OPTIONS.map(|values| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % values.len()
        });
        (combination[first], combination[second]) = (value, other);
        missing.retain(|[a, x, b, y]| combination[*a] != *x || combination[*b] != *y);
        combinations.push(combination);
    }
    combinations
}

/// At least 300 combinations train two steps, or give their error: none crashes. The losses of every step are finite.
#[test]
fn options_combine_or_are_refused_by_name() {
    let workshop = Workshop::new();
    let mut combinations = pairwise();
    let shifted: Vec<[usize; 9]> = combinations
        .iter()
        .map(|combination| {
            let mut index = 0;
            combination.map(|value| {
                index += 1;
                (value + index % 3) % OPTIONS[index - 1].len()
            })
        })
        .collect();
    combinations.extend(shifted);
    combinations.sort_unstable();
    combinations.dedup();
    assert!(combinations.len() >= 300, "{}", combinations.len());
    let trained = combinations.par_iter().filter(|combination| {
        let folder = TempDir::new().unwrap();
        let run = folder.path().join("run");
        let settings: Vec<&str> = combination
            .iter()
            .zip(&OPTIONS)
            .flat_map(|(value, values)| values[*value].iter().copied())
            .collect();
        let mut command = program();
        command.args(["train", "--config"]).arg(workshop.path("run.toml"));
        command.env("RAYON_NUM_THREADS", "1").env("XDG_CACHE_HOME", folder.path());
        let output = format!("output_dir={}", run.display());
        for setting in settings.iter().copied().chain(["train.max_steps=2", &output]) {
            command.args(["--set", setting]);
        }
        let ended = ProcessOutput::new(command.output().unwrap());
        assert!(!ended.stderr.contains("panicked"), "{settings:?}: {}", ended.stderr);
        if ended.status == Some(0) {
            let lines = json_lines(&run.join("metrics.jsonl"));
            assert_eq!(lines.len(), 2, "{settings:?}");
            assert!(lines.iter().all(|line| number(line, "loss").is_finite()), "{settings:?}");
            return true;
        }
        ended.refused(&[]);
        // The error names a key that was set.
        let mut keys = settings.iter().filter_map(|setting| setting.split_once('='));
        let named = keys.any(|(key, _)| {
            let table = key.split_once('.').map_or(key, |(table, _)| table);
            ended.stderr.contains(key) || (key.starts_with("dpo.") && ended.stderr.contains(table))
        });
        assert!(named, "{settings:?}: {}", ended.stderr);
        assert!(fs::read_dir(folder.path()).unwrap().all(|entry| entry.unwrap().path() != run));
        false
    });
    let trained = trained.count();
    // About half of the combinations contradict themselves, such as a divergence with a loss that has none.
    assert!(trained >= 60, "{trained} of {}", combinations.len());
    eprintln!("{trained} of {} combinations trained", combinations.len());
}
