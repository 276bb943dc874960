//! A frozen weight that is split between its rows, for devices on which no buffer can hold the whole. Each part is a
//! [`Weight`] of its own and is multiplied on its own. Sums over columns are the same as those of the whole weight;
//! sums over rows (`dy W`) are added part by part.

use std::ops::Range;

use burn::module::{
    AutodiffModule, Content, Devices, EmptyRecord, HasAutodiffModule, Module, ModuleDisplay,
    ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};

use super::packed::module::without_parameters;
use crate::{TrainBackend, Weight};

/// The parts of a weight, one below the other. None of them ever gets a gradient.
#[derive(Clone, Debug)]
pub struct SplitWeight<B: Backend> {
    /// `[D_out of the part, D_in]` each.
    parts: Vec<Weight<B>>,
}

impl<B: TrainBackend> SplitWeight<B> {
    /// Stacks `parts`, one below the other.
    ///
    /// # Panics
    /// If there is no part, or if their widths differ.
    pub fn new(parts: Vec<Weight<B>>) -> Self {
        let widths: Vec<_> = parts.iter().map(|part| part.dims()[1]).collect();
        assert!(
            !widths.is_empty() && widths.iter().all(|width| *width == widths[0]),
            "split: parts of widths {widths:?}"
        );
        Self { parts }
    }

    /// Returns the shape of the whole weight, `[D_out, D_in]`.
    pub fn dims(&self) -> [usize; 2] {
        let dims = self.parts.iter().map(Weight::dims);
        dims.fold([0, 0], |[rows, _], [part_rows, width]| [rows + part_rows, width])
    }

    /// Returns each part with its range of rows of the whole weight.
    pub fn parts(&self) -> impl Iterator<Item = (Range<usize>, &Weight<B>)> {
        let mut end = 0;
        self.parts.iter().map(move |part| {
            let start = end;
            end += part.dims()[0];
            (start..end, part)
        })
    }

    /// Returns the rows `ids`, as [`Weight::rows`] does: reads, for every id, the nearest row of each part and keeps
    /// that of the part that contains the id.
    pub(crate) fn rows(&self, ids: &Tensor<B, 1, Int>, dtype: DType) -> Tensor<B, 2> {
        let shape = [ids.dims()[0], self.dims()[1]];
        let mut result: Option<Tensor<B, 2>> = None;
        for (row_range, part) in self.parts() {
            let (first, last) = (row_range.start as i64, row_range.end as i64 - 1);
            let local_ids = ids.clone().clamp(first, last).sub_scalar(first);
            let rows = part.clone().rows(local_ids, dtype);
            result = Some(match result {
                None => rows,
                Some(result) => {
                    let in_part = ids.clone().greater_equal_elem(first);
                    result.mask_where(in_part.unsqueeze_dim::<2>(1).expand(shape), rows)
                }
            });
        }
        result.unwrap_or_else(|| unreachable!("a weight without parts"))
    }

    /// Returns consecutive rows as floats of `dtype`, `[rows, D_in]`.
    pub(crate) fn row_range(&self, rows: Range<usize>, dtype: DType) -> Tensor<B, 2> {
        let parts = self.parts().filter_map(|(range, part)| {
            let (first, end) = (range.start.max(rows.start), range.end.min(rows.end));
            let local = first.saturating_sub(range.start)..end.saturating_sub(range.start);
            (first < end).then(|| part.row_range(local, dtype))
        });
        Tensor::cat(parts.collect(), 0)
    }

    /// Returns `x W^T`, `[T, D_out]`.
    pub(crate) fn project(&self, x: &Tensor<B, 2>) -> Tensor<B, 2> {
        let project = |part: &Weight<B>| B::frozen_linear(x.clone(), part.clone());
        Tensor::cat(self.parts.iter().map(project).collect(), 1)
    }

    /// Returns `dy W`, `[T, D_in]`.
    pub(crate) fn project_backward(&self, dy: &Tensor<B, 2>) -> Tensor<B, 2> {
        let products = self.parts().map(|(rows, part)| {
            let dy = dy.clone().narrow(1, rows.start, rows.len());
            B::frozen_linear_backward(dy, part.clone())
        });
        let sum = products.reduce(|sum, product| sum + product);
        sum.unwrap_or_else(|| unreachable!("a weight without parts"))
    }
}

impl<B: Backend> SplitWeight<B> {
    /// Returns the same weight with every part replaced by `change(part)`.
    pub(crate) fn map<A: Backend>(self, change: impl Fn(Weight<B>) -> Weight<A>) -> SplitWeight<A> {
        SplitWeight { parts: self.parts.into_iter().map(change).collect() }
    }
}

impl<B: Backend> Module<B> for SplitWeight<B> {
    without_parameters!();

    fn to_device(self, device: &B::Device) -> Self {
        self.map(|part| match part {
            Weight::Float(part) => Weight::Float(part.to_device(device)),
            Weight::Packed(part) => Weight::Packed(part.to_device(device)),
            Weight::Split(parts) => Weight::Split(parts.to_device(device)),
        })
    }

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        self.parts.iter().fold(devices, |devices, part| match part {
            Weight::Float(part) => part.collect_devices(devices),
            Weight::Packed(part) => part.collect_devices(devices),
            Weight::Split(parts) => parts.collect_devices(devices),
        })
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for SplitWeight<B> {
    type InnerModule = SplitWeight<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        self.clone().map(|part| match part {
            Weight::Float(part) => Weight::Float(part.inner()),
            Weight::Packed(part) => Weight::Packed(part.valid()),
            Weight::Split(parts) => Weight::Split(parts.valid()),
        })
    }

    fn from_inner(weight: Self::InnerModule) -> Self {
        weight.map(|part| match part {
            Weight::Float(part) => Weight::Float(Tensor::from_inner(part)),
            Weight::Packed(part) => Weight::Packed(AutodiffModule::from_inner(part)),
            Weight::Split(parts) => Weight::Split(AutodiffModule::from_inner(parts)),
        })
    }
}

impl<B: AutodiffBackend> HasAutodiffModule<B> for SplitWeight<B::InnerBackend> {
    type TrainModule = SplitWeight<B>;
}

impl<B: Backend> ModuleDisplayDefault for SplitWeight<B> {
    fn content(&self, content: Content) -> Option<Content> {
        let text = format!("{} parts", self.parts.len());
        content.add_formatted(&text).optional()
    }
}

impl<B: Backend> ModuleDisplay for SplitWeight<B> {}
