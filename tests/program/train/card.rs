//! Checks the model card, `README.md` in the folder of a result.

use std::fs;

use super::{ProcessOutput, Workshop, program};

fn card(workshop: &Workshop, folder: &str) -> String {
    fs::read_to_string(workshop.path("run").join(folder).join("README.md")).unwrap()
}

/// A resumed run and one that starts again replace their card, but not one that the user edited.
#[test]
fn an_edited_card_is_kept() {
    let workshop = Workshop::new();
    let eval = format!("data.eval_file={}", workshop.path("held-out.jsonl").display());
    workshop.trained(&[&eval, "train.max_steps=3"], &[]);
    let short = card(&workshop, "adapter");
    for part in [
        "library_name: peft",
        "- dpo\n- lora\n",
        "| `pairs.jsonl` | training | 14 | `",
        "| `held-out.jsonl` | evaluation | ",
        "| training | step 1 | step 3 |",
        "| held out | step 3 | step 3 |",
        "3 optimizer steps on",
        "| `lora.r` | `3` |",
        "--adapter run",
    ] {
        assert!(short.contains(part), "{part}: {short}");
    }
    assert!(!short.contains(&workshop.path("").display().to_string()), "{short}");

    workshop.trained(&[&eval, "train.max_steps=4"], &["--resume"]);
    let longer = card(&workshop, "adapter");
    assert!(longer.contains("| training | step 1 | step 4 |"), "{longer}");

    let edited = longer.replace("# run", "# My adapter");
    fs::write(workshop.path("run/adapter/README.md"), &edited).unwrap();
    let ended = workshop.trained(&[&eval, "train.max_steps=5"], &["--resume"]);
    assert!(ended.stderr.contains("README.md: was edited and is kept"), "{}", ended.stderr);
    assert_eq!(card(&workshop, "adapter"), edited);

    workshop.trained(&[&eval, "train.max_steps=2"], &["--overwrite"]);
    assert_eq!(card(&workshop, "adapter"), edited);
    fs::write(workshop.path("run/adapter/README.md"), &longer).unwrap();
    workshop.trained(&[&eval, "train.max_steps=2"], &["--overwrite"]);
    assert!(card(&workshop, "adapter").contains("| training | step 1 | step 2 |"));
}

/// The card names the best step, which is the result.
#[test]
fn the_best_step_is_named() {
    let workshop = Workshop::new();
    let eval = format!("data.eval_file={}", workshop.path("held-out.jsonl").display());
    let best = ["train.load_best_model_at_end=true", "train.greater_is_better=true"];
    let settings =
        [&[eval.as_str(), "train.eval_steps=2", "train.save_steps=2"], &best[..]].concat();
    workshop.trained(&settings, &[]);
    let text = card(&workshop, "adapter");
    assert!(
        text.contains("The result is the state after step 2, the best by `eval_loss`"),
        "{text}"
    );
}

/// The card of a whole model survives that the model is written again.
#[test]
fn a_whole_model_has_a_card_too() {
    let workshop = Workshop::new();
    let toml = fs::read_to_string(workshop.path("run.toml")).unwrap();
    fs::write(workshop.path("run.toml"), toml.replace("[lora]\nr = 3\nlora_alpha = 6\n", ""))
        .unwrap();
    let settings = ["model.use_peft=false", "train.max_steps=2"];
    workshop.trained(&settings, &[]);
    let text = card(&workshop, "model");
    assert!(text.contains("library_name: transformers") && !text.contains("lora"), "{text}");
    fs::write(workshop.path("run/model/README.md"), "mine").unwrap();
    workshop.trained(&settings, &["--resume"]);
    assert_eq!(card(&workshop, "model"), "mine");
}

/// The card of a merged model describes the run of its adapter.
#[test]
fn a_merged_model_has_the_card_of_its_run() {
    let workshop = Workshop::new();
    workshop.trained(&["train.max_steps=2"], &[]);
    let at = |name: &str| workshop.path(name).display().to_string();
    let merge = |flags: &[&str]| {
        let (model, adapter, output) = (at("model"), at("run/adapter"), at("merged"));
        let fixed = ["merge", "--model", &model, "--adapter", &adapter, "--output", &output];
        let ended = ProcessOutput::new(program().args(fixed).args(flags).output().unwrap());
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    };
    merge(&[]);
    let text = fs::read_to_string(at("merged/README.md")).unwrap();
    for part in
        ["library_name: transformers", "- lora\n", "# merged\n", "A LoRA adapter merged into"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    fs::write(at("merged/README.md"), "mine").unwrap();
    merge(&["--overwrite"]);
    assert_eq!(fs::read_to_string(at("merged/README.md")).unwrap(), "mine");
}
