//! Adapters saved by PEFT with every option that people use: their logits equal PEFT's, or they are refused by name.

use crate::suite::adapters::golden_logits;
use crate::suite::golden::{Tensors, assert_close, reference};
use crate::suite::support::{file_names, shared};
use arithmo::adapter::peft;
use arithmo::model::load::load;
use burn::tensor::DType;

type B = burn_ndarray::NdArray<f32>;

/// The folders of reference/peft_adapters whose adapters are refused, and a part of the error.
const REFUSED: [(&str, &str); 16] = [
    ("embed_tokens_target", "target_modules"),
    ("ia3", "\"IA3\" is another kind of adapter"),
    ("init_mica", "init_lora_weights"),
    ("init_olora", "init_lora_weights: \"olora\" changes the base weights"),
    ("init_pissa", "init_lora_weights: \"pissa\" changes the base weights"),
    ("init_pissa_niter", "init_lora_weights: \"pissa_niter_4\" changes the base weights"),
    ("kasa", "kasa_config"),
    ("layer_replication", "layer_replication"),
    ("lm_head_target", "target_modules"),
    ("monteclora", "monteclora_config"),
    ("no_safetensors_bin", "holds pickled weights (adapter_model.bin)"),
    ("target_parameters", "target_parameters"),
    ("trainable_tokens", "trainable_token_indices"),
    ("velora", "velora_config"),
    ("vera", "\"VERA\" is another kind of adapter"),
    ("named_adapter_subfolder", "holds no adapter_config.json, but folders in it do"),
];

#[test]
#[ignore = "compares with data that are not in the tree"]
fn every_form_has_pefts_logits_or_is_refused_by_name() {
    let Some(forms) = shared("reference/peft_adapters") else { return };
    let base = reference("models/tiny-a").unwrap();
    let mut folders: Vec<String> = file_names(&forms);
    folders.retain(|name| forms.join(name).is_dir());
    assert_eq!(folders.len(), 38);
    // Several named adapters: each lies in a folder of its own.
    folders.push("named_adapter_subfolder/other".into());
    let mut worst = 0f32;
    for name in folders {
        let folder = forms.join(&name);
        let mut model = load::<B>(&base, DType::F32, &Default::default()).unwrap();
        let loaded = peft::load(&mut model, &folder, &Default::default());
        if let Some((_, part)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let error = loaded.unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("\n  help: "), "{name}: {error}");
            continue;
        }
        if let Some((folder, name)) = name.split_once('/') {
            assert_eq!(
                peft::named_adapter(&forms.join(folder), name).unwrap(),
                forms.join(folder).join(name)
            );
            let error = peft::named_adapter(&forms.join(folder), "x").unwrap_err().to_string();
            assert!(error.contains("choose one of other"), "{error}");
        }
        loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = Tensors::open(&folder.join("expected.safetensors"));
        let (ours, theirs) = (golden_logits(&model, &expected), expected.f32("logits").1);
        assert_close(&name, &ours, &theirs, 2e-4);
        worst = ours.iter().zip(&theirs).fold(worst, |worst, (a, b)| worst.max((a - b).abs()));
    }
    eprintln!("worst deviation of logits: {worst:.1e}");
}
