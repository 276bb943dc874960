//! Products whose results are known, between kernels of CubeCL's, before a library is trusted with others.
//!
//! A product that did not wait for the kernel before it would find NaN where that kernel writes, late, because it is
//! slow on purpose. One that the kernel after it did not wait for would leave NaN too, and so would one that wrote
//! nothing. All numbers are integers that the types hold exactly, so results are right or wrong: f32 factors have more
//! bits than the TF32 of matrix units.

use burn::tensor::{DType, TensorData};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use crate::cubecl::launch::{UNITS, cubes, transposed};

/// Steps of the slow kernel, of some nanoseconds each: half a millisecond.
pub(super) const SLOW: u32 = 1 << 17;

/// Rows, depth and columns of the products: odd ones as far as rows may be, and some like a small model's.
const SHAPES: [[usize; 3]; 2] = [[33, 48, 104], [128, 256, 384]];

/// Columns beside a factor that is a part of a wider matrix.
const BESIDE: usize = 128;

/// What multiplies: writes `left right` into the last.
pub(super) type Multiply<'a, R> =
    dyn Fn(&CubeTensor<R>, &CubeTensor<R>, &CubeTensor<R>) -> Result<(), String> + 'a;

/// How the factors lie in memory.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// `x W^T`
    Forward,
    /// `dy W`, of which `dy` is a part of a wider matrix.
    Backward,
    /// `dy^T x`
    Gradient,
}

/// Checks products in `dtype`, 16-bit ones also into f32.
///
/// # Errors
/// What was wrong.
pub(super) fn check<R: CubeRuntime>(
    device: &R::Device,
    dtype: DType,
    steps: u32,
    multiply: &Multiply<R>,
) -> Result<(), String> {
    let client = &R::client(device);
    let tester = Tester { client, device, dtype, steps, multiply };
    for (form, shape) in cases() {
        for product in products_of(dtype) {
            // The first of its kind is waited for, the second is not.
            tester.compare(form, shape, *product)?;
            tester.compare(form, shape, *product)?;
        }
    }
    Ok(())
}

/// Every shape in every form.
fn cases() -> impl Iterator<Item = (Form, [usize; 3])> {
    SHAPES.into_iter().flat_map(|[m, k, n]| {
        [
            (Form::Forward, [m, k, n]),
            (Form::Backward, [m, k, n]),
            // Its depth is the number of tokens.
            (Form::Gradient, [k, m, n]),
        ]
    })
}

/// What products of `dtype` may be written in.
fn products_of(dtype: DType) -> &'static [DType] {
    match dtype {
        DType::BF16 => &[DType::BF16, DType::F32],
        DType::F16 => &[DType::F16, DType::F32],
        _ => &[DType::F32],
    }
}

/// The values of a matrix.
struct Numbers {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Numbers {
    /// Whole numbers from `-most` to `most`, mixed.
    fn mixed(rows: usize, columns: usize, most: u32, seed: u32) -> Self {
        let value = |at: usize| {
            let mixed = (at as u32 + 1).wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503);
            let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(2_246_822_519) >> 8;
            (mixed % (2 * most + 1)) as f32 - most as f32
        };
        Self { rows, columns, values: (0..rows * columns).map(value).collect() }
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row * self.columns + column]
    }
}

/// Factors in a form: the left one's memory and where in its rows it begins, and the right one's memory.
fn factors(form: Form, [m, k, n]: [usize; 3], dtype: DType) -> (Numbers, usize, Numbers) {
    // Sums stay below 2^8 for bf16, and below 2^24 for f32.
    let most = if dtype == DType::F32 { 2047 } else { 2 };
    match form {
        Form::Forward => (Numbers::mixed(m, k, most, 1), 0, Numbers::mixed(n, k, 2, 2)),
        Form::Backward => {
            (Numbers::mixed(m, k + BESIDE, most, 3), BESIDE, Numbers::mixed(k, n, 2, 4))
        }
        Form::Gradient => (Numbers::mixed(k, m, most, 5), 0, Numbers::mixed(k, n, 2, 6)),
    }
}

/// The product, as defined. Every sum on the way is a whole number that f32 holds.
fn expected(form: Form, [m, k, n]: [usize; 3], dtype: DType) -> Vec<f32> {
    let (left, first, right) = factors(form, [m, k, n], dtype);
    let left = |row, i| match form {
        Form::Gradient => left.at(i, row),
        _ => left.at(row, first + i),
    };
    let right = |i, column| match form {
        Form::Forward => right.at(column, i),
        _ => right.at(i, column),
    };
    let sum = |row, column| (0..k).map(|i| left(row, i) * right(i, column)).sum();
    (0..m * n).map(|at| sum(at / n, at % n)).collect()
}

struct Tester<'a, R: CubeRuntime> {
    client: &'a ComputeClient<R>,
    device: &'a R::Device,
    dtype: DType,
    steps: u32,
    multiply: &'a Multiply<'a, R>,
}

impl<R: CubeRuntime> Tester<'_, R> {
    fn compare(&self, form: Form, shape: [usize; 3], product: DType) -> Result<(), String> {
        let found = self.chain(form, shape, product)?;
        let expected = expected(form, shape, self.dtype);
        let wrong = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        if wrong == 0 && found.len() == expected.len() {
            return Ok(());
        }
        let (from, to) = (self.dtype.name(), product.name());
        let count = expected.len();
        Err(format!(
            "its self-test failed: {wrong} of {count} numbers of a product {shape:?} ({form:?}, {from} to {to}) are wrong"
        ))
    }

    /// Twice the half of the left factor, slowly, then the product, then its half; nothing waits until that is read.
    fn chain(&self, form: Form, [m, k, n]: [usize; 3], dtype: DType) -> Result<Vec<f32>, String> {
        let (left, first, right) = factors(form, [m, k, n], self.dtype);
        let half =
            Numbers { values: left.values.iter().map(|value| value / 2.0).collect(), ..left };
        let right = self.tensor(&right);
        let doubled = self.empty([half.rows, half.columns], self.dtype);
        let product = self.empty([m, n], dtype);
        let halved = self.empty([m, n], dtype);
        self.scale(self.tensor(&half), &doubled, 2.0, self.steps);
        let left = match form {
            Form::Gradient => transposed(doubled),
            _ => self.columns(doubled, first),
        };
        let right = match form {
            Form::Forward => transposed(right),
            _ => right,
        };
        (self.multiply)(&left, &right, &product)?;
        self.scale(product, &halved, 0.5, 0);
        let bytes = self.client.read_one(halved.handle);
        let bytes = bytes.map_err(|error| format!("its self-test stopped: {error:?}"))?;
        let data = TensorData::from_bytes_vec(bytes.to_vec(), [m, n], dtype);
        Ok(data.iter::<f32>().map(|value| 2.0 * value).collect())
    }

    fn tensor(&self, numbers: &Numbers) -> CubeTensor<R> {
        let shape = [numbers.rows, numbers.columns];
        let data = TensorData::new(numbers.values.clone(), shape).convert_dtype(self.dtype);
        self.of_bytes(data.as_bytes(), shape, self.dtype)
    }

    /// All NaN.
    fn empty(&self, shape: [usize; 2], dtype: DType) -> CubeTensor<R> {
        let bytes = vec![0xff; shape[0] * shape[1] * dtype.size()];
        self.of_bytes(&bytes, shape, dtype)
    }

    fn of_bytes(&self, bytes: &[u8], shape: [usize; 2], dtype: DType) -> CubeTensor<R> {
        let memory = self.client.create_from_slice(bytes);
        let (client, device) = (self.client.clone(), self.device.clone());
        CubeTensor::new_contiguous(client, device, shape.into(), memory, dtype)
    }

    /// The columns from `first` on.
    fn columns(&self, mut tensor: CubeTensor<R>, first: usize) -> CubeTensor<R> {
        let [rows, columns] = tensor.meta.shape().dims();
        let offset = (first * tensor.dtype.size()) as u64;
        *tensor.meta.shape_mut() = [rows, columns - first].into();
        tensor.handle = tensor.handle.offset_start(offset);
        tensor
    }

    fn scale(&self, input: CubeTensor<R>, output: &CubeTensor<R>, factor: f32, steps: u32) {
        let count = output.meta.num_elements();
        let dtype = output.dtype.into();
        scale_slowly::launch::<R>(
            self.client,
            cubes(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            input.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            factor,
            1.0,
            steps,
            dtype,
        );
    }
}

/// A value a unit, times `factor`, after as many multiplications by `one`.
#[cube(launch)]
fn scale_slowly<F: Float>(
    input: &Tensor<F>,
    output: &mut Tensor<F>,
    factor: f32,
    one: f32,
    steps: u32,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= output.len() {
        terminate!();
    }
    let mut value = f32::cast_from(input[ABSOLUTE_POS]);
    let mut step = 0u32.runtime();
    while step < steps {
        value *= one;
        step += 1;
    }
    output[ABSOLUTE_POS] = F::cast_from(value * factor);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_held_exactly() {
        for (dtype, most) in [(DType::BF16, 256.0), (DType::F32, 16_777_216.0)] {
            for (form, shape) in cases() {
                let values = expected(form, shape, dtype);
                assert!(values.iter().all(|v| v.abs() <= most), "{dtype:?} {form:?}");
                let zeros = values.iter().filter(|v| **v == 0.0).count();
                assert!(zeros < values.len() / 8, "{zeros} zeros");
            }
        }
        // Rounded to the 11 bits of TF32 they would be others.
        let (left, _, _) = factors(Form::Forward, SHAPES[0], DType::F32);
        let bits = |value: f32| (value.abs() as u32) >> value.abs().log2().max(0.0) as u32;
        assert!(left.values.iter().any(|v| v.abs() > 1024.0 && bits(*v) == 1));
        assert!(left.values.iter().any(|v| v.abs() > 1024.0 && *v % 2.0 != 0.0));
    }
}

/// The test itself, tried on software Vulkan with products that are right, and wrong in many ways.
#[cfg(all(test, feature = "wgpu"))]
mod on_wgpu {
    use burn_wgpu::WgpuRuntime;

    use super::*;
    use crate::cubecl::launch::matmul;

    type Tensor = CubeTensor<WgpuRuntime>;

    /// `None` without a driver.
    fn checked(multiply: &Multiply<WgpuRuntime>) -> Option<Result<(), String>> {
        crate::wgpu::start(None).ok()?;
        let device = Default::default();
        Some(check::<WgpuRuntime>(&device, DType::F32, 100, multiply))
    }

    fn right(left: &Tensor, right: &Tensor, product: &Tensor) -> Result<(), String> {
        matmul(left.clone(), right.clone(), product.clone());
        Ok(())
    }

    #[test]
    fn right_products_pass() {
        let result = checked(&right);
        assert!(result.is_none_or(|result| result == Ok(())));
    }

    #[test]
    fn wrong_products_do_not() {
        let nothing = |_: &Tensor, _: &Tensor, _: &Tensor| Ok(());
        let refused = |_: &Tensor, _: &Tensor, _: &Tensor| Err("no kernel".to_string());
        let few_rows = |left: &Tensor, factor: &Tensor, product: &Tensor| {
            let [rows, _] = left.meta.shape().dims::<2>();
            let [mut left, mut product] = [left, product].map(Clone::clone);
            for tensor in [&mut left, &mut product] {
                let [_, columns] = tensor.meta.shape().dims::<2>();
                *tensor.meta.shape_mut() = [rows - 1, columns].into();
            }
            right(&left, factor, &product)
        };
        let other = |left: &Tensor, factor: &Tensor, product: &Tensor| {
            // As if a weight were stored the other way round.
            let [_, columns] = factor.meta.shape().dims::<2>();
            let mut factor = factor.clone();
            *factor.meta.strides_mut() = [columns, 1].into();
            right(left, &factor, product)
        };
        let all: [&Multiply<WgpuRuntime>; 4] = [&nothing, &refused, &few_rows, &other];
        for (index, multiply) in all.into_iter().enumerate() {
            let result = checked(multiply);
            assert!(result.is_none_or(|result| result.is_err()), "{index}");
        }
    }
}
