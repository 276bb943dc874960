//! Dropout masks on slices (see [`crate::ops::dropout`]).

use rayon::prelude::*;

use crate::ops::dropout::DropoutMask;

/// Number of blocks of four values that a thread computes at a time.
const BLOCKS: usize = 1 << 12;

/// Returns the values of a mask, row by row.
pub(super) fn values(mask: &DropoutMask) -> Vec<f32> {
    let mut values = vec![0.0; mask.shape[0] * mask.shape[1]];
    values.par_chunks_mut(4 * BLOCKS).enumerate().for_each(|(chunk, values)| {
        for (block, four) in (chunk * BLOCKS..).zip(values.chunks_mut(4)) {
            four.copy_from_slice(&mask.block(block)[..four.len()]);
        }
    });
    values
}
