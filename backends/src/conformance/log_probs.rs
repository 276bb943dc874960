//! The log-probability of each token's target, statistics of its distribution, and slopes.

use burn::backend::Autodiff;
use burn::tensor::DType;

use super::linear::{add_scaled, dot};
use super::{
    Checker, Expected, Extent, Gradients, Host, HostWeight, Kind, Operation, Place, Rule, Source,
    backpropagate, tolerance,
};
use crate::ops::{accumulator, log_probs};
use crate::{Format, LogProbStats, TrainBackend};

/// The sizes of a head and of what it scores.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    tokens: usize,
    width: usize,
    vocabulary: usize,
    kind: Kind,
    /// Whether every second target is far more likely than any other token, and the others far less.
    certain: bool,
}

/// Log-probabilities of targets.
#[derive(Clone, Debug)]
pub struct LogProbs {
    hidden: Host,
    head: HostWeight,
    targets: Vec<i64>,
    dy: Host,
    /// The columns of each of [`LogProbStats`]: one, four and five.
    columns: [Expected; 3],
    slopes: Expected,
    d_hidden: Expected,
}

const fn case([tokens, width, vocabulary]: [usize; 3], kind: Kind) -> Case {
    Case { tokens, width, vocabulary, kind, certain: false }
}

/// Returns the logit of every token.
fn logits(hidden: &[f64], head: &Host) -> Vec<f64> {
    (0..head.shape[0]).map(|token| dot(hidden, head.row(token))).collect()
}

/// Returns by how much the target is more likely than every other token, in logits.
fn margin(logits: &[f64], target: usize) -> f64 {
    let others = logits.iter().enumerate().filter(|(token, _)| *token != target);
    logits[target] - others.map(|(_, logit)| *logit).fold(f64::NEG_INFINITY, f64::max)
}

/// Returns the five columns of a row, and its slope: `W[target] - softmax(z) W`.
fn score(logits: &[f64], target: usize, head: &Host) -> ([f64; 5], Vec<f64>) {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln();
    let mut slope = head.row(target).to_vec();
    let (mut entropy, mut squares) = (0.0, 0.0);
    for (token, logit) in logits.iter().enumerate() {
        let prob = (logit - lse).exp();
        entropy -= prob * (logit - lse);
        squares += prob * prob;
        add_scaled(&mut slope, -prob, head.row(token));
    }
    let correct = f64::from(margin(logits, target) > 0.0);
    let mean = logits.iter().sum::<f64>() / logits.len() as f64;
    ([logits[target] - lse, entropy, correct, mean, f64::ln(squares)], slope)
}

impl Operation for LogProbs {
    type Case = Case;

    fn quick() -> Vec<Case> {
        let shapes = [[9, 5, 11], [77, 48, 301], [130, 100, 1003], [50, 96, 512]];
        shapes.map(|shape| case(shape, Kind::Float)).into()
    }

    fn all() -> Vec<Case> {
        let mut cases = Self::quick();
        // The last ones are computed in two chunks, or have more tokens than a grid dimension has blocks.
        let more = [
            [1, 3, 2],
            [77, 40, 301],
            [6, 48, 1000],
            [300, 2, 30_001],
            [300, 2, 70_001],
            [3, 2, 300_001],
            [3, 2, 3_000_001],
            // The vocabularies of Qwen and Gemma.
            [5, 40, 151_936],
            [5, 24, 262_144],
        ];
        cases.extend(more.map(|shape| case(shape, Kind::Float)));
        cases.push(Case { certain: true, ..case([41, 6, 97], Kind::Float) });
        cases.push(case([9, 40, 301], Kind::Plain(Format::Bf16)));
        for kind in [Format::Nf4, Format::Int8, Format::Bf16].map(Kind::Plain) {
            let shapes = [[77, 5, 11], [77, 64, 301], [77, 96, 1030]];
            cases.extend(shapes.map(|shape| case(shape, kind)));
        }
        cases.extend(Kind::SPLIT.map(|kind| case([8, 40, 53], kind)));
        cases
    }

    fn extent(case: &Case) -> Extent {
        match case {
            Case { vocabulary, .. } if *vocabulary > 20_000 => Extent::Single,
            Case { kind: Kind::Float, .. } => Extent::EveryLayout,
            _ => Extent::EveryDtype,
        }
    }

    fn new(case: &Case, dtype: DType) -> Self {
        let Case { tokens, width, vocabulary, .. } = *case;
        let mut source = Source::new(tokens * width + vocabulary, dtype);
        let mut hidden = source.matrix([tokens, width]);
        let head = HostWeight::random(case.kind, [vocabulary, width], &mut source);
        let values = head.values();
        let dy = source.matrix([tokens, 1]);
        let (mut targets, mut columns, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for token in 0..tokens {
            let first = source.below(vocabulary);
            if case.certain {
                // Along the target's own row of the head, or against it.
                let sign = if token % 2 == 0 { 8.0 } else { -8.0 };
                let row = values.row(first).iter().map(|value| sign * value);
                hidden.row_mut(token).copy_from_slice(&row.collect::<Vec<_>>());
            }
            let logits = logits(hidden.row(token), &values);
            let scale = logits.iter().fold(1.0, |max: f64, logit| max.max(logit.abs()));
            // Rounding must not decide whether the target is the most likely token.
            let is_tie = |target| margin(&logits, target).abs() < 4.0 * tolerance(dtype) * scale;
            let target = (first..first + 16).map(|id| id % vocabulary).find(|id| !is_tie(*id));
            let Some(target) = target else {
                panic!("{case:?} {dtype:?}: every target is about as likely as another token");
            };
            let (row, slope) = score(&logits, target, &values);
            targets.push(target as i64);
            columns.extend(row);
            slopes.extend(slope);
        }
        let columns = Host { shape: [tokens, 5], values: columns };
        let slopes = Host { shape: [tokens, width], values: slopes };
        let d_hidden =
            Host::from_fn(slopes.shape, |token, i| dy.row(token)[0] * slopes.row(token)[i]);
        // In 16 bits the logits are rounded before they are summed.
        let slack = if matches!(dtype, DType::F16 | DType::BF16) { 2.0 } else { 1.0 };
        let columns = [columns.columns(0, 1), columns.columns(0, 4), columns]
            .map(|columns| Expected::new(columns, dtype).slack(slack));
        let [slopes, d_hidden] = [slopes, d_hidden].map(|values| Expected::new(values, dtype));
        Self { hidden, head, targets, dy, columns, slopes, d_hidden }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let (hidden, head) = (place.matrix::<B>(&self.hidden), self.head.on::<B>(place));
        let targets = place.ints::<B, 1>(&self.targets, [self.targets.len()]);
        let score = |stats, with_slopes| {
            let (hidden, head, targets) = (hidden.clone(), head.clone(), targets.clone());
            let result = B::completion_log_probs(hidden, head, targets, stats, with_slopes);
            std::iter::once(result.columns).chain(result.slopes).collect::<Vec<_>>()
        };
        let [alone, all, squares] = &self.columns;
        let compute = || score(LogProbStats::None, false);
        checker.compare("completion_log_probs", compute, &[alone]);
        let compute = || score(LogProbStats::Squares, false);
        checker.compare("completion_log_probs squares", compute, &[squares]);
        let compute = || score(LogProbStats::All, true);
        checker.compare("completion_log_probs slopes", compute, &[all, &self.slopes]);
    }

    fn gradients<B: TrainBackend>(&self, place: &Place<B::Device>, rule: Rule) -> Gradients<'_, B> {
        let hidden = place.leaf::<Autodiff<B>>(&self.hidden);
        let head = self.head.on::<Autodiff<B>>(place);
        let targets = place.ints::<Autodiff<B>, 1>(&self.targets, [self.targets.len()]);
        let (states, stats) = (hidden.clone(), LogProbStats::All);
        let columns = match rule {
            Rule::Operation => log_probs::completion_log_probs(states, head, targets, stats),
            Rule::Reference => log_probs::reference(states, head, targets, stats, false).columns,
        };
        assert_eq!(columns.dtype(), accumulator(place.dtype));
        let logps = columns.clone().narrow(1, 0, 1);
        let mut results = backpropagate(logps, place.wide(&self.dy), &[hidden]);
        results.push(columns.inner());
        let [alone, all, _] = &self.columns;
        (results, vec![alone, &self.d_hidden, all])
    }
}
