//! The decode loop: prompts in, completions out, each token computed once.
//!
//! Prompts are decoded in batches of similar length, longest first (if memory is short, that shows at once), padded on
//! the left so that all rows end together. A row that is done stays in its batch, unseen, until half of the rows are:
//! then the batch is packed anew. No completion depends on which other prompts it was decoded with.

use std::cmp::Reverse;

use arithmo_backends::{TrainBackend, ops::linear::linear};
use burn::tensor::{DType, Tensor, TensorData};

use super::config::{FinishReason, GenerateConfig, Generated};
use super::listener::{Events, Flow, GenerateEvent, GenerateProgress, Listener};
use super::sampling::{Choice, choose};
use crate::data::batch::{Sight, TokenRows};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::input::ModelInput;
use crate::model::kv_cache::KvCache;
use crate::model::mistral::Mistral;
use crate::model::positions::PositionTable;

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
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|index| (Reverse(prompts[*index].len()), *index));
    let decoder = Decoder::new(model, prompts, config);
    for batch in order.chunks(config.batch_size) {
        decoder.batch(batch, listener)?;
    }
    Ok(())
}

fn check_prompts<B: TrainBackend>(model: &Mistral<B>, prompts: &[Vec<u32>]) -> Result<()> {
    let (positions, vocabulary) = (
        model.config.max_position_embeddings,
        model.config.vocab_size,
    );
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
        return Err(Error::invalid(
            format!("prompt {}", index + 1),
            problem,
            remedy,
        ));
    }
    Ok(())
}

/// One prompt being completed.
struct Row {
    /// Index of the prompt in the caller's list.
    prompt: usize,
    /// Tokens so far.
    token_ids: Vec<u32>,
    /// Set once it has ended.
    finish_reason: Option<FinishReason>,
    /// Slots of the cache before its first token.
    padding: usize,
    /// Slots used so far, padding included.
    used: usize,
}

impl Row {
    fn live(&self) -> bool {
        self.finish_reason.is_none()
    }

    /// What the token in `slot` sees, in a cache where this row's slots start at `start`: all its own up to itself, and
    /// nothing if it is padding or the row has ended.
    fn sight(&self, start: usize, slot: usize) -> Sight {
        match slot >= self.padding && self.live() {
            true => Sight {
                shared: [0, 0],
                own: [(start + self.padding) as i64, (start + slot + 1) as i64],
            },
            false => Sight::default(),
        }
    }
}

/// What all batches share.
struct Decoder<'a, B: TrainBackend> {
    model: &'a Mistral<B>,
    prompts: &'a [Vec<u32>],
    config: &'a GenerateConfig,
    table: PositionTable<B>,
    device: B::Device,
}

impl<'a, B: TrainBackend> Decoder<'a, B> {
    fn new(model: &'a Mistral<B>, prompts: &'a [Vec<u32>], config: &'a GenerateConfig) -> Self {
        let device = model.embed_tokens.val().device();
        let shape = &model.config;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let positions = shape
            .max_position_embeddings
            .min(longest.saturating_add(config.max_new_tokens));
        Self {
            table: model.position_table(positions, &device),
            model,
            prompts,
            config,
            device,
        }
    }

    /// Decodes the prompts `indices` together.
    fn batch(&self, indices: &[usize], listener: &mut impl Listener) -> Result<()> {
        let (mut rows, mut input) = self.start(indices);
        let mut cache = KvCache::new(self.model.layers.len(), rows.len());
        loop {
            if interrupt::requested() {
                let note = "generation was stopped".into();
                return Err(Error::Interrupted { note });
            }
            let logits = self.last_logits(&rows, &input, &mut cache);
            self.step(&mut rows, logits, listener)?;
            if !rows.iter().any(Row::live) {
                return Ok(());
            }
            self.pack(&mut rows, &mut cache);
            input = next_input(&mut rows);
        }
    }

    /// Rows and padded tokens of the prompts `indices`.
    fn start(&self, indices: &[usize]) -> (Vec<Row>, TokenRows) {
        let sequences: Vec<&[u32]> = indices.iter().map(|i| &self.prompts[*i][..]).collect();
        // Padding is seen by nobody, so any id will do.
        let input = TokenRows::left_padded(&sequences, 0);
        let rows = indices
            .iter()
            .zip(&sequences)
            .map(|(prompt, sequence)| Row {
                prompt: *prompt,
                token_ids: Vec::new(),
                finish_reason: None,
                padding: input.length - sequence.len(),
                used: input.length,
            });
        (rows.collect(), input)
    }

    /// Logits of the token after the last one of each row, `[B, V]`, in f32.
    fn last_logits(&self, rows: &[Row], input: &TokenRows, cache: &mut KvCache<B>) -> Tensor<B, 2> {
        let used = rows.first().map_or(0, |row| row.used);
        let slots = KvCache::<B>::slots(used);
        let sight: Vec<Sight> = (rows.iter().enumerate())
            .flat_map(|(index, row)| {
                let new = used - input.length..used;
                new.map(move |slot| row.sight(index * slots, slot))
            })
            .collect();
        let (batch, length) = (rows.len(), input.length);
        let input = ModelInput::with_keys(input, &sight, &[], &self.table, &self.device);
        let hidden = self.model.hidden_states_cached(&input, cache);
        let [_, width] = hidden.dims();
        let hidden = hidden.reshape([batch, length, width]);
        let last = hidden.narrow(1, length - 1, 1).reshape([batch, width]);
        linear(last, self.model.head()).cast(DType::F32)
    }

    /// Chooses a token for every live row and ends those that are done.
    fn step(
        &self,
        rows: &mut [Row],
        logits: Tensor<B, 2>,
        listener: &mut impl Listener,
    ) -> Result<()> {
        let live = rows.iter().enumerate().filter(|(_, row)| row.live());
        let choices: Vec<Choice<'_>> = live
            .map(|(index, row)| Choice {
                row: index,
                prompt: row.prompt,
                prompt_ids: &self.prompts[row.prompt],
                new_ids: &row.token_ids,
            })
            .collect();
        let ids = choose(logits, &choices, self.config)?;
        let mut finished = 0;
        for (row, id) in rows.iter_mut().filter(|row| row.live()).zip(&ids) {
            row.token_ids.push(*id);
            row.finish_reason = self.end_of(row, *id, listener)?;
            if let Some(finish_reason) = row.finish_reason {
                let generated = Generated {
                    token_ids: std::mem::take(&mut row.token_ids),
                    finish_reason,
                };
                listener.finished(row.prompt, &generated)?;
                finished += 1;
            }
        }
        listener.step(GenerateProgress {
            new_tokens: ids.len(),
            finished,
        })
    }

    /// Whether `id`, the newest token of `row`, is its last.
    fn end_of(
        &self,
        row: &Row,
        id: u32,
        listener: &mut impl Listener,
    ) -> Result<Option<FinishReason>> {
        if self.config.eos_ids.contains(&id) {
            return Ok(Some(FinishReason::Eos));
        }
        if listener.token(row.prompt, &row.token_ids)? == Flow::Stop {
            return Ok(Some(FinishReason::Stop));
        }
        let (new, prompt) = (row.token_ids.len(), self.prompts[row.prompt].len());
        let room = self.model.config.max_position_embeddings;
        let full = new == self.config.max_new_tokens || prompt + new == room;
        Ok(full.then_some(FinishReason::Length))
    }

    /// Once half of the rows have ended, goes on without them.
    fn pack(&self, rows: &mut Vec<Row>, cache: &mut KvCache<B>) {
        let live: Vec<i64> = (0..)
            .zip(rows.iter())
            .filter(|(_, row)| row.live())
            .map(|(i, _)| i)
            .collect();
        if live.len() * 2 > rows.len() {
            return;
        }
        let count = live.len();
        cache.keep_rows(&Tensor::from_data(
            TensorData::new(live, [count]),
            &self.device,
        ));
        rows.retain(Row::live);
    }
}

/// The last token of each row as the next input; its slot of the cache is noted in the row.
fn next_input(rows: &mut [Row]) -> TokenRows {
    let mut input = TokenRows {
        rows: rows.len(),
        length: 1,
        ..TokenRows::default()
    };
    for row in rows {
        // A row that has ended computes on unseen, at a position that stays within the table.
        let position = match row.live() {
            true => row.used - row.padding,
            false => 0,
        };
        row.used += 1;
        let id = row.token_ids.last().map_or(0, |id| i64::from(*id));
        input.ids.push(id);
        input.positions.push(position as i64);
    }
    input
}
