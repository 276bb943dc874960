//! The shared suite on the CPU.

mod suite;

type B = burn_ndarray::NdArray<f32>;

#[test]
fn forward_matches_transformers() {
    for name in ["tiny-a", "tiny-b", "tiny-c"] {
        suite::forward::padded_batches::<B>(name, &Default::default());
        suite::forward::hidden_states::<B>(name, &Default::default());
    }
}
