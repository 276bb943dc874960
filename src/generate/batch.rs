//! Continuous batching: a fixed number of rows is decoded together, each with a prompt; when one ends, the next
//! prompt takes its place.
//!
//! Every pass computes only the required tokens, concatenated without padding: the remaining tokens of new prompts,
//! or the newest token of every row (and guesses of the following tokens: see [`super::lookup`]). The common prefix
//! of all prompts is computed once, stored once and visible to every row. A completion does not depend on the others
//! it is decoded with.

use std::cmp::Reverse;
use std::collections::VecDeque;

use arithmo_backends::{TrainBackend, ops::linear::linear};
use burn::tensor::{DType, Tensor};

use super::config::{FinishReason, GenerateConfig, Generated};
use super::listener::{Flow, GenerateProgress, Listener};
use super::lookup::guess;
use super::sampling::{Choice, choose};
use crate::data::batch::{AttentionRange, TokenRows};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::decoder::Decoder;
use crate::model::input::ModelInput;
use crate::model::kv_cache::KvCache;
use crate::model::not_finite;
use crate::model::positions::PositionTable;

/// Minimum length of a common prefix that is computed in a pass of its own.
const MIN_SHARED_PREFIX: usize = 16;

/// A prompt being completed.
struct Row {
    /// Index of the prompt in the caller's list.
    prompt: usize,
    /// Tokens generated so far.
    token_ids: Vec<u32>,
}

/// An input token of the next pass.
#[derive(Clone, Copy)]
struct InputToken {
    /// The row it belongs to; `None` for the shared prefix.
    row: Option<usize>,
    id: u32,
    /// Position in prompt and completion.
    position: usize,
    /// Whether the logits after this token are needed.
    wanted: bool,
}

/// The state of one generation over a list of prompts.
pub(super) struct Batch<'a, B: TrainBackend> {
    model: &'a Decoder<B>,
    prompts: &'a [Vec<u32>],
    config: &'a GenerateConfig,
    table: PositionTable<B>,
    device: B::Device,
    cache: KvCache<B>,
    /// Number of tokens of the shared prefix that are in the cache.
    cached_tokens: usize,
    /// Rows being decoded; `None` if a row is free.
    rows: Vec<Option<Row>>,
    /// Prompts not yet started, longest first, so that a shortage of memory shows at once.
    waiting: VecDeque<usize>,
}

impl<'a, B: TrainBackend> Batch<'a, B> {
    /// Starts a generation for at least one prompt; the prompts are already checked.
    pub(super) fn new(
        model: &'a Decoder<B>,
        prompts: &'a [Vec<u32>],
        config: &'a GenerateConfig,
    ) -> Self {
        let device = model.device();
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let wanted = longest.saturating_add(config.max_new_tokens);
        let positions = wanted.min(model.config.max_position_embeddings);
        let mut waiting: Vec<usize> = (0..prompts.len()).collect();
        waiting.sort_by_key(|index| (Reverse(prompts[*index].len()), *index));
        let rows = config.batch_size.min(prompts.len());
        Self {
            table: model.position_table(positions, &device),
            cache: KvCache::new(model.layers.len(), shared_prefix(prompts), rows),
            cached_tokens: 0,
            rows: (0..rows).map(|_| None).collect(),
            waiting: waiting.into(),
            model,
            prompts,
            config,
            device,
        }
    }

    /// Reuses `cache`, which holds the first `cached_tokens` tokens (not all) of the single prompt.
    pub(super) fn with_cache(mut self, mut cache: KvCache<B>, cached_tokens: usize) -> Self {
        cache.keep(cached_tokens);
        (self.cache, self.cached_tokens) = (cache, cached_tokens);
        self
    }

    /// Completes all prompts and returns the cache.
    pub(super) fn run(mut self, listener: &mut impl Listener) -> Result<KvCache<B>> {
        let shared = &self.prompts[0][self.cached_tokens..self.cache.shared()];
        let beginning = input_tokens(None, shared, self.cached_tokens, false);
        for tokens in beginning.chunks(B::pass_tokens()) {
            self.pass(tokens);
        }
        loop {
            if interrupt::requested() {
                let note = "generation was stopped".into();
                return Err(Error::Interrupted { note });
            }
            let mut tokens = self.begin_prompts();
            if tokens.is_empty() {
                tokens = self.newest_tokens();
            }
            if tokens.is_empty() {
                return Ok(self.cache);
            }
            // Only prompts make a pass so long that it is split.
            let mut logits = Vec::new();
            for tokens in tokens.chunks(B::pass_tokens()) {
                logits.extend(self.pass(tokens));
            }
            tokens.retain(|token| token.wanted);
            self.step(&tokens, Tensor::cat(logits, 0), listener)?;
        }
    }

    /// Assigns waiting prompts to free rows, as many as fit into a pass; returns their tokens.
    fn begin_prompts(&mut self) -> Vec<InputToken> {
        let shared = self.cache.shared();
        let mut tokens = Vec::new();
        for row in 0..self.rows.len() {
            let Some(&prompt) = self.waiting.front() else {
                break;
            };
            let own = &self.prompts[prompt][shared..];
            let full = !tokens.is_empty() && tokens.len() + own.len() > B::pass_tokens();
            if full {
                break;
            }
            if self.rows[row].is_none() {
                self.waiting.pop_front();
                tokens.extend(input_tokens(Some(row), own, shared, true));
                self.rows[row] = Some(Row { prompt, token_ids: Vec::new() });
            }
        }
        tokens
    }

    /// Returns the newest token of each row and guesses of the following tokens, as many as cost no time.
    fn newest_tokens(&self) -> Vec<InputToken> {
        let live = self.rows.iter().flatten().count().max(1);
        let free = if self.config.lookup && self.config.is_plainly_greedy() {
            (B::speculative_tokens() / live).saturating_sub(1)
        } else {
            0
        };
        let mut tokens = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            let Some(row) = row else { continue };
            let prompt = &self.prompts[row.prompt];
            let guesses = guess(prompt, &row.token_ids, free.min(self.room(row) - 1));
            let (position, id) = self.newest(row);
            let ids: Vec<u32> = std::iter::once(id).chain(guesses).collect();
            let input_tokens = input_tokens(Some(index), &ids, position, true).into_iter();
            tokens.extend(input_tokens.map(|token| InputToken { wanted: true, ..token }));
        }
        tokens
    }

    /// Returns position and id of a row's newest token.
    fn newest(&self, row: &Row) -> (usize, u32) {
        let prompt = &self.prompts[row.prompt];
        let text = prompt.iter().chain(&row.token_ids);
        let id = text.last().copied().unwrap_or_default();
        (prompt.len() + row.token_ids.len() - 1, id)
    }

    /// Returns how many more tokens a row may generate.
    fn room(&self, row: &Row) -> usize {
        let (new, prompt) = (row.token_ids.len(), self.prompts[row.prompt].len());
        let positions = self.model.config.max_position_embeddings;
        (self.config.max_new_tokens - new).min(positions - prompt - new)
    }

    /// Computes `tokens` (at least one) and stores them in the cache. Returns the needed logits `[wanted, V]` in f32,
    /// or `None` if none are needed.
    fn pass(&mut self, tokens: &[InputToken]) -> Option<Tensor<B, 2>> {
        let shared = self.cache.shared();
        let own = |token: &InputToken| token.row.map_or(0, |_| token.position + 1 - shared);
        self.cache.reserve(tokens.iter().map(own).max().unwrap_or(0));
        let mut input = TokenRows { rows: 1, length: tokens.len(), ..TokenRows::default() };
        let mut slots = Vec::with_capacity(tokens.len());
        for token in tokens {
            let (start, shared) = match token.row {
                Some(row) => (self.cache.slot(row, 0), shared),
                None => (0, 0),
            };
            let slot = start + token.position - shared;
            input.ids.push(i64::from(token.id));
            input.positions.push(token.position as i64);
            input.attention.push(AttentionRange {
                shared: [0, shared as i64],
                own: [start as i64, slot as i64 + 1],
            });
            slots.push(slot as i64);
        }
        let wanted = (0..).zip(tokens).filter(|(_, token)| token.wanted);
        let mut wanted: Vec<i64> = wanted.map(|(index, _)| index).collect();
        let none = wanted.is_empty();
        if none {
            wanted.push(0);
        }
        let mut input = ModelInput::new(&input, &self.table, &self.device);
        input = input.in_cache(slots, &self.device);
        if wanted.len() < tokens.len() {
            input = input.only(&wanted, &self.device);
        }
        let hidden = self.model.hidden_states_cached(&input, &mut self.cache);
        (!none).then(|| linear(hidden, self.model.head()).cast(DType::F32))
    }

    /// Returns the error that names the source of logits that are not finite.
    fn not_finite(&self) -> Error {
        let texts = self.rows.iter().flatten().map(|row| {
            let ids = [&self.prompts[row.prompt][..], &row.token_ids].concat();
            let rows = TokenRows::right_padded(&[&ids], 0);
            ModelInput::new(&rows, &self.table, &self.device)
        });
        not_finite::explain(self.model, texts)
    }

    /// Chooses a token after each of `tokens` from its row of `logits`, appends it to the row, and frees rows that
    /// end with it. Tokens after a wrong guess are discarded.
    fn step(
        &mut self,
        tokens: &[InputToken],
        logits: Tensor<B, 2>,
        listener: &mut impl Listener,
    ) -> Result<()> {
        let ids = {
            let choice = |(index, token): (usize, &InputToken)| {
                let row = self.rows[token.row?].as_ref()?;
                Some(Choice {
                    row: index,
                    prompt: self.config.place(row.prompt),
                    prompt_ids: &self.prompts[row.prompt],
                    new_ids: &row.token_ids,
                })
            };
            let choices: Vec<_> = tokens.iter().enumerate().filter_map(choice).collect();
            choose(logits, &choices, self.config).map_err(|_| self.not_finite())?
        };
        let (mut new_tokens, mut finished) = (0, 0);
        for (token, id) in tokens.iter().zip(ids) {
            let Some(at) = token.row else { continue };
            let newest = self.rows[at].as_ref().map(|row| self.newest(row));
            if newest != Some((token.position, token.id)) {
                continue;
            }
            let Some(mut row) = self.rows[at].take() else {
                continue;
            };
            row.token_ids.push(id);
            new_tokens += 1;
            match self.finish_reason(&row, id, listener)? {
                None => self.rows[at] = Some(row),
                Some(finish_reason) => {
                    let generated = Generated { token_ids: row.token_ids, finish_reason };
                    listener.finished(row.prompt, &generated)?;
                    finished += 1;
                }
            }
        }
        listener.step(GenerateProgress { new_tokens, finished })
    }

    /// Returns why the completion of `row` ends with its newest token `id`, or `None` if it continues.
    fn finish_reason(
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
        let full = self.room(row) == 0;
        Ok(full.then_some(FinishReason::Length))
    }
}

/// Returns the input tokens `ids` of `row` from `position` on; if `wanted` is set, the logits after the last of them
/// are needed.
fn input_tokens(row: Option<usize>, ids: &[u32], position: usize, wanted: bool) -> Vec<InputToken> {
    let one = |(index, id): (usize, &u32)| InputToken {
        row,
        id: *id,
        position: position + index,
        wanted: wanted && index + 1 == ids.len(),
    };
    ids.iter().enumerate().map(one).collect()
}

/// Returns the number of tokens in the common prefix of all prompts, leaving each at least one of its own; 0 if it is
/// too short.
fn shared_prefix(prompts: &[Vec<u32>]) -> usize {
    let Some((first, others)) = prompts.split_first() else {
        return 0;
    };
    let common = |other: &Vec<u32>| {
        let shortest = first.len().min(other.len()).saturating_sub(1);
        let equal = first.iter().zip(other).take_while(|(a, b)| a == b).count();
        equal.min(shortest)
    };
    let shared = others.iter().map(common).min().unwrap_or(0);
    if shared < MIN_SHARED_PREFIX { 0 } else { shared }
}
