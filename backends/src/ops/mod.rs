//! The operations of [`TrainBackend`](crate::TrainBackend): one file each, with its definition and its reference.

pub mod adamw;
pub mod adapted_linear;
pub mod attention;
pub mod clip;
pub mod dropout;
pub mod geglu;
pub mod head_norm;
pub mod linear;
pub mod log_probs;
pub mod packed;
pub mod rms_norm;
pub mod rope;
pub mod split;
pub mod swiglu;
pub mod write_rows;

use burn::tensor::DType;

/// Returns the dtype that sums over values of `dtype` are kept in: f64 for f64 (gradient checks), f32 for everything
/// else.
pub fn accumulator(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}
