//! A device as a plan sees it: one that was started, or one that need not be here.

use std::time::Duration;

use arithmo_backends::{Allocation, BackendKind, TrainBackend, assumed};
use burn::tensor::{DType, Tensor};

use super::job::quantization;
use super::table::Bytes;
use crate::bench::{BenchOptions, probe};
use crate::config::{GradientCheckpointing, RunConfig, TargetModules};
use crate::doctor::device_name;
use crate::model::config::MistralConfig;
use crate::model::dtype;

/// A device as far as a plan needs it.
#[derive(Clone, Debug)]
pub struct Profile {
    /// For people.
    pub name: String,
    /// How memory is taken.
    pub allocation: Allocation,
    /// Bytes the run may have, those it holds already included; `None`: not told.
    pub capacity: Option<u64>,
    /// Bytes the process holds before it loads a model, where they are of the same memory.
    pub program: u64,
    /// Types weights may be held in.
    pub dtypes: Vec<DType>,
    /// Tokens a pass unless the run says otherwise.
    pub pass_tokens: usize,
    /// Threads that compute, where those are of the CPU.
    pub threads: usize,
    /// Most bytes of a tensor, where there is a limit below the memory's.
    pub largest_tensor: Option<u64>,
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
        Self {
            name: device_name::<B>(device),
            allocation,
            capacity: capacity.or(available.map(|bytes| bytes + program)),
            program,
            dtypes: dtype::computed::<B>(device),
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

    /// The type that is computed in: see [`dtype::choose`].
    pub fn dtype(&self, shape: &MistralConfig, config: &RunConfig) -> DType {
        match config.model.use_peft {
            false => DType::F32,
            true => {
                match config.model.dtype.dtype() {
                    Some(wanted) if self.dtypes.contains(&wanted) => wanted,
                    // Held in bf16, or refused when it is loaded.
                    Some(_) => DType::F32,
                    None => dtype::auto(shape, &self.dtypes),
                }
            }
        }
    }

    /// Whether matrices that are not packed are held in bf16 though nothing computes in it: where that is asked for, and
    /// beside packed ones where they are stored so.
    pub fn holds_halves(&self, shape: &MistralConfig, config: &RunConfig) -> bool {
        let model = &config.model;
        let asked = model.dtype.dtype() == Some(DType::BF16);
        let stored = shape.torch_dtype.as_deref() == Some("bfloat16");
        let beside_packed = stored && quantization(shape, config).is_some();
        let wanted = asked || beside_packed && self.dtype(shape, config) == DType::F32;
        wanted && model.use_peft && !self.dtypes.contains(&DType::BF16)
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
            quantization: None,
        },
        tokens: vec![128],
        layers: None,
        targets: TargetModules::AllLinear,
        rank: 4,
        dtype: None,
        quantize: None,
        precomputed: false,
        steps: 1,
        checkpointing: GradientCheckpointing::Off,
        peak_tflops: None,
    };
    // Should it fail, so will the run, which says why.
    let _ = probe::<B>(&options, Duration::ZERO, device);
    let [x, weight] = [128, 768].map(|rows| Tensor::<B, 2>::ones([rows, 512], device));
    let _ = B::frozen_linear(x, weight.into());
    B::peak_memory_bytes(device).unwrap_or(0)
}

/// What a program that has read its data holds, about, where it is not asked.
fn known_process() -> u64 {
    40 << 20
}

fn threads() -> usize {
    rayon::current_num_threads()
}
