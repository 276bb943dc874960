//! The events that a caller receives while prompts are completed.

use super::config::Generated;
use crate::error::Result;

/// The result of one step of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateProgress {
    /// Number of tokens generated in this step.
    pub new_tokens: usize,
    /// Number of prompts that ended in this step.
    pub finished: usize,
}

/// The events passed to [`generate_each`](super::generate_each)'s callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerateEvent<'a> {
    /// A step of decoding is done, after the events of the prompts that finished in it.
    Step(GenerateProgress),
    /// The prompt `index` of the list is complete.
    Finished {
        /// Index of the prompt in the caller's list.
        index: usize,
        /// Completion of the prompt.
        generated: &'a Generated,
    },
}

/// Whether a completion continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Continue the completion.
    Continue,
    /// End the completion here ([`FinishReason::Stop`](super::FinishReason::Stop)).
    Stop,
}

/// Follows generation token by token and may end completions. An error ends the whole generation.
pub trait Listener {
    /// Called when the completion of prompt `index` has grown by one token other than an end token.
    fn token(&mut self, index: usize, token_ids: &[u32]) -> Result<Flow> {
        let _ = (index, token_ids);
        Ok(Flow::Continue)
    }

    /// Called when the completion of prompt `index` has ended.
    fn finished(&mut self, index: usize, generated: &Generated) -> Result<()>;

    /// Called after each step, after the calls for prompts that finished in it.
    fn step(&mut self, progress: GenerateProgress) -> Result<()> {
        let _ = progress;
        Ok(())
    }
}

/// A listener that passes [`GenerateEvent`]s to a closure.
pub(super) struct Events<F>(pub(super) F);

impl<F: FnMut(GenerateEvent<'_>) -> Result<()>> Listener for Events<F> {
    fn finished(&mut self, index: usize, generated: &Generated) -> Result<()> {
        (self.0)(GenerateEvent::Finished { index, generated })
    }

    fn step(&mut self, progress: GenerateProgress) -> Result<()> {
        (self.0)(GenerateEvent::Step(progress))
    }
}
