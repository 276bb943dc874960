//! What a run takes of a device, before anything is loaded: bytes by category, the largest batch that fits, what to change
//! where it does not, and the time.
//!
//! A plan is a walk through the run ([`walk`]) in which every operation takes what its kernel takes, from an allocator that
//! does as the real one ([`memory`]). All of it is arithmetic on shapes and lengths; `tests/plan.rs` holds it to 5 % of what
//! runs take.

mod fit;
mod job;
mod memory;
mod operations;
mod table;
mod time;
mod walk;

use std::time::Duration;

use arithmo_backends::{Allocation, BackendKind, TrainBackend, assumed};
use burn::tensor::{DType, Tensor};

pub use self::fit::{Change, changes, largest_batch};
pub use self::job::{Job, PassShape, Profile, Samples, packed_bytes};
pub use self::memory::{Category, Table};
pub use self::table::{Bytes, Report, parse_bytes};
pub use self::time::{Timing, measure};
use crate::bench::{BenchOptions, probe};
use crate::config::{GradientCheckpointing, TargetModules};
use crate::doctor::device_name;
use crate::model::config::MistralConfig;

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
            block_bytes: [
                walk::kept_values(job) * of_token,
                job.shape.hidden_size * of_token,
            ]
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

/// The longest of what must lie in one piece: a weight, logits of some rows, activations of a pass.
fn too_long(job: &Job, profile: &Profile, pass: PassShape) -> Option<TooLong> {
    let limit = profile.largest_tensor?;
    let (name, bytes) = job.largest_weight();
    let of_pass = (pass.tokens * job.shape.widest_bytes_per_token(job.dtype.size())) as u64;
    let activations = format!("the widest activations of a pass of {} tokens", pass.tokens);
    let found = [(name, bytes), (activations, of_pass)];
    let longest = found.into_iter().find(|(_, bytes)| *bytes > limit);
    longest.map(|(what, bytes)| TooLong { what, bytes, limit })
}

impl Profile {
    /// The device of a backend that was started; `capacity`: have the run do with less than there is.
    pub fn of<B: TrainBackend>(device: &B::Device, capacity: Option<u64>) -> Self {
        let allocation = B::allocation(device);
        let heap = allocation == Allocation::Heap;
        let program = match heap {
            true => rehearsed::<B>(device),
            false => 0,
        };
        let available = B::available_memory_bytes(device);
        let all = [DType::F32, DType::BF16, DType::F16];
        let dtypes = all.into_iter();
        Self {
            name: device_name::<B>(device),
            allocation,
            capacity: capacity.or(available.map(|bytes| bytes + program)),
            program,
            dtypes: dtypes
                .filter(|dtype| B::computes_in(device, *dtype))
                .collect(),
            pass_tokens: B::pass_tokens(),
            threads: threads(),
            largest_tensor: B::buffer_limits(device).map(|limits| limits.binding),
        }
    }

    /// A device with `memory` bytes that need not be here; nothing is started.
    pub fn assumed(kind: BackendKind, memory: u64) -> Self {
        let known = assumed(kind, memory);
        Self {
            name: format!("a device of {} for {kind}", Bytes(memory)),
            allocation: known.allocation,
            capacity: Some(memory),
            program: known.in_process.then(known_process).unwrap_or(0),
            dtypes: known.dtypes,
            pass_tokens: known.pass_tokens,
            threads: threads(),
            largest_tensor: match known.allocation {
                Allocation::Heap => None,
                Allocation::Pools { page, .. } => Some(page),
            },
        }
    }

    /// Whether memory is that of the process.
    pub fn is_heap(&self) -> bool {
        self.allocation == Allocation::Heap
    }
}

/// Bytes the process holds once its code and threads have been used: a step of a very small model, and a product large
/// enough for the buffers of its kernel.
fn rehearsed<B: TrainBackend>(device: &B::Device) -> u64 {
    let options = BenchOptions {
        name: String::new(),
        shape: MistralConfig {
            vocab_size: 128,
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 1,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: None,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            sliding_window: None,
            tie_word_embeddings: false,
            initializer_range: 0.02,
            attention_dropout: 0.0,
            bos_token_id: None,
            eos_token_id: Vec::new(),
            pad_token_id: None,
            torch_dtype: None,
        },
        tokens: vec![128],
        layers: None,
        targets: TargetModules::AllLinear,
        rank: 4,
        dtype: None,
        precomputed: false,
        steps: 1,
        checkpointing: GradientCheckpointing::Off,
        peak_tflops: None,
    };
    // Should it fail, so will the run, which says why.
    let _ = probe::<B>(&options, Duration::ZERO, device);
    let [x, weight] = [128, 768].map(|rows| Tensor::<B, 2>::ones([rows, 512], device));
    let _ = B::frozen_linear(x, weight);
    B::peak_memory_bytes(device).unwrap_or(0)
}

/// What a program that has read its data holds, about, where it is not asked.
fn known_process() -> u64 {
    40 << 20
}

fn threads() -> usize {
    rayon::current_num_threads()
}

#[cfg(test)]
mod tests;
