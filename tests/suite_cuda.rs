//! The shared suite on CUDA: what multiplies matrices, by the library and by the kernels. Skipped without an NVIDIA GPU.
#![cfg(feature = "cuda")]

use arithmo_backends::{BackendKind, ProductsBy, TrainBackend, cuda::Gpu};

mod suite;

#[test]
fn operations_and_their_gradients_match_f64_with_and_without_the_library() {
    if let Err(reason) = BackendKind::Cuda.start() {
        eprintln!("SKIPPED: cuda {reason}");
        return;
    }
    let device = Default::default();
    let check = || {
        suite::ops::linear::<Gpu>(&device);
        suite::ops::adapted_linear::<Gpu>(&device);
        suite::ops::log_probs::<Gpu>(&device);
    };
    check();
    match Gpu::products_by(&device) {
        ProductsBy::Library(_) => Gpu::without_library(&device, check),
        by => eprintln!("SKIPPED: the library, {by:?}"),
    }
}
