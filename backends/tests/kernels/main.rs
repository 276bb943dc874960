//! The operations of every backend against the results that `conformance` computes in f64: odd sizes, views, 16-bit types.
//! The tests of a backend that does not start compare nothing and say so.

mod quantized;

use arithmo_backends::conformance::{
    AdamW, AdaptedLinear, CachedAttention, Clip, Geglu, HeadNorm, Linear, LogProbs, Operation,
    RmsNorm, Rope, SelfAttention, Swiglu, Unpack, check, check_saturated_gates,
};
use arithmo_backends::{BackendKind, TrainBackend};

/// Returns whether the default device starts; if not, prints that the test is skipped.
fn starts(kind: BackendKind) -> bool {
    let started = kind.start();
    if let Err(reason) = &started {
        eprintln!("SKIPPED: {kind} {reason}");
    }
    started.is_ok()
}

/// Checks all cases of an operation.
fn check_on<B: TrainBackend, O: Operation>(kind: BackendKind) {
    if starts(kind) {
        check::<B, O>(&Default::default());
    }
}

macro_rules! kernels {
    ($module:ident, $backend:ty, $kind:expr, $($test:ident: $operation:ty),* $(,)?) => {
        mod $module {
            use super::*;

            $(
                #[test]
                fn $test() {
                    check_on::<$backend, $operation>($kind);
                }
            )*

            #[test]
            fn saturated_gates() {
                if starts($kind) {
                    check_saturated_gates::<$backend>(&Default::default());
                }
            }
        }
    };
    ($module:ident, $backend:ty, $kind:expr) => {
        kernels! {
            $module, $backend, $kind,
            linear: Linear,
            adapted_linear: AdaptedLinear,
            rms_norm: RmsNorm,
            head_norm: HeadNorm,
            rope: Rope,
            swiglu: Swiglu,
            geglu: Geglu,
            self_attention: SelfAttention,
            cached_attention: CachedAttention,
            log_probs: LogProbs,
            clip: Clip,
            adamw: AdamW,
            dequantized_weights: Unpack,
        }
    };
}

#[cfg(feature = "ndarray")]
kernels!(ndarray, burn_ndarray::NdArray<f32>, BackendKind::NdArray);
#[cfg(feature = "wgpu")]
kernels!(wgpu, arithmo_backends::wgpu::Gpu, BackendKind::Wgpu);
#[cfg(feature = "cuda")]
kernels!(cuda, arithmo_backends::cuda::Gpu, BackendKind::Cuda);
