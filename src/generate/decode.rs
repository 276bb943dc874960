//! The decode loop: prompts in, completions out, each token computed once.
//!
//! Prompts are decoded in batches of similar length, longest first (if memory is short, that shows at once), padded on
//! the left so that all rows end together. A row that is done stays in its batch, unseen, until half of the rows are:
//! then the batch is packed anew. No completion depends on which other prompts it was decoded with.

use std::cmp::Reverse;

use arithmo_backends::{TrainBackend, ops::linear::linear};
use burn::tensor::{DType, Tensor, TensorData};

use super::config::{FinishReason, GenerateConfig, Generated};
use super::sampling::{Choice, choose};
use crate::data::batch::{Sight, TokenRows};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::input::ModelInput;
use crate::model::kv_cache::KvCache;
use crate::model::mistral::Mistral;
use crate::model::positions::PositionTable;

/// What one step of decoding has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateProgress {
    /// Tokens generated in this step.
    pub new_tokens: usize,
    /// Prompts that ended with this step.
    pub finished: usize,
}

/// Completes each of `prompts` (token ids, BOS included where the model wants one); results are in the prompts' order.
///
/// `on_progress` hears of every step.
///
/// # Errors
/// A setting is impossible; a prompt is empty, holds an id outside the vocabulary, or fills all positions of the model;
/// logits are not finite; or the user asked to stop.
pub fn generate<B: TrainBackend>(
    model: &Mistral<B>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    mut on_progress: impl FnMut(GenerateProgress),
) -> Result<Vec<Generated>> {
    config.validate()?;
    check_prompts(model, prompts)?;
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|index| (Reverse(prompts[*index].len()), *index));
    let decoder = Decoder::new(model, prompts, config);
    let mut done = Vec::with_capacity(prompts.len());
    for batch in order.chunks(config.batch_size) {
        decoder.batch(batch, &mut done, &mut on_progress)?;
    }
    done.sort_by_key(|row| row.prompt);
    Ok(done.into_iter().map(Row::into_generated).collect())
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
    fn into_generated(self) -> Generated {
        Generated {
            token_ids: self.token_ids,
            finish_reason: self.finish_reason.unwrap_or(FinishReason::Length),
        }
    }

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

    /// Decodes the prompts `indices` together and moves their rows to `done`.
    fn batch(
        &self,
        indices: &[usize],
        done: &mut Vec<Row>,
        on_progress: &mut impl FnMut(GenerateProgress),
    ) -> Result<()> {
        let (mut rows, mut input) = self.start(indices);
        let mut cache = KvCache::new(self.model.layers.len(), rows.len());
        loop {
            if interrupt::requested() {
                let note = "generation was stopped, nothing was written".into();
                return Err(Error::Interrupted { note });
            }
            let logits = self.last_logits(&rows, &input, &mut cache);
            let progress = self.step(&mut rows, logits)?;
            on_progress(progress);
            if !rows.iter().any(Row::live) {
                done.append(&mut rows);
                return Ok(());
            }
            self.pack(&mut rows, &mut cache, done);
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
    fn step(&self, rows: &mut [Row], logits: Tensor<B, 2>) -> Result<GenerateProgress> {
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
        let room = self.model.config.max_position_embeddings;
        let mut finished = 0;
        for (row, id) in rows.iter_mut().filter(|row| row.live()).zip(&ids) {
            row.token_ids.push(*id);
            let (new, prompt) = (row.token_ids.len(), self.prompts[row.prompt].len());
            if self.config.eos_ids.contains(id) {
                row.finish_reason = Some(FinishReason::Eos);
            } else if new == self.config.max_new_tokens || prompt + new == room {
                row.finish_reason = Some(FinishReason::Length);
            }
            finished += usize::from(!row.live());
        }
        Ok(GenerateProgress {
            new_tokens: ids.len(),
            finished,
        })
    }

    /// Once half of the rows have ended, moves them to `done` and goes on without them.
    fn pack(&self, rows: &mut Vec<Row>, cache: &mut KvCache<B>, done: &mut Vec<Row>) {
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
        let (kept, ended) = rows.drain(..).partition(Row::live);
        *rows = kept;
        done.extend::<Vec<Row>>(ended);
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
