//! Every device that the backends of this program could compute on, by index and by name.

use burn::tensor::DType;

use crate::{BackendKind, TrainBackend};

/// A device of a backend.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// The backend that computes on it.
    pub backend: BackendKind,
    /// Its number among the backend's devices, from 0.
    pub index: usize,
    /// What its driver calls it.
    pub name: String,
    /// What it is.
    pub class: DeviceClass,
    /// Its memory, where the system tells.
    pub memory: Option<DeviceMemory>,
    /// Types that a model's weights may be held in on it; empty where it does not start.
    pub dtypes: Vec<DType>,
    /// How large one buffer may be, where there is a limit below the memory's.
    pub limits: Option<BufferLimits>,
    /// Whether the backend takes it unless another is asked for.
    pub is_default: bool,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceClass {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A part of a GPU, lent to a virtual machine.
    Virtual,
    /// The CPU, behind a graphics driver.
    Software,
    /// The CPU.
    Cpu,
    /// Something its driver has no word for.
    Other,
}

impl DeviceClass {
    /// The word for it.
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

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All of it.
    pub total: u64,
    /// What nobody holds.
    pub free: u64,
}

/// Most bytes that a buffer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferLimits {
    /// What a kernel sees of it, and so a tensor.
    pub binding: u64,
    /// The whole buffer.
    pub buffer: u64,
}

/// How a backend takes memory from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// From the heap of the process, request by request.
    Heap,
    /// In pages that requests are slices of (CubeCL).
    Pools {
        /// Bytes of the largest page, and so of a tensor.
        page: u64,
        /// Every slice begins at a multiple of this.
        alignment: u64,
    },
}

/// What multiplies matrices on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProductsBy {
    /// The backend itself: there is nothing to choose.
    Backend,
    /// A library of the device's maker, which passed its self-test: its name and version.
    Library(String),
    /// The backend's own kernels, though there is such a library: why it is not used.
    KernelsFor(String),
}

/// What is known of a backend's devices without starting one: for plans about a device that is not here.
#[derive(Clone, Debug, PartialEq)]
pub struct Assumed {
    /// Types weights may be held in.
    pub dtypes: Vec<DType>,
    /// How memory is taken.
    pub allocation: Allocation,
    /// Tokens that are computed together unless a run says otherwise.
    pub pass_tokens: usize,
    /// Whether tensors lie in the memory of the process.
    pub in_process: bool,
}

/// What to assume of a device of `kind` with `memory` bytes: for wgpu a card of today, which computes in f16 and takes up
/// to 2 GiB in one piece.
pub fn assumed(kind: BackendKind, memory: u64) -> Assumed {
    let (f32, bf16, f16) = (DType::F32, DType::BF16, DType::F16);
    let (dtypes, allocation) = match kind {
        BackendKind::Cuda => {
            let page = memory / 4;
            (vec![f32, bf16, f16], Allocation::Pools { page, alignment: 512 })
        }
        BackendKind::Wgpu => {
            let page = (2 << 30) - 256;
            (vec![f32, f16], Allocation::Pools { page, alignment: 256 })
        }
        BackendKind::NdArray => (vec![f32], Allocation::Heap),
    };
    Assumed {
        dtypes,
        allocation,
        pass_tokens: match kind {
            BackendKind::NdArray => CPU_PASS_TOKENS,
            _ => PASS_TOKENS,
        },
        in_process: kind == BackendKind::NdArray,
    }
}

/// [`TrainBackend::pass_tokens`] of GPUs.
pub(crate) const PASS_TOKENS: usize = 8192;

/// [`TrainBackend::pass_tokens`] of the CPU.
pub(crate) const CPU_PASS_TOKENS: usize = 4096;

/// The devices of a backend; none where it is not in this program or finds no driver. A GPU takes a second or so, because
/// it is started to see what types it computes in.
pub fn devices(kind: BackendKind) -> Vec<DeviceInfo> {
    match kind {
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => crate::cuda::devices(),
        #[cfg(feature = "wgpu")]
        BackendKind::Wgpu => crate::wgpu::devices(),
        #[cfg(feature = "ndarray")]
        BackendKind::NdArray => crate::ndarray::devices(),
        #[allow(unreachable_patterns, reason = "reached where a backend is left out of the build")]
        _ => Vec::new(),
    }
}

/// Names of a backend's devices in the order of their indices, without starting any.
pub(crate) fn names(kind: BackendKind) -> Vec<String> {
    match kind {
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => crate::cuda::names(),
        #[cfg(feature = "wgpu")]
        BackendKind::Wgpu => crate::wgpu::names(),
        #[cfg(feature = "ndarray")]
        BackendKind::NdArray => vec![crate::ndarray::name()],
        #[allow(unreachable_patterns, reason = "reached where a backend is left out of the build")]
        _ => Vec::new(),
    }
}

/// The device called `wanted`, a number or a part of its name in any case, among those of `kinds`: of the first backend
/// that has such a one.
///
/// # Errors
/// None is called so, or several of one backend are; in words for the user, with the devices there are.
pub fn find_device(
    kinds: impl IntoIterator<Item = BackendKind>,
    wanted: &str,
) -> Result<(BackendKind, usize), String> {
    find(kinds.into_iter().map(|kind| (kind, names(kind))), wanted)
}

fn find(
    lists: impl Iterator<Item = (BackendKind, Vec<String>)>,
    wanted: &str,
) -> Result<(BackendKind, usize), String> {
    let mut seen = Vec::new();
    for (kind, names) in lists {
        let found = matching(&names, wanted);
        match found.as_slice() {
            [index] => return Ok((kind, *index)),
            [] => seen.extend(shown(kind, &names, 0..names.len())),
            _ => {
                let several = shown(kind, &names, found.iter().copied()).join(", ");
                return Err(format!("`{wanted}` may be any of {several}"));
            }
        }
    }
    match seen.is_empty() {
        true => Err("there is no device".to_string()),
        false => Err(format!("no `{wanted}` among {}", seen.join(", "))),
    }
}

/// Indices of the names meant: a number is an index; a whole name wins over a part of several.
fn matching(names: &[String], wanted: &str) -> Vec<usize> {
    if let Ok(index) = wanted.parse::<usize>() {
        return (index < names.len()).then_some(index).into_iter().collect();
    }
    let wanted = wanted.to_lowercase();
    let lower = names.iter().map(|name| name.to_lowercase());
    let parts: Vec<(usize, String)> = lower
        .enumerate()
        .filter(|(_, name)| !wanted.is_empty() && name.contains(&wanted))
        .collect();
    let whole: Vec<usize> =
        parts.iter().filter(|(_, name)| *name == wanted).map(|(index, _)| *index).collect();
    match whole.is_empty() {
        true => parts.into_iter().map(|(index, _)| index).collect(),
        false => whole,
    }
}

fn shown(kind: BackendKind, names: &[String], indices: impl Iterator<Item = usize>) -> Vec<String> {
    indices.map(|index| format!("{kind} {index} ({})", names[index])).collect()
}

/// Of the types weights come in, those that `device` computes in.
#[cfg_attr(
    not(any(feature = "ndarray", feature = "wgpu", feature = "cuda")),
    allow(dead_code, reason = "for backends, of which none is in the build")
)]
pub(crate) fn dtypes_of<B: TrainBackend>(device: &B::Device) -> Vec<DType> {
    let all = [DType::F32, DType::BF16, DType::F16];
    all.into_iter().filter(|dtype| B::computes_in(device, *dtype)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use BackendKind::{Cuda, NdArray, Wgpu};

    fn found(wanted: &str) -> Result<(BackendKind, usize), String> {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let lists = [
            (Cuda, names(&["NVIDIA GeForce RTX 4090"])),
            (
                Wgpu,
                names(&[
                    "NVIDIA GeForce RTX 4090",
                    "AMD Radeon RX 7800",
                    "AMD Radeon RX 7800 XT",
                    "llvmpipe (LLVM 20)",
                ]),
            ),
            (NdArray, names(&["EPYC"])),
        ];
        find(lists.into_iter(), wanted)
    }

    #[test]
    fn a_device_is_found_by_number_or_by_a_part_of_its_name() {
        assert_eq!(found("0"), Ok((Cuda, 0)));
        assert_eq!(found("2"), Ok((Wgpu, 2)));
        assert_eq!(found("rtx 4090"), Ok((Cuda, 0)));
        assert_eq!(found("LLVM"), Ok((Wgpu, 3)));
        assert_eq!(found("epyc"), Ok((NdArray, 0)));
        // The whole name of one is a part of another's.
        assert_eq!(found("amd radeon rx 7800"), Ok((Wgpu, 1)));
    }

    #[test]
    fn what_is_unclear_or_absent_lists_the_devices() {
        let unclear = found("radeon").unwrap_err();
        assert_eq!(
            unclear,
            "`radeon` may be any of wgpu 1 (AMD Radeon RX 7800), wgpu 2 (AMD Radeon RX 7800 XT)"
        );
        for wanted in ["4", "arc", ""] {
            let absent = found(wanted).unwrap_err();
            assert!(absent.contains("cuda 0 (NVIDIA"), "{absent}");
            assert!(absent.ends_with("ndarray 0 (EPYC)"), "{absent}");
        }
        assert_eq!(find(std::iter::empty(), "0").unwrap_err(), "there is no device");
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn the_cpu_is_listed_with_its_memory() {
        let [cpu] = &devices(NdArray)[..] else { unreachable!("one CPU") };
        assert!(cpu.is_default && cpu.class == DeviceClass::Cpu && !cpu.name.is_empty());
        assert_eq!(cpu.dtypes, [DType::F32]);
        if cfg!(target_os = "linux") {
            let memory = cpu.memory.unwrap();
            assert!(memory.free > 0 && memory.free <= memory.total);
        }
    }
}
