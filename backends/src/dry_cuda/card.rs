//! The NVIDIA cards that [`DryCuda`](super::DryCuda) stands for, and their properties as CubeCL would read them from the
//! driver.

use cubecl::ir::features::{AtomicUsage, Plane, Tma, TypeUsage};
use cubecl::ir::{
    BarrierLevel, DeviceProperties, ElemType, FloatKind, HardwareProperties,
    MemoryDeviceProperties, OpaqueType, SemanticType, StorageType, Type, VectorSize,
};
use cubecl::profile::TimingMethod;
use cubecl_cpp::cuda::{arch::CudaArchitecture, mma::CudaWmmaCompiler};
use cubecl_cpp::shared::{
    CompilationOptions, CppSupportedFeatures, DialectWmmaCompiler, register_mma_features,
    register_scaled_mma_features, register_supported_types, register_wmma_features,
};

/// A card: what differs between the architectures (CUDA C++ Programming Guide, "Technical Specifications per Compute
/// Capability"; the cards' data sheets).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// A card of the architecture.
    pub name: &'static str,
    /// Compute capability, ten times the major plus the minor number.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// The most shared memory that a block may ask for, in bytes.
    pub max_shared_bytes: usize,
    /// Device memory in bytes.
    pub memory: u64,
}

/// One card per architecture.
pub const CARDS: [Card; 6] = [
    card("T4", 75, 40, 64, 16),
    card("A100", 80, 108, 163, 80),
    card("RTX 3090", 86, 82, 99, 24),
    card("RTX 4090", 89, 128, 99, 24),
    card("H200", 90, 132, 227, 141),
    card("B200", 100, 148, 227, 180),
];

/// The largest grid along each dimension, of every architecture.
pub const MAX_GRID: (u32, u32, u32) = (i32::MAX as u32, u16::MAX as u32, u16::MAX as u32);

/// The alignment in bytes of allocations and of padded rows.
pub(super) const ALIGNMENT: usize = 512;

/// Threads of a warp.
const WARP: u32 = 32;

const fn card(
    name: &'static str,
    capability: u32,
    multiprocessors: u32,
    shared_kib: usize,
    memory_gb: u64,
) -> Card {
    let (max_shared_bytes, memory) = (shared_kib << 10, memory_gb * 1_000_000_000);
    Card { name, capability, multiprocessors, max_shared_bytes, memory }
}

impl Card {
    /// Returns the architecture that CubeCL compiles for on this card.
    pub fn architecture(&self) -> String {
        // Instructions of these architectures alone: `wgmma`, for example.
        let suffix = if self.capability >= 90 { "a" } else { "" };
        format!("sm_{}{suffix}", self.capability)
    }

    /// Returns how kernels are translated to C++ for this card.
    pub(super) fn compilation_options(&self) -> CompilationOptions {
        CompilationOptions {
            warp_size: WARP,
            supports_features: CppSupportedFeatures {
                fast_math: true,
                grid_constants: true,
                fast_tanh: true,
                clusters: self.capability >= 90,
                elect_sync: self.capability >= 90,
            },
        }
    }

    /// Returns how CubeCL allocates memory on this card.
    pub(super) fn memory_properties(&self) -> MemoryDeviceProperties {
        MemoryDeviceProperties { max_page_size: self.memory / 4, alignment: ALIGNMENT as u64 }
    }

    fn hardware_properties(&self) -> HardwareProperties {
        HardwareProperties {
            load_width: 128,
            plane_size_min: WARP,
            plane_size_max: WARP,
            max_bindings: cubecl::cuda::CUDA_MAX_BINDINGS,
            max_shared_memory_size: self.max_shared_bytes,
            max_cube_count: MAX_GRID,
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(self.multiprocessors),
            num_tensor_cores: Some(if self.capability == 75 { 8 } else { 4 }),
            min_tensor_cores_dim: Some(8),
            num_cpu_cores: None,
            max_vector_size: VectorSize::MAX,
        }
    }

    /// Returns the properties that CubeCL's CUDA server (version 0.10.0, `DeviceService::init`) registers on this card.
    pub(super) fn device_properties(&self) -> DeviceProperties {
        let mut properties = DeviceProperties::new(
            Default::default(),
            self.memory_properties(),
            self.hardware_properties(),
            TimingMethod::System,
        );
        register_supported_types(&mut properties);
        self.register_types(&mut properties);
        self.register_atomics(&mut properties);
        self.register_instructions(&mut properties);
        let architecture = CudaArchitecture { version: self.capability };
        let wmma = CudaWmmaCompiler::supported_wmma_combinations(&architecture);
        let mma = CudaWmmaCompiler::supported_mma_combinations(&architecture);
        let scaled_mma = CudaWmmaCompiler::supported_scaled_mma_combinations(&architecture);
        register_wmma_features(wmma, &mut properties);
        register_mma_features(mma, &mut properties);
        register_scaled_mma_features(scaled_mma, &mut properties);
        properties
    }

    fn register_types(&self, properties: &mut DeviceProperties) {
        let mut register = |kinds: &[FloatKind], usage: TypeUsage, with_buffers: bool| {
            for kind in kinds {
                let element = ElemType::Float(*kind);
                if with_buffers {
                    properties.register_type_usage(element, usage | TypeUsage::Buffer);
                } else {
                    properties.register_type_usage(element, usage);
                }
            }
        };
        register(&[FloatKind::TF32], TypeUsage::Conversion, false);
        if self.capability >= 89 {
            register(&[FloatKind::E4M3, FloatKind::E5M2], TypeUsage::Conversion, true);
        }
        if matches!(self.capability / 10, 10..=12) {
            register(&[FloatKind::E2M1], TypeUsage::Conversion, false);
            let kinds = [FloatKind::E2M3, FloatKind::E3M2, FloatKind::UE8M0];
            register(&kinds, TypeUsage::Conversion, true);
            let pair = StorageType::Packed(ElemType::Float(FloatKind::E2M1), 2);
            properties.register_type_usage(pair, TypeUsage::Conversion | TypeUsage::Buffer);
        }
        for level in [BarrierLevel::Unit, BarrierLevel::Cube] {
            properties.register_type_usage(OpaqueType::Barrier(level), TypeUsage::Buffer);
        }
        properties.register_semantic_type(SemanticType::Pipeline);
        if self.capability >= 90 {
            properties.register_semantic_type(SemanticType::TensorMap);
        }
    }

    fn register_atomics(&self, properties: &mut DeviceProperties) {
        let mut register = |kind: FloatKind, width: usize| {
            let value = Type::new(StorageType::Atomic(ElemType::Float(kind)));
            let value = if width == 1 { value } else { value.with_vector_size(width) };
            properties.register_atomic_type_usage(value, AtomicUsage::Add | AtomicUsage::LoadStore);
        };
        register(FloatKind::F64, 1);
        register(FloatKind::F16, 1);
        register(FloatKind::F16, 2);
        if self.capability >= 90 {
            register(FloatKind::F32, 2);
            register(FloatKind::F32, 4);
        }
    }

    fn register_instructions(&self, properties: &mut DeviceProperties) {
        let features = &mut properties.features;
        let halves = [FloatKind::F16, FloatKind::BF16].map(ElemType::Float);
        for plane in [Plane::Sync, Plane::Ops, Plane::NonUniformControlFlow] {
            features.plane.insert(plane);
        }
        for half in halves {
            features.matmul.ldmatrix.insert(half.into());
        }
        features.copy_async = self.capability >= 80;
        if self.capability >= 90 {
            features.tma.insert(Tma::Base);
            features.cube_cluster = true;
            for half in halves {
                features.matmul.stmatrix.insert(half.into());
            }
        }
        if self.capability >= 100 {
            features.tma.insert(Tma::Im2colWide);
            features.tma.insert(Tma::SwizzleAtomicity);
        }
        features.memory_reinterpret = true;
        features.alignment = true;
    }
}
