//! Compares greedy generation with transformers, and checks properties that hold for any weights.

use arithmo::data::batch::TokenRows;
use arithmo::generate::{FinishReason, GenerateConfig, generate};
use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::Decoder;
use arithmo::model::input::ModelInput;
use arithmo::model::load::random;
use arithmo_backends::TrainBackend;
use burn::tensor::DType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::families;
use super::forward::{golden_path, model};
use super::golden::{ids, json_file};

fn complete<B: TrainBackend>(
    model: &Decoder<B>,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
) -> Vec<Vec<u32>> {
    let all = generate(model, prompts, config, |_| ()).unwrap();
    all.into_iter().map(|one| one.token_ids).collect()
}

/// Compares greedily generated ids with those of transformers, for batch sizes 1 to 3 and several orders of the
/// prompts.
pub fn equals_transformers<B: TrainBackend>(name: &str, device: &B::Device) {
    let Some(model) = model::<B>(name, device) else {
        return;
    };
    let golden = json_file(&golden_path("forward", &format!("{name}.json")).unwrap());
    let texts = golden["generate"].as_array().unwrap();
    let prompts: Vec<_> = texts.iter().map(|text| ids(&text["prompt_ids"])).collect();
    let expected: Vec<_> = texts.iter().map(|text| ids(&text["new_ids"])).collect();
    let lengths: std::collections::BTreeSet<usize> = prompts.iter().map(Vec::len).collect();
    assert!(lengths.len() > 1, "{name}: prompts of different lengths");
    let mut config =
        GenerateConfig { max_new_tokens: expected[0].len(), ..GenerateConfig::default() };
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]] {
        for batch_size in 1..=3 {
            config.batch_size = batch_size;
            let prompts: Vec<_> = order.iter().map(|i| prompts[*i].clone()).collect();
            let ours = complete(&model, &prompts, &config);
            for (row, index) in order.iter().enumerate() {
                let what =
                    format!("{name}, text {index}, order {order:?}, batches of {batch_size}");
                assert_eq!(ours[row], expected[*index], "{what}");
            }
        }
    }
}

/// Returns a random model with grouped queries, a window shorter than the texts and `head_dim * heads != hidden_size`.
fn random_model<B: TrainBackend>(positions: usize, device: &B::Device) -> Decoder<B> {
    windowed_model(positions, "5", device)
}

fn windowed_model<B: TrainBackend>(
    positions: usize,
    window: &str,
    device: &B::Device,
) -> Decoder<B> {
    let text = format!(
        r#"{{"model_type": "mistral", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40,
            "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
            "max_position_embeddings": {positions}, "sliding_window": {window}, "initializer_range": 0.5,
            "tie_word_embeddings": true}}"#
    );
    let config = DecoderConfig::parse(&text, "config.json".as_ref()).unwrap();
    random(config, 11, DType::F32, device).unwrap()
}

fn random_prompts(lengths: &[usize]) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut prompt = |length: &usize| (0..*length).map(|_| rng.next_u32() % 61).collect();
    lengths.iter().map(&mut prompt).collect()
}

/// Compares cached decoding with recomputing the whole text for each token. The texts are long enough for the cache to
/// grow, which it does in blocks of 64 tokens.
pub fn equals_no_cache<B: TrainBackend>(device: &B::Device) {
    let model = random_model::<B>(200, device);
    compare_with_no_cache(&model, &random_prompts(&[61, 3, 17]), 9, device);
}

/// Makes the comparison of [`equals_no_cache`] for a model of every family. The windows are shorter than the texts.
pub fn families_equal_no_cache<B: TrainBackend>(device: &B::Device) {
    for shape in families::shapes() {
        eprintln!("{:?}", shape.family);
        let mut model = random::<B>(shape, 11, DType::F32, device).unwrap();
        families::randomize_vectors(&mut model, device);
        compare_with_no_cache(&model, &random_prompts(&[23, 3, 9]), 6, device);
    }
}

/// Compares `tokens` greedy tokens after each prompt with and without a cache.
fn compare_with_no_cache<B: TrainBackend>(
    model: &Decoder<B>,
    prompts: &[Vec<u32>],
    tokens: usize,
    device: &B::Device,
) {
    let config = GenerateConfig { max_new_tokens: tokens, ..GenerateConfig::default() };
    let cached = complete(model, prompts, &config);
    let table = model.position_table(model.config.max_position_embeddings, device);
    for (prompt, completion) in prompts.iter().zip(&cached) {
        let mut text = prompt.clone();
        for id in completion {
            let rows = TokenRows::right_padded(&[&text], 0);
            let logits = model.forward(&ModelInput::new(&rows, &table, device));
            let best = logits.narrow(0, text.len() - 1, 1).argmax(1).into_data();
            assert_eq!(best.iter::<u32>().next(), Some(*id), "after {} tokens", text.len());
            text.push(*id);
        }
    }
}

/// Checks that a completion ends at its own end token, and that the others continue unchanged when the batch shrinks.
pub fn stops_row_by_row<B: TrainBackend>(device: &B::Device) {
    let model = random_model::<B>(200, device);
    let prompts = random_prompts(&[8, 2, 5, 9, 1]);
    let mut config =
        GenerateConfig { max_new_tokens: 24, temperature: 1.0, ..GenerateConfig::default() };
    let free = complete(&model, &prompts, &config);
    config.eos_ids = vec![free[0][4], free[1][0], free[2][11]];
    let mut lengths = Vec::new();
    let mut counted = (0, 0);
    let stopped = generate(&model, &prompts, &config, |step| {
        counted.0 += step.new_tokens;
        counted.1 += step.finished;
    });
    for (stopped, free) in stopped.unwrap().into_iter().zip(&free) {
        let end = free.iter().position(|id| config.eos_ids.contains(id));
        let expected = &free[..end.map_or(free.len(), |end| end + 1)];
        assert_eq!(stopped.token_ids, expected);
        let reason = end.map_or(FinishReason::Length, |_| FinishReason::Eos);
        assert_eq!(stopped.finish_reason, reason);
        counted.0 -= stopped.token_ids.len();
        lengths.push(stopped.token_ids.len());
    }
    assert_eq!(counted, (0, prompts.len()), "progress counts every token and prompt");
    lengths.sort_unstable();
    lengths.dedup();
    assert!(lengths.len() > 2, "rows of different lengths: {lengths:?}");
}

/// Checks that a greedy completion does not depend on the other prompts: their number, their order, or a shared
/// beginning, which is computed once. It does not depend on prompt lookup either. There are more prompts than rows of
/// the batch, and completions end at different times.
pub fn does_not_depend_on_the_batch<B: TrainBackend>(device: &B::Device) {
    for (window, shared) in [("null", 0), ("null", 37), ("23", 37), ("5", 18)] {
        let model = windowed_model::<B>(200, window, device);
        let beginning = random_prompts(&[shared]).remove(0);
        let rests = random_prompts(&[7, 1, 66, 12, 3, 29, 2, 15, 1, 40, 5]);
        let prompts: Vec<Vec<u32>> =
            rests.iter().map(|rest| [&beginning[..], rest].concat()).collect();
        let mut config =
            GenerateConfig { max_new_tokens: 30, batch_size: 1, ..GenerateConfig::default() };
        let free = complete(&model, &prompts[..1], &config);
        config.eos_ids = vec![free[0][9], 3, 8];
        let alone: Vec<_> = prompts
            .iter()
            .map(|prompt| complete(&model, std::slice::from_ref(prompt), &config).remove(0))
            .collect();
        let lengths: std::collections::BTreeSet<_> = alone.iter().map(Vec::len).collect();
        assert!(lengths.len() > 3, "rows of different lengths: {lengths:?}");
        for (batch_size, step) in [(1, 1), (3, 4), (8, 7), (32, 3)] {
            config.batch_size = batch_size;
            let order: Vec<usize> =
                (0..prompts.len()).map(|at| at * step % prompts.len()).collect();
            let prompts: Vec<_> = order.iter().map(|at| prompts[*at].clone()).collect();
            let together = complete(&model, &prompts, &config);
            config.lookup = !config.lookup;
            for (ours, at) in together.iter().zip(order) {
                let what = format!("window {window}, {shared} shared, batches of {batch_size}");
                assert_eq!(*ours, alone[at], "{what}, prompt {at}");
            }
        }
    }
}

/// Checks that sampled completions repeat with the same seed, differ with another, and do not depend on the batch.
pub fn samples_reproducibly<B: TrainBackend>(device: &B::Device) {
    let model = random_model::<B>(200, device);
    let prompts = random_prompts(&[4, 12, 4, 7]);
    let sampled = |batch_size, seed| GenerateConfig {
        max_new_tokens: 12,
        temperature: 0.7,
        top_k: 20,
        top_p: 0.95,
        repetition_penalty: 1.1,
        seed,
        batch_size,
        ..GenerateConfig::default()
    };
    let first = complete(&model, &prompts, &sampled(4, 1));
    assert_eq!(first, complete(&model, &prompts, &sampled(1, 1)));
    assert_eq!(first, complete(&model, &prompts, &sampled(3, 1)));
    assert_ne!(first, complete(&model, &prompts, &sampled(4, 2)));
    let same = vec![prompts[0].clone(); 2];
    let twice = complete(&model, &same, &sampled(2, 1));
    assert_ne!(twice[0], twice[1], "equal prompts draw their own numbers");
    assert_eq!(twice[0], first[0]);
}

/// Checks that a completion ends at the model's last position, and that the error for an unusable prompt names its
/// number.
pub fn respects_the_models_limits<B: TrainBackend>(device: &B::Device) {
    let model = random_model::<B>(16, device);
    let config = GenerateConfig::default();
    let all = generate(&model, &random_prompts(&[15, 10]), &config, |_| ()).unwrap();
    let lengths: Vec<usize> = all.iter().map(|one| one.token_ids.len()).collect();
    assert_eq!(lengths, [1, 6]);
    assert!(all.iter().all(|one| one.finish_reason == FinishReason::Length));

    let refused = |prompt: Vec<u32>| {
        let error = generate(&model, &[vec![1], prompt], &config, |_| ()).unwrap_err();
        error.to_string()
    };
    for (prompt, message) in [
        (vec![], "prompt 2: has no tokens"),
        (vec![1; 16], "16 positions"),
        (vec![1; 17], "17 tokens long"),
        (vec![1, 61], "the id 61"),
    ] {
        let error = refused(prompt);
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(generate(&model, &[], &config, |_| ()).unwrap(), []);
}

/// Checks that the error for an impossible or contradictory setting names it.
pub fn refuses_bad_settings<B: TrainBackend>(device: &B::Device) {
    let model = random_model::<B>(16, device);
    let base = GenerateConfig::default;
    let cases = [
        ("--max-new-tokens", GenerateConfig { max_new_tokens: 0, ..base() }),
        ("--batch-size", GenerateConfig { batch_size: 0, ..base() }),
        ("--temperature", GenerateConfig { temperature: -0.5, ..base() }),
        ("--temperature", GenerateConfig { temperature: f64::NAN, ..base() }),
        ("--temperature", GenerateConfig { top_k: 5, ..base() }),
        ("--top-p", GenerateConfig { top_p: 0.0, temperature: 1.0, ..base() }),
        ("--top-p", GenerateConfig { top_p: 1.5, temperature: 1.0, ..base() }),
        ("--repetition-penalty", GenerateConfig { repetition_penalty: 0.0, ..base() }),
    ];
    for (place, config) in cases {
        let error = generate(&model, &[vec![1]], &config, |_| ()).unwrap_err();
        assert!(error.to_string().starts_with(place), "{place}: {error}");
    }
}
