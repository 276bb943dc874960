//! CubeCL's server for the card: it translates kernels, manages memory and counts. It executes on the CPU if the device says so.

use std::collections::HashMap;
use std::ffi::c_void;
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
use cubecl::zspace::striding::has_pitched_row_major_strides;
use cubecl::{CubeTask, MemoryConfiguration, MemoryUsage};
use cubecl_runtime::allocator::PitchedMemoryLayoutPolicy;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::KernelMetadata;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, MemoryAllocationMode, MemoryManagement, MemoryManagementOptions,
};
use cubecl_runtime::storage::ManagedResource;
use cubecl_runtime::timestamp_profiler::TimestampProfiler;
use cubecl_runtime::validation::{validate_cube_dim, validate_units};

use super::card::{ALIGNMENT, Card, MAX_GRID};
use super::emulator::CompiledKernel;
use super::product::{Product, multiply};
use super::record::{KernelRecord, Record, Recorder, kernel_name};
use super::storage::{DryStorage, TensorBytes};
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
    /// The kernels that were compiled for the CPU, by their places in the recorder; none if nothing is executed.
    compiled: Option<HashMap<usize, CompiledKernel>>,
}

impl DeviceService for DryServer {
    fn init(id: DeviceId) -> Self {
        let device = DryDevice::from_id(id);
        let card = device.card();
        let logger = Arc::new(ServerLogger::default());
        let memory = MemoryManagement::from_configuration(
            DryStorage::new(card.memory, device.executes),
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
            compiled: device.executes.then(HashMap::new),
        }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        Arc::clone(&self.utilities) as ServerUtilitiesHandle
    }
}

#[allow(unsafe_code, reason = "reads, writes and runs kernels in the emulated card's memory")]
impl DryServer {
    /// Counts a matrix product that cuBLASLt would compute, and computes it where kernels are executed.
    pub(super) fn multiply(&mut self, product: Product<Binding>) {
        self.recorder.library_gemms += 1;
        if self.compiled.is_none() {
            return;
        }
        match product.at(|binding| self.bytes(binding)) {
            Ok(product) => multiply(&product),
            Err(error) => self.recorder.errors.push(error),
        }
    }

    /// Returns where a tensor's bytes are.
    fn bytes(&mut self, binding: &Binding) -> Result<TensorBytes, String> {
        let (start, end) = (binding.offset_start, binding.offset_end);
        let bytes = self.memory.get_resource(binding.memory.clone(), start, end);
        bytes.map_err(|error| first_line(&error))
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
    ) -> Result<usize, String> {
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
            Ok(place)
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

    /// Runs a kernel on the CPU, compiling it at its first launch.
    fn execute(
        &mut self,
        place: usize,
        grid: (u32, u32, u32),
        arguments: &KernelArguments,
    ) -> Result<(), String> {
        if self.compiled.is_none() {
            return Ok(());
        }
        if !arguments.tensor_maps.is_empty() {
            return Err("copies by tensor maps are not emulated".to_string());
        }
        let buffers = arguments.buffers.iter().map(|buffer| Ok(self.bytes(buffer)?.address));
        let mut addresses = buffers.collect::<Result<Vec<usize>, String>>()?;
        let info = &arguments.info;
        if let Some(dynamic) = info.data.get(info.dynamic_metadata_offset..)
            && !dynamic.is_empty()
        {
            addresses.push(dynamic.as_ptr() as usize);
        }
        let pointers = addresses.iter_mut().map(|address| std::ptr::from_mut(address).cast());
        let mut pointers: Vec<*mut c_void> = pointers.collect();
        pointers.push(info.data.as_ptr().cast_mut().cast());
        let kernels = self.compiled.get_or_insert_default();
        let kernel = match kernels.get(&place) {
            Some(kernel) => *kernel,
            None => {
                let kernel = CompiledKernel::new(self.recorder.kernel(place))?;
                *kernels.entry(place).or_insert(kernel)
            }
        };
        // SAFETY: CubeCL gives a card the same arguments, and every buffer is in memory of this server.
        unsafe { kernel.run(grid, &mut pointers) }
    }

    /// Copies values between the host and a tensor, row by row: a card's rows are padded.
    fn copy(
        &mut self,
        tensor: &CopyDescriptor,
        host: *mut u8,
        to_host: bool,
    ) -> Result<(), String> {
        let bytes = self.bytes(&tensor.handle)?;
        let (shape, strides) = (tensor.shape.as_slice(), &tensor.strides[..]);
        if !has_pitched_row_major_strides(&tensor.shape, &tensor.strides) {
            return Err(format!("a copy of {shape:?} with strides {strides:?}"));
        }
        let width = shape.last().copied().unwrap_or(1) * tensor.elem_size;
        let rows = shape.iter().rev().skip(1).product::<usize>();
        let pitch =
            if shape.len() < 2 { width } else { strides[shape.len() - 2] * tensor.elem_size };
        for row in 0..rows {
            assert!(row * pitch + width <= bytes.size, "row {row} of {shape:?}: {bytes:?}");
            let device = (bytes.address + row * pitch) as *mut u8;
            // SAFETY: the row is in the tensor's memory, and the caller's memory holds all rows.
            unsafe {
                let host = host.add(row * width);
                if to_host {
                    device.copy_to_nonoverlapping(host, width);
                } else {
                    host.copy_to_nonoverlapping(device, width);
                }
            }
        }
        Ok(())
    }

    /// Fills new memory with ones, which are NaN in every floating-point type: what is read before it is written is seen.
    fn poison(&mut self, memory: ManagedMemoryHandle) -> Result<(), String> {
        if self.compiled.is_some() {
            let bytes = self.memory.get_resource(memory.binding(), None, None);
            let bytes = bytes.map_err(|error| first_line(&error))?;
            // SAFETY: the memory belongs to the new tensor alone.
            unsafe { (bytes.address as *mut u8).write_bytes(u8::MAX, bytes.size) };
        }
        Ok(())
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
        let reserved = self.memory.reserve(size);
        let bound = reserved.and_then(|reserved| self.memory.bind(reserved, memory.clone(), 0));
        let bound = bound.map_err(|error| first_line(&error));
        if let Err(error) = bound.and_then(|()| self.poison(memory)) {
            self.recorder.errors.push(format!("{size} bytes of memory: {error}"));
        }
    }

    /// Returns zeros if nothing is executed.
    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _stream: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let read = descriptors.into_iter().map(|tensor| {
            let size = tensor.shape.iter().product::<usize>() * tensor.elem_size;
            let mut values = vec![0; size];
            if self.compiled.is_some()
                && let Err(error) = self.copy(&tensor, values.as_mut_ptr(), true)
            {
                self.recorder.errors.push(error);
            }
            Bytes::from_bytes_vec(values)
        });
        let read = read.collect();
        Box::pin(async move { Ok(read) })
    }

    fn write(&mut self, descriptors: Vec<(CopyDescriptor, Bytes)>, _stream: StreamId) {
        for (tensor, mut values) in descriptors {
            if self.compiled.is_some()
                && let Err(error) = self.copy(&tensor, values.as_mut_ptr(), false)
            {
                self.recorder.errors.push(error);
            }
        }
    }

    fn sync(&mut self, _stream: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn get_resource(
        &mut self,
        binding: Binding,
        _stream: StreamId,
    ) -> Result<ManagedResource<TensorBytes>, ServerError> {
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
            // On CUDA the count is read back from the device. No kernel of this project is launched so.
            CubeCount::Dynamic(_) => (1, 1, 1),
        };
        let recorded = self.reserve_metadata(&arguments);
        let recorded = recorded.and_then(|()| self.record_launch(&kernel, grid, mode));
        let executed = recorded.and_then(|place| self.execute(place, grid, &arguments));
        if let Err(error) = executed {
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
