//! What the kernels need from a GPU runtime and CubeCL does not provide.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

/// A CubeCL runtime that the kernels run on. Kernels are generic over it; only its implementations name a vendor.
pub(crate) trait GpuRuntime: CubeRuntime {
    /// Computes `left right` into `product` with the vendor's library and returns `true`; returns `false` if there is
    /// no library or it does not accept the operands.
    fn multiply_by_library(
        _left: &CubeTensor<Self>,
        _right: &CubeTensor<Self>,
        _product: &CubeTensor<Self>,
    ) -> bool {
        false
    }

    /// Returns whether matmul kernels are timed on `device` at first use so that the fastest one is kept.
    fn autotunes(_device: &Self::Device) -> bool {
        true
    }
}
