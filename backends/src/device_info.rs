//! Describes a device: its name, class, memory, types and limits.

use burn::tensor::DType;

use crate::{BackendKind, TrainBackend};

/// A device of a backend.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// The backend that computes on it.
    pub backend: BackendKind,
    /// Its number among the backend's devices, from 0.
    pub index: usize,
    /// Its name, as the driver reports it.
    pub name: String,
    /// Its class.
    pub class: DeviceClass,
    /// Its memory, if the system reports it.
    pub memory: Option<DeviceMemory>,
    /// The types that a model's weights may have on it, as its driver reports; empty if it cannot compute.
    pub dtypes: Vec<DType>,
    /// The largest buffer, if there is a limit below the memory size.
    pub limits: Option<BufferLimits>,
    /// Whether the backend uses it by default.
    pub is_default: bool,
}

/// The class of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceClass {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A part of a GPU that is assigned to a virtual machine.
    Virtual,
    /// The CPU behind a graphics driver.
    Software,
    /// The CPU.
    Cpu,
    /// A device that its driver does not classify.
    Other,
}

impl DeviceClass {
    /// Returns the name of the class.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete GPU",
            Self::Integrated => "integrated GPU",
            Self::Virtual => "virtual GPU",
            Self::Software => "software GPU",
            Self::Cpu => "CPU",
            Self::Other => "other",
        }
    }
}

/// The memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// The size of the memory.
    pub total: u64,
    /// The memory that no process uses.
    pub free: u64,
}

/// The largest size of a buffer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferLimits {
    /// The largest part of a buffer that a kernel can access, and so the largest tensor.
    pub binding: u64,
    /// The largest whole buffer.
    pub buffer: u64,
}

/// How a backend allocates memory on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// On the heap of the process, one allocation per request.
    Heap,
    /// In pages, of which each request gets a slice (CubeCL).
    Pools {
        /// Bytes of the largest page, and so of the largest tensor.
        page: u64,
        /// Bytes that every slice is aligned to.
        alignment: u64,
    },
}

/// What multiplies matrices on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MatmulProvider {
    /// The backend itself; there is no alternative.
    Backend,
    /// The vendor's library, which passed its self-test; with its name and version.
    Library(String),
    /// The backend's own kernels although a vendor's library is supported; with the reason why it is not used.
    Fallback(String),
}

/// [`TrainBackend::pass_tokens`] of GPUs.
pub(crate) const PASS_TOKENS: usize = 8192;

/// [`TrainBackend::pass_tokens`] of the CPU.
pub(crate) const CPU_PASS_TOKENS: usize = 4096;

/// Returns the types of weights that `device` computes in. This starts the device.
#[cfg_attr(
    not(any(feature = "ndarray", feature = "cuda")),
    allow(dead_code, reason = "for backends, of which none is in the build")
)]
pub(crate) fn dtypes_of<B: TrainBackend>(device: &B::Device) -> Vec<DType> {
    let all = [DType::F32, DType::BF16, DType::F16];
    all.into_iter().filter(|dtype| B::computes_in(device, *dtype)).collect()
}
