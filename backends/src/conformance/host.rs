//! Matrices on the host, and how they are uploaded.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::ops::accumulator;

/// A pseudo-random number generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Source {
    state: u64,
    steps: u64,
}

impl Source {
    /// Creates a generator of numbers that `dtype` represents exactly.
    pub fn new(seed: usize, dtype: DType) -> Self {
        let steps = match dtype {
            DType::F16 => 1 << 10,
            DType::BF16 => 1 << 7,
            // 17 bits, more than matrix units keep that round f32 to TF32.
            _ => 1 << 16,
        };
        Self { state: seed as u64, steps }
    }

    /// Returns the next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a matrix of values uniform in `[-1.5, 1.5]`.
    pub fn matrix(&mut self, shape: [usize; 2]) -> Host {
        let steps = self.steps;
        Host::from_fn(shape, |_, _| (self.bits() % (3 * steps + 1)) as f64 / steps as f64 - 1.5)
    }

    /// Returns an integer below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }
}

/// A matrix on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// The numbers of rows and columns.
    pub shape: [usize; 2],
    /// The values, row after row.
    pub values: Vec<f64>,
}

impl Host {
    /// Creates a matrix from the value at each row and column.
    pub fn from_fn([rows, width]: [usize; 2], mut value: impl FnMut(usize, usize) -> f64) -> Self {
        let mut values = Vec::with_capacity(rows * width);
        for row in 0..rows {
            values.extend((0..width).map(|column| value(row, column)));
        }
        Self { shape: [rows, width], values }
    }

    /// Creates a matrix of zeros.
    pub fn zeros(shape: [usize; 2]) -> Self {
        Self { shape, values: vec![0.0; shape[0] * shape[1]] }
    }

    /// Returns a row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.shape[1]..][..self.shape[1]]
    }

    /// Returns a row for writing.
    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[row * self.shape[1]..][..self.shape[1]]
    }

    /// Returns the values as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.values.iter().map(|value| *value as f32).collect()
    }

    /// Returns `count` columns from `first` on.
    pub fn columns(&self, first: usize, count: usize) -> Self {
        Self::from_fn([self.shape[0], count], |row, column| self.row(row)[first + column])
    }

    /// Returns the rows `ids`.
    pub fn rows(&self, ids: impl IntoIterator<Item = usize>) -> Self {
        let rows: Vec<_> = ids.into_iter().map(|id| self.row(id)).collect();
        Self { shape: [rows.len(), self.shape[1]], values: rows.concat() }
    }

    /// Places matrices side by side.
    pub fn side_by_side(parts: &[Self]) -> Self {
        let rows = parts.first().map_or(0, |part| part.shape[0]);
        let width = parts.iter().map(|part| part.shape[1]).sum();
        let row = |row| parts.iter().flat_map(move |part| part.row(row).iter().copied());
        Self { shape: [rows, width], values: (0..rows).flat_map(row).collect() }
    }

    /// Combines the values of two matrices of the same shape.
    pub fn zip(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        assert_eq!(self.shape, other.shape, "matrices of one shape");
        let pairs = self.values.iter().zip(&other.values);
        Self { shape: self.shape, values: pairs.map(|(a, b)| combine(*a, *b)).collect() }
    }

    /// Uploads the matrix.
    pub fn on<B: Backend>(&self, dtype: DType, layout: Layout, device: &B::Device) -> Tensor<B, 2> {
        let data = TensorData::new(self.values.clone(), self.shape).convert_dtype(dtype);
        let plain = Tensor::<B, 2>::from_data(data, (device, dtype));
        let [rows, width] = self.shape;
        let ones = |columns| Tensor::ones([rows, columns], (device, dtype));
        match layout {
            Layout::Contiguous => plain,
            Layout::Pitched => Tensor::cat(vec![plain, ones(3)], 1).narrow(1, 0, width),
            Layout::Aligned => Tensor::cat(vec![plain, ones(64)], 1).narrow(1, 0, width),
            Layout::Shifted => Tensor::cat(vec![ones(64), plain, ones(64)], 1).narrow(1, 64, width),
            // The copy is transposed; the view restores the order.
            Layout::Swapped => (plain.swap_dims(0, 1) * 1.0).swap_dims(0, 1),
        }
    }
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row after row.
    Contiguous,
    /// The first columns of a matrix that has three more.
    Pitched,
    /// The first columns of a matrix that has 64 more. (GPUs take it as a view if the rest of each row is a multiple
    /// of 256 bytes, and copy it otherwise.)
    Aligned,
    /// Columns from the 65th on of a matrix that has 64 more on either side.
    Shifted,
    /// Column after column.
    Swapped,
}

impl Layout {
    /// All layouts.
    pub const ALL: [Self; 5] =
        [Self::Contiguous, Self::Pitched, Self::Aligned, Self::Shifted, Self::Swapped];
}

/// Where and how inputs are uploaded.
#[derive(Clone, Debug)]
pub struct Place<D> {
    /// The device.
    pub device: D,
    /// The dtype of activations and weights.
    pub dtype: DType,
    /// The layout of activations and float weights.
    pub layout: Layout,
}

impl<D> Place<D> {
    /// Uploads activations or a float weight.
    pub fn matrix<B: Backend<Device = D>>(&self, host: &Host) -> Tensor<B, 2> {
        host.on(self.dtype, self.layout, &self.device)
    }

    /// Uploads a matrix whose gradient is taken.
    pub fn leaf<B: AutodiffBackend<Device = D>>(&self, host: &Host) -> Tensor<B, 2> {
        self.matrix::<B>(host).detach().require_grad()
    }

    /// Uploads a matrix in the accumulator's dtype: adapters, angles, optimizer states.
    pub fn wide<B: Backend<Device = D>>(&self, host: &Host) -> Tensor<B, 2> {
        host.on(accumulator(self.dtype), Layout::Contiguous, &self.device)
    }

    /// Uploads the single row of a matrix as a vector.
    pub fn vector<B: Backend<Device = D>>(&self, host: &Host) -> Tensor<B, 1> {
        host.on::<B>(self.dtype, Layout::Contiguous, &self.device).squeeze_dim(0)
    }

    /// Uploads integers.
    pub fn ints<B: Backend<Device = D>, const N: usize>(
        &self,
        values: &[i64],
        shape: [usize; N],
    ) -> Tensor<B, N, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &self.device)
    }
}

/// Reads a tensor back.
pub fn numbers<B: Backend, const N: usize>(tensor: Tensor<B, N>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dtype_represents_its_inputs_and_narrower_ones_do_not() {
        let converted = |values: &Host, dtype| -> Vec<f64> {
            let data = TensorData::new(values.values.clone(), values.shape);
            data.convert_dtype(dtype).iter().collect()
        };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let values = Source::new(1, dtype).matrix([9, 9]);
            assert_eq!(converted(&values, dtype), values.values, "{dtype:?}");
            let narrower = match dtype {
                DType::F32 => DType::F16,
                _ => DType::BF16,
            };
            let same = converted(&values, narrower) == values.values;
            assert_eq!(same, dtype == DType::BF16, "{dtype:?}");
        }
    }
}
