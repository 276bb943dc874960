//! A self-test of a matrix library: GEMMs with known results between two of CubeCL's kernels.
//!
//! A GEMM that did not wait for the kernel before it would read NaN, because that kernel is slow on purpose and
//! writes late. NaN would also remain if the kernel after the GEMM did not wait for it, or if the GEMM wrote nothing.
//! All numbers are integers that the dtypes represent exactly, so that every result is either right or wrong; the f32
//! factors have more bits than TF32 keeps.

use burn::tensor::{DType, TensorData};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use crate::cubecl::launch::{THREADS, block_grid, transposed, view_columns};
use crate::cubecl::runtime::Gemm;

/// Steps of the slow kernel. They take some nanoseconds each, half a millisecond together.
pub(super) const SLOW_STEPS: u32 = 1 << 17;

/// Rows, depth and columns of the GEMMs: a shape with an odd number of rows, and one like a small model's.
const SHAPES: [[usize; 3]; 2] = [[33, 48, 104], [128, 256, 384]];

/// The factor of the products. Integers stay integers that bf16 represents exactly.
const FACTOR: f32 = -1.0;

/// Columns before a factor that is a part of a wider matrix.
const EXTRA_COLUMNS: usize = 128;

/// The function under test: it computes a GEMM.
pub(super) type Multiply<'a, R> = dyn Fn(&Gemm<'_, R>) -> Result<(), String> + 'a;

/// How the factors lie in memory.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// `x W^T`
    Forward,
    /// `dy W`, where `dy` is a part of a wider matrix.
    Backward,
    /// `dy^T x`
    Gradient,
}

/// What the product is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addend {
    Nothing,
    /// The values that are where the product is written.
    Product,
    /// Another matrix. The product is then written into a range of a wider matrix's columns.
    Other,
}

const ADDENDS: [Addend; 3] = [Addend::Nothing, Addend::Product, Addend::Other];

/// Checks GEMMs in `dtype`; those of 16-bit factors also with an f32 result.
///
/// # Errors
/// Returns which GEMM was wrong.
pub(super) fn check<R: CubeRuntime>(
    device: &R::Device,
    dtype: DType,
    steps: u32,
    multiply: &Multiply<R>,
) -> Result<(), String> {
    let client = &R::client(device);
    let tester = Tester { client, device, dtype, steps, multiply };
    for (form, shape) in cases() {
        for product in output_dtypes(dtype) {
            for addend in ADDENDS {
                // The first GEMM of a kind is waited for, the second is not.
                tester.compare(form, shape, *product, addend)?;
                tester.compare(form, shape, *product, addend)?;
            }
        }
    }
    Ok(())
}

/// Returns every shape in every form.
fn cases() -> impl Iterator<Item = (Form, [usize; 3])> {
    SHAPES.into_iter().flat_map(|[m, k, n]| {
        [
            (Form::Forward, [m, k, n]),
            (Form::Backward, [m, k, n]),
            // The depth of a weight gradient is the number of tokens.
            (Form::Gradient, [k, m, n]),
        ]
    })
}

/// Returns the dtypes that a GEMM of `dtype` factors may be written in.
fn output_dtypes(dtype: DType) -> &'static [DType] {
    match dtype {
        DType::BF16 => &[DType::BF16, DType::F32],
        DType::F16 => &[DType::F16, DType::F32],
        _ => &[DType::F32],
    }
}

/// A matrix on the host.
struct HostMatrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl HostMatrix {
    /// Creates a matrix of pseudo-random integers from `-max` to `max`.
    fn pseudo_random(rows: usize, columns: usize, max: u32, seed: u32) -> Self {
        let value = |index: usize| {
            let mixed = (index as u32 + 1).wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503);
            let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(2_246_822_519) >> 8;
            (mixed % (2 * max + 1)) as f32 - max as f32
        };
        Self { rows, columns, values: (0..rows * columns).map(value).collect() }
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row * self.columns + column]
    }
}

/// Returns the matrix in memory that contains the left factor, the column where that factor begins, and the right
/// factor's matrix in memory.
fn factors(form: Form, [m, k, n]: [usize; 3], dtype: DType) -> (HostMatrix, usize, HostMatrix) {
    // Sums stay below 2^8 for bf16, and below 2^24 for f32.
    let max = if dtype == DType::F32 { 2047 } else { 2 };
    match form {
        Form::Forward => {
            (HostMatrix::pseudo_random(m, k, max, 1), 0, HostMatrix::pseudo_random(n, k, 2, 2))
        }
        Form::Backward => (
            HostMatrix::pseudo_random(m, k + EXTRA_COLUMNS, max, 3),
            EXTRA_COLUMNS,
            HostMatrix::pseudo_random(k, n, 2, 4),
        ),
        Form::Gradient => {
            (HostMatrix::pseudo_random(k, m, max, 5), 0, HostMatrix::pseudo_random(k, n, 2, 6))
        }
    }
}

/// Returns the matrix that is added to a product.
fn addend_matrix([m, _, n]: [usize; 3]) -> HostMatrix {
    HostMatrix::pseudo_random(m, n, 2, 7)
}

/// Computes the result of a GEMM on the host, sum by sum. Every partial sum is an integer that f32 represents exactly.
fn expected(form: Form, [m, k, n]: [usize; 3], dtype: DType, addend: Addend) -> Vec<f32> {
    let (left, first, right) = factors(form, [m, k, n], dtype);
    let added = addend_matrix([m, k, n]);
    let left = |row, i| match form {
        Form::Gradient => left.at(i, row),
        _ => left.at(row, first + i),
    };
    let right = |i, column| match form {
        Form::Forward => right.at(column, i),
        _ => right.at(i, column),
    };
    let sum = |row, column| (0..k).map(|i| left(row, i) * right(i, column)).sum::<f32>();
    let added = |row, column| match addend {
        Addend::Nothing => 0.0,
        Addend::Product | Addend::Other => added.at(row, column),
    };
    (0..m * n).map(|at| FACTOR * sum(at / n, at % n) + added(at / n, at % n)).collect()
}

struct Tester<'a, R: CubeRuntime> {
    client: &'a ComputeClient<R>,
    device: &'a R::Device,
    dtype: DType,
    steps: u32,
    multiply: &'a Multiply<'a, R>,
}

impl<R: CubeRuntime> Tester<'_, R> {
    /// Runs one GEMM between two kernels ([`Self::run_chain`]) and checks that every value is the [`expected`] one.
    fn compare(
        &self,
        form: Form,
        shape: [usize; 3],
        product: DType,
        addend: Addend,
    ) -> Result<(), String> {
        let found = self.run_chain(form, shape, product, addend)?;
        let expected = expected(form, shape, self.dtype, addend);
        let wrong = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        if wrong == 0 && found.len() == expected.len() {
            return Ok(());
        }
        let (from, to) = (self.dtype.name(), product.name());
        let count = expected.len();
        Err(format!(
            "its self-test failed: {wrong} of {count} numbers of a GEMM {shape:?} ({form:?}, {from} to {to}, addend: {addend:?}) are wrong"
        ))
    }

    /// Doubles half of the left factor slowly, multiplies, and halves the product, without waiting before the result
    /// is read. Returns twice that result.
    fn run_chain(
        &self,
        form: Form,
        [m, k, n]: [usize; 3],
        dtype: DType,
        addend: Addend,
    ) -> Result<Vec<f32>, String> {
        let (left, first, right) = factors(form, [m, k, n], self.dtype);
        let half =
            HostMatrix { values: left.values.iter().map(|value| value / 2.0).collect(), ..left };
        let right = self.tensor(&right);
        let doubled = self.empty([half.rows, half.columns], self.dtype);
        let added = self.tensor_of(&addend_matrix([m, k, n]), dtype);
        let product = match addend {
            Addend::Nothing => self.empty([m, n], dtype),
            Addend::Product => added.clone(),
            Addend::Other => {
                let wide = self.empty([m, n + EXTRA_COLUMNS], dtype);
                view_columns(wide, EXTRA_COLUMNS..n + EXTRA_COLUMNS)
            }
        };
        let halved = self.empty([m, n], dtype);
        scale(self.tensor(&half), &doubled, 2.0, self.steps);
        let left = match form {
            Form::Gradient => transposed(doubled),
            _ => {
                let [_, columns] = doubled.meta.shape().dims();
                view_columns(doubled, first..columns)
            }
        };
        let right = match form {
            Form::Forward => transposed(right),
            _ => right,
        };
        let addend = (addend != Addend::Nothing).then_some(&added);
        let gemm = Gemm { left: &left, right: &right, factor: FACTOR, addend, product: &product };
        (self.multiply)(&gemm)?;
        scale(product, &halved, 0.5, 0);
        let bytes = self.client.read_one(halved.handle);
        let bytes = bytes.map_err(|error| format!("its self-test stopped: {error:?}"))?;
        let data = TensorData::from_bytes_vec(bytes.to_vec(), [m, n], dtype);
        Ok(data.iter::<f32>().map(|value| 2.0 * value).collect())
    }

    /// Uploads a factor.
    fn tensor(&self, numbers: &HostMatrix) -> CubeTensor<R> {
        self.tensor_of(numbers, self.dtype)
    }

    /// Uploads a matrix as `dtype`.
    fn tensor_of(&self, numbers: &HostMatrix, dtype: DType) -> CubeTensor<R> {
        let shape = [numbers.rows, numbers.columns];
        let data = TensorData::new(numbers.values.clone(), shape).convert_dtype(dtype);
        self.upload(data.as_bytes(), shape, dtype)
    }

    /// Returns a tensor filled with NaN.
    fn empty(&self, shape: [usize; 2], dtype: DType) -> CubeTensor<R> {
        let bytes = vec![0xff; shape[0] * shape[1] * dtype.size()];
        self.upload(&bytes, shape, dtype)
    }

    fn upload(&self, bytes: &[u8], shape: [usize; 2], dtype: DType) -> CubeTensor<R> {
        let memory = self.client.create_from_slice(bytes);
        let (client, device) = (self.client.clone(), self.device.clone());
        CubeTensor::new_contiguous(client, device, shape.into(), memory, dtype)
    }
}

/// Launches [`scale_slowly`].
fn scale<R: CubeRuntime>(input: CubeTensor<R>, output: &CubeTensor<R>, factor: f32, steps: u32) {
    let count = output.meta.num_elements();
    let dtype = output.dtype.into();
    scale_slowly::launch::<R>(
        &output.client,
        block_grid(count.div_ceil(THREADS)),
        CubeDim::new_1d(THREADS as u32),
        input.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        factor,
        1.0,
        steps,
        dtype,
    );
}

/// Multiplies each value of a matrix by `factor`, one value per thread, after `steps` multiplications by `one`.
#[cube(launch)]
fn scale_slowly<F: Float>(
    input: &Tensor<F>,
    output: &mut Tensor<F>,
    factor: f32,
    one: f32,
    steps: u32,
    #[define(F)] _dtype: StorageType,
) {
    let (row, column) = (ABSOLUTE_POS / output.shape(1), ABSOLUTE_POS % output.shape(1));
    if row >= output.shape(0) {
        terminate!();
    }
    let mut value = f32::cast_from(input[row * input.stride(0) + column]);
    let mut step = 0u32.runtime();
    while step < steps {
        value *= one;
        step += 1;
    }
    output[row * output.stride(0) + column] = F::cast_from(value * factor);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact() {
        for (dtype, max) in [(DType::BF16, 256.0), (DType::F32, 16_777_216.0)] {
            for (form, shape) in cases() {
                for addend in ADDENDS {
                    let values = expected(form, shape, dtype, addend);
                    assert!(values.iter().all(|v| v.abs() <= max), "{dtype:?} {form:?} {addend:?}");
                    let zeros = values.iter().filter(|v| **v == 0.0).count();
                    assert!(zeros < values.len() / 8, "{zeros} zeros");
                }
            }
        }
        // Rounding to the 11 bits of TF32 would change some of these numbers.
        let (left, _, _) = factors(Form::Forward, SHAPES[0], DType::F32);
        let bits = |value: f32| (value.abs() as u32) >> value.abs().log2().max(0.0) as u32;
        assert!(left.values.iter().any(|v| v.abs() > 1024.0 && bits(*v) == 1));
        assert!(left.values.iter().any(|v| v.abs() > 1024.0 && *v % 2.0 != 0.0));
    }
}

/// Tests of the self-test itself on software Vulkan, with a correct implementation and several wrong ones.
#[cfg(all(test, feature = "wgpu"))]
mod on_wgpu {
    use burn_cubecl::ops::numeric::{add, mul_scalar};
    use burn_wgpu::WgpuRuntime;

    use super::*;
    use crate::cubecl::launch::{empty, matmul_into};

    /// Runs the self-test; returns `None` without a driver.
    fn checked(multiply: &Multiply<WgpuRuntime>) -> Option<Result<(), String>> {
        crate::wgpu::start(None).ok()?;
        let device = Default::default();
        Some(check::<WgpuRuntime>(&device, DType::F32, 100, multiply))
    }

    fn right(gemm: &Gemm<'_, WgpuRuntime>) -> Result<(), String> {
        let shape: [usize; 2] = gemm.product.meta.shape().dims();
        let product = empty(gemm.left, shape, DType::F32);
        matmul_into(gemm.left.clone(), gemm.right.clone(), product.clone());
        let product = mul_scalar(product, InputScalar::new(gemm.factor, DType::F32));
        let sum = match gemm.addend {
            Some(addend) => add(product, addend.clone()),
            None => product,
        };
        scale(sum, gemm.product, 1.0, 0);
        Ok(())
    }

    #[test]
    fn correct_gemms_pass() {
        let result = checked(&right);
        assert!(matches!(result, None | Some(Ok(()))), "{result:?}");
    }

    #[test]
    fn wrong_gemms_are_found() {
        let nothing = |_: &Gemm<'_, WgpuRuntime>| Ok(());
        let refused = |_: &Gemm<'_, WgpuRuntime>| Err("no kernel".to_string());
        let few_rows = |gemm: &Gemm<'_, WgpuRuntime>| {
            let [rows, _] = gemm.left.meta.shape().dims::<2>();
            let [mut left, mut product] = [gemm.left, gemm.product].map(Clone::clone);
            for tensor in [&mut left, &mut product] {
                let [_, columns] = tensor.meta.shape().dims::<2>();
                *tensor.meta.shape_mut() = [rows - 1, columns].into();
            }
            right(&Gemm { left: &left, addend: None, product: &product, ..*gemm })
        };
        let other = |gemm: &Gemm<'_, WgpuRuntime>| {
            // As if a weight were stored transposed.
            let [_, columns] = gemm.right.meta.shape().dims::<2>();
            let mut factor = gemm.right.clone();
            *factor.meta.strides_mut() = [columns, 1].into();
            right(&Gemm { right: &factor, ..*gemm })
        };
        let without_addend = |gemm: &Gemm<'_, WgpuRuntime>| right(&Gemm { addend: None, ..*gemm });
        let all: [&Multiply<WgpuRuntime>; 5] =
            [&nothing, &refused, &few_rows, &other, &without_addend];
        for (index, multiply) in all.into_iter().enumerate() {
            let result = checked(multiply);
            assert!(result.is_none_or(|result| result.is_err()), "{index}");
        }
    }
}

/// The self-test on the emulated card, on which a loop computes what the library would.
#[cfg(all(test, feature = "dry-cuda"))]
#[allow(clippy::print_stderr, reason = "a test says that it is skipped")]
mod on_an_emulated_card {
    use super::*;
    use crate::cubecl::runtime::GpuRuntime;
    use crate::dry_cuda::{CARDS, DryDevice, DryRuntime, emulator};

    #[test]
    fn products_in_every_dtype_pass() {
        if let Err(reason) = emulator::start() {
            eprintln!("SKIPPED: {reason}");
            return;
        }
        let device = DryDevice::emulated(&CARDS[1], true);
        let multiply = |gemm: &Gemm<'_, DryRuntime>| {
            let accepted = DryRuntime::multiply_by_library(gemm);
            accepted.then_some(()).ok_or_else(|| "it refuses the operands".to_string())
        };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            assert_eq!(check::<DryRuntime>(&device, dtype, 0, &multiply), Ok(()));
        }
        assert_eq!(device.take().errors, Vec::<String>::new());
    }
}
