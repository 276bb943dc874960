//! Keys and values of the tokens seen so far, so that each new token is computed once.
//!
//! All tokens lie in one list of slots: first the prefix that all rows share, stored once, then each row's own
//! tokens. The attention mask decides which slots a token attends to, so rows need no padding, and the slots of a
//! finished row are reused by overwriting them.
//!
//! Slots are allocated in blocks of `BLOCK` tokens per row: most steps write their tokens in place, and tensor
//! shapes change only once per block, so that a GPU keeps its tuned and fused kernels.

use arithmo_backends::{TrainBackend, ops::write_rows::write_rows};
use burn::tensor::{Int, Tensor};

/// Each row's slots are allocated in multiples of this many tokens.
const BLOCK: usize = 64;

/// Arrangement of the slots, the same in every layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    /// Slots of the shared prefix.
    shared: usize,
    rows: usize,
    /// Slots of each row behind the prefix.
    room: usize,
}

impl Layout {
    fn slots(self) -> usize {
        self.shared + self.rows * self.room
    }
}

/// The cache of one layer; initially empty.
#[derive(Clone, Debug)]
pub struct LayerCache<B: TrainBackend> {
    /// Keys (already rotated by their positions) and values, `[slots, H_kv * Dh]`; zero in slots that were never
    /// written.
    keys_values: Option<[Tensor<B, 2>; 2]>,
    layout: Layout,
}

impl<B: TrainBackend> LayerCache<B> {
    /// Stores the new tokens' keys and values, `[T, H_kv * Dh]` each, in `slots` `[T]` and returns the keys and
    /// values of all slots, `[slots, H_kv * Dh]` each.
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
        let [keys, values] = self.keys_values.take().unwrap_or_else(empty);
        let all = [write_rows(keys, slots, key), write_rows(values, slots, value)];
        self.keys_values.insert(all).clone()
    }

    /// Copies the contents into a layout with more slots per row.
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
        self.keys_values = match self.keys_values.take() {
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

/// The key-value cache of a model: one [`LayerCache`] per layer.
#[derive(Clone, Debug)]
pub struct KvCache<B: TrainBackend> {
    /// Caches in the order of the model's layers.
    pub layers: Vec<LayerCache<B>>,
    layout: Layout,
}

impl<B: TrainBackend> KvCache<B> {
    /// Creates an empty cache for `layers` layers and `rows` rows behind a shared prefix of `shared` tokens.
    pub fn new(layers: usize, shared: usize, rows: usize) -> Self {
        let room = 0;
        let layout = Layout { shared, rows, room };
        let empty = LayerCache { keys_values: None, layout };
        Self { layers: vec![empty; layers], layout }
    }

    /// Returns the number of tokens in the shared prefix, which occupy the first slots.
    pub fn shared(&self) -> usize {
        self.layout.shared
    }

    /// Returns the slot of a token of row `row`: its `index`-th behind the shared prefix.
    pub fn slot(&self, row: usize, index: usize) -> usize {
        self.layout.shared + row * self.layout.room + index
    }

    /// Turns the first `tokens` tokens of a single-row cache into the shared prefix and drops the others.
    ///
    /// # Panics
    /// Panics if the cache has more than one row.
    pub fn keep(&mut self, tokens: usize) {
        assert_eq!(self.layout.rows, 1, "keep: rows");
        self.layout.room = self.layout.slots() - tokens;
        self.layout.shared = tokens;
        for layer in &mut self.layers {
            layer.layout = self.layout;
        }
    }

    /// Grows each row to at least `tokens` slots of its own. Slot numbers change when rows grow.
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
