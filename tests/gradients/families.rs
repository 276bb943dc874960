//! Checks that every objective works on every family of models, in f64: two steps do not depend on how samples are packed,
//! log-probabilities are those of padded sequences, and the gradient is the derivative of the loss in a random direction.

use arithmo::adapter::TargetModules;
use arithmo::adapter::lora::{adapter_parameters, attach, set_adapter_parameters};
use arithmo::data::answers::{AnswerPair, CpoPair, OrpoPair};
use arithmo::data::batch::TokenRows;
use arithmo::data::encode::{EncodedExample, EncodedPair, EncodedSequence};
use arithmo::data::labeled::EncodedLabeled;
use arithmo::data::sample::Sample;
use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::Decoder;
use arithmo::model::input::ModelInput;
use arithmo::model::load::random;
use arithmo::objective::Objective;
use arithmo::objective::cpo::{Cpo, CpoLoss};
use arithmo::objective::dpo::{Dpo, ReferenceTiming};
use arithmo::objective::kto::{Kto, KtoLoss, KtoSettings};
use arithmo::objective::losses::LossType;
use arithmo::objective::orpo::Orpo;
use arithmo::objective::preference::PreferenceLoss;
use arithmo::objective::reference::Reference;
use arithmo::objective::sft::Sft;
use arithmo::train::optimizer::{Optimizer, Rule, Sgd};
use arithmo::train::step::{Learner, StepConfig, StepOutput};
use arithmo_backends::LogProbStats;
use arithmo_backends::ops::log_probs::completion_log_probs;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::json;

use super::{A, B, BETA, VOCABULARY, lora, pairs, step_config};

/// The shapes of the suite, in the smallest sizes that keep their features.
fn shapes() -> Vec<DecoderConfig> {
    let small = json!({"vocab_size": VOCABULARY, "hidden_size": 12, "intermediate_size": 14, "num_attention_heads": 4,
        "initializer_range": 0.5});
    let shape = |mut config: serde_json::Value| {
        config.as_object_mut().unwrap().extend(small.as_object().unwrap().clone());
        DecoderConfig::parse(&config.to_string(), "config.json".as_ref()).unwrap()
    };
    super::families_of_the_suite::configs().into_iter().map(shape).collect()
}

/// Returns a random model of this shape with a random adapter.
fn policy(shape: &DecoderConfig) -> Decoder<A> {
    let device = Default::default();
    let mut policy = random::<A>(shape.clone(), 5, DType::F64, &device).unwrap();
    super::families_of_the_suite::randomize_vectors(&mut policy, &device);
    attach(&mut policy, &lora(TargetModules::AllLinear, 0.0), 1, &device).unwrap();
    let values = directions(&policy, 8, 0.3);
    set_adapter_parameters(&mut policy, values);
    policy
}

/// Returns random values of the adapter's shapes, uniform between minus and plus `bound`.
fn directions(policy: &Decoder<A>, seed: u64, bound: f64) -> Vec<Tensor<B, 2>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || bound * (f64::from(rng.next_u32()) / 2_147_483_648.0 - 1.0);
    let random = |(_, tensor): (String, Tensor<A, 2>)| {
        let shape = tensor.dims();
        let values: Vec<f64> = (0..shape[0] * shape[1]).map(|_| uniform()).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    };
    adapter_parameters(policy).into_iter().map(random).collect()
}

/// Creates a learner whose steps move the adapter by the gradient times the learning rate.
fn learner<O: Objective<B>>(policy: Decoder<A>, objective: O, pass_tokens: usize) -> Learner<B, O> {
    let config = StepConfig { max_grad_norm: None, pass_tokens, ..step_config() };
    let optimizer = Optimizer::new(Rule::Sgd(Sgd {
        momentum: 0.0,
        dampening: 0.0,
        nesterov: false,
        weight_decay: 0.0,
    }));
    Learner::new(policy, optimizer, objective, config, &Default::default())
}

fn values(policy: &Decoder<A>) -> Vec<f64> {
    let tensors = adapter_parameters(policy).into_iter();
    tensors.flat_map(|(_, tensor)| tensor.into_data().to_vec::<f64>().unwrap()).collect()
}

/// Checks that all numbers of two steps are equal up to rounding.
fn assert_same(what: &str, ours: &StepOutput, theirs: &StepOutput) {
    let near = |key: &str, ours: f64, theirs: f64| {
        let off = (ours - theirs).abs() / theirs.abs().max(1.0);
        assert!(off < 1e-9, "{what} {key}: {ours} {theirs}");
    };
    assert!(ours.applied && theirs.applied, "{what}");
    near("loss", ours.loss, theirs.loss);
    near("grad_norm", ours.grad_norm, theirs.grad_norm);
    for (ours, theirs) in ours.micro_batches.iter().zip(&theirs.micro_batches) {
        for ((key, ours), theirs) in ours.values().into_iter().zip(theirs.values().into_values()) {
            near(&key, ours, theirs);
        }
    }
}

/// Checks an objective: see the module. The loss of `Some` differentiable ones is also differentiated.
fn check<O: Objective<B>>(
    what: &str,
    policy: &Decoder<A>,
    objective: impl Fn(&Decoder<A>) -> O,
    samples: &[O::Sample],
    is_differentiable: bool,
) {
    let micro_batches: Vec<Vec<&O::Sample>> = vec![samples.iter().collect()];
    let rate = 0.01;
    let two_steps = |pass_tokens: usize| {
        let mut learner = learner(policy.clone(), objective(policy), pass_tokens);
        let steps = [0, 1].map(|step| learner.step(step, rate, &micro_batches));
        (steps, values(&learner.policy))
    };
    let (together, trained) = two_steps(1000);
    let (one_by_one, trained_one_by_one) = two_steps(1);
    for (ours, theirs) in together.iter().zip(&one_by_one) {
        assert_same(what, ours, theirs);
    }
    assert!(together[0].loss != together[1].loss, "{what}: the loss did not move");
    for (ours, theirs) in trained.iter().zip(&trained_one_by_one) {
        assert!((ours - theirs).abs() < 1e-9, "{what}: {ours} {theirs}");
    }
    if is_differentiable {
        differentiate(what, policy, &objective, &micro_batches);
    }
}

/// Compares the gradient with a central difference of the loss in a random direction.
fn differentiate<O: Objective<B>>(
    what: &str,
    policy: &Decoder<A>,
    objective: &impl Fn(&Decoder<A>) -> O,
    micro_batches: &[Vec<&O::Sample>],
) {
    const H: f64 = 1e-5;
    let mut stepped = learner(policy.clone(), objective(policy), 1000);
    stepped.step(0, 1.0, micro_batches);
    let before = values(policy);
    // One step of gradient descent with a rate of 1 subtracts the gradient.
    let gradient: Vec<f64> =
        before.iter().zip(values(&stepped.policy)).map(|(before, after)| before - after).collect();
    let direction = directions(policy, 77, 1.0);
    let flat = direction.iter().flat_map(|d| d.to_data().to_vec::<f64>().unwrap());
    let expected: f64 = gradient.iter().zip(flat).map(|(g, d)| g * d).sum();
    let loss_at = |by: f64| {
        let mut moved = policy.clone();
        let own = adapter_parameters(policy).into_iter();
        let own =
            own.map(|(_, value)| Tensor::<B, 2>::from_data(value.into_data(), &Default::default()));
        let values = own.zip(&direction).map(|(value, d)| value + d.clone() * by).collect();
        set_adapter_parameters(&mut moved, values);
        // The objective's reference is that of the unmoved policy.
        learner(moved, objective(policy), 1000).step(0, 0.0, micro_batches).loss
    };
    let numeric = (loss_at(H) - loss_at(-H)) / (2.0 * H);
    let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
    assert!(norm > 1e-6, "{what}: the gradient is {norm}");
    assert!((numeric - expected).abs() < 1e-6 * norm.max(1.0), "{what}: {expected} {numeric}");
}

/// Returns the log-probability of a sequence's completion, computed in a padded row of its own.
fn log_probability(model: &Decoder<B>, sequences: &[&EncodedSequence]) -> Vec<f64> {
    let device = Default::default();
    let ids: Vec<&[u32]> = sequences.iter().map(|sequence| &sequence.ids[..]).collect();
    let rows = TokenRows::right_padded(&ids, 4);
    let table = model.position_table(64, &device);
    let hidden = model.hidden_states(&ModelInput::new(&rows, &table, &device));
    let one = |(row, sequence): (usize, &&EncodedSequence)| {
        let (start, end) = (sequence.completion_start, sequence.ids.len());
        let states = hidden.clone().narrow(0, row * rows.length + start - 1, end - start);
        let targets: Vec<i64> = sequence.ids[start..].iter().map(|id| i64::from(*id)).collect();
        let targets = Tensor::from_data(TensorData::new(targets, [end - start]), &device);
        let logps = completion_log_probs(states, model.head(), targets, LogProbStats::None);
        logps.into_data().iter::<f64>().take(end - start).sum()
    };
    sequences.iter().enumerate().map(one).collect()
}

fn dpo(loss: LossType) -> impl Fn(&Decoder<A>) -> Dpo<B> {
    move |policy| {
        // A hinge is flat beyond a margin of 1 / beta.
        let beta = if loss == LossType::Hinge { BETA / 100.0 } else { BETA };
        let mut preference = PreferenceLoss::sigmoid(beta);
        preference.terms = vec![(loss, 1.0)];
        preference.settings.label_smoothing = 0.1;
        Dpo {
            loss: preference,
            reference: Reference::base(policy.valid()),
            timing: ReferenceTiming::EveryStep,
            starts_as_reference: false,
        }
    }
}

fn kto(loss_type: KtoLoss) -> impl Fn(&Decoder<A>) -> Kto<B> {
    move |policy| Kto {
        settings: KtoSettings {
            loss_type,
            beta: BETA,
            desirable_weight: 1.0,
            undesirable_weight: 0.7,
            block: 3,
            max_length: 60,
        },
        reference: Reference::base(policy.valid()),
        timing: ReferenceTiming::EveryStep,
        starts_as_reference: false,
    }
}

fn labeled(pairs: &[EncodedPair]) -> Vec<EncodedLabeled> {
    let one = |(index, pair): (usize, &EncodedPair)| {
        let sequence = if index % 2 == 0 { &pair.chosen } else { &pair.rejected };
        EncodedLabeled {
            example: EncodedExample {
                id: pair.id.clone(),
                sequence: sequence.clone(),
                unscored: Vec::new(),
            },
            completion: sequence.ids[sequence.completion_start..].to_vec(),
            desirable: index % 2 == 0,
        }
    };
    pairs.iter().enumerate().map(one).collect()
}

/// Checks every objective on a model of this shape.
fn check_family(shape: &DecoderConfig) {
    let (policy, pairs) = (policy(shape), pairs(3, 1));
    let what = |objective: &str| format!("{:?} {objective}", shape.family);
    for loss in LossType::ALL {
        // The running mean of BCO is a constant in its gradient.
        let is_differentiable = *loss != LossType::BcoPair;
        let name = what(&format!("{loss:?}"));
        check(&name, &policy, dpo(*loss), &pairs, is_differentiable);
    }
    let labeled = labeled(&pairs);
    // The baseline of KTO is a constant in its gradient.
    check(&what("KTO"), &policy, kto(KtoLoss::Kto), &labeled, false);
    check(&what("unpaired"), &policy, kto(KtoLoss::ApoZeroUnpaired), &labeled, true);
    let orpo: Vec<OrpoPair> = pairs.iter().cloned().map(AnswerPair).collect();
    check(&what("ORPO"), &policy, |_| Orpo { beta: BETA }, &orpo, true);
    let cpo: Vec<CpoPair> = pairs.iter().cloned().map(AnswerPair).collect();
    for loss_type in
        [CpoLoss::Sigmoid, CpoLoss::Hinge, CpoLoss::Ipo, CpoLoss::Simpo, CpoLoss::Alphapo]
    {
        let objective = |_: &Decoder<A>| Cpo {
            loss_type,
            beta: if loss_type == CpoLoss::Hinge { BETA / 100.0 } else { BETA },
            label_smoothing: 0.0,
            cross_entropy_weight: 0.5,
            gamma: if loss_type.has_margin() { 0.3 } else { 0.0 },
            alpha: if loss_type == CpoLoss::Alphapo { 0.2 } else { 0.0 },
        };
        check(&what(&format!("CPO {loss_type:?}")), &policy, objective, &cpo, true);
    }
    let examples = labeled.iter().map(|labeled| labeled.example.clone());
    let mut examples: Vec<EncodedExample> = examples.collect();
    let last = examples[0].sequence.ids.len() - 1;
    if examples[0].sequence.scored_tokens() > 1 {
        examples[0].unscored = vec![last];
    }
    check(&what("SFT"), &policy, |_| Sft, &examples, true);
    check_log_probabilities(&what("log-probabilities"), &policy, &pairs);
}

/// Compares the log-probabilities of packed pairs, which share their prompts, with those of padded sequences.
fn check_log_probabilities(what: &str, policy: &Decoder<A>, pairs: &[EncodedPair]) {
    let samples: Vec<&EncodedPair> = pairs.iter().collect();
    let learner = learner(policy.clone(), dpo(LossType::Sigmoid)(policy), 1000);
    let ours = learner.evaluate(&samples);
    for (side, key) in ["logps/chosen", "logps/rejected"].into_iter().enumerate() {
        let sequences: Vec<&EncodedSequence> =
            pairs.iter().map(|pair| pair.sides()[side]).collect();
        let alone = log_probability(&policy.valid(), &sequences);
        let mean = alone.iter().sum::<f64>() / alone.len() as f64;
        let ours = ours.value(key).unwrap();
        assert!((ours - mean).abs() < 1e-9, "{what} {key}: {ours} {mean}");
    }
}

#[test]
fn every_objective_trains_a_model_of_every_family() {
    for shape in shapes() {
        check_family(&shape);
    }
}
