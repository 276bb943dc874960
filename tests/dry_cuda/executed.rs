//! CUDA's own C++ of every operation and of training, executed on the CPU, against results in f64 and against the CPU backend.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;

use arithmo_backends::conformance::{
    AdamW, AdaptedLinear, CachedAttention, Clip, Geglu, HeadNorm, Linear, LogProbs, Operation,
    RmsNorm, Rope, SelfAttention, Swiglu, Unpack, check_cases, check_saturated_gates,
};
use arithmo_backends::dry_cuda::{CARDS, Card, DryCuda, DryDevice, emulator};

use burn::tensor::DType;

use super::is_autotuned;
use super::suite::{generate, step};

/// The card: on later ones CubeCL copies by tensor maps, which are not emulated.
const CARD: Card = CARDS[1];

/// Returns whether kernels can be executed here; if not, says why.
fn can_execute() -> bool {
    let started = emulator::start();
    if let Err(reason) = &started {
        eprintln!("SKIPPED: {reason}");
    }
    started.is_ok() && !is_autotuned()
}

/// Runs a test on a device that executes kernels, with cuBLASLt's products or without. All tests share both devices, so that a kernel is
/// compiled once.
fn on_emulated_card(with_library: bool, test: impl FnOnce(&DryDevice)) {
    static DEVICES: OnceLock<[DryDevice; 2]> = OnceLock::new();
    if !can_execute() {
        return;
    }
    let devices =
        DEVICES.get_or_init(|| [false, true].map(|with| DryDevice::emulated(&CARD, with)));
    let device = devices[usize::from(with_library)];
    // A kernel that was not executed is the cause of wrong results.
    let tested = catch_unwind(AssertUnwindSafe(|| test(&device)));
    let errors = device.take().errors;
    assert!(errors.is_empty(), "{errors:#?}");
    tested.unwrap_or_else(|failure| resume_unwind(failure));
}

/// Checks the cases that `arithmo doctor` checks, in every layout and type; all cases of an operation that it leaves out. The large
/// ones would take hours.
fn check_operation<O: Operation>(with_library: bool) {
    let quick = O::quick();
    let cases = if quick.is_empty() { O::all() } else { quick };
    on_emulated_card(with_library, |device| check_cases::<DryCuda, O>(cases, device));
}

macro_rules! operations {
    ($($test:ident: $operation:ty),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                check_operation::<$operation>(true);
            }
        )*
    };
}

operations! {
    linear: Linear,
    adapted_linear: AdaptedLinear,
    rms_norm: RmsNorm,
    head_norm: HeadNorm,
    rope: Rope,
    swiglu: Swiglu,
    geglu: Geglu,
    cached_attention: CachedAttention,
    log_probs: LogProbs,
    clip: Clip,
    adamw: AdamW,
    dequantized_weights: Unpack,
}

#[test]
fn saturated_gates() {
    on_emulated_card(true, check_saturated_gates::<DryCuda>);
}

#[test]
fn products_without_cublaslt() {
    check_operation::<Linear>(false);
}

#[test]
fn self_attention_on_f32_units_and_on_tensor_cores() {
    if !can_execute() {
        return;
    }
    // Nothing else is launched on this device.
    let device = DryDevice::emulated(&CARD, true);
    check_cases::<DryCuda, SelfAttention>(SelfAttention::quick(), &device);
    let record = device.take();
    assert!(record.errors.is_empty(), "{:#?}", record.errors);
    let multiplies_matrices = |name: &str| {
        let mut found = record.kernels.iter().filter(|kernel| kernel.name == name);
        found.next().map(|kernel| kernel.source.contains("mma_sync"))
    };
    for name in ["forward::attend", "backward::query_gradient", "backward::key_value_gradient"] {
        assert_eq!(multiplies_matrices(&format!("attention::{name}")), Some(false));
        assert_eq!(multiplies_matrices(&format!("attention::tensor_cores::{name}")), Some(true));
    }
}

#[test]
fn training_equals_the_cpu() {
    on_emulated_card(true, |device| {
        step::training_equals_the_cpu::<DryCuda>(false, device);
        step::gradients_equal_the_cpu::<DryCuda>(true, device);
    });
}

#[test]
fn base_weights_in_16_bits() {
    on_emulated_card(true, |device| {
        step::half_precision::<DryCuda>(DType::F16, device);
        step::half_precision::<DryCuda>(DType::BF16, device);
    });
}

#[test]
fn generation_with_a_cache_equals_generation_without() {
    on_emulated_card(true, generate::equals_no_cache::<DryCuda>);
}
