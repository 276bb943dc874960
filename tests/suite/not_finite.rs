//! Checks that NaN and infinity propagate through every operation: a result that depends on one is not finite, and all
//! other results are.
//!
//! There is one exception, which these tests skip. A masked key has weight 0 and `0 * NaN` is NaN, so a non-finite key
//! may also reach queries in the same tile that do not see it. On GPUs, prompts that are decoded together share tiles.

use arithmo_backends::conformance::{
    HostWeight, Kind, Layout, Place, Source, with_and_without_library,
};
use arithmo_backends::ops::{attention, linear::linear, log_probs, rms_norm, swiglu};
use arithmo_backends::{
    AttentionConfig, AttentionMask, Format, LogProbStats, TrainBackend, Weight, graph_lock,
};
use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};

/// Two sequences of 80 tokens, one after the other; 4 heads on 2 key heads.
const TOKENS: usize = 160;
const CONFIG: AttentionConfig = AttentionConfig { heads: 4, kv_heads: 2, head_dim: 8, scale: 0.35 };

/// Token that gets the non-finite value. It lies in the second sequence.
const AT: usize = 140;
/// Feature, within a head, that gets the non-finite value.
const FEATURE: usize = 3;

/// Tokens of the first sequence that share no tile with [`AT`].
const FAR: std::ops::Range<usize> = 0..64;

const VALUES: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

/// Uniform in `[-1.5, 1.5]`.
fn random(seed: usize, shape: [usize; 2]) -> Vec<f32> {
    Source::new(seed, DType::F32).matrix(shape).to_f32()
}

fn numbers<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn floats<B: Backend, const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn mask<B: Backend>(device: &B::Device) -> AttentionMask<B> {
    let range = |token: usize| [0, 0, token / 80 * 80, token + 1].map(|at| at as i64);
    let ranges: Vec<i64> = (0..TOKENS).flat_map(range).collect();
    AttentionMask {
        ranges: Tensor::from_data(TensorData::new(ranges, [TOKENS, 4]), device),
        hidden: None,
        queries: None,
    }
}

/// Returns queries, keys and values, with `value` in `column` of token [`AT`].
fn poisoned(column: usize, value: f32) -> Vec<f32> {
    let width = CONFIG.qkv_width();
    let mut qkv = random(7, [TOKENS, width]);
    qkv[AT * width + column] = value;
    qkv
}

/// Returns the columns of [`FEATURE`] in query head, key head and value head number `head`.
fn columns(head: usize) -> [usize; 3] {
    let (heads, kv_heads, dim) = (CONFIG.heads, CONFIG.kv_heads, CONFIG.head_dim);
    [head, heads + head, heads + kv_heads + head].map(|block| block * dim + FEATURE)
}

/// Returns the attention output `[T, H * Dh]` and the gradient of queries, keys and values.
fn attended<A: TrainBackend + AutodiffBackend>(qkv: Vec<f32>, device: &A::Device) -> [Vec<f32>; 2] {
    let _only_graph = graph_lock();
    let qkv = floats::<A, 2>(qkv, [TOKENS, CONFIG.qkv_width()], device).require_grad();
    let output = attention::self_attention(qkv.clone(), &mask(device), &CONFIG);
    let grads = output.clone().sum().backward();
    let grad = qkv.grad(&grads).map(numbers).unwrap();
    [numbers(output), grad]
}

/// Returns one head's values in row `token` of `rows`.
fn head_values(rows: &[f32], width: usize, token: usize, head: usize) -> &[f32] {
    &rows[token * width + head * CONFIG.head_dim..][..CONFIG.head_dim]
}

fn all_nan(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_nan())
}

fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// Checks that a non-finite query affects only its own output and the gradient of the keys and values that it sees.
pub fn in_a_query<B: TrainBackend>(device: &B::Device) {
    let (width, grad_width) = (CONFIG.heads * CONFIG.head_dim, CONFIG.qkv_width());
    for value in VALUES {
        let head = 1;
        let [output, grad] = attended::<Autodiff<B>>(poisoned(columns(head)[0], value), device);
        for token in 0..TOKENS {
            for other in 0..CONFIG.heads {
                let here = head_values(&output, width, token, other);
                if (token, other) == (AT, head) {
                    assert!(all_nan(here), "{value}: {here:?}")
                } else {
                    assert!(all_finite(here), "{value}: {token} {other} {here:?}")
                }
            }
        }
        assert!(all_nan(head_values(&grad, grad_width, AT, head)), "{value}");
        // The query sees key and value head 0, not head 1.
        for token in 80..=AT {
            assert!(all_nan(head_values(&grad, grad_width, token, CONFIG.heads)));
            assert!(all_nan(head_values(&grad, grad_width, token, CONFIG.heads + 2)));
        }
        for token in 0..TOKENS {
            for other in [2, 3, 5, 7] {
                assert!(all_finite(head_values(&grad, grad_width, token, other)), "{value}");
            }
        }
        assert!(all_finite(&grad[..FAR.end * grad_width]), "{value}");
    }
}

/// Checks that a non-finite key affects the outputs of all queries that see it, unless its score is negative infinity.
pub fn in_a_key<B: TrainBackend>(device: &B::Device) {
    let width = CONFIG.heads * CONFIG.head_dim;
    for value in VALUES {
        let kv_head = 1;
        let qkv = poisoned(columns(kv_head)[1], value);
        let [output, grad] = attended::<Autodiff<B>>(qkv.clone(), device);
        let mut seen = [0, 0];
        for token in 0..TOKENS {
            for head in 0..CONFIG.heads {
                let query = qkv[token * CONFIG.qkv_width() + columns(head)[0]];
                // A score of negative infinity gets weight 0. Positive infinity minus itself is NaN.
                let depends = token >= AT && head / 2 == kv_head;
                let vanishes = query * value < 0.0;
                let is_nan = depends && !vanishes;
                let here = head_values(&output, width, token, head);
                if is_nan {
                    assert!(all_nan(here), "{value}: {token} {head} {here:?}")
                } else {
                    assert!(all_finite(here), "{value}: {token} {head} {here:?}")
                }
                seen[usize::from(is_nan)] += usize::from(depends);
            }
        }
        assert!(seen[1] > 5 && (seen[0] > 5 || value.is_nan()), "{seen:?}");
        assert!(grad.iter().any(|value| value.is_nan()));
        assert!(all_finite(&grad[..FAR.end * CONFIG.qkv_width()]));
    }
}

/// Checks that a non-finite value affects its feature in the outputs of all queries that see it.
pub fn in_a_value<B: TrainBackend>(device: &B::Device) {
    let width = CONFIG.heads * CONFIG.head_dim;
    for value in VALUES {
        let kv_head = 1;
        let [output, grad] = attended::<Autodiff<B>>(poisoned(columns(kv_head)[2], value), device);
        for token in FAR.chain(AT..TOKENS) {
            for head in 0..CONFIG.heads {
                let here = head_values(&output, width, token, head);
                for (feature, number) in here.iter().enumerate() {
                    let depends = token >= AT && head / 2 == kv_head && feature == FEATURE;
                    let right = if depends {
                        number.to_bits() == value.to_bits() || number.is_nan() && value.is_nan()
                    } else {
                        number.is_finite()
                    };
                    assert!(right, "{value}: {token} {head} {feature}: {number}");
                }
            }
        }
        for token in AT..TOKENS {
            for head in [2, 3] {
                assert!(all_nan(head_values(&grad, CONFIG.qkv_width(), token, head)));
            }
        }
        assert!(all_finite(&grad[..FAR.end * CONFIG.qkv_width()]));
    }
}

/// Checks single queries to a cache, as in decoding: one that does not see the non-finite key or value, then one that
/// does. Each is computed by itself, because queries in one tile share the keys that any of them sees.
pub fn in_a_cache<B: TrainBackend>(device: &B::Device) {
    let (wide, row) = (CONFIG.kv_heads * CONFIG.head_dim, CONFIG.heads * CONFIG.head_dim);
    let queries = random(3, [2, row]);
    let attended = |index: usize, key: Tensor<B, 2>, value: Tensor<B, 2>| {
        let ranges = [[0i64, 0, 0, 80], [0, 0, 80, 160]][index].to_vec();
        let query = queries[index * row..][..row].to_vec();
        let mask = AttentionMask {
            ranges: Tensor::from_data(TensorData::new(ranges, [1, 4]), device),
            hidden: None,
            queries: None,
        };
        let query = floats::<B, 2>(query, [1, row], device);
        numbers(attention::attention(query, key, value, &mask, &CONFIG))
    };
    for value in VALUES {
        for kv_head in 0..2 {
            let head_columns = columns(kv_head);
            for side in [1, 2] {
                let qkv = poisoned(head_columns[side], value);
                let qkv = floats::<B, 2>(qkv, [TOKENS, CONFIG.qkv_width()], device);
                let part = |side: usize| qkv.clone().narrow(1, row + side * wide, wide);
                let unseen = attended(0, part(0), part(1));
                assert!(all_finite(&unseen), "{value} {kv_head} {side}");
                let seen = attended(1, part(0), part(1));
                for head in 0..CONFIG.heads {
                    let here = head_values(&seen, row, 0, head);
                    let vanishes =
                        side == 1 && queries[row + head * CONFIG.head_dim + FEATURE] * value < 0.0;
                    assert_eq!(
                        !all_finite(here),
                        head / 2 == kv_head && !vanishes,
                        "{value} {head} {here:?}"
                    );
                }
            }
        }
    }
}

/// Checks that a non-finite value affects only its row in row-wise operations: projections by float and quantized
/// weights, norms, activations and log-probabilities.
pub fn in_a_row<B: TrainBackend>(device: &B::Device) {
    let (d_in, d_out) = (128, 70);
    let weight = random(11, [d_out, d_in]);
    let float = || Weight::Float(floats::<B, 2>(weight.clone(), [d_out, d_in], device));
    let place = Place { device: device.clone(), dtype: DType::F32, layout: Layout::Contiguous };
    let kinds = [
        Kind::Double(Format::Nf4),
        Kind::Plain(Format::Fp4),
        Kind::Plain(Format::Int8),
        Kind::Plain(Format::Bf16),
    ];
    let mut source = Source::new(12, DType::F32);
    let packed =
        kinds.map(|kind| HostWeight::random(kind, [d_out, d_in], &mut source).on::<B>(&place));
    for tokens in [1, 2, 3, 5, 40, 300] {
        let x = random(tokens, [tokens, d_in]);
        for value in VALUES {
            let at = tokens / 2;
            let mut x = x.clone();
            x[at * d_in + 77] = value;
            let x = || floats::<B, 2>(x.clone(), [tokens, d_in], device);
            let check = |what: &str, rows: Vec<f32>| {
                for (row, numbers) in rows.chunks(rows.len() / tokens).enumerate() {
                    let right = if row == at {
                        numbers.iter().all(|number| !number.is_finite())
                    } else {
                        all_finite(numbers)
                    };
                    assert!(right, "{what} {value} {tokens}: row {row} {numbers:?}");
                }
            };
            check("linear", numbers(linear(x(), float())));
            // A row's sum is infinite or, because quantized weights may be 0 and 0 times infinity is NaN, NaN.
            for packed in &packed {
                let y = numbers(linear(x(), packed.clone()));
                let y: Vec<f32> = y.chunks(d_out).map(|row| row.iter().sum()).collect();
                check("packed", y);
            }
            if value.is_nan() {
                let norm = floats::<B, 1>(vec![1.0; d_in], [d_in], device);
                check("rms_norm", numbers(rms_norm::rms_norm(x(), norm, 1e-5)));
            }
            let targets = Tensor::from_data(TensorData::new(vec![5i64; tokens], [tokens]), device);
            let scored = log_probs::completion_log_probs(x(), float(), targets, LogProbStats::All);
            check("log_probs", numbers(scored.narrow(1, 0, 2)));
        }
    }
    let gate = [[f32::NAN, 1.0, 2.0, f32::INFINITY, 1.0, 0.5]];
    let gate_up = Tensor::<B, 2>::from_data(gate, device);
    let y = numbers(swiglu::swiglu(gate_up));
    assert!(y[0].is_nan() && y[1].is_finite() && y[2].is_finite(), "{y:?}");
}

/// Checks that a NaN in a weight affects its output column for every token.
pub fn in_a_weight<B: TrainBackend>(device: &B::Device) {
    let (d_in, d_out) = (64, 33);
    for tokens in [1, 4, 50] {
        let mut weight = vec![0.25; d_out * d_in];
        weight[7 * d_in + 60] = f32::NAN;
        let weight = floats::<B, 2>(weight, [d_out, d_in], device);
        let x = floats::<B, 2>(vec![1.5; tokens * d_in], [tokens, d_in], device);
        for row in numbers(linear(x, weight)).chunks(d_out) {
            for (column, number) in row.iter().enumerate() {
                assert_eq!(number.is_nan(), column == 7, "{tokens} {column}");
            }
        }
    }
}

/// Runs all checks of this file.
pub fn everywhere<B: TrainBackend>(device: &B::Device) {
    with_and_without_library::<B>(device, || {
        in_a_query::<B>(device);
        in_a_key::<B>(device);
        in_a_value::<B>(device);
        in_a_cache::<B>(device);
        in_a_row::<B>(device);
        in_a_weight::<B>(device);
    });
}
