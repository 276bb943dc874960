//! What wgpu and cuda share through CubeCL, the language their kernels are written in.

use cubecl::Runtime;

/// Bytes the runtime has taken from the device. Its pools hardly ever give pages back, so this is the peak.
pub(crate) fn reserved_bytes<R: Runtime>(device: &R::Device) -> Option<u64> {
    R::client(device)
        .memory_usage()
        .ok()
        .map(|usage| usage.bytes_reserved)
}
