//! Compares forward passes with transformers: logits, hidden states and log-probabilities, padded left and right.

use std::path::PathBuf;

use arithmo::data::batch::{AttentionRange, TokenRows};
use arithmo::model::decoder::Decoder;
use arithmo::model::input::ModelInput;
use arithmo::model::load::load;
use arithmo_backends::ops::log_probs::completion_log_probs;
use arithmo_backends::{LogProbStats, TrainBackend};
use burn::tensor::{DType, Tensor, TensorData};

use super::generate::equals_transformers;
use super::golden::{Tensors, assert_close, reference};
use super::support::{file_names, shared};

/// Returns the golden file or folder `kind/NAME`, or `families/kind/NAME` if `name` is `families/NAME`.
pub fn golden_path(kind: &str, name: &str) -> Option<PathBuf> {
    match name.strip_prefix("families/") {
        Some(family) => reference(&format!("families/{kind}/{family}")),
        None => reference(&format!("{kind}/{name}")),
    }
}

pub fn model<B: TrainBackend>(name: &str, device: &B::Device) -> Option<Decoder<B>> {
    let folder = golden_path("models", name)?;
    Some(load(&folder, DType::F32, device).unwrap())
}

/// Compares logits, hidden states and generated ids of every golden model of the families.
pub fn families<B: TrainBackend>(device: &B::Device) {
    let Some(folder) = shared("reference/families/models") else {
        return;
    };
    let names = file_names(&folder);
    assert!(names.len() >= 14, "only {names:?}");
    for name in names {
        let name = format!("families/{name}");
        padded_batches::<B>(&name, device);
        hidden_states::<B>(&name, device);
        equals_transformers::<B>(&name, device);
    }
}

/// Compares logits (within 1e-4) and log-probabilities (within 5e-5) of right- and left-padded batches.
pub fn padded_batches<B: TrainBackend>(name: &str, device: &B::Device) {
    let Some(model) = model::<B>(name, device) else {
        return;
    };
    let golden = Tensors::open(&golden_path("forward", &format!("{name}.safetensors")).unwrap());
    for side in ["right", "left"] {
        let (shape, ids) = golden.i64(&format!("{side}.input_ids"));
        let (_, attended) = golden.i64(&format!("{side}.attention_mask"));
        let rows = token_rows(&shape, ids, &attended);
        let input = ModelInput::new(&rows, &model.position_table(64, device), device);
        let hidden = model.hidden_states(&input);
        let logits = model.forward(&input).into_data();
        let (logits, theirs) =
            (logits.to_vec::<f32>().unwrap(), golden.f32(&format!("{side}.logits")));
        let vocabulary = theirs.0[2];
        let real = |values: &[f32]| -> Vec<f32> {
            let rows = values.chunks(vocabulary).zip(&attended);
            rows.filter(|(_, on)| **on == 1).flat_map(|(row, _)| row.to_vec()).collect()
        };
        assert_close(&format!("{name} {side} logits"), &real(&logits), &real(&theirs.1), 1e-4);
        log_probs(
            &format!("{name} {side}"),
            &model,
            hidden,
            &rows,
            &attended,
            &golden.f32(&format!("{side}.logprobs")).1,
        );
    }
}

/// Compares `log p(token t+1 | tokens up to t)` wherever both tokens are real, not padding.
fn log_probs<B: TrainBackend>(
    what: &str,
    model: &Decoder<B>,
    hidden: Tensor<B, 2>,
    rows: &TokenRows,
    attended: &[i64],
    theirs: &[f32],
) {
    let (batch, length, width) = (rows.rows, rows.length, hidden.dims()[1]);
    let shifted = hidden
        .clone()
        .reshape([batch, length, width])
        .narrow(1, 0, length - 1)
        .reshape([batch * (length - 1), width]);
    let targets: Vec<i64> = rows.ids.chunks(length).flat_map(|row| row[1..].to_vec()).collect();
    let count = targets.len();
    let targets = Tensor::from_data(TensorData::new(targets, [count]), &hidden.device());
    let logps = completion_log_probs(shifted, model.head(), targets, LogProbStats::None);
    let ours = logps.into_data().to_vec::<f32>().unwrap();
    let both = attended.chunks(length).flat_map(|row| row.windows(2).map(|w| w[0] * w[1] == 1));
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (index, _) in both.enumerate().filter(|(_, both)| *both) {
        a.push(ours[index]);
        b.push(theirs[index]);
    }
    assert_close(&format!("{what} logprobs"), &a, &b, 5e-5);
}

/// Compares the residual stream after the embedding, every layer and the final norm, for one unpadded text.
pub fn hidden_states<B: TrainBackend>(name: &str, device: &B::Device) {
    let Some(model) = model::<B>(name, device) else {
        return;
    };
    let golden = Tensors::open(&golden_path("forward", &format!("{name}.safetensors")).unwrap());
    let (shape, ids) = golden.i64("right.input_ids");
    let (_, attended) = golden.i64("right.attention_mask");
    let length = attended[..shape[1]].iter().sum::<i64>() as usize;
    let row: Vec<u32> = ids[..length].iter().map(|id| *id as u32).collect();
    let rows = TokenRows::right_padded(&[&row], 0);
    let input = ModelInput::new(&rows, &model.position_table(64, device), device);
    let mut x = model.embed(input.token_ids.clone());
    for index in 0..=model.layers.len() {
        let ours =
            if index == model.layers.len() { model.norm.forward(x.clone()) } else { x.clone() };
        let ours = ours.into_data().to_vec::<f32>().unwrap();
        let theirs = golden.f32(&format!("row0.hidden.{index}")).1;
        assert_close(&format!("{name} hidden {index}"), &ours, &theirs, 1e-4);
        if index < model.layers.len() {
            x = model.layer(index, x, &input.context);
        }
    }
}

/// Converts ids and an attention mask, whose ones are contiguous in each row, to token rows.
fn token_rows(shape: &[usize], ids: Vec<i64>, attended: &[i64]) -> TokenRows {
    let mut rows = TokenRows {
        rows: shape[0],
        length: shape[1],
        hidden: vec![false; ids.len()],
        ids,
        ..TokenRows::default()
    };
    for (row, attended) in attended.chunks(shape[1]).enumerate() {
        let first = row * shape[1] + attended.iter().position(|on| *on == 1).unwrap();
        for (index, on) in attended.iter().enumerate() {
            let at = row * shape[1] + index;
            let own = [first as i64, at as i64 + 1];
            let seen = AttentionRange { shared: [0, 0], own };
            rows.attention.push(if *on == 1 { seen } else { AttentionRange::default() });
            rows.positions.push(at.saturating_sub(first) as i64 * on);
        }
    }
    rows
}
