//! `softmax(q k^T * scale) v` over the keys that each query sees, with grouped heads.

use std::fmt;

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::linear::{add_scaled, dot};
use super::{Checker, Expected, Gradients, Host, Operation, Place, Rule, Source, backpropagate};
use crate::ops::{accumulator, attention};
use crate::{Attended, AttentionConfig, AttentionMask, TrainBackend};

/// Which keys each query sees, and the shapes.
#[derive(Clone)]
pub struct Case {
    tokens: usize,
    config: AttentionConfig,
    ranges: Vec<[usize; 4]>,
    hidden: Option<Vec<bool>>,
    queries: Option<Vec<usize>>,
}

impl fmt::Debug for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (config, queries) = (&self.config, self.ranges.len());
        write!(formatter, "{queries} of {} tokens, {config:?}", self.tokens)?;
        let hidden = self.hidden.as_ref().map_or("", |_| ", some hidden");
        formatter.write_str(hidden)
    }
}

impl Case {
    /// Creates a row: padding, which sees nothing, then pairs, each a prompt and two completions that see it.
    fn packed(
        padding: usize,
        pairs: &[[usize; 3]],
        [heads, kv_heads, head_dim]: [usize; 3],
        window: Option<usize>,
    ) -> Self {
        let window = window.unwrap_or(usize::MAX);
        let mut ranges = vec![[0; 4]; padding];
        let mut start = padding;
        for [prompt, chosen, rejected] in pairs {
            let end = start + prompt;
            for (first, count) in [(start, *prompt), (end, *chosen), (end + chosen, *rejected)] {
                ranges.extend((1..=count).map(|count| {
                    let own = first + count.saturating_sub(window);
                    let shared = (end + count).saturating_sub(window).clamp(start, end);
                    let shared = if first == start { [0, 0] } else { [shared, end] };
                    [shared[0], shared[1], own, first + count]
                }));
            }
            start = end + chosen + rejected;
        }
        let scale = 1.3 / (head_dim as f64).sqrt();
        let config = AttentionConfig { heads, kv_heads, head_dim, scale };
        Self { tokens: start, config, ranges, hidden: None, queries: None }
    }

    /// Creates a row of padding, a pair and a sequence of its own.
    fn mixed(tokens: usize, heads: [usize; 3], window: Option<usize>) -> Self {
        let (padding, prompt, chosen) = (tokens / 9, tokens / 4, tokens / 5);
        let rejected = tokens / 2 - chosen;
        let rest = tokens - padding - prompt - chosen - rejected;
        Self::packed(padding, &[[prompt, chosen, rejected], [rest, 0, 0]], heads, window)
    }

    /// Hides every seventh key, the first key among them if `first`, which leaves the first query nothing.
    fn hiding(mut self, first: bool) -> Self {
        let hidden = |key| key % 7 == 4 || first && key == 0;
        self.hidden = Some((0..self.tokens).map(hidden).collect());
        self
    }

    /// Makes some tokens queries.
    fn selecting(mut self, is_query: impl Fn(usize) -> bool) -> Self {
        let queries: Vec<_> = (0..self.tokens).filter(|token| is_query(*token)).collect();
        self.ranges = queries.iter().map(|token| self.ranges[*token]).collect();
        self.queries = Some(queries);
        self
    }

    fn mask<B: Backend>(&self, place: &Place<B::Device>) -> AttentionMask<B> {
        let ranges: Vec<_> = self.ranges.iter().flatten().map(|bound| *bound as i64).collect();
        let hidden: Option<Vec<i64>> = self
            .hidden
            .as_ref()
            .map(|hidden| hidden.iter().map(|hidden| i64::from(*hidden)).collect());
        let queries: Option<Vec<i64>> =
            self.queries.as_ref().map(|queries| queries.iter().map(|at| *at as i64).collect());
        let list = |values: Vec<i64>| place.ints::<B, 1>(&values, [values.len()]);
        AttentionMask {
            ranges: place.ints::<B, 2>(&ranges, [self.ranges.len(), 4]),
            hidden: hidden.map(list),
            queries: queries.map(list),
        }
    }

    /// Returns the keys that a query sees.
    fn visible(&self, query: usize) -> Vec<usize> {
        let [a, b, c, d] = self.ranges[query];
        let is_hidden = |key: usize| self.hidden.as_ref().is_some_and(|hidden| hidden[key]);
        (a..b).chain(c..d).filter(|key| !is_hidden(*key)).collect()
    }

    /// Calls `row` with each query, query head and key head, and with each visible key's probability. Returns the
    /// log-sum-exp of each query and head, 0 where nothing is visible.
    fn for_each_row(
        &self,
        query: &Host,
        key: &Host,
        mut row: impl FnMut([usize; 3], &[(usize, f64)]),
    ) -> Host {
        let AttentionConfig { heads, kv_heads, scale, .. } = self.config;
        Host::from_fn([self.ranges.len(), heads], |index, head| {
            let kv_head = head / (heads / kv_heads);
            let keys = self.visible(index);
            let score = |at: &usize| {
                scale * dot(self.head(query, index, head), self.head(key, *at, kv_head))
            };
            let scores: Vec<_> = keys.iter().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            let probs = keys.into_iter().zip(scores.iter().map(|score| (score - max).exp() / sum));
            row([index, head, kv_head], &probs.collect::<Vec<_>>());
            if scores.is_empty() { 0.0 } else { max + sum.ln() }
        })
    }

    /// Returns output and log-sum-exp as [`Self::attend`] does; backends leave open what the log-sum-exp of nothing is.
    fn results<B: Backend>(
        &self,
        attended: Attended<B>,
        place: &Place<B::Device>,
    ) -> Vec<Tensor<B, 2>> {
        let sees = |query, _| f64::from(!self.visible(query).is_empty());
        let sees = Host::from_fn([self.ranges.len(), self.config.heads], sees);
        vec![attended.output, attended.lse * place.wide(&sees)]
    }

    /// Returns the values of one head.
    fn head<'a>(&self, rows: &'a Host, row: usize, head: usize) -> &'a [f64] {
        &rows.row(row)[head * self.config.head_dim..][..self.config.head_dim]
    }

    /// Returns output and log-sum-exp.
    fn attend(&self, query: &Host, key: &Host, value: &Host) -> [Host; 2] {
        let width = self.config.head_dim;
        let mut output = Host::zeros([self.ranges.len(), self.config.heads * width]);
        let lse = self.for_each_row(query, key, |[index, head, kv_head], probs| {
            for (key, prob) in probs {
                let target = &mut output.row_mut(index)[head * width..][..width];
                add_scaled(target, *prob, self.head(value, *key, kv_head));
            }
        });
        [output, lse]
    }

    /// Returns the gradient of queries, keys and values side by side: `dv = P^T do`,
    /// `dS = P (do v^T - sum of P do v^T) scale`, `dq = dS k`, `dk = dS^T q`.
    fn backward(&self, [query, key, value]: [&Host; 3], dy: &Host) -> Host {
        let AttentionConfig { heads, kv_heads, head_dim, scale } = self.config;
        let mut d_qkv = Host::zeros([self.tokens, self.config.qkv_width()]);
        self.for_each_row(query, key, |[index, head, kv_head], probs| {
            let dy = self.head(dy, index, head);
            let d_prob = |key: usize| dot(dy, self.head(value, key, kv_head));
            let mean: f64 = probs.iter().map(|(key, prob)| prob * d_prob(*key)).sum();
            let token = self.queries.as_ref().map_or(index, |queries| queries[index]);
            for (at, prob) in probs {
                let d_score = prob * (d_prob(*at) - mean) * scale;
                let mut add = |row: usize, head: usize, factor: f64, values: &[f64]| {
                    add_scaled(
                        &mut d_qkv.row_mut(row)[head * head_dim..][..head_dim],
                        factor,
                        values,
                    );
                };
                add(token, head, d_score, self.head(key, *at, kv_head));
                add(*at, heads + kv_head, d_score, self.head(query, index, head));
                add(*at, heads + kv_heads + kv_head, *prob, dy);
            }
        });
        d_qkv
    }
}

/// Returns what output and log-sum-exp must be.
fn expected([output, lse]: [Host; 2], dtype: DType) -> [Expected; 2] {
    [Expected::new(output, dtype), Expected::new(lse, dtype).slack(2.0)]
}

/// The attention of a sequence to itself.
#[derive(Clone, Debug)]
pub struct SelfAttention {
    case: Case,
    qkv: Host,
    dy: Host,
    attended: [Expected; 2],
    d_qkv: Expected,
}

impl Operation for SelfAttention {
    type Case = Case;

    fn quick() -> Vec<Case> {
        let third = |token: usize| token.is_multiple_of(3);
        vec![
            Case::mixed(15, [6, 2, 4], Some(3)).hiding(false),
            Case::mixed(37, [6, 3, 20], None).hiding(false).selecting(third),
            Case::mixed(150, [4, 2, 48], Some(50)).hiding(false),
            Case::mixed(101, [4, 1, 100], None).hiding(false).selecting(third),
            Case::mixed(83, [4, 1, 128], Some(40)).hiding(false).selecting(third),
        ]
    }

    fn all() -> Vec<Case> {
        let third = |token: usize| token.is_multiple_of(3);
        let uneven = |token: usize| token == 1 || token % 8 == 6 || token % 5 == 2;
        let mut sees_nothing = Case::packed(0, &[[70, 3, 2]], [2, 1, 6], None);
        sees_nothing.ranges.fill([7; 4]);
        let mut cases = Self::quick();
        cases.extend([
            Case::mixed(1, [1, 1, 2], None),
            Case::mixed(15, [6, 2, 4], Some(3)),
            Case::mixed(170, [4, 1, 34], Some(64)).hiding(false),
            Case::mixed(261, [4, 2, 10], None).hiding(false).selecting(third),
            Case::mixed(19, [3, 3, 7], None),
            Case::packed(0, &[[1, 0, 0]], [1, 1, 2], None),
            Case::packed(0, &[[3, 2, 4], [2, 1, 1]], [6, 2, 5], Some(3)),
            Case::packed(0, &[[40, 33, 21]], [4, 1, 48], None),
            Case::packed(0, &[[20, 37, 50], [9, 70, 1], [64, 32, 32]], [6, 3, 20], None),
            Case::packed(0, &[[50, 41, 38], [1, 2, 90]], [4, 4, 100], Some(17)),
            Case::packed(0, &[[30, 41, 38], [5, 2, 60]], [8, 2, 33], None).hiding(true),
            Case::packed(0, &[[30, 41, 38], [5, 2, 60]], [4, 2, 64], Some(40)).selecting(uneven),
            Case::packed(0, &[[100, 70, 30], [15, 20, 60]], [2, 1, 128], None)
                .hiding(true)
                .selecting(uneven),
            Case::packed(2, &[[2, 2, 0], [3, 0, 0]], [6, 2, 4], Some(3)).hiding(false),
            Case::packed(2, &[[2, 2, 0], [3, 0, 0]], [6, 2, 4], Some(3))
                .hiding(false)
                .selecting(|token| [1, 3, 5, 8].contains(&token)),
            sees_nothing,
        ]);
        cases
    }

    fn new(case: &Case, dtype: DType) -> Self {
        let AttentionConfig { heads, kv_heads, head_dim, .. } = case.config;
        let mut source = Source::new(case.tokens * head_dim, dtype);
        let qkv = source.matrix([case.tokens, case.config.qkv_width()]);
        let dy = source.matrix([case.ranges.len(), heads * head_dim]);
        let query = qkv.columns(0, heads * head_dim);
        let query = match &case.queries {
            Some(queries) => query.rows(queries.iter().copied()),
            None => query,
        };
        let part = |head: usize| qkv.columns(head * head_dim, kv_heads * head_dim);
        let (key, value) = (part(heads), part(heads + kv_heads));
        let attended = expected(case.attend(&query, &key, &value), dtype);
        let d_qkv = case.backward([&query, &key, &value], &dy);
        // Three products that are rounded one after the other.
        let slack = if matches!(dtype, DType::F16 | DType::BF16) { 2.0 } else { 1.0 };
        let d_qkv = Expected::new(d_qkv, dtype).slack(slack);
        Self { case: case.clone(), qkv, dy, attended, d_qkv }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let (config, mask) = (&self.case.config, self.case.mask::<B>(place));
        let (qkv, dy) = (place.matrix::<B>(&self.qkv), place.matrix::<B>(&self.dy));
        let attended = self.attended.each_ref();
        let compute = || self.case.results(B::self_attention(qkv.clone(), &mask, config), place);
        checker.compare("self_attention", compute, &attended);

        let tested = B::self_attention(qkv.clone(), &mask, config);
        let compute = || {
            let (qkv, tested, dy) = (qkv.clone(), tested.clone(), dy.clone());
            vec![B::self_attention_backward(qkv, tested, dy, &mask, config)]
        };
        checker.compare("self_attention backward", compute, &[&self.d_qkv]);

        // The same queries, keys and values apart, as a cache gives them.
        let [query, key, value] = attention::split(qkv, &mask, config);
        let mask = AttentionMask { queries: None, ..mask };
        let compute = || {
            let (query, key, value) = (query.clone(), key.clone(), value.clone());
            self.case.results(B::masked_attention(query, key, value, &mask, config), place)
        };
        checker.compare("masked_attention", compute, &attended);
    }

    fn gradients<B: TrainBackend>(&self, place: &Place<B::Device>, rule: Rule) -> Gradients<'_, B> {
        let (config, mask) = (&self.case.config, self.case.mask::<Autodiff<B>>(place));
        let qkv = place.leaf::<Autodiff<B>>(&self.qkv);
        let y = match rule {
            Rule::Operation => attention::self_attention(qkv.clone(), &mask, config),
            Rule::Reference => {
                let [query, key, value] = attention::split(qkv.clone(), &mask, config);
                attention::reference(query, key, value, &mask, config).output
            }
        };
        let [output, _] = &self.attended;
        (backpropagate(y, place.matrix(&self.dy), &[qkv]), vec![output, &self.d_qkv])
    }
}

/// The attention of few queries to a cache that is longer than what they see.
#[derive(Clone, Debug)]
pub struct CachedAttention {
    case: Case,
    /// Queries, keys and values.
    inputs: [Host; 3],
    attended: [Expected; 2],
}

impl Operation for CachedAttention {
    type Case = Case;

    fn quick() -> Vec<Case> {
        Vec::new()
    }

    fn all() -> Vec<Case> {
        let sizes = [(1, 77, [4, 2, 10]), (3, 300, [8, 2, 64]), (40, 70, [2, 2, 7])];
        let cases = sizes.map(|(queries, keys, heads)| {
            let mut case = Case::packed(0, &[[keys, 0, 0]], heads, None);
            let end = |query| keys - 5 - queries + query + 1;
            case.ranges =
                (0..queries).map(|query| [2, 9, end(query).min(12), end(query)]).collect();
            case.hidden = Some((0..keys).map(|key| key % 11 == 4).collect());
            case
        });
        cases.into()
    }

    fn new(case: &Case, dtype: DType) -> Self {
        let AttentionConfig { heads, kv_heads, head_dim, .. } = case.config;
        let mut source = Source::new(case.tokens, dtype);
        let query = source.matrix([case.ranges.len(), heads * head_dim]);
        let [key, value] = [(); 2].map(|()| source.matrix([case.tokens, kv_heads * head_dim]));
        let attended = expected(case.attend(&query, &key, &value), dtype);
        Self { case: case.clone(), inputs: [query, key, value], attended }
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let mask = self.case.mask::<B>(place);
        let compute = || {
            let [query, key, value] = self.inputs.each_ref().map(|host| place.matrix::<B>(host));
            let attended = B::masked_attention(query, key, value, &mask, &self.case.config);
            assert_eq!(attended.lse.dtype(), accumulator(place.dtype));
            self.case.results(attended, place)
        };
        checker.compare("masked_attention", compute, &self.attended.each_ref());
    }
}
