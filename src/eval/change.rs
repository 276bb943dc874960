//! How far one model is from another on the same texts: log-probabilities, divergence, greedy answers.

use arithmo_backends::TrainBackend;
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Tensor};

use crate::data::batch::TokenRows;
use crate::error::Result;
use crate::generate::{GenerateConfig, generate};
use crate::model::input::ModelInput;
use crate::model::mistral::Mistral;

/// Tokens read of a text, and of a prompt at most; fewer where a model has fewer positions.
const LONGEST: usize = 128;

/// Texts to compare models on, as token ids.
#[derive(Clone, Debug)]
pub struct Texts {
    longest: usize,
    /// Whole texts, each of two tokens or more.
    sequences: Vec<Vec<u32>>,
    /// Prompts that are answered.
    prompts: Vec<Vec<u32>>,
}

impl Texts {
    /// No texts yet, for models with so many `positions`.
    pub fn new(positions: usize) -> Self {
        Self { longest: LONGEST.min(positions / 2), sequences: Vec::new(), prompts: Vec::new() }
    }

    /// Adds a text that begins with `prompt`; one of fewer than two tokens says nothing, and is left out.
    pub fn push(&mut self, prompt: Vec<u32>, mut whole: Vec<u32>) {
        whole.truncate(self.longest);
        if whole.len() >= 2 {
            self.sequences.push(whole);
        }
        if (1..=self.longest).contains(&prompt.len()) {
            self.prompts.push(prompt);
        }
    }

    /// Texts in all.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Tokens whose log-probabilities are compared.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|ids| ids.len() - 1).sum()
    }
}

/// What a model makes of some [`Texts`].
#[derive(Clone, Debug)]
pub struct Observed {
    /// Log-probabilities of every token after every but the last, `[T - 1, V]` for each text.
    log_probs: Vec<Vec<f32>>,
    /// Greedy answers to the prompts.
    answers: Vec<Vec<u32>>,
}

/// How far a model is from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Mean magnitude of the difference of the texts' tokens' log-probabilities.
    pub log_prob: f64,
    /// Mean of KL(the one || the other) over all next-token distributions, nats.
    pub kl: f64,
    /// Answers that are equal, token for token.
    pub same_answers: usize,
    /// Answers in all.
    pub answers: usize,
}

/// What `model` makes of `texts`; answers have at most `max_new_tokens` tokens.
///
/// # Errors
/// Generation fails (an id outside the vocabulary, logits that are not finite), or the user interrupts.
pub fn observe<B: TrainBackend>(
    model: &Mistral<B>,
    texts: &Texts,
    max_new_tokens: usize,
    eos_ids: &[u32],
    device: &B::Device,
) -> Result<Observed> {
    // First, because it checks the prompts.
    let config =
        GenerateConfig { max_new_tokens, eos_ids: eos_ids.to_vec(), ..GenerateConfig::default() };
    let answers = generate(model, &texts.prompts, &config, |_| {})?;
    let table = model.position_table(texts.longest, device);
    let log_probs = texts.sequences.iter().map(|ids| {
        let rows = TokenRows::right_padded(&[&ids[..ids.len() - 1]], 0);
        let input = ModelInput::new(&rows, &table, device);
        let logits: Tensor<B, 2> = model.forward(&input).cast(DType::F32);
        log_softmax(logits, 1).into_data().iter::<f32>().collect()
    });
    Ok(Observed {
        log_probs: log_probs.collect(),
        answers: answers.into_iter().map(|answer| answer.token_ids).collect(),
    })
}

/// How far `other` is from `one`, both made of `texts`.
pub fn change(texts: &Texts, one: &Observed, other: &Observed) -> Change {
    let (mut difference, mut divergence) = (0.0, 0.0);
    let both = one.log_probs.iter().zip(&other.log_probs);
    for (ids, (one, other)) in texts.sequences.iter().zip(both) {
        let vocabulary = one.len() / (ids.len() - 1);
        let rows = one.chunks(vocabulary).zip(other.chunks(vocabulary));
        for (next, (one, other)) in ids[1..].iter().zip(rows) {
            let next = *next as usize;
            difference += f64::from((one[next] - other[next]).abs());
            divergence += kl(one, other);
        }
    }
    let tokens = texts.tokens().max(1) as f64;
    let answers = one.answers.iter().zip(&other.answers);
    Change {
        log_prob: difference / tokens,
        // Of one and the same model it is 0 but for rounding, to either side.
        kl: (divergence / tokens).max(0.0),
        same_answers: answers.filter(|(one, other)| one == other).count(),
        answers: one.answers.len(),
    }
}

/// KL(one || other) of two rows of log-probabilities.
fn kl(one: &[f32], other: &[f32]) -> f64 {
    let terms = one.iter().zip(other).map(|(one, other)| {
        let (one, other) = (f64::from(*one), f64::from(*other));
        one.exp() * (one - other)
    });
    terms.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_the_mean_over_tokens() {
        let mut texts = Texts::new(8);
        texts.push(vec![1], vec![1, 0, 1]);
        texts.push(vec![], vec![1]);
        assert_eq!((texts.len(), texts.tokens(), texts.prompts.len()), (1, 2, 1));
        let rows = |rows: [[f32; 2]; 2], answer| Observed {
            log_probs: vec![rows.concat().into_iter().map(f32::ln).collect()],
            answers: vec![answer, vec![7]],
        };
        let one = rows([[0.5, 0.5], [0.25, 0.75]], vec![1, 2]);
        let other = rows([[0.5, 0.5], [0.5, 0.5]], vec![1, 3]);
        let found = change(&texts, &one, &other);
        // Second token: ln 0.75 - ln 0.5 = ln 1.5; KL = 0.25 ln 0.5 + 0.75 ln 1.5.
        let (ln_half, ln_more) = (0.5f64.ln(), 1.5f64.ln());
        assert!((found.log_prob - ln_more / 2.0).abs() < 1e-6, "{found:?}");
        assert!((found.kl - (0.25 * ln_half + 0.75 * ln_more) / 2.0).abs() < 1e-6, "{found:?}");
        assert_eq!((found.same_answers, found.answers), (1, 2));
        let same = change(&texts, &one, &one);
        assert_eq!((same.log_prob, same.kl, same.same_answers), (0.0, 0.0, 2));
    }
}
