//! Attention by index ranges: packed pairs that share a prompt, windows, padding, chosen queries, a cache.

use arithmo_backends::ops::attention;
use arithmo_backends::{Attended, AttentionConfig, AttentionMask, TrainBackend};
use burn::tensor::{Int, Tensor, backend::Backend};

use super::host::{Cpu, Gpu, Host, Source, close, ints, starts, tolerance, variants};

/// Who sees whom, on the host.
#[derive(Clone, Debug)]
struct Case {
    tokens: usize,
    heads: [usize; 2],
    head_dim: usize,
    ranges: Vec<i64>,
    hidden: Option<Vec<i64>>,
    queries: Option<Vec<i64>>,
}

impl Case {
    /// Pairs one after another, each a prompt and two completions that see it, within a window.
    fn packed(
        pairs: &[[usize; 3]],
        heads: [usize; 2],
        head_dim: usize,
        window: Option<usize>,
    ) -> Self {
        let mut ranges = Vec::new();
        let mut start = 0;
        for [prompt, chosen, rejected] in pairs {
            let end = start + prompt;
            for (first, len) in [(start, *prompt), (end, *chosen), (end + chosen, *rejected)] {
                for position in 0..len {
                    let seen = window.unwrap_or(usize::MAX);
                    let own = first + (position + 1).saturating_sub(seen);
                    let of_prompt = match first == start {
                        true => [0, 0],
                        false => {
                            [(end + position + 1).saturating_sub(seen).max(start).min(end), end]
                        }
                    };
                    ranges.extend(of_prompt.map(|bound| bound as i64));
                    ranges.extend([own as i64, (first + position + 1) as i64]);
                }
            }
            start = end + chosen + rejected;
        }
        Self { tokens: start, heads, head_dim, ranges, hidden: None, queries: None }
    }

    /// Some keys hidden, among them all that the first query sees.
    fn hiding(mut self, source: &mut Source) -> Self {
        let hidden =
            (0..self.tokens).map(|key| i64::from(key == 0 || source.next().is_multiple_of(5)));
        self.hidden = Some(hidden.collect());
        self
    }

    /// About a third of the tokens are queries.
    fn choosing(mut self, source: &mut Source) -> Self {
        let chosen: Vec<_> = (0..self.tokens)
            .filter(|token| *token == 1 || source.next().is_multiple_of(3))
            .collect();
        let rows = chosen.iter();
        self.ranges = rows.flat_map(|token| self.ranges[token * 4..][..4].to_vec()).collect();
        self.queries = Some(chosen.into_iter().map(|token| token as i64).collect());
        self
    }

    fn count(&self) -> usize {
        self.ranges.len() / 4
    }

    fn mask<B: Backend>(&self) -> AttentionMask<B> {
        let list = |values: &Option<Vec<i64>>| -> Option<Tensor<B, 1, Int>> {
            values.as_ref().map(|values| ints(values, [values.len()]))
        };
        AttentionMask {
            ranges: ints(&self.ranges, [self.count(), 4]),
            hidden: list(&self.hidden),
            queries: list(&self.queries),
        }
    }

    fn config(&self) -> AttentionConfig {
        AttentionConfig {
            heads: self.heads[0],
            kv_heads: self.heads[1],
            head_dim: self.head_dim,
            scale: 1.3 / (self.head_dim as f64).sqrt(),
        }
    }
}

fn cases() -> Vec<Case> {
    let mut source = Source::new(11);
    let source = &mut source;
    vec![
        Case::packed(&[[1, 0, 0]], [1, 1], 2, None),
        Case::packed(&[[3, 2, 4], [2, 1, 1]], [6, 2], 5, Some(3)),
        Case::packed(&[[40, 33, 21]], [4, 1], 48, None),
        Case::packed(&[[20, 37, 50], [9, 70, 1], [64, 32, 32]], [6, 3], 20, None),
        Case::packed(&[[50, 41, 38], [1, 2, 90]], [4, 4], 100, Some(17)),
        Case::packed(&[[30, 41, 38], [5, 2, 60]], [8, 2], 33, None).hiding(source),
        Case::packed(&[[30, 41, 38], [5, 2, 60]], [4, 2], 64, Some(40)).choosing(source),
        Case::packed(&[[100, 70, 30], [15, 20, 60]], [2, 1], 128, None)
            .hiding(source)
            .choosing(source),
    ]
}

fn check_attended(what: &str, ours: &Attended<Gpu>, exact: &Attended<Cpu>, tolerance: f32) {
    close(what, ours.output.clone(), exact.output.clone(), tolerance);
    // A row that sees nothing has an lse of -1e30 on both sides, which would set the scale.
    let [ours, exact] = [ours.lse.clone().into_data(), exact.lse.clone().into_data()];
    for (ours, exact) in ours.iter::<f32>().zip(exact.iter::<f32>()) {
        let scale = exact.abs().max(1.0);
        assert!((ours - exact).abs() <= 5.0 * tolerance * scale, "{what}: lse {ours}, not {exact}");
    }
}

#[test]
fn of_a_sequence_to_itself() {
    if !starts() {
        return;
    }
    for (index, case) in cases().into_iter().enumerate() {
        let (config, count) = (case.config(), case.count());
        let mut source = Source::new(index);
        let qkv = source.floats([case.tokens, config.packed_width()]);
        let grad = source.floats([count, config.heads * config.head_dim]);
        let mask = case.mask::<Cpu>();
        // Not through the trait: the CPU has kernels of its own.
        let [query, key, value] = attention::split(qkv.exact(), &mask, &config);
        let exact = attention::reference(query, key, value, &mask, &config);
        let exact_grad = attention::reference_self_backward(
            qkv.exact(),
            exact.clone(),
            grad.exact(),
            &mask,
            &config,
        );
        let mask = case.mask::<Gpu>();
        for (dtype, layout) in variants() {
            let what = format!("case {index} {dtype:?} {layout:?}");
            let attended = Gpu::self_attention(qkv.on(dtype, layout), &mask, &config);
            check_attended(&what, &attended, &exact, tolerance(dtype));
            let d_qkv = Gpu::self_attention_backward(
                qkv.on(dtype, layout),
                attended,
                grad.on(dtype, layout),
                &mask,
                &config,
            );
            close(&format!("{what}: gradient"), d_qkv, exact_grad.clone(), 2.0 * tolerance(dtype));
        }
    }
}

/// A query that sees no key gives zero, and its gradient is zero.
#[test]
fn of_nothing() {
    if !starts() {
        return;
    }
    let mut case = Case::packed(&[[70, 3, 2]], [2, 1], 6, None);
    case.ranges.fill(7);
    let (config, mask) = (case.config(), case.mask());
    let qkv = Source::new(3).floats([case.tokens, config.packed_width()]);
    let grad = Source::new(4).floats([case.count(), 12]);
    let (dtype, layout) = variants()[0];
    let attended = Gpu::self_attention(qkv.on(dtype, layout), &mask, &config);
    let zero = |shape| Tensor::<Cpu, 2>::zeros(shape, &Default::default());
    close("output", attended.output.clone(), zero([75, 12]), 0.0);
    let d = Gpu::self_attention_backward(
        qkv.on(dtype, layout),
        attended,
        grad.on(dtype, layout),
        &mask,
        &config,
    );
    close("gradient", d, zero([75, 24]), 0.0);
}

/// Decoding: few queries over a cache that is longer than what they see.
#[test]
fn of_a_cache() {
    if !starts() {
        return;
    }
    for (queries, keys, heads, head_dim) in
        [(1, 77, [4, 2], 10), (3, 300, [8, 2], 64), (40, 70, [2, 2], 7)]
    {
        let mut source = Source::new(keys);
        let ranges = (0..queries).flat_map(|query| {
            let end = (keys - 5 - queries + query + 1) as i64;
            [2, 9, 12.min(end), end]
        });
        let case = Case {
            tokens: keys,
            heads,
            head_dim,
            ranges: ranges.collect(),
            hidden: Some((0..keys).map(|key| i64::from(key % 11 == 4)).collect()),
            queries: None,
        };
        let config = case.config();
        let query = source.floats([queries, heads[0] * head_dim]);
        let [key, value]: [Host; 2] = [(); 2].map(|()| source.floats([keys, heads[1] * head_dim]));
        let exact =
            attention::reference(query.exact(), key.exact(), value.exact(), &case.mask(), &config);
        for (dtype, layout) in variants() {
            let [query, key, value] = [&query, &key, &value].map(|host| host.on(dtype, layout));
            let ours = Gpu::masked_attention(query, key, value, &case.mask(), &config);
            check_attended(
                &format!("{queries} of {keys} {dtype:?} {layout:?}"),
                &ours,
                &exact,
                tolerance(dtype),
            );
        }
    }
}
