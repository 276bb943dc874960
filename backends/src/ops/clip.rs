//! What clipping by the global norm needs of all gradients of an adapter, each in one call, so that a backend may read many
//! tensors in one launch.

use burn::tensor::{Tensor, backend::Backend};

/// The reference body of [`TrainBackend::sum_of_squares`](crate::TrainBackend::sum_of_squares): the sum of the squares of all
/// values of all tensors, `[1]`.
///
/// # Panics
/// If there are no tensors.
pub fn reference<B: Backend>(tensors: &[Tensor<B, 2>]) -> Tensor<B, 1> {
    let squares = tensors.iter().map(|tensor| tensor.clone().square().sum());
    Tensor::cat(squares.collect(), 0).sum()
}

/// The reference body of [`TrainBackend::scale_all`](crate::TrainBackend::scale_all): every value times `factor`, `[1]`.
pub fn reference_scale<B: Backend>(
    tensors: Vec<Tensor<B, 2>>,
    factor: Tensor<B, 1>,
) -> Vec<Tensor<B, 2>> {
    let factor = factor.unsqueeze::<2>();
    tensors.into_iter().map(|tensor| tensor * factor.clone()).collect()
}
