//! Which backends there are, which of them start here, and which one `auto` takes.

use std::fmt;
use std::str::FromStr;

/// A backend by name. All are always nameable; [`BackendKind::compiled`] says which are in this program.
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

    /// The one for consumer cards.
    pub fn consumer() -> Self {
        Self::Wgpu
    }

    /// Whether this program was built with the backend's feature.
    pub fn compiled(self) -> bool {
        match self {
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::NdArray => cfg!(feature = "ndarray"),
        }
    }

    /// The backends in this program, the preferred one first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kind| kind.compiled())
    }

    /// What `--backend auto` takes: the first that starts of the backends that have a GPU here, else ndarray. A
    /// software driver comes last: it computes on the CPU, slower than ndarray does.
    pub fn best() -> Option<Self> {
        best_of(Self::available(), Self::on_cpu, |kind| kind.start().is_ok())
    }

    /// Whether the backend would compute on the CPU here: ndarray, and wgpu where the only driver is a software one
    /// (such as Mesa's lavapipe). Nothing is started.
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

    /// As [`Self::start_device`], of the backend's default device.
    ///
    /// # Errors
    /// As [`Self::start_device`].
    pub fn start(self) -> Result<(), String> {
        self.start_device(None)
    }

    /// Starts a device by its index ([`crate::DeviceInfo`]), or the default one, and computes one addition on it. A GPU
    /// takes a second or so.
    ///
    /// # Errors
    /// Why it does not start, in words for the user. Never a panic, though the runtimes panic where a driver is absent.
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

    /// The name used on the command line and the Cargo feature that builds it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
            Self::NdArray => "ndarray",
        }
    }
}

/// The first that starts: GPUs in the order given, then CPUs, of which the last given is the fastest.
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

    /// The choice among everything, given which compute on the CPU and which start.
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

    #[test]
    fn the_cpu_always_starts() {
        assert_eq!(NdArray.start().is_ok(), NdArray.compiled());
        assert!(BackendKind::best().is_some() || !NdArray.compiled());
    }
}
