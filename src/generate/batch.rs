//! Continuous batching: as many rows as are decoded together, each with a prompt; when one ends, the next prompt takes
//! its place.
//!
//! Every pass computes only tokens that are wanted, packed one after another without padding: the rest of new prompts,
//! or the newest token of every row (and guesses of what follows: see [`super::lookup`]). What all prompts begin with is
//! computed once, kept once and seen by every row. No completion depends on which others it was decoded with.

use std::cmp::Reverse;
use std::collections::VecDeque;

use arithmo_backends::{TrainBackend, ops::linear::linear};
use burn::tensor::{DType, Tensor};

use super::config::{FinishReason, GenerateConfig, Generated};
use super::listener::{Flow, GenerateProgress, Listener};
use super::lookup::guess;
use super::sampling::{Choice, choose};
use crate::data::batch::{Sight, TokenRows};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::input::ModelInput;
use crate::model::kv_cache::KvCache;
use crate::model::mistral::Mistral;
use crate::model::positions::PositionTable;

/// A shorter common beginning is not worth a pass of its own.
const SHARED_AT_LEAST: usize = 16;

/// A prompt being completed.
struct Row {
    /// Index of the prompt in the caller's list.
    prompt: usize,
    /// Tokens so far.
    token_ids: Vec<u32>,
}

/// A token of the next pass.
#[derive(Clone, Copy)]
struct Fed {
    /// The row it belongs to; `None`: the beginning that all share.
    row: Option<usize>,
    id: u32,
    /// Its place in prompt and completion.
    position: usize,
    /// Whether the logits after it are wanted.
    wanted: bool,
}

/// A job of generation.
pub(super) struct Batch<'a, B: TrainBackend> {
    model: &'a Mistral<B>,
    prompts: &'a [Vec<u32>],
    config: &'a GenerateConfig,
    table: PositionTable<B>,
    device: B::Device,
    cache: KvCache<B>,
    /// Tokens of the shared beginning that are in the cache.
    known: usize,
    /// What decodes now; `None`: free.
    rows: Vec<Option<Row>>,
    /// Prompts not begun, longest first: if memory is short, that shows at once.
    waiting: VecDeque<usize>,
}

impl<'a, B: TrainBackend> Batch<'a, B> {
    /// Of at least one prompt; all were checked.
    pub(super) fn new(
        model: &'a Mistral<B>,
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
            cache: KvCache::new(model.layers.len(), shared_beginning(prompts), rows),
            known: 0,
            rows: (0..rows).map(|_| None).collect(),
            waiting: waiting.into(),
            model,
            prompts,
            config,
            device,
        }
    }

    /// For a single prompt, whose first `known` tokens (not all) are those of `cache`.
    pub(super) fn with_cache(mut self, mut cache: KvCache<B>, known: usize) -> Self {
        cache.keep(known);
        (self.cache, self.known) = (cache, known);
        self
    }

    /// Completes all prompts; the cache is given back.
    pub(super) fn run(mut self, listener: &mut impl Listener) -> Result<KvCache<B>> {
        let shared = &self.prompts[0][self.known..self.cache.shared()];
        let beginning = fed(None, shared, self.known, false);
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
            // Only prompts make a pass this long.
            let mut logits = Vec::new();
            for tokens in tokens.chunks(B::pass_tokens()) {
                logits.extend(self.pass(tokens));
            }
            tokens.retain(|token| token.wanted);
            self.step(&tokens, Tensor::cat(logits, 0), listener)?;
        }
    }

    /// Gives free rows to waiting prompts, as many as a pass may hold tokens of; returns their tokens.
    fn begin_prompts(&mut self) -> Vec<Fed> {
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
                tokens.extend(fed(Some(row), own, shared, true));
                self.rows[row] = Some(Row { prompt, token_ids: Vec::new() });
            }
        }
        tokens
    }

    /// The newest token of each row, and guesses of what follows as far as they cost nothing.
    fn newest_tokens(&self) -> Vec<Fed> {
        let live = self.rows.iter().flatten().count().max(1);
        let free = match self.config.lookup && self.config.is_plainly_greedy() {
            true => (B::free_tokens() / live).saturating_sub(1),
            false => 0,
        };
        let mut tokens = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            let Some(row) = row else { continue };
            let prompt = &self.prompts[row.prompt];
            let guesses = guess(prompt, &row.token_ids, free.min(self.room(row) - 1));
            let (position, id) = self.newest(row);
            let ids: Vec<u32> = std::iter::once(id).chain(guesses).collect();
            let fed = fed(Some(index), &ids, position, true).into_iter();
            tokens.extend(fed.map(|token| Fed { wanted: true, ..token }));
        }
        tokens
    }

    /// Position and id of a row's newest token.
    fn newest(&self, row: &Row) -> (usize, u32) {
        let prompt = &self.prompts[row.prompt];
        let text = prompt.iter().chain(&row.token_ids);
        let id = text.last().copied().unwrap_or_default();
        (prompt.len() + row.token_ids.len() - 1, id)
    }

    /// Tokens that a row may still get.
    fn room(&self, row: &Row) -> usize {
        let (new, prompt) = (row.token_ids.len(), self.prompts[row.prompt].len());
        let positions = self.model.config.max_position_embeddings;
        (self.config.max_new_tokens - new).min(positions - prompt - new)
    }

    /// Computes `tokens` (at least one) and puts them in the cache: logits after those wanted, `[wanted, V]` in f32;
    /// `None` if none are.
    fn pass(&mut self, tokens: &[Fed]) -> Option<Tensor<B, 2>> {
        let shared = self.cache.shared();
        let own = |token: &Fed| token.row.map_or(0, |_| token.position + 1 - shared);
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
            input
                .sight
                .push(Sight { shared: [0, shared as i64], own: [start as i64, slot as i64 + 1] });
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

    /// Chooses a token after each of `tokens` from its row of `logits`, gives it to the row, and frees rows that end with
    /// it. After a wrong guess nothing is taken.
    fn step(
        &mut self,
        tokens: &[Fed],
        logits: Tensor<B, 2>,
        listener: &mut impl Listener,
    ) -> Result<()> {
        let ids = {
            let choice = |(index, token): (usize, &Fed)| {
                let row = self.rows[token.row?].as_ref()?;
                Some(Choice {
                    row: index,
                    prompt: self.config.place(row.prompt),
                    prompt_ids: &self.prompts[row.prompt],
                    new_ids: &row.token_ids,
                })
            };
            let choices: Vec<_> = tokens.iter().enumerate().filter_map(choice).collect();
            choose(logits, &choices, self.config)?
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
            match self.end_of(&row, id, listener)? {
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

    /// Why `id`, the newest token of `row`, is its last; `None`: it is not.
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
        let full = self.room(row) == 0;
        Ok(full.then_some(FinishReason::Length))
    }
}

/// Tokens of `row` from `position` on; the logits after the last of them are wanted, or none.
fn fed(row: Option<usize>, ids: &[u32], position: usize, wanted: bool) -> Vec<Fed> {
    let one = |(index, id): (usize, &u32)| Fed {
        row,
        id: *id,
        position: position + index,
        wanted: wanted && index + 1 == ids.len(),
    };
    ids.iter().enumerate().map(one).collect()
}

/// Tokens that all prompts begin with, so that each has at least one of its own; 0 where they are too few to matter.
fn shared_beginning(prompts: &[Vec<u32>]) -> usize {
    let Some((first, others)) = prompts.split_first() else {
        return 0;
    };
    let common = |other: &Vec<u32>| {
        let shortest = first.len().min(other.len()).saturating_sub(1);
        let equal = first.iter().zip(other).take_while(|(a, b)| a == b).count();
        equal.min(shortest)
    };
    let shared = others.iter().map(common).min().unwrap_or(0);
    if shared < SHARED_AT_LEAST { 0 } else { shared }
}
