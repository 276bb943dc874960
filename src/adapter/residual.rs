//! Initializes an adapter with a part of each adapted weight: PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775).
//!
//! The first matrices `A0` and `B0` are the part, and the base keeps the rest, `W - scaling * B0 A0`. The policy then
//! starts as the original model, and the model without adapter is another one.
//!
//! Files hold `B A - B0 A0` as an adapter of twice the rank, `[A; A0]` and `[B, -B0]`, which belongs to the original
//! model. It is the adapter that PEFT writes with `save_pretrained(path_initial_model_for_weight_conversion=..)`.
//! Checkpoints hold the same matrices, so that a resumed run has the very `A0` and `B0` of its start.

use std::collections::BTreeMap;
use std::sync::Arc;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor, TensorData};
use faer::Mat;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::config::{BranchConfig, LoraConfig, LoraInit};
use super::loftq::{self, Matrix};
use super::lora::{Branch, attach_one};
use super::peft::PREFIX;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::decoder::Decoder;
use crate::model::load::held_like;
use crate::progress::{Progress, ProgressMode};

/// The tensors of a checkpoint by name.
type Saved = BTreeMap<String, TensorData>;

/// Moves a part of each adapted weight of `policy` into its branch: the part that the adapter in a checkpoint started
/// with, if its tensors are given as `saved`.
///
/// # Errors
/// The rank is larger than a side of a weight, a weight is quantized, the decomposition fails, `saved` has other
/// tensors, or the user interrupts.
pub fn start<B: TrainBackend>(
    policy: &mut Decoder<Autodiff<B>>,
    config: &LoraConfig,
    seed: u64,
    saved: Option<Vec<(String, TensorData)>>,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let base = policy.valid();
    let saved: Option<Saved> = saved.map(|saved| saved.into_iter().collect());
    let with_branch = base.projections().filter(|(_, linear)| linear.lora.is_some());
    let progress = Progress::new("decompose", Some(with_branch.count() as u64), "weights", mode);
    let sites = base.projections().zip(policy.projections_mut()).enumerate();
    for (site, ((name, whole), (_, linear))) in sites {
        let Some(branch) = config.at(&name)? else {
            continue;
        };
        if interrupt::requested() {
            let note = "stopped while initializing the adapter".to_string();
            return Err(Error::Interrupted { note });
        }
        let weight = whole.weight.floats(DType::F32);
        let initial = match &saved {
            Some(saved) => saved_initial(saved, &name, branch.r)?,
            None => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(site as u64);
                decompose(weight.clone(), config.init, branch, &mut rng, &name)?
            }
        };
        let tensor =
            |data: &TensorData| Tensor::<B, 2>::from_data(data.clone(), (device, DType::F32));
        let part = B::matmul(tensor(&initial[1]), tensor(&initial[0])) * branch.scaling;
        let residual = (weight - part).into_data();
        linear.weight = held_like(residual, &linear.weight, device).ok_or_else(|| {
            let problem =
                format!("{name} is quantized and cannot hold what the adapter leaves of it");
            Error::invalid(KEY, problem, "give the full-precision model, or remove the key")
        })?;
        let [a, b] = initial.clone();
        let branch = Branch { a, b, bias: None, magnitude: None, scaling: branch.scaling };
        attach_one(linear, config, site, branch, device);
        if let Some(lora) = &mut linear.lora {
            lora.initial = Some(Arc::new(initial));
        }
        progress.inc(1);
    }
    progress.finish();
    Ok(())
}

const KEY: &str = "lora.init_lora_weights";

/// Returns `A0` `[r, D_in]` and `B0` `[D_out, r]` of a weight.
fn decompose<B: TrainBackend>(
    weight: Tensor<B, 2>,
    init: LoraInit,
    BranchConfig { r, scaling }: BranchConfig,
    rng: &mut ChaCha8Rng,
    name: &str,
) -> Result<[TensorData; 2]> {
    let [rows, columns] = weight.dims();
    if r > rows.min(columns) {
        let problem = format!("the rank {r} is more than a side of {name} [{rows}, {columns}]");
        let remedy = "lower lora.r or lora.rank_pattern, or remove the key";
        return Err(Error::invalid(KEY, problem, remedy));
    }
    let factor = 1.0 / scaling.sqrt();
    match init {
        LoraInit::Pissa { niter: Some(niter) } => {
            let parts = loftq::low_rank(weight, r, niter, rng);
            Ok(parts.map(|matrix| matrix.scaled(factor).into_data()))
        }
        LoraInit::Olora => Ok(first_reflections(weight, r)),
        _ => largest_singular(weight, r, factor).ok_or_else(|| {
            let problem = format!("the singular values of {name} cannot be computed");
            Error::run(problem, "check that the model's weights are finite")
        }),
    }
}

/// Returns the singular vectors of the `rank` largest singular values `S`, each times `factor * sqrt(S)` (PiSSA,
/// equations 2 and 3). Computed on the host in f64.
fn largest_singular<B: TrainBackend>(
    weight: Tensor<B, 2>,
    rank: usize,
    factor: f64,
) -> Option<[TensorData; 2]> {
    let [rows, columns] = weight.dims();
    let values: Vec<f64> = weight.into_data().iter::<f64>().collect();
    let svd = Mat::from_fn(rows, columns, |i, j| values[i * columns + j]).thin_svd().ok()?;
    let (u, s, v) = (svd.U(), svd.S().column_vector(), svd.V());
    let root = |k: usize| factor * s[k].sqrt();
    let a = (0..rank).flat_map(|k| (0..columns).map(move |j| (root(k) * v[(j, k)]) as f32));
    let b = (0..rows).flat_map(|i| (0..rank).map(move |k| (root(k) * u[(i, k)]) as f32));
    let (a, b) = (a.collect::<Vec<_>>(), b.collect::<Vec<_>>());
    Some([TensorData::new(a, [rank, columns]), TensorData::new(b, [rows, rank])])
}

/// Returns the first `rank` rows of R and columns of Q of the decomposition `W = Q R` (OLoRA, equation 3), which do not
/// depend on the scaling. Computed on the host in f64.
fn first_reflections<B: TrainBackend>(weight: Tensor<B, 2>, rank: usize) -> [TensorData; 2] {
    let [rows, columns] = weight.dims();
    let values: Vec<f64> = weight.into_data().iter::<f64>().collect();
    let column = |j: usize| (0..rows).map(|i| values[i * columns + j]).collect();
    let q = Matrix { columns: (0..rank).map(column).collect(), rows }.orthonormal();
    let mut r = vec![0.0; rank * columns];
    for (k, direction) in q.columns.iter().enumerate() {
        for (row, q) in values.chunks(columns).zip(direction) {
            let sums = &mut r[k * columns..(k + 1) * columns];
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += q * value);
        }
    }
    let r = r.into_iter().map(|value| value as f32).collect::<Vec<_>>();
    [TensorData::new(r, [rank, columns]), q.into_data()]
}

/// Returns the names of a module's matrices in files.
fn file_names(module: &str) -> [String; 2] {
    ["A", "B"].map(|side| format!("{PREFIX}{module}.lora_{side}.weight"))
}

/// Returns the `A0` and `B0` of a module in a checkpoint.
fn saved_initial(saved: &Saved, module: &str, rank: usize) -> Result<[TensorData; 2]> {
    let [a, b] = file_names(module);
    let parts = saved.get(&a).zip(saved.get(&b)).and_then(|(a, b)| Some(halves(a, b, rank)?.1));
    parts.ok_or_else(|| {
        let problem = format!("holds no initial adapter of {module}");
        Error::run(format!("the checkpoint {problem}"), "remove this checkpoint folder")
    })
}

/// Splits the matrices of twice the rank into those of the adapter and the initial ones.
fn halves(
    a: &TensorData,
    b: &TensorData,
    rank: usize,
) -> Option<([TensorData; 2], [TensorData; 2])> {
    let ([two, columns], [rows, width]) =
        (a.shape[..].try_into().ok()?, b.shape[..].try_into().ok()?);
    if two != 2 * rank || width != 2 * rank {
        return None;
    }
    let (a, b): (Vec<f32>, Vec<f32>) = (a.iter::<f32>().collect(), b.iter::<f32>().collect());
    let half = |a: &[f32], start: usize, sign: f32| {
        let rows_of_b = b.chunks(width).flat_map(|row| &row[start..start + rank]);
        let b = rows_of_b.map(|value| sign * value).collect::<Vec<_>>();
        [TensorData::new(a.to_vec(), [rank, columns]), TensorData::new(b, [rows, rank])]
    };
    let (now, initial) = a.split_at(rank * columns);
    Some((half(now, 0, 1.0), half(initial, rank, -1.0)))
}

/// Converts the tensors of an adapter to the form of the original base, where a branch has initial matrices.
pub(super) fn convert<B: TrainBackend>(model: &Decoder<B>, tensors: &mut [(String, TensorData)]) {
    for (module, linear) in model.projections() {
        let Some(initial) = linear.lora.as_ref().and_then(|lora| lora.initial.as_ref()) else {
            continue;
        };
        let [a_name, b_name] = file_names(&module);
        let rank = initial[0].shape[0];
        for (name, data) in tensors.iter_mut() {
            if *name == a_name {
                let both = data.iter::<f32>().chain(initial[0].iter::<f32>());
                *data = TensorData::new(both.collect::<Vec<_>>(), [2 * rank, data.shape[1]]);
            } else if *name == b_name {
                let now: Vec<f32> = data.iter::<f32>().collect();
                let first: Vec<f32> = initial[1].iter::<f32>().map(|value| -value).collect();
                let rows = now.chunks(rank).zip(first.chunks(rank));
                let both: Vec<f32> = rows.flat_map(|(now, first)| [now, first].concat()).collect();
                *data = TensorData::new(both, [data.shape[0], 2 * rank]);
            }
        }
    }
}

/// Undoes [`convert`]: keeps the adapter's own matrices.
pub(super) fn revert<B: TrainBackend>(model: &Decoder<B>, tensors: &mut Saved) {
    for (module, linear) in model.projections() {
        let Some(initial) = linear.lora.as_ref().and_then(|lora| lora.initial.as_ref()) else {
            continue;
        };
        let names = file_names(&module);
        let [a, b] = names.each_ref().map(|name| tensors.get(name));
        let halves = a.zip(b).and_then(|(a, b)| halves(a, b, initial[0].shape[0]));
        if let Some((now, _)) = halves {
            tensors.extend(names.into_iter().zip(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type B = burn_ndarray::NdArray<f32>;

    fn random(rows: usize, columns: usize) -> Tensor<B, 2> {
        let uniform = burn::tensor::Distribution::Uniform(-1.0, 1.0);
        Tensor::random([rows, columns], uniform, &Default::default())
    }

    fn product([a, b]: &[TensorData; 2]) -> Vec<f32> {
        let tensor =
            |data: &TensorData| Tensor::<B, 2>::from_data(data.clone(), &Default::default());
        tensor(b).matmul(tensor(a)).into_data().iter::<f32>().collect()
    }

    /// The part that PiSSA takes is orthogonal to what it leaves, and is the same by subspace iteration.
    #[test]
    fn the_largest_part_is_taken() {
        for (rows, columns) in [(9, 14), (14, 9), (30, 30)] {
            let weight = random(rows, columns);
            let parts = largest_singular(weight.clone(), 4, 0.5).unwrap();
            assert_eq!(
                (&parts[0].shape[..], &parts[1].shape[..]),
                (&[4, columns][..], &[rows, 4][..])
            );
            let mut rng = ChaCha8Rng::seed_from_u64(3);
            let others = loftq::low_rank(weight.clone(), 4, 6, &mut rng);
            let others = others.map(|matrix| matrix.scaled(0.5).into_data());
            for (exact, iterated) in product(&parts).iter().zip(product(&others)) {
                assert!((exact - iterated).abs() < 1e-5, "{exact} {iterated}");
            }
            // The products of the part's rows with the rest's are 0.
            let part = Tensor::<B, 1>::from_floats(&product(&parts)[..], &Default::default()) * 4.0;
            let part = part.reshape([rows, columns]);
            let rest = weight - part.clone();
            let crossed = part.matmul(rest.transpose()).abs().max().into_scalar();
            assert!(crossed < 1e-4, "{crossed}");
        }
    }

    /// The part that OLoRA takes: the first columns of the weight are in the span of Q, so nothing is left of them.
    #[test]
    fn the_first_columns_are_taken() {
        let (rows, columns) = (11, 8);
        let weight = random(rows, columns);
        let parts = first_reflections(weight.clone(), 3);
        let values: Vec<f32> = weight.into_data().iter::<f32>().collect();
        for (index, (part, value)) in product(&parts).iter().zip(values).enumerate() {
            assert!(index % columns >= 3 || (part - value).abs() < 1e-5, "{index}: {part} {value}");
        }
        let below: Vec<f32> = parts[0].iter::<f32>().collect();
        assert!(below[columns].abs() < 1e-6 && below[2 * columns + 1].abs() < 1e-6);
    }

    #[test]
    fn matrices_of_twice_the_rank_split_into_their_halves() {
        let [a, b] = [(6, 5), (4, 6)].map(|(rows, columns)| random(rows, columns).into_data());
        let (now, initial) = halves(&a, &b, 3).unwrap();
        let whole = product(&[a.clone(), b.clone()]);
        let (now, initial) = (product(&now), product(&initial));
        for ((whole, now), initial) in whole.iter().zip(now).zip(initial) {
            assert!((whole - (now - initial)).abs() < 1e-5);
        }
        assert!(halves(&a, &b, 2).is_none());
    }
}
