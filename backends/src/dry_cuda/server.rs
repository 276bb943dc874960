//! CubeCL's server for the card: it translates kernels, manages memory and counts, and runs nothing.

use std::sync::Arc;

use cubecl::bytes::Bytes;
use cubecl::device::{Device, DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl::future::DynFut;
use cubecl::profile::ProfileDuration;
use cubecl::server::{
    Binding, ComputeServer, CopyDescriptor, CubeCount, ExecutionMode, KernelArguments,
    ProfileError, ProfilingToken, ServerCommunication, ServerError, ServerUtilities,
};
use cubecl::stream_id::StreamId;
use cubecl::{CubeTask, MemoryConfiguration, MemoryUsage};
use cubecl_runtime::allocator::PitchedMemoryLayoutPolicy;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::KernelMetadata;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, MemoryAllocationMode, MemoryManagement, MemoryManagementOptions,
};
use cubecl_runtime::storage::{ManagedResource, StorageHandle};
use cubecl_runtime::timestamp_profiler::TimestampProfiler;
use cubecl_runtime::validation::{validate_cube_dim, validate_units};

use super::card::{ALIGNMENT, Card, MAX_GRID};
use super::record::{KernelRecord, Record, Recorder, kernel_name};
use super::storage::DryStorage;
use super::{DryCompiler, DryDevice};

type Kernel = Box<dyn CubeTask<DryCompiler>>;

/// The server of one [`DryDevice`]. All threads share its memory, as they do on CUDA with a single stream.
#[derive(Debug)]
pub struct DryServer {
    card: Card,
    memory: MemoryManagement<DryStorage>,
    timestamps: TimestampProfiler,
    utilities: Arc<ServerUtilities<Self>>,
    recorder: Recorder,
}

impl DeviceService for DryServer {
    fn init(id: DeviceId) -> Self {
        let card = DryDevice::from_id(id).card();
        let logger = Arc::new(ServerLogger::default());
        let memory = MemoryManagement::from_configuration(
            DryStorage::new(card.memory),
            &card.memory_properties(),
            MemoryConfiguration::default(),
            Arc::clone(&logger),
            MemoryManagementOptions::new("Memory of a card that is not there"),
        );
        let layout = PitchedMemoryLayoutPolicy::new(ALIGNMENT);
        let utilities = ServerUtilities::new(card.device_properties(), logger, (), layout);
        Self {
            card,
            memory,
            timestamps: TimestampProfiler::default(),
            utilities: Arc::new(utilities),
            recorder: Recorder::default(),
        }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        Arc::clone(&self.utilities) as ServerUtilitiesHandle
    }
}

impl DryServer {
    /// Counts a matrix product that cuBLASLt would compute.
    pub(super) fn count_library_gemm(&mut self) {
        self.recorder.library_gemms += 1;
    }

    /// Returns the record and starts the next one.
    pub(super) fn take(&mut self) -> Record {
        let reserved = self.memory.memory_usage().bytes_reserved;
        self.recorder.take(reserved)
    }

    /// Finds the kernel or translates it, and checks all that CUDA would check.
    fn record_launch(
        &mut self,
        kernel: &Kernel,
        grid: (u32, u32, u32),
        mode: ExecutionMode,
    ) -> Result<(), String> {
        let mut id = kernel.id();
        id.mode(mode);
        let place = if let Some(place) = self.recorder.find(&id) {
            place
        } else {
            let properties = &self.utilities.properties;
            validate_cube_dim(properties, &id).map_err(|error| first_line(&error))?;
            validate_units(properties, &id).map_err(|error| first_line(&error))?;
            let record = self.translate(kernel, id.clone(), mode)?;
            self.recorder.insert(id, record)
        };
        self.recorder.launch(place, grid);
        let sizes = [(grid.0, MAX_GRID.0), (grid.1, MAX_GRID.1), (grid.2, MAX_GRID.2)];
        if sizes.into_iter().all(|(size, max)| (1..=max).contains(&size)) {
            Ok(())
        } else {
            Err(format!("a grid of {grid:?} blocks"))
        }
    }

    fn translate(
        &self,
        kernel: &Kernel,
        id: KernelId,
        mode: ExecutionMode,
    ) -> Result<KernelRecord, String> {
        let options = self.card.compilation_options();
        let compiled =
            kernel.compile(&mut DryCompiler::default(), &options, mode, kernel.address_type());
        let compiled = compiled.map_err(|error| first_line(&error))?;
        let shared_bytes = compiled.repr.as_ref().map_or(0, |repr| repr.shared_memory_size());
        let max = self.card.max_shared_bytes;
        if shared_bytes > max {
            return Err(format!("{shared_bytes} bytes of shared memory, of {max}"));
        }
        let block = compiled.cube_dim;
        Ok(KernelRecord {
            id,
            name: kernel_name(compiled.debug_name.unwrap_or(&compiled.entrypoint_name)),
            entry_point: compiled.entrypoint_name,
            source: compiled.source,
            block: (block.x, block.y, block.z),
            shared_bytes,
            launches: 0,
            max_grid: (0, 0, 0),
        })
    }

    /// Takes memory for the shapes and strides that do not fit into the kernel's parameters; it is free again after the
    /// launch.
    fn reserve_metadata(&mut self, arguments: &KernelArguments) -> Result<(), String> {
        let info = &arguments.info;
        let count = info.data.len().saturating_sub(info.dynamic_metadata_offset);
        if count > 0 {
            let reserved = self.memory.reserve((count * size_of::<u64>()) as u64);
            drop(reserved.map_err(|error| first_line(&error))?);
        }
        Ok(())
    }
}

/// Returns the first line of an error: a backtrace follows.
fn first_line(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let lines: Vec<_> = text.lines().take(4).map(str::trim).collect();
    lines.join(" ")
}

impl ServerCommunication for DryServer {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for DryServer {
    type Kernel = Kernel;
    type Info = ();
    type MemoryLayoutPolicy = PitchedMemoryLayoutPolicy;
    type Storage = DryStorage;

    fn logger(&self) -> Arc<ServerLogger> {
        Arc::clone(&self.utilities.logger)
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        Arc::clone(&self.utilities)
    }

    fn initialize_memory(&mut self, memory: ManagedMemoryHandle, size: u64, _stream: StreamId) {
        let bound = self.memory.reserve(size);
        let bound = bound.and_then(|reserved| self.memory.bind(reserved, memory, 0));
        if let Err(error) = bound {
            self.recorder.errors.push(format!("{size} bytes of memory: {}", first_line(&error)));
        }
    }

    /// Returns zeros.
    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _stream: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let zeros = |copy: CopyDescriptor| {
            let size = copy.shape.iter().product::<usize>() * copy.elem_size;
            Bytes::from_bytes_vec(vec![0; size])
        };
        let zeros = descriptors.into_iter().map(zeros).collect();
        Box::pin(async move { Ok(zeros) })
    }

    fn write(&mut self, _descriptors: Vec<(CopyDescriptor, Bytes)>, _stream: StreamId) {}

    fn sync(&mut self, _stream: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn get_resource(
        &mut self,
        binding: Binding,
        _stream: StreamId,
    ) -> Result<ManagedResource<StorageHandle>, ServerError> {
        let (start, end) = (binding.offset_start, binding.offset_end);
        let resource = self.memory.get_resource(binding.memory.clone(), start, end)?;
        Ok(ManagedResource::new(binding.memory, resource))
    }

    #[allow(unsafe_code, reason = "the trait's signature")]
    unsafe fn launch(
        &mut self,
        kernel: Kernel,
        count: CubeCount,
        arguments: KernelArguments,
        mode: ExecutionMode,
        _stream: StreamId,
    ) {
        let grid = match count {
            CubeCount::Static(x, y, z) => (x, y, z),
            // On CUDA the count is read back from the device; here it would be zero.
            CubeCount::Dynamic(_) => (1, 1, 1),
        };
        let recorded = self.reserve_metadata(&arguments);
        let recorded = recorded.and_then(|()| self.record_launch(&kernel, grid, mode));
        if let Err(error) = recorded {
            self.recorder.errors.push(format!("{}: {error}", kernel_name(kernel.name())));
        }
    }

    fn flush(&mut self, _stream: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_usage(&mut self, _stream: StreamId) -> Result<MemoryUsage, ServerError> {
        Ok(self.memory.memory_usage())
    }

    fn memory_cleanup(&mut self, _stream: StreamId) {
        self.memory.cleanup(true);
    }

    fn start_profile(&mut self, _stream: StreamId) -> Result<ProfilingToken, ServerError> {
        Ok(self.timestamps.start())
    }

    fn end_profile(
        &mut self,
        _stream: StreamId,
        token: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        self.timestamps.stop(token)
    }

    fn allocation_mode(&mut self, mode: MemoryAllocationMode, _stream: StreamId) {
        self.memory.mode(mode);
    }
}
