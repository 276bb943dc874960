//! What a caller is told while prompts are completed.

use super::config::Generated;
use crate::error::Result;

/// What one step of decoding has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateProgress {
    /// Tokens generated in this step.
    pub new_tokens: usize,
    /// Prompts that ended with this step.
    pub finished: usize,
}

/// What is told to [`generate_each`](super::generate_each)'s callback, as it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerateEvent<'a> {
    /// A step of decoding is done; its finished prompts were told of before.
    Step(GenerateProgress),
    /// The prompt `index` of the list is complete.
    Finished {
        /// Index of the prompt in the caller's list.
        index: usize,
        /// Its completion.
        generated: &'a Generated,
    },
}

/// Whether a completion goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It goes on.
    Continue,
    /// It ends here ([`FinishReason::Stop`](super::FinishReason::Stop)).
    Stop,
}

/// Follows generation token by token, and may end completions. An error ends all of it.
pub trait Listener {
    /// The completion of prompt `index` has grown by its last token, which is no end token.
    fn token(&mut self, index: usize, token_ids: &[u32]) -> Result<Flow> {
        let _ = (index, token_ids);
        Ok(Flow::Continue)
    }

    /// The completion of prompt `index` has ended.
    fn finished(&mut self, index: usize, generated: &Generated) -> Result<()>;

    /// A step is done; the prompts that ended with it were told of before.
    fn step(&mut self, progress: GenerateProgress) -> Result<()> {
        let _ = progress;
        Ok(())
    }
}

/// A closure that takes [`GenerateEvent`]s.
pub(super) struct Events<F>(pub(super) F);

impl<F: FnMut(GenerateEvent<'_>) -> Result<()>> Listener for Events<F> {
    fn finished(&mut self, index: usize, generated: &Generated) -> Result<()> {
        (self.0)(GenerateEvent::Finished { index, generated })
    }

    fn step(&mut self, progress: GenerateProgress) -> Result<()> {
        (self.0)(GenerateEvent::Step(progress))
    }
}
