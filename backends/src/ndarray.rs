//! The CPU backend, for correctness and small models.

use burn_ndarray::{
    FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray,
};

use crate::TrainBackend;

/// Training on the CPU in f32.
pub type Cpu = NdArray<f32>;

impl<E: FloatNdArrayElement, I: IntNdArrayElement, Q: QuantElement> TrainBackend
    for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>>,
    NdArrayTensor: From<SharedArray<I>>,
{
    fn peak_memory_bytes(_device: &Self::Device) -> Option<u64> {
        peak_resident_bytes()
    }
}

/// The largest resident set of this process so far (`VmHWM` on Linux).
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_covers_what_was_touched() {
        let block = vec![1u8; 64 << 20];
        assert!(peak_resident_bytes() >= Some(block.len() as u64));
    }
}
