//! The adapter's start under LoftQ (arXiv 2310.08659): the best low-rank approximation of what packing took from the weights.
//!
//! As PEFT's `loftq_utils` with one iteration: of the singular values of `W - Q(W)`, the largest `r`, their roots on both
//! sides. PEFT does not divide by the adapter's scaling, so that its start is right for `lora_alpha = r` only; here
//! `scaling * B A` is the approximation, whatever the scaling.
//!
//! More iterations are refused. On a base that stays, one is the best there is: only packing the base anew, `Q(W - scaling *
//! B A)`, gives the next one something to gain. That base follows from no model and no setting, but from the rounding of the
//! decomposition on one device; every merge, resume and use of the adapter would need a copy of it, and no adapter folder in
//! PEFT's form carries one. PEFT's own way for weights that bitsandbytes packed (`replace_lora_weights_loftq`) is the one
//! iteration too.

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::config::LoraConfig;
use super::linear::attach_one;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::mistral::Mistral;
use crate::model::weights::WeightFiles;
use crate::progress::{Progress, ProgressMode};

/// Directions followed at least, so that small matrices are decomposed exactly.
const FEWEST: usize = 64;

/// Times the directions are turned towards the largest singular values (randomized subspace iteration, arXiv 0909.4061,
/// algorithm 4.4).
const TURNS: usize = 6;

/// Replaces the start of every branch of `policy` by LoftQ's; `files` hold the weights before they were packed.
///
/// # Errors
/// The weights cannot be read, or are packed there too; or the user interrupts.
pub fn start<B: TrainBackend>(
    policy: &mut Mistral<Autodiff<B>>,
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
    for (site, ((name, packed), (_, linear))) in sites {
        if linear.lora.is_none() {
            continue;
        }
        if interrupt::requested() {
            let note = "stopped while the adapter's start was computed".to_string();
            return Err(Error::Interrupted { note });
        }
        let data = files.tensor_data(&format!("{name}.weight"), DType::F32)?;
        let weight = Tensor::<B, 2>::from_data(data, (device, DType::F32));
        let residual = weight - packed.weight.floats(DType::F32);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(site as u64);
        let [a, b] = low_rank(residual, config.r, &mut rng);
        let factor = 1.0 / config.scaling().sqrt();
        let weights = [a, b].map(|matrix| matrix.scaled(factor).into_data());
        attach_one(linear, config, site, weights, device);
        progress.inc(1);
    }
    progress.finish();
    Ok(())
}

/// The best approximation `B A` of rank `rank` of `matrix` `[M, N]`: `A` `[rank, N]` and `B` `[M, rank]`, each with the
/// roots of the singular values.
///
/// Only the largest singular values are looked for, in `max(64, 2 rank + 8)` directions: exact where the matrix has no more.
fn low_rank<B: TrainBackend>(matrix: Tensor<B, 2>, rank: usize, rng: &mut impl Rng) -> [Matrix; 2] {
    let [rows, columns] = matrix.dims();
    let directions = FEWEST.max(2 * rank + 8).min(rows).min(columns);
    let transposed = matrix.clone().transpose();
    let mut basis = Matrix::random(columns, directions, rng).orthonormal();
    for _ in 0..TURNS {
        let range = basis.multiplied_by(&matrix).orthonormal();
        basis = range.multiplied_by(&transposed).orthonormal();
    }
    let range = basis.multiplied_by(&matrix).orthonormal();
    // matrix = range * small, as far as it lies in these directions; `small` `[K, N]` is kept transposed.
    let small = range.multiplied_by(&transposed);
    let (squares, turned) = small.gram().eigen();
    let mut order: Vec<usize> = (0..directions).collect();
    order.sort_by(|i, j| squares[*j].total_cmp(&squares[*i]));

    let (mut a, mut b) = (Matrix::zeros(columns, rank), Matrix::zeros(rows, rank));
    for (index, from) in order.into_iter().take(rank).enumerate() {
        let singular = squares[from].max(0.0).sqrt();
        if singular > f64::MIN_POSITIVE {
            small.combine(&turned.columns[from], 1.0 / singular.sqrt(), &mut a.columns[index]);
            range.combine(&turned.columns[from], singular.sqrt(), &mut b.columns[index]);
        }
    }
    [a.transposed(), b]
}

/// A thin matrix on the host, column by column.
#[derive(Clone, Debug)]
struct Matrix {
    columns: Vec<Vec<f64>>,
    rows: usize,
}

impl Matrix {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self { columns: vec![vec![0.0; rows]; columns], rows }
    }

    /// Numbers between -1 and 1.
    fn random(rows: usize, columns: usize, rng: &mut impl Rng) -> Self {
        let mut matrix = Self::zeros(rows, columns);
        for value in matrix.columns.iter_mut().flatten() {
            *value = f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0;
        }
        matrix
    }

    /// `left * self`.
    fn multiplied_by<B: TrainBackend>(&self, left: &Tensor<B, 2>) -> Self {
        let transposed = self.clone().into_rows();
        let data = TensorData::new(transposed, [self.columns.len(), self.rows]);
        let right = Tensor::<B, 2>::from_data(data, (&left.device(), DType::F32));
        let product = left.clone().matmul(right.transpose()).transpose();
        let [count, rows] = product.dims();
        let values: Vec<f64> = product.into_data().iter::<f64>().collect();
        Self { columns: values.chunks(rows).take(count).map(<[f64]>::to_vec).collect(), rows }
    }

    /// The columns one after another, f32.
    fn into_rows(self) -> Vec<f32> {
        self.columns.into_iter().flatten().map(|v| v as f32).collect()
    }

    fn into_data(self) -> TensorData {
        let shape = [self.columns.len(), self.rows];
        // Held by columns, written by rows.
        TensorData::new(self.transposed().into_rows(), [shape[1], shape[0]])
    }

    fn transposed(&self) -> Self {
        let row = |row: usize| self.columns.iter().map(|column| column[row]).collect();
        Self { columns: (0..self.rows).map(row).collect(), rows: self.columns.len() }
    }

    fn scaled(mut self, factor: f64) -> Self {
        self.columns.iter_mut().flatten().for_each(|value| *value *= factor);
        self
    }

    /// Columns of length 1 at right angles that span the same space (Gram-Schmidt, twice); dependent ones become 0.
    fn orthonormal(mut self) -> Self {
        for index in 0..self.columns.len() {
            let (before, rest) = self.columns.split_at_mut(index);
            let column = &mut rest[0];
            let length = dot(column, column).sqrt();
            for _ in 0..2 {
                for other in before.iter() {
                    let along = dot(column, other);
                    column.iter_mut().zip(other).for_each(|(c, o)| *c -= along * o);
                }
            }
            let left = dot(column, column).sqrt();
            let factor = if left > 1e-10 * length { 1.0 / left } else { 0.0 };
            column.iter_mut().for_each(|value| *value *= factor);
        }
        self
    }

    /// The products of all pairs of columns.
    fn gram(&self) -> Self {
        let products = |a: &Vec<f64>| self.columns.iter().map(|b| dot(a, b)).collect();
        Self { columns: self.columns.iter().map(products).collect(), rows: self.columns.len() }
    }

    /// Adds the columns, each times its weight and `factor`, to `sum`.
    fn combine(&self, weights: &[f64], factor: f64, sum: &mut [f64]) {
        for (column, weight) in self.columns.iter().zip(weights) {
            let weight = weight * factor;
            sum.iter_mut().zip(column).for_each(|(sum, value)| *sum += weight * value);
        }
    }

    /// Eigenvalues and eigenvectors (columns) of a symmetric matrix: Jacobi's rotations, pair by pair.
    fn eigen(mut self) -> (Vec<f64>, Self) {
        let size = self.rows;
        let mut vectors = Self::zeros(size, size);
        (0..size).for_each(|index| vectors.columns[index][index] = 1.0);
        let whole: f64 = self.columns.iter().map(|column| dot(column, column)).sum();
        for _ in 0..60 {
            let mut off = 0.0;
            for p in 0..size {
                for q in p + 1..size {
                    let between = self.columns[p][q];
                    off += between * between;
                    // Too small to change the larger of the two.
                    if between * between > 1e-34 * whole {
                        let turn = rotation(self.columns[p][p], self.columns[q][q], between);
                        self.rotate_rows(p, q, turn);
                        rotate(&mut self.columns, p, q, turn);
                        rotate(&mut vectors.columns, p, q, turn);
                    }
                }
            }
            if off <= 1e-30 * whole {
                break;
            }
        }
        let values = (0..size).map(|index| self.columns[index][index]).collect();
        (values, vectors)
    }

    fn rotate_rows(&mut self, p: usize, q: usize, (cos, sin): (f64, f64)) {
        for column in &mut self.columns {
            let (a, b) = (column[p], column[q]);
            (column[p], column[q]) = (cos * a - sin * b, sin * a + cos * b);
        }
    }
}

/// Cosine and sine of the rotation that makes two columns' product `between` zero, of squares `p` and `q`.
fn rotation(p: f64, q: f64, between: f64) -> (f64, f64) {
    let half = (q - p) / (2.0 * between);
    let tangent = half.signum() / (half.abs() + half.hypot(1.0));
    let cos = 1.0 / tangent.hypot(1.0);
    (cos, tangent * cos)
}

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

    /// The product is PEFT's, and so are the lengths of both sides: the roots of the singular values.
    #[test]
    fn the_start_is_pefts() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/quantize/golden.safetensors");
        let files = WeightFiles::open_file(&path).unwrap();
        let to = Quantization { format: Format::Nf4, double_quant: false };
        let packed = cache::pack(&files, "loftq.weight", [48, 40], to).unwrap().unpack();
        assert_eq!(packed, files.tensor_f32("loftq.base").unwrap());
        let weight = files.tensor_f32("loftq.weight").unwrap();
        let residual = weight.iter().zip(&packed).map(|(w, q)| w - q).collect::<Vec<_>>();
        let residual =
            Tensor::<B, 2>::from_data(TensorData::new(residual, [48, 40]), &Default::default());
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let [a, b] = low_rank(residual, 5, &mut rng).map(Matrix::into_data);
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

    /// More than the directions that are followed, fewer than the rank, and nothing at all.
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
        // Of rank 3, and noise on it: no more than the noise is left by the best approximation.
        let noise = random(150, 170) * 0.01;
        let matrix = random(150, 3).matmul(random(3, 170)) + noise.clone();
        let [a, b] = low_rank(matrix.clone(), 3, &mut rng).map(Matrix::into_data);
        let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();
        let far = |matrix: Tensor<B, 2>, a: &TensorData, b: &TensorData| {
            let whole = values(matrix.into_data());
            let left = whole.iter().zip(product(a, b)).map(|(w, p)| (w - p) * (w - p));
            (left.sum::<f32>().sqrt(), norm(&whole))
        };
        let (left, whole) = far(matrix, &a, &b);
        let noise = norm(&values(noise.into_data()));
        assert!(left <= noise && noise < whole, "{left} of {whole}, noise {noise}");
        // A rank above the matrix's own.
        let small = random(4, 9);
        let [a, b] = low_rank(small.clone(), 6, &mut rng).map(Matrix::into_data);
        let (left, whole) = far(small, &a, &b);
        assert!(left < 1e-5 * whole, "{left} of {whole}");
        let [a, b] = low_rank(random(5, 7) * 0.0, 2, &mut rng).map(Matrix::into_data);
        assert!(product(&a, &b).iter().all(|value| *value == 0.0));
    }
}
