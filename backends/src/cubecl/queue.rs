//! Queues this crate's kernels among the operations that Burn fuses.
//!
//! `Wgpu` and `Cuda` are `Fusion` over a CubeCL backend: Burn records operations and runs them later in another
//! thread, some of them fused. A kernel of this crate is recorded as a custom operation, which fusion runs unchanged.

use std::fmt::Debug;

use burn::tensor::{DType, Int, Shape, Tensor, TensorPrimitive};
use burn_cubecl::fusion::FusionCubeRuntime;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{FusionRuntime, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};
use cubecl::Runtime;

use super::runtime::GpuRuntime;
use crate::TrainBackend;

/// A tensor of the fusion backend: already on the device, or the output of a queued operation.
pub(crate) type QueuedTensor<R> = FusionTensor<FusionCubeRuntime<R>>;

/// A GPU backend that this crate's kernels run on.
pub(crate) trait CubeGpu:
    TrainBackend<
        FloatTensorPrimitive = QueuedTensor<<Self as CubeGpu>::Runtime>,
        IntTensorPrimitive = QueuedTensor<<Self as CubeGpu>::Runtime>,
    >
{
    /// The CubeCL runtime of the backend.
    type Runtime: GpuRuntime + Runtime<Device = Self::Device>;
}

/// Returns whether a vendor library multiplies matrices on a device: see [`GpuRuntime::has_library`].
pub(crate) fn has_library<B: CubeGpu>(device: &B::Device) -> bool {
    B::Runtime::has_library(device)
}

/// An operation of one or more kernel launches on device tensors.
pub(crate) trait Kernel: Debug + Send + Sync + 'static {
    /// The operation's name in fusion's records.
    const NAME: &'static str;

    /// Launches the kernels, once the inputs are on the device. The outputs must have the shapes and dtypes given to
    /// [`queue`].
    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>>;
}

/// Queues `kernel` and returns its future outputs. `outputs` lists their shapes and dtypes.
pub(crate) fn queue<R: GpuRuntime, K: Kernel>(
    kernel: K,
    inputs: Vec<QueuedTensor<R>>,
    outputs: &[(Shape, DType)],
) -> Vec<QueuedTensor<R>> {
    let client = inputs[0].client.clone();
    // The streams must be read before the tensors enter the record, which counts the remaining owners of each.
    let streams = OperationStreams::with_inputs(&inputs);
    let outputs = outputs
        .iter()
        .map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape.clone(), *dtype))
        .collect::<Vec<_>>();
    let inputs: Vec<_> = inputs.into_iter().map(QueuedTensor::<R>::into_ir).collect();
    let record = CustomOpIr::new(K::NAME, &inputs, &outputs);
    let operation = QueuedKernel { kernel, record: record.clone() };
    client.register(streams, OperationIr::Custom(record), operation)
}

#[derive(Debug)]
struct QueuedKernel<K> {
    kernel: K,
    record: CustomOpIr,
}

impl<R: GpuRuntime, K: Kernel> Operation<FusionCubeRuntime<R>> for QueuedKernel<K> {
    fn execute(
        &self,
        handles: &mut HandleContainer<<FusionCubeRuntime<R> as FusionRuntime>::FusionHandle>,
    ) {
        // The element types here are only defaults: every tensor carries its own dtype.
        type Inner<R> = CubeBackend<R, f32, i32, u32>;
        let inputs = self.record.inputs.iter();
        // Inputs are read in the order of the record: the last mention of a tensor releases it.
        let inputs = inputs.map(|input| handles.get_float_tensor::<Inner<R>>(input));
        let outputs = self.kernel.run(inputs.collect::<Vec<_>>());
        assert_eq!(outputs.len(), self.record.outputs.len(), "{}", K::NAME);
        for (record, output) in self.record.outputs.iter().zip(outputs) {
            let (shape, dtype) = (output.meta.shape(), output.dtype);
            assert_eq!((&record.shape, record.dtype), (shape, dtype), "{}", K::NAME);
            handles.register_float_tensor::<Inner<R>>(&record.id, output);
        }
    }
}

/// Converts a vector of known length into an array.
pub(crate) fn into_array<T, const N: usize>(items: Vec<T>) -> [T; N] {
    let count = items.len();
    <[T; N]>::try_from(items).unwrap_or_else(|_| unreachable!("{count} tensors, not {N}"))
}

/// Returns the next of a kernel's inputs.
pub(crate) fn next_input<T>(inputs: &mut impl Iterator<Item = T>) -> T {
    let next = inputs.next();
    next.unwrap_or_else(|| unreachable!("fewer tensors than were queued"))
}

/// Returns the fusion tensor behind a float tensor.
pub(crate) fn queued_tensor<B: CubeGpu, const D: usize>(
    tensor: &Tensor<B, D>,
) -> QueuedTensor<B::Runtime> {
    tensor.clone().into_primitive().tensor()
}

/// Returns the fusion tensor behind an integer tensor.
pub(crate) fn queued_int_tensor<B: CubeGpu, const D: usize>(
    tensor: &Tensor<B, D, Int>,
) -> QueuedTensor<B::Runtime> {
    tensor.clone().into_primitive()
}

/// Wraps a fusion tensor as a float tensor: the inverse of [`queued_tensor`].
pub(crate) fn burn_tensor<B: CubeGpu, const D: usize>(
    queued: QueuedTensor<B::Runtime>,
) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(queued))
}
