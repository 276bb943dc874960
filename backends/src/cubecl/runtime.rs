//! What the kernels need from a GPU runtime and CubeCL does not provide.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

/// A GEMM, `product = factor left right + addend`. Each matrix may be a range of a wider matrix's columns, and the addend may be
/// the product itself.
#[derive(Debug)]
pub(crate) struct Gemm<'a, R: CubeRuntime> {
    pub(crate) left: &'a CubeTensor<R>,
    pub(crate) right: &'a CubeTensor<R>,
    pub(crate) factor: f32,
    pub(crate) addend: Option<&'a CubeTensor<R>>,
    pub(crate) product: &'a CubeTensor<R>,
}

/// A CubeCL runtime that the kernels run on. Kernels are generic over it; only its implementations name a vendor.
pub(crate) trait GpuRuntime: CubeRuntime {
    /// Returns whether a vendor library multiplies matrices on the device, faster than Burn's kernels even with their
    /// fusion.
    fn has_library(_device: &Self::Device) -> bool {
        false
    }

    /// Computes a GEMM with the vendor's library and returns `true`; returns `false`, and leaves the product as it is, if
    /// there is no library or it does not accept the operands.
    fn multiply_by_library(_gemm: &Gemm<'_, Self>) -> bool {
        false
    }

    /// Returns whether matmul kernels are timed on `device` at first use so that the fastest one is kept.
    fn autotunes(_device: &Self::Device) -> bool {
        true
    }
}
