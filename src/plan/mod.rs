//! What a run takes of a device, before anything is loaded: bytes by category, the largest batch that fits, what to change
//! where it does not, and the time.
//!
//! A plan is a walk through the run (`walk`) in which every operation takes what its kernel takes, from an allocator that
//! does as the real one (`allocator`). All of it is arithmetic on shapes and lengths; `tests/plan.rs` holds it to 5 % of what
//! runs take.

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

/// What a run takes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes by category at the worst moment; they sum to what the device must have.
    pub table: Table,
    /// What happens at that moment.
    pub moment: &'static str,
    /// The largest pass.
    pub pass: PassShape,
    /// Most passes of a step.
    pub passes: usize,
    /// Blocks that keep their activations in the largest pass; the others compute them again.
    pub kept_blocks: usize,
    /// Blocks in all.
    pub blocks: usize,
    /// Bytes that one block keeps of that pass: everything, or its input alone.
    pub block_bytes: [u64; 2],
    /// Type of the weights.
    pub dtype: DType,
    /// Most tokens of a pass.
    pub pass_tokens: usize,
    /// What the run may have.
    pub capacity: Option<u64>,
    /// Something longer than the device takes in one piece.
    pub too_long: Option<TooLong>,
}

/// A tensor longer than the device takes in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// Which.
    pub what: String,
    /// Its bytes.
    pub bytes: u64,
    /// Most bytes there may be.
    pub limit: u64,
}

impl Plan {
    /// The plan of `job` on the device of `profile`.
    pub fn new(job: &Job, profile: &Profile) -> Self {
        let (pass, passes) = job.largest_pass(profile);
        Self::of_pass(job, profile, pass, passes)
    }

    /// As [`Self::new`], were this the largest pass.
    pub(crate) fn of_pass(job: &Job, profile: &Profile, pass: PassShape, passes: usize) -> Self {
        let (table, moment) = walk::walk(job, profile, pass, passes);
        let blocks = job.shape.num_hidden_layers;
        let kept_blocks = job.kept_blocks(profile, pass.tokens);
        let of_token = job.dtype.size() * pass.tokens;
        Self {
            table,
            moment,
            pass,
            passes,
            kept_blocks,
            blocks,
            block_bytes: [blocks::kept_values(job) * of_token, job.shape.hidden_size * of_token]
                .map(|bytes| bytes as u64),
            dtype: job.dtype,
            pass_tokens: job.pass_tokens(profile),
            capacity: profile.capacity,
            too_long: too_long(job, profile, pass),
        }
    }

    /// Bytes the device must have.
    pub fn total(&self) -> u64 {
        self.table.values().sum()
    }

    /// Whether it fits; `None` where the device does not tell how much there is.
    pub fn fits(&self) -> Option<bool> {
        match (&self.too_long, self.capacity) {
            (Some(_), _) => Some(false),
            (None, capacity) => capacity.map(|capacity| self.total() <= capacity),
        }
    }
}

/// What must lie in one piece, and is too long for it: a matrix that cannot be cut, activations of a pass.
fn too_long(job: &Job, profile: &Profile, pass: PassShape) -> Option<TooLong> {
    let limit = profile.largest_tensor?;
    let of_pass = (pass.tokens * job.shape.widest_bytes_per_token(job.dtype.size())) as u64;
    let activations = format!("the widest activations of a pass of {} tokens", pass.tokens);
    let activations = Some((activations, of_pass)).filter(|_| of_pass > limit);
    let found = job.too_long_weight().or(activations);
    found.map(|(what, bytes)| TooLong { what, bytes, limit })
}

#[cfg(test)]
mod tests;
