//! The operations of [`TrainBackend`](crate::TrainBackend): one file each, with its reference and its tests.

pub mod adamw;
pub mod adapted_linear;
pub mod attention;
pub mod linear;
pub mod log_probs;
pub mod packed;
pub mod rms_norm;
pub mod rope;
pub mod split;
pub mod swiglu;
pub mod write_rows;

use burn::tensor::DType;

/// The type sums are kept in: f64 stays f64 (gradient checks), everything else accumulates in f32.
pub fn accumulator(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}
