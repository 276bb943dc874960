//! Keys and values of the tokens seen so far, so that each new token is computed once.
//!
//! All tokens lie in one list of slots: first those of a beginning that all rows share, once, then each row's own. Who
//! sees which slots is up to the mask, so a row needs no padding, and one that has ended is simply written over.
//!
//! Room is made in blocks: a step then writes its tokens in place, and shapes change only once a block, which keeps a
//! GPU's tuned and fused kernels.

use arithmo_backends::{TrainBackend, ops::write_rows::write_rows};
use burn::tensor::{Int, Tensor};

/// A row's slots are made this many at a time.
const BLOCK: usize = 64;

/// Where the tokens lie, the same in every layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    /// Slots of the shared beginning.
    shared: usize,
    rows: usize,
    /// Slots of each row.
    room: usize,
}

impl Layout {
    fn slots(self) -> usize {
        self.shared + self.rows * self.room
    }
}

/// The cache of one layer; empty at first.
#[derive(Clone, Debug)]
pub struct LayerCache<B: TrainBackend> {
    /// Keys (already turned by their positions) and values, `[slots, H_kv * Dh]`; zero where nothing was written.
    written: Option<[Tensor<B, 2>; 2]>,
    layout: Layout,
}

impl<B: TrainBackend> LayerCache<B> {
    /// Writes the new tokens' keys and values, `[T, H_kv * Dh]` each, to `slots` `[T]` and returns those of all slots,
    /// `[slots, H_kv * Dh]`.
    pub fn write(
        &mut self,
        key: Tensor<B, 2>,
        value: Tensor<B, 2>,
        slots: &Tensor<B, 1, Int>,
    ) -> [Tensor<B, 2>; 2] {
        let empty = || {
            let ([_, width], options) = (key.dims(), (&key.device(), key.dtype()));
            [(); 2].map(|()| Tensor::zeros([self.layout.slots(), width], options))
        };
        let [keys, values] = self.written.take().unwrap_or_else(empty);
        let all = [write_rows(keys, slots, key), write_rows(values, slots, value)];
        self.written.insert(all).clone()
    }

    /// Moves to a layout with more room for each row.
    fn grow(&mut self, new: Layout) {
        let old = std::mem::replace(&mut self.layout, new);
        let grown = |side: Tensor<B, 2>| {
            let ([_, width], options) = (side.dims(), (&side.device(), side.dtype()));
            let zeros = Tensor::<B, 3>::zeros([new.rows, new.room - old.room, width], options);
            let own = side.clone().narrow(0, old.shared, old.rows * old.room);
            let own = Tensor::cat(vec![own.reshape([old.rows, old.room, width]), zeros], 1);
            let own = own.reshape([new.rows * new.room, width]);
            match new.shared {
                0 => own,
                shared => Tensor::cat(vec![side.narrow(0, 0, shared), own], 0),
            }
        };
        self.written = match self.written.take() {
            Some(sides) if old.room > 0 => Some(sides.map(grown)),
            Some(sides) => {
                let options = (&sides[0].device(), sides[0].dtype());
                let zeros = [new.rows * new.room, sides[0].dims()[1]];
                let with_rows = |side| Tensor::cat(vec![side, Tensor::zeros(zeros, options)], 0);
                Some(sides.map(with_rows))
            }
            None => None,
        };
    }
}

/// One [`LayerCache`] a layer.
#[derive(Clone, Debug)]
pub struct KvCache<B: TrainBackend> {
    /// In the order of the model's layers.
    pub layers: Vec<LayerCache<B>>,
    layout: Layout,
}

impl<B: TrainBackend> KvCache<B> {
    /// An empty cache for a model of `layers` layers: `rows` rows behind a shared beginning of `shared` tokens.
    pub fn new(layers: usize, shared: usize, rows: usize) -> Self {
        let room = 0;
        let layout = Layout { shared, rows, room };
        let empty = LayerCache { written: None, layout };
        Self { layers: vec![empty; layers], layout }
    }

    /// Tokens of the shared beginning; they lie in the first slots.
    pub fn shared(&self) -> usize {
        self.layout.shared
    }

    /// The slot of a token of row `row`, the `index`-th behind the shared beginning.
    pub fn slot(&self, row: usize, index: usize) -> usize {
        self.layout.shared + row * self.layout.room + index
    }

    /// Of a cache of one row: makes its first `tokens` tokens the shared beginning, and forgets the others.
    pub fn keep(&mut self, tokens: usize) {
        assert_eq!(self.layout.rows, 1, "keep: rows");
        self.layout.room = self.layout.slots() - tokens;
        self.layout.shared = tokens;
        for layer in &mut self.layers {
            layer.layout = self.layout;
        }
    }

    /// Makes sure that each row has room for `tokens` tokens of its own. Slots move.
    pub fn reserve(&mut self, tokens: usize) {
        let room = tokens.next_multiple_of(BLOCK);
        if room > self.layout.room {
            self.layout.room = room;
            for layer in &mut self.layers {
                layer.grow(self.layout);
            }
        }
    }
}
