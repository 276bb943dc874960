//! Measures how much two models differ on the same texts: log-probabilities, KL divergence, greedy answers.

use arithmo_backends::TrainBackend;
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Tensor};

use crate::data::batch::TokenRows;
use crate::error::Result;
use crate::generate::{GenerateConfig, generate};
use crate::model::decoder::Decoder;
use crate::model::input::ModelInput;

/// Maximum number of tokens of a text or prompt, if the model has enough positions.
const MAX_TOKENS: usize = 128;

/// Texts on which models are compared, as token ids.
#[derive(Clone, Debug)]
pub struct Texts {
    max_tokens: usize,
    /// Whole texts of at least two tokens.
    sequences: Vec<Vec<u32>>,
    /// Prompts to answer greedily.
    prompts: Vec<Vec<u32>>,
}

impl Texts {
    /// Creates an empty set of texts for models with `positions` positions.
    pub fn new(positions: usize) -> Self {
        let max_tokens = MAX_TOKENS.min(positions / 2);
        Self { max_tokens, sequences: Vec::new(), prompts: Vec::new() }
    }

    /// Adds the text `whole`, truncated, and its beginning `prompt`. Texts of fewer than two tokens and prompts that are
    /// empty or too long are left out.
    pub fn push(&mut self, prompt: Vec<u32>, mut whole: Vec<u32>) {
        whole.truncate(self.max_tokens);
        if whole.len() >= 2 {
            self.sequences.push(whole);
        }
        if (1..=self.max_tokens).contains(&prompt.len()) {
            self.prompts.push(prompt);
        }
    }

    /// Returns the number of texts.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Returns whether there are no texts.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Returns the number of tokens whose log-probabilities are compared.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|ids| ids.len() - 1).sum()
    }
}

/// A model's outputs on [`Texts`].
#[derive(Clone, Debug)]
pub struct ModelOutputs {
    /// Next-token log-probabilities at every position but the last, `[T - 1, V]` per text.
    log_probs: Vec<Vec<f32>>,
    /// Greedy answers to the prompts, as token ids.
    answers: Vec<Vec<u32>>,
}

/// The differences between the outputs of two models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Mean absolute difference of the log-probabilities of the texts' tokens.
    pub log_prob: f64,
    /// Mean KL divergence of the next-token distributions, KL(first || second), in nats.
    pub kl: f64,
    /// Number of answers that are equal token for token.
    pub same_answers: usize,
    /// Number of all answers.
    pub answers: usize,
}

/// Computes the outputs of `model` on `texts`. Answers have at most `max_new_tokens` tokens.
///
/// # Errors
/// Generation fails (an id outside the vocabulary, logits that are not finite), or the user interrupts.
pub fn model_outputs<B: TrainBackend>(
    model: &Decoder<B>,
    texts: &Texts,
    max_new_tokens: usize,
    eos_ids: &[u32],
    device: &B::Device,
) -> Result<ModelOutputs> {
    // Generation comes first because it checks the prompts.
    let config =
        GenerateConfig { max_new_tokens, eos_ids: eos_ids.to_vec(), ..GenerateConfig::default() };
    let answers = generate(model, &texts.prompts, &config, |_| {})?;
    let table = model.position_table(texts.max_tokens, device);
    let log_probs = texts.sequences.iter().map(|ids| {
        let rows = TokenRows::right_padded(&[&ids[..ids.len() - 1]], 0);
        let input = ModelInput::new(&rows, &table, device);
        let logits: Tensor<B, 2> = model.forward(&input).cast(DType::F32);
        log_softmax(logits, 1).into_data().iter::<f32>().collect()
    });
    Ok(ModelOutputs {
        log_probs: log_probs.collect(),
        answers: answers.into_iter().map(|answer| answer.token_ids).collect(),
    })
}

/// Compares the outputs of two models on `texts`.
pub fn change(texts: &Texts, first: &ModelOutputs, second: &ModelOutputs) -> Change {
    let (mut difference, mut divergence) = (0.0, 0.0);
    let both = first.log_probs.iter().zip(&second.log_probs);
    for (ids, (first, second)) in texts.sequences.iter().zip(both) {
        let vocabulary = first.len() / (ids.len() - 1);
        let rows = first.chunks(vocabulary).zip(second.chunks(vocabulary));
        for (next, (first, second)) in ids[1..].iter().zip(rows) {
            let next = *next as usize;
            difference += f64::from((first[next] - second[next]).abs());
            divergence += kl(first, second);
        }
    }
    let tokens = texts.tokens().max(1) as f64;
    let answers = first.answers.iter().zip(&second.answers);
    Change {
        log_prob: difference / tokens,
        // For equal models, rounding can make the sum slightly negative.
        kl: (divergence / tokens).max(0.0),
        same_answers: answers.filter(|(first, second)| first == second).count(),
        answers: first.answers.len(),
    }
}

/// Computes KL(first || second) of two rows of log-probabilities.
fn kl(first: &[f32], second: &[f32]) -> f64 {
    let terms = first.iter().zip(second).map(|(first, second)| {
        let (first, second) = (f64::from(*first), f64::from(*second));
        first.exp() * (first - second)
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
        let outputs = |rows: [[f32; 2]; 2], answer| ModelOutputs {
            log_probs: vec![rows.concat().into_iter().map(f32::ln).collect()],
            answers: vec![answer, vec![7]],
        };
        let first = outputs([[0.5, 0.5], [0.25, 0.75]], vec![1, 2]);
        let second = outputs([[0.5, 0.5], [0.5, 0.5]], vec![1, 3]);
        let found = change(&texts, &first, &second);
        // Second token: ln 0.75 - ln 0.5 = ln 1.5; KL = 0.25 ln 0.5 + 0.75 ln 1.5.
        let (ln_half, ln_1_5) = (0.5f64.ln(), 1.5f64.ln());
        assert!((found.log_prob - ln_1_5 / 2.0).abs() < 1e-6, "{found:?}");
        assert!((found.kl - (0.25 * ln_half + 0.75 * ln_1_5) / 2.0).abs() < 1e-6, "{found:?}");
        assert_eq!((found.same_answers, found.answers), (1, 2));
        let same = change(&texts, &first, &first);
        assert_eq!((same.log_prob, same.kl, same.same_answers), (0.0, 0.0, 2));
    }
}
