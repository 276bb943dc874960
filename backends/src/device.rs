//! Which backends there are, and what each may compute in.

use std::fmt;
use std::str::FromStr;

/// A backend by name. All are always nameable; [`BackendKind::compiled`] says which are in this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// NVIDIA GPUs.
    Cuda,
    /// Any GPU with Vulkan, Metal or DirectX 12.
    Wgpu,
    /// The CPU.
    NdArray,
}

impl BackendKind {
    /// Every backend, the preferred one first.
    pub const ALL: [Self; 3] = [Self::Cuda, Self::Wgpu, Self::NdArray];

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

    /// Whether the backend computes one addition on its default device. Starting a GPU takes a second or so.
    pub fn starts(self) -> bool {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => computes::<crate::cuda::Gpu>(),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => computes::<crate::wgpu::Gpu>(),
            #[cfg(feature = "ndarray")]
            Self::NdArray => true,
            #[allow(
                unreachable_patterns,
                reason = "reached where a backend is left out of the build"
            )]
            _ => false,
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

/// Drivers that are absent make the runtimes panic; here that only means no.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn computes<B: burn::tensor::backend::Backend>() -> bool {
    use burn::tensor::Tensor;
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let sum = std::panic::catch_unwind(|| {
        let one = Tensor::<B, 1>::ones([1], &B::Device::default());
        (one.clone() + one)
            .try_into_data()
            .ok()
            .and_then(|data| data.iter::<f32>().next())
    });
    std::panic::set_hook(hook);
    matches!(sum, Ok(Some(2.0)))
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

    #[test]
    fn names_round_trip() {
        for kind in BackendKind::ALL {
            assert_eq!(kind.to_string().parse::<BackendKind>(), Ok(kind));
        }
        assert!("tpu".parse::<BackendKind>().is_err());
    }
}
