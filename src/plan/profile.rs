//! The device of a plan: one that was started, or one that is only assumed.

use std::time::Duration;

use arithmo_backends::{Allocation, BackendKind, TrainBackend, assumed};
use burn::tensor::{DType, Tensor};

use super::job::quantization;
use super::table::Bytes;
use crate::bench::{BenchOptions, probe};
use crate::config::{GradientCheckpointing, RunConfig, TargetModules};
use crate::doctor::device_name;
use crate::model::config::DecoderConfig;
use crate::model::dtype;
use crate::model::family::mistral;
use crate::model::switches::Switches;

/// The properties of a device that a plan needs.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The name that is shown to users.
    pub name: String,
    /// How the device's allocator works.
    pub allocation: Allocation,
    /// Bytes the run may use, including those the process holds already; `None` if the device does
    /// not report them.
    pub capacity: Option<u64>,
    /// Bytes the process holds before it loads a model, if the device shares the process's memory.
    pub program: u64,
    /// Data types in which weights may be stored.
    pub dtypes: Vec<DType>,
    /// Tokens per pass unless the run sets them.
    pub pass_tokens: usize,
    /// Number of compute threads, if the device is the CPU.
    pub threads: usize,
    /// The largest number of bytes in a tensor, if the device has a limit below its memory.
    pub largest_tensor: Option<u64>,
}

impl Profile {
    /// Returns the profile of a started backend's device; `capacity` replaces the memory that the
    /// device reports.
    pub fn of<B: TrainBackend>(device: &B::Device, capacity: Option<u64>) -> Self {
        let allocation = B::allocation(device);
        let heap = allocation == Allocation::Heap;
        let program = if heap { warm_process_bytes::<B>(device) } else { 0 };
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

    /// Returns the profile of a device with `memory` bytes that need not exist; nothing is started.
    pub fn assumed(kind: BackendKind, memory: u64) -> Self {
        let known = assumed(kind, memory);
        Self {
            name: format!("a device of {} for {kind}", Bytes(memory)),
            allocation: known.allocation,
            capacity: Some(memory),
            program: known.in_process.then(assumed_process_bytes).unwrap_or(0),
            dtypes: known.dtypes,
            pass_tokens: known.pass_tokens,
            threads: threads(),
            largest_tensor: match known.allocation {
                Allocation::Heap => None,
                Allocation::Pools { page, .. } => Some(page),
            },
        }
    }

    /// Returns the compute type (see [`dtype::choose`]).
    pub fn dtype(&self, shape: &DecoderConfig, config: &RunConfig) -> DType {
        if config.model.use_peft {
            match config.model.dtype.dtype() {
                Some(wanted) if self.dtypes.contains(&wanted) => wanted,
                // Stored in bf16, or refused when the model is loaded.
                Some(_) => DType::F32,
                None => dtype::auto(shape, &self.dtypes),
            }
        } else {
            DType::F32
        }
    }

    /// Returns whether matrices that are not quantized are stored in bf16 although the device
    /// cannot compute in it: if the configuration asks for it, or if they accompany quantized
    /// weights and the files store them in bf16.
    pub fn stores_bf16(&self, shape: &DecoderConfig, config: &RunConfig) -> bool {
        let model = &config.model;
        let requested = model.dtype.dtype() == Some(DType::BF16);
        let stored = shape.torch_dtype.as_deref() == Some("bfloat16");
        let stored_with_quantized = stored && quantization(shape, config).is_some();
        let wanted = requested || stored_with_quantized && self.dtype(shape, config) == DType::F32;
        wanted && model.use_peft && !self.dtypes.contains(&DType::BF16)
    }

    /// Returns whether the device's memory is that of the process.
    pub fn is_heap(&self) -> bool {
        self.allocation == Allocation::Heap
    }
}

/// Returns the bytes the process holds once its code and threads have been used: after a step of a
/// very small model and a GEMM large enough for the buffers of its kernel.
fn warm_process_bytes<B: TrainBackend>(device: &B::Device) -> u64 {
    let options = BenchOptions {
        name: String::new(),
        shape: DecoderConfig {
            family: &mistral::FAMILY,
            switches: Switches::default(),
            is_text_part: false,
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
    // If it fails, the run fails too and reports why.
    let _ = probe::<B>(&options, Duration::ZERO, device);
    let [x, weight] = [128, 768].map(|rows| Tensor::<B, 2>::ones([rows, 512], device));
    let _ = B::frozen_linear(x, weight.into());
    B::peak_memory_bytes(device).unwrap_or(0)
}

/// Returns about how many bytes a process holds that has read its data, where they cannot be
/// measured.
fn assumed_process_bytes() -> u64 {
    40 << 20
}

fn threads() -> usize {
    rayon::current_num_threads()
}
