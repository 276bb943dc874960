//! Attention beside its reference: grouped queries, padding, a shared prompt, hidden keys, windows, chosen queries.

use arithmo_backends::ops::attention;
use arithmo_backends::{AttentionConfig, AttentionMask, TrainBackend};

use super::checks::Checker;
use crate::data::batch::Sight;
use crate::error::Result;

struct Attention {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    /// Every third token alone is a query.
    chosen: bool,
}

const ATTENTION: [Attention; 5] = [
    Attention::new([15, 6, 2, 4], Some(3), false),
    Attention::new([37, 6, 3, 20], None, true),
    Attention::new([150, 4, 2, 48], Some(50), false),
    Attention::new([101, 4, 1, 100], None, true),
    Attention::new([83, 4, 1, 128], Some(40), true),
];

/// Checks attention.
pub(super) fn of_attention<B: TrainBackend>(checker: &mut Checker<B>) -> Result<()> {
    for case in &ATTENTION {
        let (config, mask) = (case.config(), case.mask(checker));
        let queries = mask.ranges.dims()[0];
        let [qkv, qkv32] = checker.matrix([case.tokens, config.packed_width()]);
        let [dy, dy32] = checker.matrix([queries, case.heads * case.head_dim]);
        let exact = || {
            let [query, key, value] = attention::split(qkv32.clone(), &mask, &config);
            attention::reference(query, key, value, &mask, &config)
        };
        let tested = B::self_attention(qkv.clone(), &mask, &config);
        checker.compare(
            "self_attention",
            || vec![B::self_attention(qkv.clone(), &mask, &config).output],
            || vec![exact().output],
        )?;
        checker.compare(
            "self_attention backward",
            || {
                let (qkv, attended) = (qkv.clone(), tested.clone());
                vec![B::self_attention_backward(qkv, attended, dy.clone(), &mask, &config)]
            },
            || {
                let (qkv, dy) = (qkv32.clone(), dy32.clone());
                vec![attention::reference_self_backward(qkv, exact(), dy, &mask, &config)]
            },
        )?;
        let cached = AttentionMask { queries: None, ..mask.clone() };
        checker.compare(
            "masked_attention",
            || {
                let [query, key, value] = attention::split(qkv.clone(), &mask, &config);
                vec![B::masked_attention(query, key, value, &cached, &config).output]
            },
            || vec![exact().output],
        )?;
    }
    Ok(())
}

impl Attention {
    const fn new(
        [tokens, heads, kv_heads, head_dim]: [usize; 4],
        window: Option<usize>,
        chosen: bool,
    ) -> Self {
        Self { tokens, heads, kv_heads, head_dim, window, chosen }
    }

    fn config(&self) -> AttentionConfig {
        AttentionConfig {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
        }
    }

    /// What the token at `at` sees: padding sees nothing, then come a prompt shared by two completions and a sequence of
    /// its own.
    fn sight(&self, at: usize) -> Sight {
        let n = self.tokens;
        let (padding, prompt) = (n / 9, n / 9 + n / 4);
        let (first, second) = (prompt + n / 5, prompt + n / 2);
        let (shared, start) = match at {
            _ if at < padding => return Sight::default(),
            _ if at < prompt => ([0, 0], padding),
            _ if at < first => ([padding, prompt], prompt),
            _ if at < second => ([padding, prompt], first),
            _ => ([0, 0], second),
        };
        let position = at - start + shared[1] - shared[0];
        let sight =
            Sight { shared: shared.map(|at| at as i64), own: [start as i64, at as i64 + 1] };
        sight.within(self.window, position as i64)
    }

    fn mask<B: TrainBackend>(&self, checker: &Checker<B>) -> AttentionMask<B> {
        let step = if self.chosen { 3 } else { 1 };
        let queries: Vec<i64> = (0..self.tokens as i64).step_by(step).collect();
        let ranges = queries.iter().flat_map(|at| {
            let Sight { shared, own } = self.sight(*at as usize);
            [shared[0], shared[1], own[0], own[1]]
        });
        let hidden = (0..self.tokens).map(|at| i64::from(at % 7 == 4));
        let count = queries.len();
        AttentionMask {
            ranges: checker.ints(ranges.collect(), [count, 4]),
            hidden: Some(checker.ints(hidden.collect(), [self.tokens])),
            queries: self.chosen.then(|| checker.ints(queries, [count])),
        }
    }
}
