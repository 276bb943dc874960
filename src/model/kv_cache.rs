//! Keys and values of the tokens seen so far, so that each new token is computed once.

use arithmo_backends::TrainBackend;
use burn::tensor::Tensor;

/// The cache of one layer; empty at first.
#[derive(Clone, Debug, Default)]
pub struct LayerCache<B: TrainBackend> {
    /// Keys (already turned by their positions) and values, `[B, K, H_kv, Dh]`.
    seen: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
}

impl<B: TrainBackend> LayerCache<B> {
    /// Appends the new tokens' keys and values `[B, S, H_kv, Dh]` and returns all of them, `[B, K + S, H_kv, Dh]`.
    pub fn append(
        &mut self,
        key: Tensor<B, 4>,
        value: Tensor<B, 4>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let all = match self.seen.take() {
            Some((keys, values)) => (
                Tensor::cat(vec![keys, key], 1),
                Tensor::cat(vec![values, value], 1),
            ),
            None => (key, value),
        };
        self.seen = Some(all.clone());
        all
    }
}

/// One [`LayerCache`] a layer.
#[derive(Clone, Debug)]
pub struct KvCache<B: TrainBackend> {
    /// In the order of the model's layers.
    pub layers: Vec<LayerCache<B>>,
}

impl<B: TrainBackend> KvCache<B> {
    /// An empty cache for a model of `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self {
            layers: vec![LayerCache { seen: None }; layers],
        }
    }
}
