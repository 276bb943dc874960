//! A quantized weight as part of a Burn module. It is moved and converted with the module but never visited, because
//! nothing in it is a parameter.

use burn::module::{
    AutodiffModule, Content, Devices, EmptyRecord, HasAutodiffModule, Module, ModuleDisplay,
    ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};

use super::{PackedWeight, Scales};

/// Implements the items of [`Module`] of backend `B` that are the same for all weights that are never trained.
macro_rules! without_parameters {
    () => {
        type Record = EmptyRecord;

        fn visit<V: ModuleVisitor<B>>(&self, _visitor: &mut V) {}

        fn map<M: ModuleMapper<B>>(self, _mapper: &mut M) -> Self {
            self
        }

        fn load_record(self, _record: Self::Record) -> Self {
            self
        }

        fn into_record(self) -> Self::Record {
            EmptyRecord
        }

        fn fork(self, device: &B::Device) -> Self {
            self.to_device(device)
        }
    };
}
pub(in crate::ops) use without_parameters;

impl<B: Backend> PackedWeight<B> {
    /// Returns the same weight with its integer and float tensors replaced.
    fn map_tensors<A: Backend>(
        self,
        ints: impl Fn(Tensor<B, 1, Int>) -> Tensor<A, 1, Int>,
        floats: impl Fn(Tensor<B, 1>) -> Tensor<A, 1>,
    ) -> PackedWeight<A> {
        let Self { format, dims, words, scales } = self;
        let scales = scales.map(|scales| match scales {
            Scales::Plain(absmax) => Scales::Plain(floats(absmax)),
            Scales::Double { words, absmax, offset } => {
                Scales::Double { words: ints(words), absmax: floats(absmax), offset }
            }
        });
        PackedWeight { format, dims, words: ints(words), scales }
    }
}

impl<B: Backend> Module<B> for PackedWeight<B> {
    without_parameters!();

    fn to_device(self, device: &B::Device) -> Self {
        self.map_tensors(|ints| ints.to_device(device), |floats| floats.to_device(device))
    }

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        self.words.collect_devices(devices)
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for PackedWeight<B> {
    type InnerModule = PackedWeight<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        self.clone().map_tensors(Tensor::inner, Tensor::inner)
    }

    fn from_inner(weight: Self::InnerModule) -> Self {
        weight.map_tensors(Tensor::from_inner, Tensor::from_inner)
    }
}

impl<B: AutodiffBackend> HasAutodiffModule<B> for PackedWeight<B::InnerBackend> {
    type TrainModule = PackedWeight<B>;
}

impl<B: Backend> ModuleDisplayDefault for PackedWeight<B> {
    fn content(&self, content: Content) -> Option<Content> {
        let Self { format, dims, .. } = self;
        let text = format!("{format:?} {dims:?}");
        content.add_formatted(&text).optional()
    }
}

impl<B: Backend> ModuleDisplay for PackedWeight<B> {}
