//! Sorts the values of micro-batches on the device, differentiably.

use std::ops::Range;

use burn::tensor::{Int, Tensor, backend::Backend};

/// Returns `values` `[N]`, with the values of each micro-batch in ascending order. The micro-batches must cover `0..N`.
///
/// The gradient of each sorted value flows to the input that was moved to its place. The order is computed from comparisons of all pairs
/// of values, because a sort on a GPU would wait for the host.
pub(super) fn sorted<B: Backend>(
    values: Tensor<B, 1>,
    micro_batches: &[Range<usize>],
) -> Tensor<B, 1> {
    let sorted = micro_batches.iter().map(|range| {
        let values = values.clone().narrow(0, range.start, range.len());
        let count = values.dims()[0];
        let rows = values.clone().detach().unsqueeze_dim::<2>(1).expand([count, count]);
        let columns = values.clone().detach().unsqueeze_dim::<2>(0).expand([count, count]);
        let index: Tensor<B, 1, Int> = Tensor::arange(0..count as i64, &values.device());
        let row = index.clone().unsqueeze_dim::<2>(1).expand([count, count]);
        let column = index.unsqueeze_dim::<2>(0).expand([count, count]);
        // A value's rank: the smaller values, and the equal ones before it.
        let ties = columns.clone().equal(rows.clone()).bool_and(column.clone().lower(row));
        let ranks: Tensor<B, 2, Int> = columns.lower(rows).bool_or(ties).int().sum_dim(1);
        let is_at = ranks.expand([count, count]).equal(column).float().cast(values.dtype());
        (values.unsqueeze_dim::<2>(1) * is_at).sum_dim(0).squeeze_dim(0)
    });
    Tensor::cat(sorted.collect::<Vec<_>>(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::losses::tests::{B, vector};

    #[test]
    fn micro_batches_are_sorted_by_themselves() {
        let values = vector(&[3.0, -1.0, 2.0, 2.0, 5.0, 4.0, -7.0]);
        let sorted = sorted::<B>(values, &[0..4, 4..6, 6..7]).into_data();
        assert_eq!(sorted.iter::<f64>().collect::<Vec<_>>(), [-1.0, 2.0, 2.0, 3.0, 4.0, 5.0, -7.0]);
    }
}
