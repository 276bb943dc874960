//! Compares the stored tensors with those that a model needs.

use std::collections::BTreeSet;

use super::WeightFiles;
use crate::error::{Error, Result, first_few};
use crate::model::names::{EMBEDDING, HEAD, ModelTensor};

/// Number of values that are compared at once.
const COMPARED_VALUES: usize = 1 << 20;

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

impl WeightFiles {
    /// Refuses a head that differs from the embedding, for a model in which the embedding is the head.
    ///
    /// # Errors
    /// There is one, or the files cannot be read.
    pub(super) fn refuse_other_head(&self) -> Result<()> {
        let [head, embedding] = [HEAD, EMBEDDING].map(|module| format!("{module}.weight"));
        let is_float = |name: &String| self.dtype(name).is_ok_and(|dtype| dtype.is_float());
        if !is_float(&head) || !is_float(&embedding) || self.are_equal(&head, &embedding)? {
            return Ok(());
        }
        Err(Error::file(
            &self.place,
            format!(
                "{head} differs from {embedding}, but tie_word_embeddings is true or absent in config.json"
            ),
            "set tie_word_embeddings to false in config.json to use both, as transformers 5 does",
        ))
    }

    /// Returns whether two tensors have the same shape and values.
    fn are_equal(&self, one: &str, other: &str) -> Result<bool> {
        let shape = self.shape(one)?;
        if shape != self.shape(other)? {
            return Ok(false);
        }
        let count: usize = shape.iter().product();
        for first in (0..count).step_by(COMPARED_VALUES) {
            let len = COMPARED_VALUES.min(count - first);
            let (mut a, mut b) = (vec![0.0; len], vec![0.0; len]);
            self.read_f32(one, first, &mut a)?;
            self.read_f32(other, first, &mut b)?;
            // Bits, because NaN differs from itself; not_finite.rs reports it.
            if a.iter().zip(&b).any(|(a, b)| a.to_bits() != b.to_bits()) {
                return Ok(false);
            }
        }
        Ok(true)
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
