//! The numbers of an operation beside those of its reference.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arithmo_backends::ops::packed::{BLOCK, NESTED_BLOCK};
use arithmo_backends::{Format, PackedWeight, ProductsBy, Scales, TrainBackend};
use burn::tensor::{DType, Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::Out;
use super::operations::{WITH_PRODUCTS, families};
use super::speed::timed;
use crate::error::{Error, Result};
use crate::interrupt;

/// Weights and activations are tried in those of these types that the device computes in.
pub(super) const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// What an operation did over all sizes and layouts tried.
#[derive(Clone, Debug)]
pub(super) struct Row {
    operation: String,
    dtype: DType,
    /// Largest difference to the reference, relative to the largest value of the result.
    error: f64,
    seconds: f64,
    /// Whether the backend's kernels multiplied, though it has a library for that.
    without_library: bool,
    /// What it said when it stopped.
    stopped: Option<String>,
}

impl Row {
    /// The columns' names.
    pub(super) fn header() -> String {
        let (operation, dtype, error, ms) = ("operation", "type", "largest error", "ms");
        format!("  {operation:<28}{dtype:<6}{error:>14}{:8}{ms:>10}", "")
    }

    pub(super) fn name(&self) -> String {
        let by = match self.without_library {
            true => ", without the library",
            false => "",
        };
        format!("{} in {}{by}", self.operation, self.dtype.name())
    }

    pub(super) fn ok(&self) -> bool {
        self.stopped.is_none() && self.error <= tolerance(self.dtype)
    }

    fn line(&self) -> String {
        let (operation, dtype) = (&self.operation, self.dtype.name());
        if let Some(reason) = &self.stopped {
            return format!("  {operation:<28}{dtype:<6}{:>14}  WRONG  {reason}", "");
        }
        let state = if self.ok() { "ok" } else { "WRONG" };
        let (error, ms) = (self.error, self.seconds * 1e3);
        format!("  {operation:<28}{dtype:<6}{error:>14.1e}  {state:<6}{ms:>10.2}")
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "operation": self.operation,
            "dtype": self.dtype.name(),
            "largest_relative_error": self.error,
            "tolerance": tolerance(self.dtype),
            "ok": self.ok(),
            "milliseconds": self.seconds * 1e3,
            "without_library": self.without_library,
            "stopped": self.stopped,
        })
    }
}

/// Rounding of sums of some hundred terms of size one, in operation and reference each; or of 11 and 8 bits, at every
/// point where a result is rounded to the type. A wrong tile, stride or mask is off by the size of the values.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1e-2,
        DType::BF16 => 8e-2,
        _ => 2e-5,
    }
}

/// Checks every operation in every type, and writes a line for each; with a library for products, once more what has
/// products, without it.
pub(super) fn check_operations<B: TrainBackend>(
    device: &B::Device,
    out: &mut Out<'_>,
) -> Result<Vec<Row>> {
    let all = families::<B>();
    let mut rows = check_families::<B>(&all, device, out)?;
    if let ProductsBy::Library(name) = B::products_by(device) {
        let of_products = all.into_iter();
        let of_products = of_products.filter(|(family, _)| WITH_PRODUCTS.contains(family));
        let of_products: Vec<_> = of_products.collect();
        out(&format!("  (without {name}:)"))?;
        let again = || check_families::<B>(&of_products, device, out);
        let again = B::without_library(device, again)?.into_iter();
        rows.extend(again.map(|row| Row { without_library: true, ..row }));
    }
    Ok(rows)
}

fn check_families<B: TrainBackend>(
    families: &[(&'static str, Family<B>)],
    device: &B::Device,
    out: &mut Out<'_>,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for dtype in TYPES {
        if dtype != DType::F32 && !B::computes_in(device, dtype) {
            out(&format!("  (does not compute in {})", dtype.name()))?;
            continue;
        }
        for (name, family) in families {
            let mut checker = Checker::new(dtype, device);
            for pitched in [false, true] {
                checker.pitched = pitched;
                checker.run(name, *family)?;
            }
            for row in &checker.rows {
                out(&row.line())?;
            }
            rows.extend(checker.rows);
        }
    }
    Ok(rows)
}

/// The operations of one family: what checks them.
pub(super) type Family<B> = fn(&mut Checker<B>) -> Result<()>;

/// Gives out random inputs, compares and times.
pub(super) struct Checker<B: TrainBackend> {
    device: B::Device,
    dtype: DType,
    /// Inputs are the first columns of wider matrices, so that rows do not follow each other in memory.
    pitched: bool,
    rng: ChaCha8Rng,
    rows: Vec<Row>,
}

impl<B: TrainBackend> Checker<B> {
    fn new(dtype: DType, device: &B::Device) -> Self {
        Self {
            device: device.clone(),
            dtype,
            pitched: false,
            rng: ChaCha8Rng::seed_from_u64(1),
            rows: Vec::new(),
        }
    }

    /// Runs a family; one that stops is a result too.
    fn run(&mut self, name: &str, family: Family<B>) -> Result<()> {
        if interrupt::requested() {
            let note = "the checks were not finished".into();
            return Err(Error::Interrupted { note });
        }
        match catch_unwind(AssertUnwindSafe(|| family(&mut *self))) {
            Ok(result) => result,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                let text = text.unwrap_or("stopped without a word");
                let row = self.row(name);
                row.stopped = text.lines().next().map(String::from);
                Ok(())
            }
        }
    }

    /// The type under test.
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    /// A random matrix in the type under test, and the same in f32.
    pub(super) fn matrix(&mut self, shape: [usize; 2]) -> [Tensor<B, 2>; 2] {
        let data = self.data(&shape);
        let exact = Tensor::from_data(data.clone(), (&self.device, DType::F32));
        let data = data.convert_dtype(self.dtype);
        let tested = Tensor::from_data(data, (&self.device, self.dtype));
        let tested = match self.pitched {
            true => {
                let beside = Tensor::ones([shape[0], 3], (&self.device, self.dtype));
                Tensor::cat(vec![tested, beside], 1).narrow(1, 0, shape[1])
            }
            false => tested,
        };
        [tested, exact]
    }

    /// A random vector in the type under test, and the same in f32.
    pub(super) fn vector(&mut self, width: usize) -> [Tensor<B, 1>; 2] {
        let data = self.data(&[width]);
        let exact = Tensor::from_data(data.clone(), (&self.device, DType::F32));
        let data = data.convert_dtype(self.dtype);
        [Tensor::from_data(data, (&self.device, self.dtype)), exact]
    }

    /// A matrix of random indices, its scales in 8 bits.
    pub(super) fn packed(&mut self, format: Format, dims: [usize; 2]) -> PackedWeight<B> {
        let blocks = (dims[0] * dims[1]).div_ceil(BLOCK);
        let mut words = |count: usize| {
            let words: Vec<u32> = (0..count).map(|_| self.rng.next_u32()).collect();
            Tensor::from_data(TensorData::new(words, [count]), (&self.device, DType::U32))
        };
        let values = words((dims[0] * dims[1]).div_ceil(format.per_word()));
        let scales = words(blocks.div_ceil(4));
        let absmax = self.exact([1, blocks.div_ceil(NESTED_BLOCK)]);
        PackedWeight {
            format,
            dims,
            words: values,
            scales: Some(Scales::Double {
                words: scales,
                absmax: absmax.squeeze_dim(0),
                offset: 0.5,
            }),
        }
    }

    /// A random matrix in f32, whatever is under test.
    pub(super) fn exact(&mut self, shape: [usize; 2]) -> Tensor<B, 2> {
        let data = self.data(&shape);
        Tensor::from_data(data, (&self.device, DType::F32))
    }

    /// Random ids below `limit`.
    pub(super) fn ids(&mut self, count: usize, limit: usize) -> Tensor<B, 1, Int> {
        let limit = limit as u64;
        let ids = (0..count).map(|_| (u64::from(self.rng.next_u32()) % limit) as i64);
        let ids = ids.collect();
        self.ints(ids, [count])
    }

    pub(super) fn ints<const D: usize>(
        &self,
        values: Vec<i64>,
        shape: [usize; D],
    ) -> Tensor<B, D, Int> {
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    /// Uniform in `[-1.5, 1.5]`, in steps that the type under test holds exactly: in f32 finer than the inputs of matrix
    /// units that round to fewer bits, which thereby show.
    fn data(&mut self, shape: &[usize]) -> TensorData {
        let steps = if self.dtype == DType::F32 { 1 << 16 } else { 1 << 6 };
        let mut value = || (self.rng.next_u32() % (3 * steps + 1)) as f32 / steps as f32 - 1.5;
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| value()).collect();
        TensorData::new(values, shape.to_vec())
    }

    /// Compares what `tested` computes with what `exact` does, matrix by matrix, and times it.
    pub(super) fn compare(
        &mut self,
        operation: &str,
        tested: impl Fn() -> Vec<Tensor<B, 2>>,
        exact: impl Fn() -> Vec<Tensor<B, 2>>,
    ) -> Result<()> {
        let (ours, exact) = (tested(), exact());
        let mut error = match ours.len() == exact.len() {
            true => 0.0,
            false => f64::INFINITY,
        };
        for (ours, exact) in ours.into_iter().zip(exact) {
            error = f64::max(error, relative_error(ours, exact));
        }
        let (seconds, _) = timed::<B, _>(&self.device, tested)?;
        let row = self.row(operation);
        row.error = row.error.max(error);
        row.seconds += seconds;
        Ok(())
    }

    fn row(&mut self, operation: &str) -> &mut Row {
        let known = self.rows.iter().position(|r| r.operation == operation);
        let index = known.unwrap_or_else(|| {
            self.rows.push(Row {
                operation: operation.to_string(),
                dtype: self.dtype,
                error: 0.0,
                seconds: 0.0,
                without_library: false,
                stopped: None,
            });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }
}

/// Infinite where shapes differ or a number is none.
fn relative_error<B: TrainBackend>(ours: Tensor<B, 2>, exact: Tensor<B, 2>) -> f64 {
    if ours.dims() != exact.dims() {
        return f64::INFINITY;
    }
    let numbers = |tensor: Tensor<B, 2>| -> Vec<f64> { tensor.into_data().iter().collect() };
    let (ours, exact) = (numbers(ours), numbers(exact));
    let scale = exact.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
    let largest = ours.iter().zip(&exact).fold(0.0, |largest: f64, (a, b)| match (a - b).abs() {
        difference if difference.is_finite() => largest.max(difference),
        _ => f64::INFINITY,
    });
    largest / scale.max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Cpu = burn_ndarray::NdArray<f32>;

    fn checker() -> Checker<Cpu> {
        Checker::new(DType::F32, &Default::default())
    }

    /// The row of an operation that gives `x` changed by `wrong`.
    fn row(wrong: impl Fn(Tensor<Cpu, 2>) -> Tensor<Cpu, 2>) -> Row {
        let mut checker = checker();
        let [tested, exact] = checker.matrix([7, 5]);
        let tested = || vec![wrong(tested.clone())];
        checker.compare("copy", tested, || vec![exact.clone()]).unwrap();
        checker.rows.remove(0)
    }

    #[test]
    fn right_is_right_and_wrong_is_wrong() {
        assert!(row(|x| x).ok());
        assert!(row(|x| x * (1.0 + 1e-6)).ok());
        assert!(!row(|x| x * (1.0 + 1e-4)).ok());
        assert!(!row(|x| x.narrow(0, 0, 6)).ok());
        assert!(!row(|x| x.log()).ok(), "numbers that are none");
        let last = |x: Tensor<Cpu, 2>| {
            let zero = Tensor::zeros([1, 1], &x.device());
            x.slice_assign([6..7, 4..5], zero)
        };
        assert!(!row(last).ok(), "one number of 35");
    }

    #[test]
    fn inputs_need_all_bits_of_the_type() {
        let mut checker = checker();
        let values = checker.data(&[9, 9]);
        let eleven_bits = values.clone().convert_dtype(DType::F16);
        let back = eleven_bits.convert_dtype(DType::F32);
        assert_ne!(back, values);
        checker.dtype = DType::BF16;
        let values = checker.data(&[9, 9]);
        let eight_bits = values.clone().convert_dtype(DType::BF16);
        assert_eq!(eight_bits.convert_dtype(DType::F32), values);
    }

    #[test]
    fn an_operation_that_stops_is_a_result() {
        let mut checker = checker();
        let family: Family<Cpu> = |_| panic!("no such kernel\nand more");
        checker.run("rope", family).unwrap();
        assert!(!checker.rows[0].ok());
        assert!(checker.rows[0].line().contains("WRONG  no such kernel"));
    }
}
