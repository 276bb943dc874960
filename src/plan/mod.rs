//! Estimates the device memory and the time of a training run before anything is loaded: bytes by
//! category, the largest batch that fits, and the changes that make a run fit.
//!
//! A plan simulates the run (`walk`): every operation allocates what its kernel allocates, from an
//! allocator that behaves like the real one (`allocator`). Everything is computed from shapes and
//! sequence lengths; `tests/program/plan.rs` checks that plans are within 5 % of the measured memory.

mod allocator;
mod blocks;
mod fit;
mod job;
mod layers;
mod memory;
mod operations;
mod passes;
mod planned;
mod profile;
mod table;
mod time;
mod walk;

use burn::tensor::DType;

pub use self::fit::{Change, changes, largest_batch};
pub use self::job::Job;
pub use self::memory::{Category, Table};
pub use self::passes::{PassShape, Samples};
pub use self::planned::Planned;
pub use self::profile::Profile;
pub use self::table::{Bytes, Report, parse_bytes};
pub use self::time::{Timing, measure};

/// The estimated memory of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes by category at the peak; their sum is what the device must provide.
    pub table: Table,
    /// The phase of the run in which the peak occurs.
    pub peak_phase: &'static str,
    /// The largest pass.
    pub pass: PassShape,
    /// The largest number of passes in a step.
    pub passes: usize,
    /// Number of blocks that keep their activations in the largest pass; the others recompute them.
    pub kept_blocks: usize,
    /// Number of blocks of the model.
    pub blocks: usize,
    /// Bytes of the activations that one block keeps of that pass.
    pub block_bytes: u64,
    /// Bytes of the input of one block, which is all that a recomputed block keeps.
    pub block_input_bytes: u64,
    /// Data type of the weights.
    pub dtype: DType,
    /// The largest number of tokens in a pass.
    pub pass_tokens: usize,
    /// Bytes that the run may use; `None` if the device does not report them.
    pub capacity: Option<u64>,
    /// A tensor that exceeds the device's limit for one buffer.
    pub too_long: Option<TooLong>,
}

/// A tensor that exceeds the device's limit for one buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// Which tensor it is.
    pub tensor: String,
    /// Its bytes.
    pub bytes: u64,
    /// The largest number of bytes that one buffer may have.
    pub limit: u64,
}

impl Plan {
    /// Plans `job` on the device of `profile`.
    pub fn new(job: &Job, profile: &Profile) -> Self {
        let (pass, passes) = job.largest_pass(profile);
        Self::for_pass(job, profile, pass, passes)
    }

    /// Plans `job` as [`Self::new`] does, with `pass` as its largest pass.
    pub(crate) fn for_pass(job: &Job, profile: &Profile, pass: PassShape, passes: usize) -> Self {
        let (table, peak_phase) = walk::walk(job, profile, pass, passes);
        let blocks = job.shape.num_hidden_layers;
        let kept_blocks = job.kept_blocks(profile, pass.tokens);
        let bytes = |values: usize| (values * job.dtype.size() * pass.tokens) as u64;
        Self {
            table,
            peak_phase,
            pass,
            passes,
            kept_blocks,
            blocks,
            block_bytes: bytes(blocks::saved_values_per_token(job)),
            block_input_bytes: bytes(job.shape.hidden_size),
            dtype: job.dtype,
            pass_tokens: job.pass_tokens(profile),
            capacity: profile.capacity,
            too_long: too_long(job, profile, pass),
        }
    }

    /// Returns the bytes that the device must provide.
    pub fn total(&self) -> u64 {
        self.table.values().sum()
    }

    /// Returns whether the run fits; `None` if the device does not report its memory.
    pub fn fits(&self) -> Option<bool> {
        match (&self.too_long, self.capacity) {
            (Some(_), _) => Some(false),
            (None, capacity) => capacity.map(|capacity| self.total() <= capacity),
        }
    }
}

/// Returns a tensor that exceeds the device's limit for one buffer: a matrix that cannot be split,
/// or the activations of a pass.
fn too_long(job: &Job, profile: &Profile, pass: PassShape) -> Option<TooLong> {
    let limit = profile.largest_tensor?;
    let activation_bytes =
        (pass.tokens * job.shape.widest_bytes_per_token(job.dtype.size())) as u64;
    let activations = format!("the widest activations of a pass of {} tokens", pass.tokens);
    let activations = Some((activations, activation_bytes)).filter(|_| activation_bytes > limit);
    let found = job.too_long_weight().or(activations);
    found.map(|(tensor, bytes)| TooLong { tensor, bytes, limit })
}

#[cfg(test)]
mod tests;
