//! The backends by name, which of them run on this machine, and which one `auto` picks.

use std::fmt;
use std::str::FromStr;

use crate::{DeviceClass, DeviceInfo};

/// A backend by name. Every name is always valid; [`BackendKind::compiled`] says which backends are in this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// NVIDIA GPUs.
    Cuda,
    /// Any GPU with Vulkan, or with Metal on macOS.
    Wgpu,
    /// The CPU.
    NdArray,
}

impl BackendKind {
    /// Every backend, the preferred one first.
    pub const ALL: [Self; 3] = [Self::Cuda, Self::Wgpu, Self::NdArray];

    /// Returns the backend for consumer GPUs.
    pub fn consumer() -> Self {
        Self::Wgpu
    }

    /// Returns whether this program was built with the backend's feature.
    pub fn compiled(self) -> bool {
        match self {
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::NdArray => cfg!(feature = "ndarray"),
        }
    }

    /// Returns the backends in this program, the preferred one first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kind| kind.compiled())
    }

    /// Returns the backend that `--backend auto` picks: the first one that starts and has a GPU, else ndarray. A
    /// software driver comes last, because it computes on the CPU more slowly than ndarray does.
    pub fn best() -> Option<Self> {
        best_of(Self::available(), Self::on_cpu, |kind| kind.start().is_ok())
    }

    /// Returns the backend that [`Self::best`] would pick among `devices`, assuming that every one of them starts.
    /// Nothing is started.
    pub fn best_among(devices: &[DeviceInfo]) -> Option<Self> {
        let defaults = || devices.iter().filter(|device| device.is_default);
        let has_dtypes = |kind| defaults().any(|d| d.backend == kind && !d.dtypes.is_empty());
        let on_cpu = |kind| {
            let cpu = [DeviceClass::Software, DeviceClass::Cpu];
            defaults().any(|d| d.backend == kind && cpu.contains(&d.class))
        };
        best_of(Self::available(), on_cpu, has_dtypes)
    }

    /// Returns whether the backend would compute on the CPU here: ndarray, and wgpu if its only driver is a software
    /// one (such as Mesa's lavapipe). Nothing is started.
    pub fn on_cpu(self) -> bool {
        match self {
            Self::Cuda => false,
            #[cfg(feature = "wgpu")]
            Self::Wgpu => crate::wgpu::adapters() == crate::wgpu::Adapters::Software,
            #[cfg(not(feature = "wgpu"))]
            Self::Wgpu => false,
            Self::NdArray => true,
        }
    }

    /// Starts the backend's default device: see [`Self::start_device`].
    ///
    /// # Errors
    /// The same as those of [`Self::start_device`].
    pub fn start(self) -> Result<(), String> {
        self.start_device(None)
    }

    /// Starts the device with this index ([`crate::DeviceInfo`]), or the default one, and computes one addition on
    /// it. On a GPU this takes about a second; the CPU needs no start.
    ///
    /// # Errors
    /// Returns why the device does not start, worded for the user. Never panics, though the runtimes panic if a
    /// driver is missing.
    pub fn start_device(self, index: Option<usize>) -> Result<(), String> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => crate::cuda::start(index),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => crate::wgpu::start(index),
            #[cfg(feature = "ndarray")]
            Self::NdArray => Ok(()),
            #[allow(
                unreachable_patterns,
                reason = "reached where a backend is left out of the build"
            )]
            _ => {
                let _ = index;
                Err("is not in this program".to_string())
            }
        }
    }

    /// Returns the name on the command line, which is also that of the Cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
            Self::NdArray => "ndarray",
        }
    }
}

/// Returns the first backend that starts: GPUs in the given order, then CPUs in reverse, because the last one given
/// is the fastest.
fn best_of(
    kinds: impl Iterator<Item = BackendKind>,
    on_cpu: impl Fn(BackendKind) -> bool,
    starts: impl Fn(BackendKind) -> bool,
) -> Option<BackendKind> {
    let (cpus, gpus): (Vec<_>, Vec<_>) = kinds.partition(|kind| on_cpu(*kind));
    let order = gpus.into_iter().chain(cpus.into_iter().rev());
    order.into_iter().find(|kind| starts(*kind))
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("no backend `{name}`: choose auto, ndarray, wgpu or cuda"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BackendKind::{Cuda, NdArray, Wgpu};

    #[test]
    fn names_round_trip() {
        for kind in BackendKind::ALL {
            assert_eq!(kind.to_string().parse::<BackendKind>(), Ok(kind));
        }
        assert!("tpu".parse::<BackendKind>().is_err());
    }

    /// Returns the choice among all backends, given which ones compute on the CPU and which ones start.
    fn best(on_cpu: &[BackendKind], starting: &[BackendKind]) -> Option<BackendKind> {
        let all = BackendKind::ALL.into_iter();
        best_of(all, |k| on_cpu.contains(&k), |k| starting.contains(&k))
    }

    #[test]
    fn auto_prefers_gpus_then_ndarray_then_software_vulkan() {
        assert_eq!(best(&[NdArray], &[Cuda, Wgpu, NdArray]), Some(Cuda));
        assert_eq!(best(&[NdArray], &[Wgpu, NdArray]), Some(Wgpu));
        assert_eq!(best(&[NdArray], &[NdArray]), Some(NdArray));
        assert_eq!(best(&[Wgpu, NdArray], &[Wgpu, NdArray]), Some(NdArray));
        assert_eq!(best(&[Wgpu, NdArray], &[Wgpu]), Some(Wgpu));
        assert_eq!(best(&[NdArray], &[]), None);
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn the_best_backend_is_chosen_from_descriptions_alone() {
        let cpu = crate::devices(NdArray);
        assert_eq!(BackendKind::best_among(&cpu), Some(NdArray));
        assert_eq!(BackendKind::best_among(&[]), None);
        let device = |backend, class| DeviceInfo { backend, class, ..cpu[0].clone() };
        let with = |other: DeviceInfo| BackendKind::best_among(&[other, cpu[0].clone()]);
        assert_eq!(with(device(Wgpu, DeviceClass::Software)), Some(NdArray));
        if Wgpu.compiled() {
            let gpu = device(Wgpu, DeviceClass::Discrete);
            assert_eq!(with(gpu.clone()), Some(Wgpu));
            let unfit = DeviceInfo { dtypes: Vec::new(), ..gpu };
            assert_eq!(with(unfit), Some(NdArray));
        }
    }

    #[test]
    fn the_cpu_always_starts() {
        assert_eq!(NdArray.start().is_ok(), NdArray.compiled());
        assert!(BackendKind::best().is_some() || !NdArray.compiled());
    }
}
