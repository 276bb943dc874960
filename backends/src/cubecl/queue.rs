//! The seam to Burn: kernels on tensors of the device, queued among the operations that Burn fuses.
//!
//! `Wgpu` and `Cuda` are `Fusion` over a CubeCL backend: operations are recorded, and run later, in another thread,
//! some of them fused. A kernel of ours is recorded as a custom operation, which fusion runs as it is.

use std::fmt::Debug;

use burn::tensor::{DType, Int, Shape, Tensor, TensorPrimitive};
use burn_cubecl::fusion::FusionCubeRuntime;
use burn_cubecl::{CubeBackend, CubeRuntime, tensor::CubeTensor};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{FusionRuntime, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};

use crate::TrainBackend;

/// A tensor that is or will be on the device.
pub(crate) type Queued<R> = FusionTensor<FusionCubeRuntime<R>>;

/// A backend that our kernels run on.
pub(crate) trait CubeGpu:
    TrainBackend<
        FloatTensorPrimitive = Queued<<Self as CubeGpu>::Runtime>,
        IntTensorPrimitive = Queued<<Self as CubeGpu>::Runtime>,
    >
{
    /// CubeCL's name for it.
    type Runtime: CubeRuntime;

    /// Whether a library multiplies matrices, faster than Burn's kernels and what they fuse.
    fn has_library(_device: &Self::Device) -> bool {
        false
    }
}

/// One or several launches that make tensors from tensors.
pub(crate) trait Kernel: Debug + Send + Sync + 'static {
    /// Stands for the operation in fusion's records.
    const NAME: &'static str;

    /// Runs when the inputs are on the device. The outputs have the shapes and dtypes that were announced.
    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>>;
}

/// Queues `kernel`; `outputs` are the shapes and dtypes of what it returns.
pub(crate) fn queue<R: CubeRuntime, K: Kernel>(
    kernel: K,
    inputs: Vec<Queued<R>>,
    outputs: &[(Shape, DType)],
) -> Vec<Queued<R>> {
    let client = inputs[0].client.clone();
    // Before the tensors become part of the record, which counts who still holds them.
    let streams = OperationStreams::with_inputs(&inputs);
    let outputs = outputs
        .iter()
        .map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape.clone(), *dtype))
        .collect::<Vec<_>>();
    let inputs: Vec<_> = inputs.into_iter().map(Queued::<R>::into_ir).collect();
    let record = CustomOpIr::new(K::NAME, &inputs, &outputs);
    let queued = QueuedKernel { kernel, record: record.clone() };
    client.register(streams, OperationIr::Custom(record), queued)
}

#[derive(Debug)]
struct QueuedKernel<K> {
    kernel: K,
    record: CustomOpIr,
}

impl<R: CubeRuntime, K: Kernel> Operation<FusionCubeRuntime<R>> for QueuedKernel<K> {
    fn execute(
        &self,
        handles: &mut HandleContainer<<FusionCubeRuntime<R> as FusionRuntime>::FusionHandle>,
    ) {
        // The element types are defaults that no kernel of ours asks for: a tensor brings its own.
        type On<R> = CubeBackend<R, f32, i32, u32>;
        let inputs = self.record.inputs.iter();
        // In the order of the record: the last mention of a tensor gives it away.
        let inputs = inputs.map(|input| handles.get_float_tensor::<On<R>>(input));
        let outputs = self.kernel.run(inputs.collect::<Vec<_>>());
        assert_eq!(outputs.len(), self.record.outputs.len(), "{}", K::NAME);
        for (record, output) in self.record.outputs.iter().zip(outputs) {
            let (shape, dtype) = (output.meta.shape(), output.dtype);
            assert_eq!((&record.shape, record.dtype), (shape, dtype), "{}", K::NAME);
            handles.register_float_tensor::<On<R>>(&record.id, output);
        }
    }
}

/// All of a vector whose length is known.
pub(crate) fn fixed<T, const N: usize>(items: Vec<T>) -> [T; N] {
    let count = items.len();
    <[T; N]>::try_from(items).unwrap_or_else(|_| unreachable!("{count} tensors, not {N}"))
}

/// The next of a kernel's inputs.
pub(crate) fn taken<T>(inputs: &mut impl Iterator<Item = T>) -> T {
    let next = inputs.next();
    next.unwrap_or_else(|| unreachable!("fewer tensors than were queued"))
}

/// The tensor behind `tensor`.
pub(crate) fn queued<B: CubeGpu, const D: usize>(tensor: &Tensor<B, D>) -> Queued<B::Runtime> {
    tensor.clone().into_primitive().tensor()
}

/// The tensor behind `tensor`.
pub(crate) fn queued_int<B: CubeGpu, const D: usize>(
    tensor: &Tensor<B, D, Int>,
) -> Queued<B::Runtime> {
    tensor.clone().into_primitive()
}

/// The inverse of [`queued`].
pub(crate) fn tensor<B: CubeGpu, const D: usize>(queued: Queued<B::Runtime>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(queued))
}
