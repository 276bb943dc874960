//! Replacement of rows of a matrix: how new tokens enter a key-value cache.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, backend::Backend};

use crate::TrainBackend;

/// Writes the rows `new` to the rows `rows` of `target`, in place if nothing else holds `target`. Not differentiable.
///
/// # Shapes
/// - target, returns: `[N, width]`
/// - rows: `[T]`, each below `N` and named once
/// - new: `[T, width]`, in the dtype of `target`
///
/// # Panics
/// If shapes or dtypes do not match.
pub fn write_rows<B: TrainBackend>(
    target: Tensor<B, 2>,
    rows: &Tensor<B, 1, Int>,
    new: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let ([_, width], [count]) = (target.dims(), rows.dims());
    assert_eq!(
        (new.dims(), new.dtype()),
        ([count, width], target.dtype()),
        "write_rows: new rows must be [{count}, {width}] in the target's dtype"
    );
    B::write_rows(target, rows, new)
}

/// The reference body of [`TrainBackend::write_rows`].
pub fn reference<B: Backend>(
    target: Tensor<B, 2>,
    rows: &Tensor<B, 1, Int>,
    new: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let [count] = rows.dims();
    let rows: Tensor<B, 2, Int> = rows.clone().reshape([count, 1]);
    target.scatter_nd(rows, new, IndexingUpdateOp::Assign)
}
