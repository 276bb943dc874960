//! Compares a pre-trained model of Llama's architecture with transformers (log-probabilities, logits, generated ids) and
//! with TRL (20 steps of DPO).

use arithmo::data::batch::TokenRows;
use arithmo::generate::{GenerateConfig, generate};
use arithmo::model::input::ModelInput;
use arithmo::model::load::load;
use arithmo_backends::LogProbStats;
use arithmo_backends::ops::log_probs::completion_log_probs;
use burn::tensor::{DType, Tensor, TensorData};
use burn_ndarray::NdArray;

use crate::suite::golden::{Tensors, assert_close, ids, json_file};
use crate::suite::traces::replay_on_model;
use crate::support::{shared, smollm2};

type B = NdArray<f32>;

#[test]
#[ignore = "compares with a model that is not in the tree"]
fn a_pretrained_model_matches_transformers() {
    let (Some(folder), Some(golden)) = (smollm2(), shared("reference/smollm2")) else { return };
    let device = Default::default();
    let model = load::<B>(&folder, DType::F32, &device).unwrap();
    let tensors = Tensors::open(&golden.join("forward.safetensors"));
    let forward = json_file(&golden.join("forward.json"));
    for (index, item) in forward["items"].as_array().unwrap().iter().enumerate() {
        let input_ids = ids(&item["input_ids"]);
        let rows = TokenRows::right_padded(&[&input_ids], 0);
        let input = ModelInput::new(&rows, &model.position_table(512, &device), &device);
        let (count, logits) = (input_ids.len(), model.forward(&input));
        let last = logits.narrow(0, count - 1, 1).into_data().to_vec::<f32>().unwrap();
        let theirs = |name: &str| tensors.f32(&format!("bf16.{index}.{name}")).1;
        assert_close(&format!("logits {index}"), &last, &theirs("last_logits"), 5e-4);
        let targets: Vec<i64> = input_ids[1..].iter().map(|id| i64::from(*id)).collect();
        let targets = Tensor::from_data(TensorData::new(targets, [count - 1]), &device);
        let hidden = model.hidden_states(&input).narrow(0, 0, count - 1);
        let ours = completion_log_probs(hidden, model.head(), targets, LogProbStats::None);
        let ours = ours.into_data().to_vec::<f32>().unwrap();
        assert_close(&format!("log-probs {index}"), &ours, &theirs("logprobs"), 2e-4);

        let config = GenerateConfig { max_new_tokens: 48, ..GenerateConfig::default() };
        let new = generate(&model, &[input_ids], &config, |_| ()).unwrap();
        // Up to an end token, which did not stop transformers.
        let (ours, theirs) = (&new[0].token_ids, ids(&item["bf16"]["new_ids"]));
        assert_eq!(ours[..], theirs[..ours.len()], "ids {index}");
    }
}

#[test]
#[ignore = "trains a model that is not in the tree"]
fn a_pretrained_model_trains_as_in_trl() {
    let (Some(folder), Some(golden)) = (smollm2(), shared("reference/smollm2/trl")) else { return };
    for run in ["smollm2_plain", "smollm2_chat"] {
        // The conversational run is not in every copy of the golden data.
        if golden.join(run).exists() {
            replay_on_model::<B>(golden.join(run), folder.clone(), &Default::default());
        }
    }
}
