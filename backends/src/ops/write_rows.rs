//! Rows of a matrix replaced: how a key-value cache takes new tokens.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, backend::Backend};

use crate::TrainBackend;

/// Puts the rows `new` in the places `rows` of `target`, in place where nobody else holds it. Not differentiable.
///
/// # Shapes
/// - target, returns: `[N, width]`
/// - rows: `[T]`, each below `N` and named once
/// - new: `[T, width]`, of the same dtype as `target`
///
/// # Panics
/// If shapes or dtypes do not fit together.
pub fn write_rows<B: TrainBackend>(
    target: Tensor<B, 2>,
    rows: &Tensor<B, 1, Int>,
    new: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let ([_, width], [count]) = (target.dims(), rows.dims());
    assert_eq!(
        (new.dims(), new.dtype()),
        ([count, width], target.dtype()),
        "write_rows: {count} rows of {width}"
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
