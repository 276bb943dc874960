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

    /// The name used on the command line and the Cargo feature that builds it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
            Self::NdArray => "ndarray",
        }
    }
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
