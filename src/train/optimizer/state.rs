//! The state that a rule keeps for each parameter, and how it is read from a checkpoint.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use super::eight_bit::{Blocks, PARTS};
use crate::error::{Error, Result};

/// State of one parameter.
#[derive(Clone, Debug)]
pub(super) struct ParameterState<B: Backend> {
    /// Number of steps that updated this parameter.
    pub(super) step: u64,
    /// The matrices of [`UpdateRule::state_names`].
    pub(super) matrices: Vec<StateMatrix<B>>,
}

/// How a matrix of the state is kept.
#[derive(Clone, Debug)]
pub(super) enum StateMatrix<B: Backend> {
    /// As floats.
    Float(Tensor<B, 2>),
    /// In 8 bits.
    EightBit(Blocks<B>),
}

impl<B: Backend> StateMatrix<B> {
    /// Returns the matrix as floats of `dtype`.
    pub(super) fn floats(&self, dtype: DType) -> Tensor<B, 2> {
        match self {
            Self::Float(tensor) => tensor.clone(),
            Self::EightBit(blocks) => blocks.floats(dtype),
        }
    }
}

/// Returns the error for an invalid tensor of the optimizer state.
pub(super) fn wrong_state(name: &str, problem: &str) -> Error {
    let remedy = "resume from another checkpoint, or start again with --overwrite";
    Error::invalid(format!("optimizer state: {name}"), problem, remedy)
}

pub(super) fn take(tensors: &mut BTreeMap<String, TensorData>, key: &str) -> Result<TensorData> {
    tensors.remove(key).ok_or_else(|| wrong_state(key, "is missing"))
}

/// Reads the step count of a parameter.
pub(super) fn step_count(name: &str, data: &TensorData) -> Result<u64> {
    match data.as_slice::<i64>() {
        Ok([step]) if *step >= 1 => Ok(step.unsigned_abs()),
        _ => Err(wrong_state(name, "its step is not a positive number")),
    }
}

/// Takes the state matrix `kind` of the parameter `name` out of `tensors` and moves it to the device.
pub(super) fn state_matrix<B: Backend>(
    tensors: &mut BTreeMap<String, TensorData>,
    (name, kind): (&str, &str),
    dims: [usize; 2],
    device: &B::Device,
) -> Result<StateMatrix<B>> {
    let key = format!("{name}.{kind}");
    let parts = PARTS.map(|part| format!("{key}.{part}"));
    if tensors.contains_key(&parts[0]) {
        let data = [take(tensors, &parts[0])?, take(tensors, &parts[1])?];
        let blocks = Blocks::from_parts(kind, dims, data, device);
        let problem = format!("is not a matrix {dims:?} in 8 bits");
        return blocks.map(StateMatrix::EightBit).ok_or_else(|| wrong_state(&key, &problem));
    }
    let data = take(tensors, &key)?;
    if data.shape != dims.into() || !matches!(data.dtype, DType::F32 | DType::F64) {
        return Err(wrong_state(&key, &format!("is not a matrix {dims:?} of floats")));
    }
    let dtype = data.dtype;
    Ok(StateMatrix::Float(Tensor::from_data(data, (device, dtype))))
}
