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

#[test]
fn generation_matches_transformers() {
    for name in ["tiny-a", "tiny-b", "tiny-c"] {
        suite::generate::equals_transformers::<B>(name, &Default::default());
    }
}

#[test]
fn generation_with_a_cache_equals_generation_without() {
    suite::generate::equals_no_cache::<B>(&Default::default());
}

#[test]
fn generation_stops_row_by_row() {
    suite::generate::stops_row_by_row::<B>(&Default::default());
}

#[test]
fn sampling_is_reproducible() {
    suite::generate::samples_reproducibly::<B>(&Default::default());
}

#[test]
fn generation_respects_the_models_limits() {
    suite::generate::respects_the_models_limits::<B>(&Default::default());
    suite::generate::refuses_bad_settings::<B>(&Default::default());
}
