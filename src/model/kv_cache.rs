//! Keys and values of the tokens seen so far, so that each new token is computed once.
//!
//! Room is made in blocks of slots: a step then writes its tokens in place, and shapes change only once a block, which
//! keeps a GPU's tuned and fused kernels. Slots not yet written are given to attention too; whoever builds the mask
//! leaves them out (see [`KvCache::slots`]).

use arithmo_backends::TrainBackend;
use burn::tensor::{Int, Tensor};

/// Slots are made this many at a time.
const BLOCK: usize = 64;

/// The cache of one layer; empty at first.
#[derive(Clone, Debug)]
pub struct LayerCache<B: TrainBackend> {
    /// Keys (already turned by their positions) and values, `[B, slots, H_kv * Dh]`.
    seen: Option<(Tensor<B, 3>, Tensor<B, 3>)>,
    /// `B`
    rows: usize,
    /// Slots written.
    used: usize,
}

impl<B: TrainBackend> LayerCache<B> {
    /// Writes the new tokens' keys and values, `[B * S, H_kv * Dh]` each, behind the others and returns all slots,
    /// `[B * KvCache::slots(tokens so far), H_kv * Dh]`; unwritten ones are zero.
    pub fn append(
        &mut self,
        key: Tensor<B, 2>,
        value: Tensor<B, 2>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let [tokens, width] = key.dims();
        let by_row = [self.rows, tokens / self.rows, width];
        let (keys, values) = self.seen.take().unzip();
        let all = (
            self.write(keys, key.reshape(by_row)),
            self.write(values, value.reshape(by_row)),
        );
        self.used += tokens / self.rows;
        self.seen = Some(all.clone());
        let slots = self.rows * KvCache::<B>::slots(self.used);
        (all.0.reshape([slots, width]), all.1.reshape([slots, width]))
    }

    /// `new` behind the used slots of `buffer`, which grows if it must.
    fn write(&self, buffer: Option<Tensor<B, 3>>, new: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, length, width] = new.dims();
        let (start, end) = (self.used, self.used + length);
        let zeros = |slots| {
            let options = (&new.device(), new.dtype());
            Tensor::zeros([batch, slots, width], options)
        };
        let slots = KvCache::<B>::slots(end);
        let buffer = match buffer {
            None => zeros(slots),
            Some(buffer) if buffer.dims()[1] == slots => buffer,
            Some(buffer) => {
                let more = slots - buffer.dims()[1];
                Tensor::cat(vec![buffer, zeros(more)], 1)
            }
        };
        buffer.slice_assign([0..batch, start..end, 0..width], new)
    }
}

/// One [`LayerCache`] a layer.
#[derive(Clone, Debug)]
pub struct KvCache<B: TrainBackend> {
    /// In the order of the model's layers.
    pub layers: Vec<LayerCache<B>>,
}

impl<B: TrainBackend> KvCache<B> {
    /// An empty cache of `rows` rows for a model of `layers` layers.
    pub fn new(layers: usize, rows: usize) -> Self {
        let empty = LayerCache {
            seen: None,
            rows,
            used: 0,
        };
        Self {
            layers: vec![empty; layers],
        }
    }

    /// Slots, written or not, of a row that holds `tokens` tokens: the number of keys its mask must describe.
    pub fn slots(tokens: usize) -> usize {
        tokens.next_multiple_of(BLOCK)
    }

    /// Keeps only the given rows of the batch, in that order.
    pub fn keep_rows(&mut self, rows: &Tensor<B, 1, Int>) {
        for layer in &mut self.layers {
            layer.rows = rows.dims()[0];
            layer.seen = layer.seen.take().map(|(keys, values)| {
                (keys.select(0, rows.clone()), values.select(0, rows.clone()))
            });
        }
    }
}
