//! The devices that the backends of this program could compute on, by index and by name.

use burn::tensor::DType;

use crate::device_info::{CPU_PASS_TOKENS, PASS_TOKENS};
use crate::{Allocation, BackendKind, DeviceInfo};

/// The assumed properties of a device that is not in this machine, so that a run on it can be planned.
#[derive(Clone, Debug, PartialEq)]
pub struct Assumed {
    /// The types that weights may have.
    pub dtypes: Vec<DType>,
    /// How memory is allocated.
    pub allocation: Allocation,
    /// The default number of tokens per pass: see [`pass_tokens`](crate::TrainBackend::pass_tokens).
    pub pass_tokens: usize,
    /// Whether tensors are in the memory of the process.
    pub in_process: bool,
}

/// Returns the properties to assume of a device of `kind` with `memory` bytes. For wgpu this is a current GPU, which
/// computes in f16 and allows buffers of up to 2 GiB.
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

/// Returns the devices of a backend as their drivers describe them. The list is empty if the backend is not in this
/// program or finds no driver. Nothing is computed.
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

/// Returns the names of a backend's devices in the order of their indices, without starting any.
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

/// Finds the device called `wanted` (its index, or a part of its name in any case) among the devices of `kinds`, and
/// returns its backend and index. The first backend with a match wins.
///
/// # Errors
/// Returns a message for the user that lists the devices, if no device matches or several of one backend do.
pub fn find_device(
    kinds: impl IntoIterator<Item = BackendKind>,
    wanted: &str,
) -> Result<(BackendKind, usize), String> {
    find(kinds.into_iter().map(|kind| (kind, names(kind))), wanted)
}

/// Finds `wanted` among the device names of each backend: see [`find_device`].
fn find(
    lists: impl Iterator<Item = (BackendKind, Vec<String>)>,
    wanted: &str,
) -> Result<(BackendKind, usize), String> {
    let mut all = Vec::new();
    for (kind, names) in lists {
        let found = matching(&names, wanted);
        match found.as_slice() {
            [index] => return Ok((kind, *index)),
            [] => all.extend(format_devices(kind, &names, 0..names.len())),
            _ => {
                let matches = format_devices(kind, &names, found.iter().copied()).join(", ");
                return Err(format!("`{wanted}` may be any of {matches}"));
            }
        }
    }
    if all.is_empty() {
        Err("there is no device".to_string())
    } else {
        Err(format!("no device `{wanted}` among {}", all.join(", ")))
    }
}

/// Returns the indices of the names that `wanted` matches. A number is an index; an exact name wins over names that
/// only contain it.
fn matching(names: &[String], wanted: &str) -> Vec<usize> {
    if let Ok(index) = wanted.parse::<usize>() {
        return (index < names.len()).then_some(index).into_iter().collect();
    }
    let wanted = wanted.to_lowercase();
    let lowercase = names.iter().map(|name| name.to_lowercase());
    let partial: Vec<(usize, String)> = lowercase
        .enumerate()
        .filter(|(_, name)| !wanted.is_empty() && name.contains(&wanted))
        .collect();
    let exact: Vec<usize> =
        partial.iter().filter(|(_, name)| *name == wanted).map(|(index, _)| *index).collect();
    if exact.is_empty() { partial.into_iter().map(|(index, _)| index).collect() } else { exact }
}

/// Formats some devices as `backend index (name)`.
fn format_devices(
    kind: BackendKind,
    names: &[String],
    indices: impl Iterator<Item = usize>,
) -> Vec<String> {
    indices.map(|index| format!("{kind} {index} ({})", names[index])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceClass;
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
        // This name is also a part of another device's name.
        assert_eq!(found("amd radeon rx 7800"), Ok((Wgpu, 1)));
    }

    #[test]
    fn ambiguous_and_missing_names_list_the_devices() {
        let ambiguous = found("radeon").unwrap_err();
        assert_eq!(
            ambiguous,
            "`radeon` may be any of wgpu 1 (AMD Radeon RX 7800), wgpu 2 (AMD Radeon RX 7800 XT)"
        );
        for wanted in ["4", "arc", ""] {
            let missing = found(wanted).unwrap_err();
            assert!(missing.contains("cuda 0 (NVIDIA"), "{missing}");
            assert!(missing.ends_with("ndarray 0 (EPYC)"), "{missing}");
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
