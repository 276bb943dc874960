use std::path::Path;

use arithmo_backends::{Allocation, BackendKind};

use super::*;
use crate::bench::shape;
use crate::config::{GradientCheckpointing, ModelDtype, Quantization, RunConfig};
use crate::data::lengths::{SampleLengths, SideLengths};
use crate::model::config::DecoderConfig;
use crate::plan::fit::Effect;

const CARD: u64 = 8_000_000_000;

fn no_samples() -> Samples {
    Samples { train: Vec::new(), eval: Vec::new() }
}

fn quantized() -> RunConfig {
    let mut config = RunConfig::default();
    config.model.quantization = Quantization::Nf4;
    config.model.double_quant = true;
    config
}

fn job(shape: &DecoderConfig, config: &RunConfig, profile: &Profile) -> Job {
    Job::new(shape, config, &no_samples(), profile).unwrap()
}

/// One layer of width 8 with two query heads and one key head of 4, 12 inside the MLP, and a
/// vocabulary of 2,000.
fn small() -> DecoderConfig {
    let text = r#"{"model_type": "mistral", "vocab_size": 2000, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 16, "sliding_window": null}"#;
    DecoderConfig::parse(text, Path::new("config.json")).unwrap()
}

/// A CPU with one thread of which nothing is in use.
fn cpu(capacity: Option<u64>) -> Profile {
    Profile {
        name: "a CPU".into(),
        allocation: Allocation::Heap,
        capacity,
        program: 0,
        dtypes: vec![DType::F32],
        pass_tokens: 4096,
        threads: 1,
        largest_tensor: None,
    }
}

/// On a CPU, which computes only in f32, matrices take two bytes per value if bf16 is requested, or
/// if they accompany quantized weights and are stored in bf16; norms and activations are f32.
#[test]
fn bf16_is_stored_where_the_device_cannot_compute_in_it() {
    let shape = DecoderConfig { torch_dtype: Some("bfloat16".into()), ..small() };
    let mut config = RunConfig::default();
    config.model.dtype = ModelDtype::Bf16;
    let bf16_job = job(&shape, &config, &cpu(None));
    assert_eq!(bf16_job.dtype, DType::F32);
    // Embedding and head, query and output projection, keys and values, three of the MLP; three
    // norms.
    let matrices = 2 * 2000 * 8 + 2 * 8 * 8 + 2 * 4 * 8 + 3 * 12 * 8;
    assert_eq!(bf16_job.model_bytes(), 2 * matrices + 4 * 3 * 8);
    let auto = job(&shape, &RunConfig::default(), &cpu(None));
    assert_eq!(auto.model_bytes(), 4 * matrices + 4 * 3 * 8);
    // 480 values of half a byte, with one scale per 64 values of each of seven matrices.
    let mut config = RunConfig::default();
    config.model.quantization = Quantization::Nf4;
    let packed = job(&shape, &config, &cpu(None));
    let scales = 4 * (1 + 1 + 1 + 1 + 3 * 2);
    assert_eq!(packed.model_bytes(), 480 / 2 + scales + 2 * 2 * 2000 * 8 + 4 * 3 * 8);
}

/// A quantized folder takes the same bytes as one that is quantized while it is loaded, and cannot
/// be quantized otherwise.
#[test]
fn a_quantized_folder_is_planned_as_it_is_stored() {
    let floats =
        DecoderConfig { torch_dtype: Some("bfloat16".into()), ..shape("mistral-7b").unwrap() };
    let stored = DecoderConfig { quantization: quantized().model.quantize(), ..floats.clone() };
    let on = |profile: &Profile, shape: &DecoderConfig, config: &RunConfig| {
        Plan::new(&job(shape, config, profile), profile).table
    };
    for profile in [cpu(None), Profile::assumed(BackendKind::Wgpu, CARD)] {
        let packed = on(&profile, &floats, &quantized());
        for config in [RunConfig::default(), quantized()] {
            assert_eq!(on(&profile, &stored, &config), packed);
        }
    }
    // The rest is bf16 because the configuration requests it, not because it is stored so.
    let mut bf16 = RunConfig::default();
    bf16.model.dtype = ModelDtype::Bf16;
    let others_in_f32 = DecoderConfig { torch_dtype: None, ..stored.clone() };
    let requested = on(&cpu(None), &others_in_f32, &bf16);
    assert_eq!(requested, on(&cpu(None), &floats, &quantized()));

    let profile = Profile::assumed(BackendKind::Wgpu, CARD);
    let changes = changes(&stored, &RunConfig::default(), &no_samples(), &profile).unwrap();
    let settings: Vec<_> = changes.iter().flat_map(|change| &change.settings).collect();
    assert!(!settings.is_empty());
    assert!(!settings.iter().any(|setting| setting.contains("quant")), "{settings:?}");
}

/// The main use: 4-bit Mistral-7B on a card with 8 GB, pairs of 1,024 tokens per side, one per
/// pass.
#[test]
fn mistral_7b_in_four_bits_fits_a_card_of_8_gb() {
    let shape = shape("mistral-7b").unwrap();
    let profile = Profile::assumed(BackendKind::Wgpu, CARD);
    let mut config = quantized();
    config.train.max_tokens_per_pass = Some(2048);
    let plan = Plan::new(&job(&shape, &config, &profile), &profile);
    assert_eq!(plan.dtype, DType::F16);
    // 32 layers of 218,103,808 weights of half a byte, one byte per 64 weights and 4 bytes per 256
    // of those; embedding, head and 65 norms in f16.
    let projections = 32 * 218_103_808u64;
    let scales = projections / 64 + 4 * (projections / 64 / 256);
    let others = 2 * (2 * 32_000 * 4096 + 65 * 4096);
    assert_eq!(plan.table[&Category::Weights], projections / 2 + scales + others);
    // Rank 16 on q_proj and v_proj, in f32; two moments.
    let adapter = 4 * 32 * 16 * (4096 + 4096 + 4096 + 1024) as u64;
    assert_eq!(plan.table[&Category::Adapter], adapter);
    assert_eq!(plan.table[&Category::Optimizer], 2 * adapter);
    assert_eq!(plan.fits(), Some(true), "{:?}", plan.table);
    assert!(plan.total() > 4_500_000_000, "{:?}", plan.table);
    // One pair at a time: two sides of 1,023 tokens that share one.
    assert_eq!((plan.pass.tokens, plan.passes), (2 * 1023 - 1, 4));
}

/// The presets of other families on the card or the GPU that they are for.
#[test]
fn presets_of_every_family_fit_their_devices() {
    let math_1_5b = r#"{"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16"}"#;
    let llama_1b = r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "max_position_embeddings": 131072, "tie_word_embeddings": true, "torch_dtype": "bfloat16"}"#;
    let parse = |text: &str| DecoderConfig::parse(text, Path::new("config.json")).unwrap();
    let (math_1_5b, llama_1b) = (parse(math_1_5b), parse(llama_1b));
    let [math_7b, ministral] = ["qwen2.5-7b", "ministral-3b"].map(|name| shape(name).unwrap());
    for (preset, shape, memory) in [
        ("qwen2.5-math-1.5b-lora", &math_1_5b, 16_000_000_000),
        ("qwen2.5-math-1.5b-qlora", &math_1_5b, CARD),
        ("qwen2.5-math-7b-lora", &math_7b, 40_000_000_000),
        ("qwen2.5-math-7b-qlora", &math_7b, 12_000_000_000),
        ("llama-3.2-1b-lora", &llama_1b, 16_000_000_000),
        ("ministral-3-3b-lora", &ministral, 24_000_000_000),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let config = RunConfig::load(&path.join(format!("{preset}.toml")), &[]).unwrap();
        let profile = Profile::assumed(BackendKind::Cuda, memory);
        let plan = Plan::new(&job(shape, &config, &profile), &profile);
        assert_eq!(plan.fits(), Some(true), "{preset}: {:?}", plan.table);
    }
}

#[test]
fn a_plan_that_does_not_fit_proposes_changes_that_do() {
    let shape = shape("mistral-7b").unwrap();
    let profile = Profile::assumed(BackendKind::Wgpu, CARD);
    let config = RunConfig::default();
    let plan = Plan::new(&job(&shape, &config, &profile), &profile);
    assert_eq!(plan.fits(), Some(false));
    let changes = changes(&shape, &config, &no_samples(), &profile).unwrap();
    assert!((1..=3).contains(&changes.len()));
    for change in &changes {
        assert_eq!(change.plan.fits(), Some(true), "{change:?}");
    }
    let settings = &changes[0].settings;
    assert_eq!(settings[..2], ["model.quantization=nf4", "model.double_quant=true"]);
    assert_eq!(changes[0].effect, Effect::Rounding);
}

/// Changes that keep the trained weights come first, and a proposed value is the largest that fits.
#[test]
fn the_cheapest_change_keeps_the_trained_weights() {
    let (shape, mut config) = (shape("mistral-7b").unwrap(), quantized());
    config.train.gradient_checkpointing = GradientCheckpointing::Off;
    let profile = Profile::assumed(BackendKind::Wgpu, 12_000_000_000);
    let changes = changes(&shape, &config, &no_samples(), &profile).unwrap();
    assert_eq!(changes[0].settings, ["train.gradient_checkpointing=true"], "{changes:#?}");
    assert_eq!(changes[0].effect, Effect::None);
    assert!(changes[0].time > 1.2 && changes[0].time < 1.5);
    assert!(changes.is_sorted_by_key(|change| change.effect));
}

#[test]
fn one_sample_more_than_the_largest_batch_does_not_fit() {
    let shape = shape("mistral-7b").unwrap();
    let profile = Profile::assumed(BackendKind::Cuda, 40_000_000_000);
    let job = job(&shape, &RunConfig::default(), &profile);
    let (count, tokens) = largest_batch(&job, &profile).unwrap();
    let fits = |count: usize| {
        let samples = vec![SampleLengths::longest(1024, 2); count];
        Plan::for_pass(&job, &profile, PassShape::of(&samples), 1).fits()
    };
    assert_eq!(tokens, count * (2 * 1023 - 1));
    assert_eq!((fits(count), fits(count + 1)), (Some(true), Some(false)));
    assert_eq!(largest_batch(&job, &cpu(None)), None);
}

/// Compares a pass of 3 pairs on one layer with bytes counted by hand, operation by operation.
#[test]
fn a_small_run_matches_bytes_counted_by_hand() {
    let (shape, mut config) = (small(), RunConfig::default());
    config.lora.r = 2;
    config.train.gradient_accumulation_steps = 3;
    let side = |tokens| SideLengths { tokens, completion_start: 3 };
    // 5 and 6 tokens of which 3 are shared: rows of 3 + 1 + 2, 2 and 3 scored, predicted by tokens
    // 2; 3; 3, 4.
    let pair = SampleLengths { shared: 3, sides: vec![side(5), side(6)] };
    assert_eq!((pair.packed(), pair.scored(), pair.predicting()), (6, 5, 4));
    let samples = Samples { train: vec![pair; 3], eval: Vec::new() };
    let profile = cpu(None);
    let job = Job::new(&shape, &config, &samples, &profile).unwrap();
    let plan = Plan::new(&job, &profile);
    assert_eq!(plan.pass, PassShape { tokens: 18, queries: 12, scored: 15, span: 6 });
    assert_eq!((plan.passes, plan.kept_blocks, plan.blocks), (1, 1, 1));
    // q 8 x 8, k and v 4 x 8, o 8 x 8, three of 12 x 8; two norms of 8; embedding and head of 2,000 x 8, one norm.
    let weights = 64 + 32 + 32 + 64 + 3 * 96 + 16 + 32_000 + 8;
    assert_eq!(plan.table[&Category::Weights], 4 * weights);
    // Rank 2 on q and v: 2 x 8 and 8 x 2, 2 x 8 and 4 x 2.
    assert_eq!(plan.table[&Category::Adapter], 4 * (16 + 16 + 16 + 8));
    // The input, the residual after attention, the normed input, queries with keys and values, the
    // output of attention, gate and up.
    assert_eq!(plan.block_bytes, 4 * 18 * (8 + 8 + 8 + 16 + 8 + 24));
    assert_eq!(plan.block_input_bytes, 4 * 18 * 8);
    assert_eq!(plan.peak_phase, "the head");
    // 18 rows of x, its norm, queries with keys and values, `x A^T` of rank 4; 12 rows of the
    // residual after attention, gate and up, and the output.
    let kept = 18 * (8 + 8 + 16 + 4) + 12 * (8 + 24 + 8);
    assert_eq!(
        plan.table[&Category::Activations] + category_bytes(&plan, Category::Workspace),
        4 * kept
    );
    // The output of attention in the selected rows, and one log-sum-exp per head.
    assert_eq!(plan.table[&Category::Attention], 4 * 12 * (8 + 2));
    // Logits of 15 rows, their states and gradients, four columns.
    assert_eq!(plan.table[&Category::Head], 4 * 15 * (2000 + 8 + 8 + 4));
}

/// Ranks of single projections, biases, and modules that are trained in full.
#[test]
fn every_tensor_of_an_adapter_is_counted() {
    let mut config = RunConfig::default();
    config.lora.r = 2;
    config.lora.rank_pattern = Some([("q_proj".to_string(), 3)].into());
    config.lora.lora_bias = true;
    config.lora.modules_to_save = Some(vec!["norm".into(), "lm_head".into()]);
    let job = job(&small(), &config, &cpu(None));
    // q 8 x 8 of rank 3, v 4 x 8 of rank 2, a bias of each; three norms of 8, the head of 2,000 x 8.
    let expected = [3 * 8, 8 * 3, 2 * 8, 4 * 2, 8, 4, 8, 8, 8, 16_000];
    let mut sizes = job.trained_sizes();
    sizes.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(sizes, expected);
}

fn category_bytes(plan: &Plan, category: Category) -> u64 {
    plan.table.get(&category).copied().unwrap_or(0)
}

#[test]
fn a_tensor_beyond_the_buffer_limit_is_named() {
    let (shape, config) = (shape("mistral-7b").unwrap(), RunConfig::default());
    let mut profile = Profile::assumed(BackendKind::Wgpu, 80_000_000_000);
    profile.dtypes = vec![DType::F32];
    assert_eq!(Plan::new(&job(&shape, &config, &profile), &profile).too_long, None);
    profile.largest_tensor = Some(128 << 20);
    let mut config = config;
    // A pair of 1024 tokens would exceed the limit too.
    config.data.max_length = 512;
    // Frozen matrices are split.
    let plan = Plan::new(&job(&shape, &config, &profile), &profile);
    assert_eq!(plan.too_long, None);
    // Embedding and head in four pieces each; gate, up and down in two.
    let cut = job(&shape, &config, &profile);
    let whole = 3 + 32 * 9 + 1 + 1;
    assert_eq!(cut.weight_bytes().len(), whole - 1 + 3 + 3 + 32 * 3 - 1);
    assert_eq!(cut.model_bytes(), 4 * 7_241_732_096);
    // Trained matrices are not split.
    config.model.use_peft = false;
    let plan = Plan::new(&job(&shape, &config, &profile), &profile);
    let long = plan.too_long.clone().unwrap();
    assert!(long.tensor.contains("lm_head") || long.tensor.contains("embed_tokens"));
    assert_eq!(long.bytes, 4 * 32_000 * 4096);
    assert_eq!(plan.fits(), Some(false));
    // Passes are as short as the device requires: gate and up of one token take 114,688 bytes.
    assert_eq!(plan.pass_tokens, (128 << 20) / 114_688);
}

#[test]
fn sizes_are_read_in_every_unit() {
    for (text, bytes) in [
        ("8GB", 8_000_000_000),
        ("8 gb", 8_000_000_000),
        ("7.5GiB", 8_053_063_680),
        ("500M", 500_000_000),
        ("64MiB", 64 << 20),
        ("123456", 123_456),
    ] {
        assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
    }
    let error = parse_bytes("8").unwrap_err().to_string();
    assert!(error.contains("is 8 bytes") && error.contains("8GB"), "{error}");
    for text in ["8000", "", "GB", "-1GB", "8TB", "eight", "0", "nan"] {
        assert!(parse_bytes(text).is_err(), "{text}");
    }
}

/// KTO scores mismatched completions under policy and reference; a reference that is computed before training is not computed
/// in steps. The methods without a reference compute none.
#[test]
fn methods_have_their_forward_passes() {
    use crate::config::Method;
    use crate::objective::kto::KtoLoss;
    let passes = |change: fn(&mut RunConfig)| {
        let mut config = RunConfig::default();
        change(&mut config);
        let job = job(&small(), &config, &cpu(None));
        (job.forward_passes(), job.sides(), job.has_reference())
    };
    assert_eq!(passes(|_| ()), ([1.0, 0.0], 2, true));
    assert_eq!(passes(|config| config.dpo.reference_free = true), ([0.0, 0.0], 2, false));
    assert_eq!(passes(|config| config.method = Method::Kto), ([3.0, 1.0], 1, true));
    let apo = |config: &mut RunConfig| {
        config.method = Method::Kto;
        config.kto.loss_type = KtoLoss::ApoZeroUnpaired;
    };
    assert_eq!(passes(apo), ([1.0, 0.0], 1, true));
    assert_eq!(passes(|config| config.method = Method::Orpo), ([0.0, 0.0], 2, false));
    assert_eq!(passes(|config| config.method = Method::Cpo), ([0.0, 0.0], 2, false));
    assert_eq!(passes(|config| config.method = Method::Sft), ([0.0, 0.0], 1, false));
}
