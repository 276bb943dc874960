//! Initializes an adapter by LoftQ (arXiv 2310.08659): the best low-rank approximation of the weights' quantization
//! error.
//!
//! It corresponds to PEFT's `loftq_utils` with one iteration: the largest `r` singular values of `W - Q(W)`, with
//! their square roots on both sides. PEFT does not divide by the adapter's scaling, so that its result is right for
//! `lora_alpha = r` only; here `scaling * B A` is the approximation for any scaling.
//!
//! More iterations are refused. With a fixed base, one iteration is optimal; another could only gain if the base were
//! quantized anew as `Q(W - scaling * B A)`. That base would depend on the rounding of the decomposition on one
//! device, not only on model and settings. Every merge, resume and use of the adapter would need a copy of it, and an
//! adapter folder in PEFT's format cannot hold one. PEFT's own function for weights quantized by bitsandbytes
//! (`replace_lora_weights_loftq`) is also this one iteration.

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::config::{BranchConfig, LoraConfig};
use super::lora::{Branch, attach_one};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::decoder::Decoder;
use crate::model::weights::WeightFiles;
use crate::progress::{Progress, ProgressMode};

/// Minimum number of directions in the subspace, so that small matrices are decomposed exactly.
const MIN_DIRECTIONS: usize = 64;

/// Number of subspace iterations towards the largest singular values (randomized subspace iteration, arXiv 0909.4061,
/// algorithm 4.4).
const ITERATIONS: usize = 6;

/// Initializes every branch of `policy` by LoftQ; `files` hold the weights before quantization.
///
/// # Errors
/// The weights cannot be read or are already quantized in `files`, or the user interrupts.
pub fn start<B: TrainBackend>(
    policy: &mut Decoder<Autodiff<B>>,
    config: &LoraConfig,
    seed: u64,
    files: &WeightFiles,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let base = policy.valid();
    let with_branch = base.projections().filter(|(_, linear)| linear.lora.is_some());
    let progress = Progress::new("loftq", Some(with_branch.count() as u64), "weights", mode);
    let sites = base.projections().zip(policy.projections_mut()).enumerate();
    for (site, ((name, quantized), (_, linear))) in sites {
        let Some(BranchConfig { r, scaling }) = config.at(&name)? else {
            continue;
        };
        if interrupt::requested() {
            let note = "stopped while initializing the adapter".to_string();
            return Err(Error::Interrupted { note });
        }
        let data = files.tensor_data(&format!("{name}.weight"), DType::F32)?;
        let weight = Tensor::<B, 2>::from_data(data, (device, DType::F32));
        let residual = weight - quantized.weight.floats(DType::F32);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(site as u64);
        let [a, b] = low_rank(residual, r, ITERATIONS, &mut rng);
        let factor = 1.0 / scaling.sqrt();
        let [a, b] = [a, b].map(|matrix| matrix.scaled(factor).into_data());
        let branch = Branch { a, b, bias: None, magnitude: None, scaling };
        attach_one(linear, config, site, branch, device);
        progress.inc(1);
    }
    progress.finish();
    Ok(())
}

/// Returns the best approximation `B A` of rank `rank` of `matrix` `[M, N]`: `A` `[rank, N]` and `B` `[M, rank]`,
/// each scaled by the square roots of the singular values.
///
/// Only `max(64, 2 rank + 8)` directions are searched for the largest singular values, by `iterations` subspace
/// iterations; the result is exact if the matrix has no more.
pub(super) fn low_rank<B: TrainBackend>(
    matrix: Tensor<B, 2>,
    rank: usize,
    iterations: usize,
    rng: &mut impl Rng,
) -> [Matrix; 2] {
    let [rows, columns] = matrix.dims();
    let directions = MIN_DIRECTIONS.max(2 * rank + 8).min(rows).min(columns);
    let transposed = matrix.clone().transpose();
    let mut basis = Matrix::random(columns, directions, rng).orthonormal();
    for _ in 0..iterations {
        let range = basis.left_multiplied_by(&matrix).orthonormal();
        basis = range.left_multiplied_by(&transposed).orthonormal();
    }
    let range = basis.left_multiplied_by(&matrix).orthonormal();
    // matrix = range * small within these directions; `small` `[K, N]` is stored transposed.
    let small = range.left_multiplied_by(&transposed);
    let (squares, eigenvectors) = small.gram().eigen();
    let mut order: Vec<usize> = (0..directions).collect();
    order.sort_by(|i, j| squares[*j].total_cmp(&squares[*i]));

    let (mut a, mut b) = (Matrix::zeros(columns, rank), Matrix::zeros(rows, rank));
    for (index, from) in order.into_iter().take(rank).enumerate() {
        let singular = squares[from].max(0.0).sqrt();
        if singular > f64::MIN_POSITIVE {
            small.combine(
                &eigenvectors.columns[from],
                1.0 / singular.sqrt(),
                &mut a.columns[index],
            );
            range.combine(&eigenvectors.columns[from], singular.sqrt(), &mut b.columns[index]);
        }
    }
    [a.transposed(), b]
}

/// A thin f64 matrix in host memory, stored by columns.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    /// The columns, each of `rows` values.
    pub(super) columns: Vec<Vec<f64>>,
    /// The number of rows.
    pub(super) rows: usize,
}

impl Matrix {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self { columns: vec![vec![0.0; rows]; columns], rows }
    }

    /// Creates a matrix of uniform random values between -1 and 1.
    fn random(rows: usize, columns: usize, rng: &mut impl Rng) -> Self {
        let mut matrix = Self::zeros(rows, columns);
        for value in matrix.columns.iter_mut().flatten() {
            *value = f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0;
        }
        matrix
    }

    /// Computes `left * self` on the device of `left`.
    fn left_multiplied_by<B: TrainBackend>(&self, left: &Tensor<B, 2>) -> Self {
        let transposed = self.clone().into_rows();
        let data = TensorData::new(transposed, [self.columns.len(), self.rows]);
        let right = Tensor::<B, 2>::from_data(data, (&left.device(), DType::F32));
        let product = left.clone().matmul(right.transpose()).transpose();
        let [count, rows] = product.dims();
        let values: Vec<f64> = product.into_data().iter::<f64>().collect();
        Self { columns: values.chunks(rows).take(count).map(<[f64]>::to_vec).collect(), rows }
    }

    /// Returns the columns one after another in f32, that is the rows of the transposed matrix.
    fn into_rows(self) -> Vec<f32> {
        self.columns.into_iter().flatten().map(|v| v as f32).collect()
    }

    /// Converts the matrix to row-major f32 data.
    pub(super) fn into_data(self) -> TensorData {
        let shape = [self.columns.len(), self.rows];
        // The storage is by columns, the tensor by rows.
        TensorData::new(self.transposed().into_rows(), [shape[1], shape[0]])
    }

    fn transposed(&self) -> Self {
        let row = |row: usize| self.columns.iter().map(|column| column[row]).collect();
        Self { columns: (0..self.rows).map(row).collect(), rows: self.columns.len() }
    }

    pub(super) fn scaled(mut self, factor: f64) -> Self {
        self.columns.iter_mut().flatten().for_each(|value| *value *= factor);
        self
    }

    /// Orthonormalizes the columns (Gram-Schmidt, twice); linearly dependent columns become 0.
    pub(super) fn orthonormal(mut self) -> Self {
        for index in 0..self.columns.len() {
            let (before, rest) = self.columns.split_at_mut(index);
            let column = &mut rest[0];
            let original_norm = dot(column, column).sqrt();
            for _ in 0..2 {
                for other in before.iter() {
                    let along = dot(column, other);
                    column.iter_mut().zip(other).for_each(|(c, o)| *c -= along * o);
                }
            }
            let norm = dot(column, column).sqrt();
            let factor = if norm > 1e-10 * original_norm { 1.0 / norm } else { 0.0 };
            column.iter_mut().for_each(|value| *value *= factor);
        }
        self
    }

    /// Computes the Gram matrix, the dot products of all pairs of columns.
    fn gram(&self) -> Self {
        let dot_products = |a: &Vec<f64>| self.columns.iter().map(|b| dot(a, b)).collect();
        Self { columns: self.columns.iter().map(dot_products).collect(), rows: self.columns.len() }
    }

    /// Adds the columns, each times its weight and `factor`, to `sum`.
    fn combine(&self, weights: &[f64], factor: f64, sum: &mut [f64]) {
        for (column, weight) in self.columns.iter().zip(weights) {
            let weight = weight * factor;
            sum.iter_mut().zip(column).for_each(|(sum, value)| *sum += weight * value);
        }
    }

    /// Computes the eigenvalues and eigenvectors (columns) of a symmetric matrix by Jacobi rotations.
    fn eigen(mut self) -> (Vec<f64>, Self) {
        let size = self.rows;
        let mut vectors = Self::zeros(size, size);
        (0..size).for_each(|index| vectors.columns[index][index] = 1.0);
        let squared_norm: f64 = self.columns.iter().map(|column| dot(column, column)).sum();
        for _ in 0..60 {
            let mut off_diagonal = 0.0;
            for p in 0..size {
                for q in p + 1..size {
                    let between = self.columns[p][q];
                    off_diagonal += between * between;
                    // Smaller values would not change the larger of the two diagonal values.
                    if between * between > 1e-34 * squared_norm {
                        let cos_sin = rotation(self.columns[p][p], self.columns[q][q], between);
                        self.rotate_rows(p, q, cos_sin);
                        rotate(&mut self.columns, p, q, cos_sin);
                        rotate(&mut vectors.columns, p, q, cos_sin);
                    }
                }
            }
            if off_diagonal <= 1e-30 * squared_norm {
                break;
            }
        }
        let values = (0..size).map(|index| self.columns[index][index]).collect();
        (values, vectors)
    }

    /// Applies a Jacobi rotation to the rows `p` and `q`.
    fn rotate_rows(&mut self, p: usize, q: usize, (cos, sin): (f64, f64)) {
        for column in &mut self.columns {
            let (a, b) = (column[p], column[q]);
            (column[p], column[q]) = (cos * a - sin * b, sin * a + cos * b);
        }
    }
}

/// Returns cosine and sine of the Jacobi rotation that zeroes the off-diagonal value `between` of diagonal values `p`
/// and `q`.
fn rotation(p: f64, q: f64, between: f64) -> (f64, f64) {
    let half = (q - p) / (2.0 * between);
    let tangent = half.signum() / (half.abs() + half.hypot(1.0));
    let cos = 1.0 / tangent.hypot(1.0);
    (cos, tangent * cos)
}

/// Applies a Jacobi rotation to the columns `p` and `q`, where `p < q`.
fn rotate(columns: &mut [Vec<f64>], p: usize, q: usize, (cos, sin): (f64, f64)) {
    let (before, rest) = columns.split_at_mut(q);
    for (a, b) in before[p].iter_mut().zip(&mut rest[0]) {
        (*a, *b) = (cos * *a - sin * *b, sin * *a + cos * *b);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use arithmo_backends::Format;

    use super::*;
    use crate::model::quantize::{Quantization, cache};

    type B = burn_ndarray::NdArray<f32>;

    fn values(data: TensorData) -> Vec<f32> {
        data.iter::<f32>().collect()
    }

    fn product(a: &TensorData, b: &TensorData) -> Vec<f32> {
        let tensor =
            |data: &TensorData| Tensor::<B, 2>::from_data(data.clone(), &Default::default());
        values(tensor(b).matmul(tensor(a)).into_data())
    }

    /// The matrix `B A` is PEFT's, and so are the row norms of `A`: the square roots of the singular values.
    #[test]
    fn the_initialization_is_pefts() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/quantize/golden.safetensors");
        let files = WeightFiles::open_file(&path).unwrap();
        let to = Quantization { format: Format::Nf4, double_quant: false };
        let dequantized =
            cache::quantize_matrix(&files, "loftq.weight", [48, 40], to).unwrap().dequantize();
        assert_eq!(dequantized, files.tensor_f32("loftq.base").unwrap());
        let weight = files.tensor_f32("loftq.weight").unwrap();
        let residual = weight.iter().zip(&dequantized).map(|(w, q)| w - q).collect::<Vec<_>>();
        let residual =
            Tensor::<B, 2>::from_data(TensorData::new(residual, [48, 40]), &Default::default());
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let [a, b] = low_rank(residual, 5, ITERATIONS, &mut rng).map(Matrix::into_data);
        assert_eq!((a.shape[..].to_vec(), b.shape[..].to_vec()), (vec![5, 40], vec![48, 5]));
        let golden =
            |name: &str, shape: [usize; 2]| TensorData::new(files.tensor_f32(name).unwrap(), shape);
        let (their_a, their_b) = (golden("loftq.a", [5, 40]), golden("loftq.b", [48, 5]));
        for (ours, theirs) in product(&a, &b).iter().zip(product(&their_a, &their_b)) {
            assert!((ours - theirs).abs() < 1e-5, "{ours} for {theirs}");
        }
        let (ours, theirs) = (values(a), values(their_a));
        for (ours, theirs) in ours.chunks(40).zip(theirs.chunks(40)) {
            let [ours, theirs] = [ours, theirs].map(|row| row.iter().map(|v| v * v).sum::<f32>());
            assert!((ours - theirs).abs() < 1e-5 * theirs, "{ours} for {theirs}");
        }
    }

    /// A matrix with more than the searched directions, one of lower rank than requested, and a zero matrix.
    #[test]
    fn any_shape_is_approximated() {
        let random = |rows, columns| {
            Tensor::<B, 2>::random(
                [rows, columns],
                burn::tensor::Distribution::Uniform(-1.0, 1.0),
                &Default::default(),
            )
        };
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        // A matrix of rank 3 plus noise: the best approximation leaves no more than the noise.
        let noise = random(150, 170) * 0.01;
        let matrix = random(150, 3).matmul(random(3, 170)) + noise.clone();
        let [a, b] = low_rank(matrix.clone(), 3, ITERATIONS, &mut rng).map(Matrix::into_data);
        let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();
        let far = |matrix: Tensor<B, 2>, a: &TensorData, b: &TensorData| {
            let whole = values(matrix.into_data());
            let left = whole.iter().zip(product(a, b)).map(|(w, p)| (w - p) * (w - p));
            (left.sum::<f32>().sqrt(), norm(&whole))
        };
        let (left, whole) = far(matrix, &a, &b);
        let noise = norm(&values(noise.into_data()));
        assert!(left <= noise && noise < whole, "{left} of {whole}, noise {noise}");
        // The requested rank exceeds the matrix's own.
        let small = random(4, 9);
        let [a, b] = low_rank(small.clone(), 6, ITERATIONS, &mut rng).map(Matrix::into_data);
        let (left, whole) = far(small, &a, &b);
        assert!(left < 1e-5 * whole, "{left} of {whole}");
        let [a, b] = low_rank(random(5, 7) * 0.0, 2, ITERATIONS, &mut rng).map(Matrix::into_data);
        assert!(product(&a, &b).iter().all(|value| *value == 0.0));
    }
}
