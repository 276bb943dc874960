//! The public functions that complete prompts given as token ids.

use arithmo_backends::TrainBackend;

use super::batch::Batch;
use super::config::{GenerateConfig, Generated};
use super::listener::{Events, Flow, GenerateEvent, GenerateProgress, Listener};
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::kv_cache::KvCache;

/// Completes each of `prompts` (token ids, including BOS if the model expects it) and returns the results in the
/// prompts' order.
///
/// `on_progress` is called after every step.
///
/// # Errors
/// Same as [`generate_with`].
pub fn generate<B: TrainBackend>(
    model: &Decoder<B>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    mut on_progress: impl FnMut(GenerateProgress),
) -> Result<Vec<Generated>> {
    let mut all = vec![None; prompts.len()];
    generate_each(model, prompts, config, |event| {
        match event {
            GenerateEvent::Step(progress) => on_progress(progress),
            GenerateEvent::Finished { index, generated } => all[index] = Some(generated.clone()),
        }
        Ok(())
    })?;
    Ok(all.into_iter().flatten().collect())
}

/// Completes prompts like [`generate`], and passes each completion to `on_event` as soon as it ends, in any order.
///
/// # Errors
/// Same as [`generate_with`].
pub fn generate_each<B: TrainBackend>(
    model: &Decoder<B>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    on_event: impl FnMut(GenerateEvent<'_>) -> Result<()>,
) -> Result<()> {
    generate_with(model, prompts, config, &mut Events(on_event))
}

/// Completes prompts like [`generate_each`], and passes every token to `listener`.
///
/// # Errors
/// A setting is impossible; a prompt is empty, holds an id outside the vocabulary, or fills all positions of the model;
/// logits are not finite; the listener fails; or the user asked to stop.
pub fn generate_with<B: TrainBackend>(
    model: &Decoder<B>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    listener: &mut impl Listener,
) -> Result<()> {
    config.validate()?;
    check_prompts(model, prompts)?;
    if prompts.is_empty() {
        return Ok(());
    }
    Batch::new(model, prompts, config).run(listener).map(|_| ())
}

/// Checks that each prompt has tokens, leaves room for an answer, and uses ids of the vocabulary only.
fn check_prompts<B: TrainBackend>(model: &Decoder<B>, prompts: &[Vec<u32>]) -> Result<()> {
    let (positions, vocabulary) = (model.config.max_position_embeddings, model.config.vocab_size);
    for (index, ids) in prompts.iter().enumerate() {
        let (problem, remedy) = if ids.is_empty() {
            ("has no tokens".to_string(), "enter some text")
        } else if ids.len() >= positions {
            let problem = format!(
                "is {} tokens long, which leaves no room for an answer: the model has {positions} positions",
                ids.len()
            );
            (problem, "shorten the prompt")
        } else if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            let problem = format!("holds the id {id}, but the model's vocabulary has {vocabulary}");
            (problem, "use the tokenizer that belongs to the model")
        } else {
            continue;
        };
        return Err(Error::invalid(format!("prompt {}", index + 1), problem, remedy));
    }
    Ok(())
}

/// Keys and values of a text, from which generation can continue.
#[derive(Clone, Debug)]
pub struct PrefixCache<B: TrainBackend> {
    cache: KvCache<B>,
    /// The tokens at the start of the cache.
    ids: Vec<u32>,
}

/// Completes one prompt like [`generate_with`], reusing the part of it that `prefix` holds; afterwards `prefix` holds
/// the whole prompt and its completion. It must come from the same model, including the adapter.
///
/// # Errors
/// Same as [`generate_with`]; the prefix is then lost.
pub fn generate_with_prefix<B: TrainBackend>(
    prefix: &mut Option<PrefixCache<B>>,
    model: &Decoder<B>,
    prompt: &[u32],
    config: &GenerateConfig,
    listener: &mut impl Listener,
) -> Result<Generated> {
    config.validate()?;
    let prompts = [prompt.to_vec()];
    check_prompts(model, &prompts)?;
    let mut batch = Batch::new(model, &prompts, config);
    if let Some(PrefixCache { cache, ids }) = prefix.take() {
        let common = ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        batch = batch.with_cache(cache, common.min(prompt.len() - 1));
    }
    let mut listener = KeepGenerated { listener, generated: None };
    let cache = batch.run(&mut listener)?;
    let generated = listener.generated.ok_or_else(|| {
        let problem = "a prompt was not completed";
        Error::run(problem, "please report this")
    })?;
    // Keys and values of the last token are not computed.
    let (_, computed) = generated.token_ids.split_last().unwrap_or((&0, &[]));
    let ids = [prompt, computed].concat();
    *prefix = Some(PrefixCache { cache, ids });
    Ok(generated)
}

/// A listener that keeps the completion it is passed.
struct KeepGenerated<'a, L> {
    listener: &'a mut L,
    generated: Option<Generated>,
}

impl<L: Listener> Listener for KeepGenerated<'_, L> {
    fn token(&mut self, index: usize, token_ids: &[u32]) -> Result<Flow> {
        self.listener.token(index, token_ids)
    }

    fn finished(&mut self, index: usize, generated: &Generated) -> Result<()> {
        self.generated = Some(generated.clone());
        self.listener.finished(index, generated)
    }

    fn step(&mut self, progress: GenerateProgress) -> Result<()> {
        self.listener.step(progress)
    }
}
