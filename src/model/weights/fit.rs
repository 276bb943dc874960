//! Compares the stored tensors with those that a model needs.

use std::collections::BTreeSet;

use super::WeightFiles;
use crate::error::{Error, Result, first_few};
use crate::model::names::ModelTensor;

impl WeightFiles {
    /// Compares the stored tensors with the `expected` ones. The error names the first differences and
    /// counts the others.
    ///
    /// `rotary_emb.inv_freq` buffers (old checkpoints) and an unexpected `lm_head.weight` (tied embeddings) are
    /// ignored.
    ///
    /// # Errors
    /// Tensors are missing, unexpected, of another shape, or not floats.
    pub fn check(&self, expected: &[ModelTensor]) -> Result<()> {
        let mut problems = Vec::new();
        for ModelTensor { name, shape, .. } in expected {
            match self.tensors.get(name) {
                None => problems.push(format!("missing: {name} {shape:?}")),
                // The state of a quantized tensor holds its shape, which is checked when it is read.
                Some(_) if self.is_quantized(name) => {}
                Some(entry) if entry.shape != *shape => problems.push(format!(
                    "wrong shape: {name} is {:?}, the config asks for {shape:?}",
                    entry.shape
                )),
                Some(entry) if !entry.dtype.is_float() => {
                    problems.push(format!("wrong type: {name} is {:?}", entry.dtype));
                }
                Some(_) => {}
            }
        }
        let known: BTreeSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
        let ignored =
            |name: &str| name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight";
        // `X.weight.absmax` and the like belong to a quantized `X.weight`.
        let belongs_to_quantized = |name: &str| {
            let base = name.find(".weight.").map(|at| &name[..at + ".weight".len()]);
            base.is_some_and(|base| known.contains(base) && self.is_quantized(base))
        };
        let extra = self
            .names()
            .filter(|name| !known.contains(name) && !ignored(name) && !belongs_to_quantized(name));
        problems.extend(extra.map(|name| format!("not part of the model: {name}")));
        if problems.is_empty() {
            return Ok(());
        }
        let count = problems.len();
        let (wanted, stored) = (layers(known), layers(self.names()));
        let layers = if wanted == stored {
            String::new()
        } else {
            format!("num_hidden_layers is {wanted}, the weights hold {stored} layers; ")
        };
        Err(Error::file(
            &self.place,
            format!("{layers}{count} tensors do not fit:\n    {}", first_few(problems, "\n    ")),
            "take the config.json that belongs to these weights",
        ))
    }
}

/// Returns the number of layers to which tensors of these names belong.
fn layers<'a>(names: impl IntoIterator<Item = &'a str>) -> usize {
    let index = |name: &str| -> Option<usize> {
        let (index, _) = name.strip_prefix("model.layers.")?.split_once('.')?;
        index.parse().ok()
    };
    let layers: BTreeSet<usize> = names.into_iter().filter_map(index).collect();
    layers.len()
}
