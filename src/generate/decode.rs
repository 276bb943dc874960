//! Prompts in, completions out: what callers of generation call.

use arithmo_backends::TrainBackend;

use super::batch::Batch;
use super::config::{GenerateConfig, Generated};
use super::listener::{Events, Flow, GenerateEvent, GenerateProgress, Listener};
use crate::error::{Error, Result};
use crate::model::kv_cache::KvCache;
use crate::model::mistral::Mistral;

/// Completes each of `prompts` (token ids, BOS included where the model wants one); results are in the prompts' order.
///
/// `on_progress` hears of every step.
///
/// # Errors
/// As [`generate_with`].
pub fn generate<B: TrainBackend>(
    model: &Mistral<B>,
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

/// As [`generate`], for callers that keep each completion the moment it ends, in whatever order they end.
///
/// # Errors
/// As [`generate_with`].
pub fn generate_each<B: TrainBackend>(
    model: &Mistral<B>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    on_event: impl FnMut(GenerateEvent<'_>) -> Result<()>,
) -> Result<()> {
    generate_with(model, prompts, config, &mut Events(on_event))
}

/// As [`generate_each`], for callers that follow every token.
///
/// # Errors
/// A setting is impossible; a prompt is empty, holds an id outside the vocabulary, or fills all positions of the model;
/// logits are not finite; the listener fails; or the user asked to stop.
pub fn generate_with<B: TrainBackend>(
    model: &Mistral<B>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    listener: &mut impl Listener,
) -> Result<()> {
    config.validate()?;
    check_prompts(model, prompts)?;
    match prompts.is_empty() {
        true => Ok(()),
        false => Batch::new(model, prompts, config).run(listener).map(|_| ()),
    }
}

fn check_prompts<B: TrainBackend>(model: &Mistral<B>, prompts: &[Vec<u32>]) -> Result<()> {
    let (positions, vocabulary) = (model.config.max_position_embeddings, model.config.vocab_size);
    for (index, ids) in prompts.iter().enumerate() {
        let (problem, remedy) = if ids.is_empty() {
            ("has no tokens".to_string(), "give some text")
        } else if ids.len() >= positions {
            let problem = format!(
                "is {} tokens long, which leaves no room: the model has {positions} positions",
                ids.len()
            );
            (problem, "shorten the prompt")
        } else if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            let problem = format!("holds the id {id}, the model knows {vocabulary}");
            (problem, "use the tokenizer that belongs to the model")
        } else {
            continue;
        };
        return Err(Error::invalid(format!("prompt {}", index + 1), problem, remedy));
    }
    Ok(())
}

/// Keys and values of a text, to go on from.
#[derive(Clone, Debug)]
pub struct Memory<B: TrainBackend> {
    cache: KvCache<B>,
    /// The tokens whose keys and values the cache begins with.
    ids: Vec<u32>,
}

/// As [`generate_with`] for one prompt, of which `memory` may know the beginning; afterwards it knows all of it and the
/// completion. It must be of the same model, adapter included.
///
/// # Errors
/// As [`generate_with`]; the memory is then lost.
pub fn generate_on<B: TrainBackend>(
    memory: &mut Option<Memory<B>>,
    model: &Mistral<B>,
    prompt: &[u32],
    config: &GenerateConfig,
    listener: &mut impl Listener,
) -> Result<Generated> {
    config.validate()?;
    let prompts = [prompt.to_vec()];
    check_prompts(model, &prompts)?;
    let mut batch = Batch::new(model, &prompts, config);
    if let Some(Memory { cache, ids }) = memory.take() {
        let common = ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        batch = batch.with_cache(cache, common.min(prompt.len() - 1));
    }
    let mut last = Last { listener, generated: None };
    let cache = batch.run(&mut last)?;
    let generated = last.generated.ok_or_else(|| {
        let problem = "a prompt was not completed";
        Error::run(problem, "please report this")
    })?;
    // The last token was chosen, not computed.
    let (_, computed) = generated.token_ids.split_last().unwrap_or((&0, &[]));
    let ids = [prompt, computed].concat();
    *memory = Some(Memory { cache, ids });
    Ok(generated)
}

/// Keeps what is told to the listener last.
struct Last<'a, L> {
    listener: &'a mut L,
    generated: Option<Generated>,
}

impl<L: Listener> Listener for Last<'_, L> {
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
