//! Chooses the next token from a row of logits, greedily or by a seeded draw.
//!
//! The steps come in transformers' order: repetition penalty, temperature, top-k, top-p, draw.

use arithmo_backends::TrainBackend;
use burn::tensor::{Int, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use super::config::GenerateConfig;
use crate::error::{Error, Result};

/// The row of logits and the context from which one token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Row of the logits.
    pub row: usize,
    /// Index of the prompt in the caller's list.
    pub prompt: usize,
    /// Token ids of the prompt.
    pub prompt_ids: &'a [u32],
    /// Token ids generated so far.
    pub new_ids: &'a [u32],
}

/// Chooses the next token for each of `choices` from logits `[B, V]` in f32.
///
/// # Errors
/// The logits are not finite.
pub fn choose<B: TrainBackend>(
    logits: Tensor<B, 2>,
    choices: &[Choice<'_>],
    config: &GenerateConfig,
) -> Result<Vec<u32>> {
    let [rows, vocabulary] = logits.dims();
    if config.is_plainly_greedy() {
        let ids = most_likely(logits);
        return choices
            .iter()
            .map(|choice| {
                let id = ids.get(choice.row).copied();
                id.filter(|id| (*id as usize) < vocabulary).ok_or_else(not_finite)
            })
            .collect();
    }
    let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
    debug_assert_eq!(logits.len(), rows * vocabulary);
    let rows: Vec<&[f32]> = logits.chunks(vocabulary).collect();
    let pick_at = |choice: &Choice<'_>| pick(rows[choice.row].to_vec(), choice, config);
    choices.par_iter().map(pick_at).collect()
}

/// Returns the id of the largest logit of each row, the lowest id of equals (like torch's argmax). Returns `V` for a
/// row with a logit that is not finite.
///
/// It runs on the device, so that only one number per row is read back, and compares instead of using the backend's
/// argmax, whose choice among equals is not specified.
fn most_likely<B: TrainBackend>(logits: Tensor<B, 2>) -> Vec<u32> {
    let ([rows, vocabulary], device) = (logits.dims(), logits.device());
    let smaller =
        logits.clone().equal(logits.clone().max_dim(1).expand([rows, vocabulary])).bool_not();
    // The maximum of a row with a NaN is not specified, but its sum is never finite.
    let broken = logits.sum_dim(1).is_finite().bool_not();
    let smaller = smaller.bool_or(broken.expand([rows, vocabulary]));
    let ids = Tensor::<B, 1, Int>::arange(0..vocabulary as i64, &device).unsqueeze::<2>();
    let ids = ids.expand([rows, vocabulary]).mask_fill(smaller, vocabulary as i64);
    ids.min_dim(1).into_data().iter::<u32>().collect()
}

/// Chooses one token from one row of logits `[V]`.
///
/// # Errors
/// A logit is not finite.
fn pick(mut scores: Vec<f32>, choice: &Choice<'_>, config: &GenerateConfig) -> Result<u32> {
    if scores.iter().any(|score| !score.is_finite()) {
        return Err(not_finite());
    }
    let seen = choice.prompt_ids.iter().chain(choice.new_ids);
    penalize(&mut scores, seen, config.repetition_penalty as f32);
    if config.temperature == 0.0 {
        return Ok(largest(&scores) as u32);
    }
    for score in &mut scores {
        *score = (f64::from(*score) / config.temperature) as f32;
    }
    keep_top_k(&mut scores, config.top_k);
    keep_top_p(&mut scores, config.top_p);
    let quantile = uniform(config.seed, choice.prompt, choice.new_ids.len());
    Ok(draw(&scores, quantile) as u32)
}

/// Divides positive scores of the `seen` ids by `penalty` and multiplies negative ones by it, once per id.
fn penalize<'a>(scores: &mut [f32], seen: impl Iterator<Item = &'a u32>, penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut done = vec![false; scores.len()];
    for id in seen.map(|id| *id as usize) {
        if let (Some(score), Some(done)) = (scores.get_mut(id), done.get_mut(id))
            && !std::mem::replace(done, true)
        {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

/// Removes every score below the `k`-th largest; scores equal to that stay.
fn keep_top_k(scores: &mut [f32], k: usize) {
    if k == 0 || k >= scores.len() {
        return;
    }
    let mut copy = scores.to_vec();
    let (_, limit, _) = copy.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let limit = *limit;
    for score in scores.iter_mut().filter(|score| **score < limit) {
        *score = f32::NEG_INFINITY;
    }
}

/// Keeps the most likely tokens until their probabilities sum to `p`, at least one, and removes the others.
fn keep_top_p(scores: &mut [f32], p: f64) {
    if p >= 1.0 {
        return;
    }
    let weights = weights(scores);
    let total: f64 = weights.iter().sum();
    let mut order: Vec<usize> = (0..scores.len()).filter(|id| weights[*id] > 0.0).collect();
    order.sort_unstable_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    let mut before = 0.0;
    for (rank, id) in order.into_iter().enumerate() {
        if rank > 0 && before >= p * total {
            scores[id] = f32::NEG_INFINITY;
        }
        before += weights[id];
    }
}

/// Returns the token at `quantile`, in `[0, 1)`, of the softmax's cumulative distribution in order of ids.
fn draw(scores: &[f32], quantile: f64) -> usize {
    let weights = weights(scores);
    let mut left = quantile * weights.iter().sum::<f64>();
    for (id, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return id;
        }
    }
    // Rounding may leave a remainder after the last token.
    largest(scores)
}

/// Returns `exp(score - max)` in f64; 0 for removed tokens.
fn weights(scores: &[f32]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter().map(|score| (f64::from(*score) - f64::from(max)).exp()).collect()
}

/// Returns the index of the largest score, the first of equals.
fn largest(scores: &[f32]) -> usize {
    let mut best = 0;
    for (id, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = id;
        }
    }
    best
}

/// Returns a uniform number in `[0, 1)` that depends only on its arguments.
fn uniform(seed: u64, prompt: usize, step: usize) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(prompt as u64);
    rng.set_word_pos(2 * step as u128);
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

fn not_finite() -> Error {
    Error::run(
        "the model's logits are not finite",
        "check the weights and the adapter, or compute in a wider dtype",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_ndarray::NdArray;

    const GONE: f32 = f32::NEG_INFINITY;

    fn choice<'a>(prompt: usize, prompt_ids: &'a [u32], new_ids: &'a [u32]) -> Choice<'a> {
        Choice { row: 0, prompt, prompt_ids, new_ids }
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_on_device_and_host() {
        let rows = [[0.5f32, 2.0, -1.0, 2.0, 2.0], [-3.0, -4.0, -3.0, -9.0, -5.0]];
        let logits = Tensor::<NdArray<f32>, 2>::from_data(rows, &Default::default());
        assert_eq!(most_likely(logits), [1, 0]);
        assert_eq!(rows.map(|row| largest(&row)), [1, 0]);
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error() {
        let config = GenerateConfig::default();
        let sampled = GenerateConfig { temperature: 1.0, ..config.clone() };
        for row in [
            [f32::NAN, f32::NAN, f32::NAN],
            [1.0, f32::NAN, 2.0],
            [3.0, 1.0, f32::NAN],
            [0.0, f32::INFINITY, 1.0],
        ] {
            for config in [&config, &sampled] {
                let logits = Tensor::<NdArray<f32>, 2>::from_data([row], &Default::default());
                let error = choose(logits, &[choice(0, &[], &[])], config).unwrap_err();
                assert!(error.to_string().contains("not finite"), "{row:?}: {error}");
            }
        }
    }

    #[test]
    fn the_penalty_counts_an_id_once_and_always_lowers() {
        let mut scores = [2.0, -2.0, 3.0, 1.0];
        penalize(&mut scores, [0, 1, 0, 1, 9].iter(), 2.0);
        assert_eq!(scores, [1.0, -4.0, 3.0, 1.0]);
    }

    #[test]
    fn top_k_keeps_ties_of_the_last() {
        let mut scores = [1.0, 4.0, 3.0, 3.0, 0.0];
        keep_top_k(&mut scores, 2);
        assert_eq!(scores, [GONE, 4.0, 3.0, 3.0, GONE]);
        keep_top_k(&mut scores, 0);
        assert_eq!(scores, [GONE, 4.0, 3.0, 3.0, GONE]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_sum_to_p() {
        // Probabilities 0.1, 0.4, 0.3, 0.2.
        let scores = [0.1f32, 0.4, 0.3, 0.2].map(f32::ln);
        let kept = |p| {
            let mut scores = scores;
            keep_top_p(&mut scores, p);
            scores.map(|score| score > GONE)
        };
        assert_eq!(kept(1e-9), [false, true, false, false]);
        assert_eq!(kept(0.39), [false, true, false, false]);
        assert_eq!(kept(0.41), [false, true, true, false]);
        assert_eq!(kept(0.69), [false, true, true, false]);
        assert_eq!(kept(0.71), [false, true, true, true]);
        assert_eq!(kept(0.95), [true; 4]);
    }

    #[test]
    fn draws_follow_the_distribution() {
        // softmax(ln(p^2) / 2) = p: temperature 2 undoes the square.
        let probabilities = [0.1f32, 0.4, 0.3, 0.2];
        let config = GenerateConfig { temperature: 2.0, ..GenerateConfig::default() };
        let scores = probabilities.map(|p| 2.0 * p.ln()).to_vec();
        let mut counts = [0; 4];
        const DRAWS: usize = 20_000;
        for prompt in 0..DRAWS {
            let id = pick(scores.clone(), &choice(prompt, &[], &[]), &config).unwrap();
            counts[id as usize] += 1;
        }
        for (count, p) in counts.iter().zip(probabilities) {
            // Five standard deviations.
            let deviation = (f64::from(p * (1.0 - p)) / DRAWS as f64).sqrt();
            let frequency = f64::from(*count) / DRAWS as f64;
            assert!((frequency - f64::from(p)).abs() < 5.0 * deviation, "{counts:?}");
        }
    }

    #[test]
    fn numbers_differ_by_seed_prompt_and_step_and_repeat() {
        let base = uniform(7, 3, 5);
        assert_eq!(base, uniform(7, 3, 5));
        let others = [uniform(8, 3, 5), uniform(7, 4, 5), uniform(7, 3, 6)];
        assert!(others.iter().all(|other| *other != base));
        assert!((0.0..1.0).contains(&base));
    }
}
