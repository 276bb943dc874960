//! Records of the kernels that a card would have run.

use std::collections::HashMap;

use cubecl_runtime::id::KernelId;

/// A kernel in CUDA C++ and how often it was launched.
#[derive(Clone, Debug)]
pub struct KernelRecord {
    /// The id by which CubeCL tells kernels apart. (The sources of two translations of one kernel may differ in the order of lines
    /// and in the numbers of variables.)
    pub id: KernelId,
    /// Where the kernel is written: `rms_norm::forward`, or with the crate's name if it is not ours.
    pub name: String,
    /// The name of the function in [`Self::source`].
    pub entry_point: String,
    /// The program for NVRTC.
    pub source: String,
    /// Threads of a block.
    pub block: (u32, u32, u32),
    /// Bytes of shared memory of a block.
    pub shared_bytes: usize,
    /// Number of launches.
    pub launches: usize,
    /// The largest grid along each dimension.
    pub max_grid: (u32, u32, u32),
}

impl KernelRecord {
    /// Returns the number of tensors that the function reads and writes.
    ///
    /// # Panics
    /// If the source does not define the function as CubeCL writes it.
    pub fn buffers(&self) -> usize {
        let Self { entry_point, source, .. } = self;
        let (_, rest) = source
            .split_once(&format!("{entry_point} ("))
            .unwrap_or_else(|| panic!("no {entry_point} in {source}"));
        let arguments = rest.split(')').next().unwrap_or_default();
        arguments.matches("buffer_").count()
    }
}

/// Kernels, matrix products and errors since the last [`take`](super::DryDevice::take).
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Every kernel, in the order of its first launch.
    pub kernels: Vec<KernelRecord>,
    /// Number of products that were left to cuBLASLt.
    pub library_gemms: usize,
    /// The launches and allocations that a card would have refused.
    pub errors: Vec<String>,
    /// Bytes of the pages of all memory pools, which never shrink.
    pub reserved_bytes: u64,
}

impl Record {
    /// Returns the number of launches, those of cuBLASLt included (at least one per product).
    pub fn launches(&self) -> usize {
        self.kernels.iter().map(|kernel| kernel.launches).sum::<usize>() + self.library_gemms
    }
}

/// The kernels that were translated so far: translation is done once, and the counts start again at zero.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    index: HashMap<KernelId, usize>,
    kernels: Vec<KernelRecord>,
    order: Vec<usize>,
    pub(super) library_gemms: usize,
    pub(super) errors: Vec<String>,
}

impl Recorder {
    /// Returns the place of a kernel that was translated before.
    pub(super) fn find(&self, id: &KernelId) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// Adds a kernel that was not launched yet, and returns its place.
    pub(super) fn insert(&mut self, id: KernelId, kernel: KernelRecord) -> usize {
        self.kernels.push(kernel);
        self.index.insert(id, self.kernels.len() - 1);
        self.kernels.len() - 1
    }

    /// Returns the kernel at a place.
    pub(super) fn kernel(&self, place: usize) -> &KernelRecord {
        &self.kernels[place]
    }

    /// Counts a launch.
    pub(super) fn launch(&mut self, place: usize, grid: (u32, u32, u32)) {
        let kernel = &mut self.kernels[place];
        if kernel.launches == 0 {
            self.order.push(place);
        }
        kernel.launches += 1;
        let max = kernel.max_grid;
        kernel.max_grid = (max.0.max(grid.0), max.1.max(grid.1), max.2.max(grid.2));
    }

    /// Returns the record and sets the counts to zero.
    pub(super) fn take(&mut self, reserved_bytes: u64) -> Record {
        let order = std::mem::take(&mut self.order);
        let kernels = order.into_iter().map(|place| {
            let kernel = &mut self.kernels[place];
            let record = kernel.clone();
            (kernel.launches, kernel.max_grid) = (0, (0, 0, 0));
            record
        });
        Record {
            kernels: kernels.collect(),
            library_gemms: std::mem::take(&mut self.library_gemms),
            errors: std::mem::take(&mut self.errors),
            reserved_bytes,
        }
    }
}

/// Shortens the type of a kernel, such as `arithmo_backends::cubecl::rope::rotate::Rotate<f32, DryRuntime>`, to the
/// path of its function.
pub(super) fn kernel_name(type_name: &str) -> String {
    let path = type_name.split('<').next().unwrap_or_default();
    let ours = path.strip_prefix("arithmo_backends::cubecl::");
    let mut parts: Vec<_> = ours.unwrap_or(path).split("::").collect();
    // The macro `cube` makes a type in a module of the function's name.
    if parts.len() > 1 {
        parts.pop();
    }
    match (ours, parts.as_slice()) {
        (None, [first, .., last]) => format!("{first}::{last}"),
        _ => parts.join("::"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_by_their_functions() {
        let ours = "arithmo_backends::cubecl::rms_norm::forward::Forward<dry::DryRuntime>";
        assert_eq!(kernel_name(ours), "rms_norm::forward");
        let other = "burn_cubecl::kernel::cast::base::cast_element::CastElement<R>";
        assert_eq!(kernel_name(other), "burn_cubecl::cast_element");
    }
}
