//! Compares schedules, AdamW and gradient clipping with torch and transformers, and with their formulas by hand.

use crate::support;

use arithmo::adapter::parameters::{Parameter, Role};
use arithmo::config::{Optim, RunConfig, TrainSection};
use arithmo::train::checkpoint::NamedTensors;
use arithmo::train::optimizer::{AdamW, NamedUpdate, Optimizer, clip_by_global_norm, global_norm};
use arithmo::train::schedule::{
    Plateau, PlateauState, Schedule, SchedulerKwargs, SchedulerType, resolve_warmup,
};
use arithmo_backends::TrainBackend;
use burn::tensor::backend::Backend;
use burn::tensor::{Element, Tensor, TensorData};
use serde_json::Value;

type F32 = burn_ndarray::NdArray<f32>;
type F64 = burn_ndarray::NdArray<f64>;

/// Reads the golden file `pure/<name>`.
fn golden(name: &str) -> Value {
    let path = support::reference(&format!("pure/{name}")).unwrap();
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    let number = |value: &Value| value.as_f64().unwrap();
    value.as_array().unwrap().iter().map(number).collect()
}

fn matrix<B: Backend>(values: &[f64], columns: usize) -> Tensor<B, 2> {
    let data = TensorData::new(values.to_vec(), [values.len() / columns, columns]);
    // The dtype is explicit, because a device's default is that of the backend that used it first.
    Tensor::from_data(data, (&B::Device::default(), B::FloatElem::dtype()))
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().to_vec().unwrap()
}

/// Checks that `|a - e| <= tolerance * max(1, |e|)` for all elements `a` of `actual` and `e` of `expected`.
fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() <= tolerance * e.abs().max(1.0), "{what}: {a}, expected {e}");
    }
}

/// Parameters of the schedules beyond the defaults. Rates past the last step are compared too.
#[test]
fn parameters_of_schedules_act_as_in_transformers() {
    let golden = golden("lr_schedules_more.json");
    let cases = golden["schedules"].as_array().unwrap();
    for case in cases {
        let kind: SchedulerType = serde_json::from_value(case["schedule"].clone()).unwrap();
        let kwargs: SchedulerKwargs = serde_json::from_value(case["kwargs"].clone()).unwrap();
        let peak = case["lr"].as_f64().unwrap();
        let steps = |key: &str| case[key].as_u64().unwrap() as usize;
        let (warmup, total) = (steps("warmup_steps"), steps("total_steps"));
        let schedule = Schedule::new(kind, peak, warmup, total, &kwargs).unwrap();
        for (step, expected) in numbers(&case["rates"]).into_iter().enumerate() {
            let rate = schedule.rate(step);
            let error = (rate - expected).abs();
            assert!(error <= 1e-12 * peak, "{case} step {step}: {rate}, expected {expected}");
        }
    }
    assert_eq!(cases.len(), 16);
}

#[test]
fn plateaus_lower_the_rate_as_in_torch() {
    let golden = golden("lr_schedules_more.json");
    let cases = golden["reduce_lr_on_plateau"].as_array().unwrap();
    for case in cases {
        let kwargs: SchedulerKwargs = serde_json::from_value(case["kwargs"].clone()).unwrap();
        let rule = Plateau::of(SchedulerType::ReduceLrOnPlateau, &kwargs).unwrap();
        let mut state = PlateauState::new(case["lr"].as_f64().unwrap());
        let metrics = numbers(&case["metric"]);
        for (metric, expected) in metrics.into_iter().zip(numbers(&case["lr_after"])) {
            rule.add(&mut state, metric);
            assert_eq!(state.learning_rate, expected, "{case}");
        }
    }
    assert_eq!(cases.len(), 5);
}

#[test]
fn schedules_equal_those_of_transformers() {
    let golden = golden("lr_schedules.json");
    let cases = golden["schedules"].as_array().unwrap();
    for case in cases {
        let kind: SchedulerType = serde_json::from_value(case["schedule"].clone()).unwrap();
        let peak = case["lr"].as_f64().unwrap();
        let steps = |key: &str| case[key].as_u64().unwrap() as usize;
        // Serde ignores the case's other fields.
        let kwargs: SchedulerKwargs = serde_json::from_value(case.clone()).unwrap();
        let schedule =
            Schedule::new(kind, peak, steps("warmup_steps"), steps("total_steps"), &kwargs)
                .unwrap();
        for (step, expected) in numbers(&case["rates"]).into_iter().enumerate() {
            let rate = schedule.rate(step);
            let error = (rate - expected).abs();
            assert!(error <= 1e-12 * peak, "{kind:?} step {step}: {rate}, expected {expected}");
        }
    }
    assert_eq!(cases.len(), 14);
    for case in golden["warmup_resolution"].as_array().unwrap() {
        let total = case["total_steps"].as_u64().unwrap() as usize;
        let resolved = resolve_warmup(case["warmup_steps"].as_f64().unwrap(), None, total);
        assert_eq!(resolved as u64, case["resolved"].as_u64().unwrap(), "{case}");
    }
}

fn check_adamw<B: TrainBackend>(suffix: &str, tolerance: f64) {
    let golden = golden("adamw.json");
    let runs = golden["adamw"].as_array().unwrap();
    assert_eq!(runs.len(), 5);
    for run in runs {
        let betas = numbers(&run["betas"]);
        let mut optimizer = Optimizer::<B>::new(AdamW {
            beta1: betas[0],
            beta2: betas[1],
            epsilon: run["eps"].as_f64().unwrap(),
            weight_decay: run["weight_decay"].as_f64().unwrap(),
        });
        let mut param = matrix::<B>(&numbers(&run["start"]), 4);
        let rates = numbers(&run["rates"]);
        let after = run[format!("params_{suffix}")].as_array().unwrap();
        for (step, (grad, expected)) in
            run["grads"].as_array().unwrap().iter().zip(after).enumerate()
        {
            let update = NamedUpdate { name: "p".into(), param, grad: matrix(&numbers(grad), 4) };
            param = optimizer.step(rates[step], vec![update]).remove(0);
            let what = format!("{suffix}, lr {}, step {step}", run["lr"]);
            assert_close(&values(param.clone()), &numbers(expected), tolerance, &what);
        }
        for (name, data) in optimizer.export() {
            let Some(moment) = name.strip_prefix("p.").filter(|moment| *moment != "step") else {
                assert_eq!(data.as_slice::<i64>().unwrap(), [12]);
                continue;
            };
            let expected = numbers(&run[format!("{moment}_{suffix}")]);
            let actual: Vec<f64> = data.convert::<f64>().to_vec().unwrap();
            assert_close(&actual, &expected, tolerance, moment);
        }
    }
}

#[test]
fn adamw_equals_torchs_in_f32() {
    check_adamw::<F32>("f32", 1e-6);
}

#[test]
fn adamw_equals_torchs_in_f64() {
    check_adamw::<F64>("f64", 1e-12);
}

#[test]
fn clipping_equals_torchs() {
    let golden = golden("adamw.json");
    let cases = golden["clip_grad_norm"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let lists = |key: &str| -> Vec<Vec<f64>> {
            case[key].as_array().unwrap().iter().map(numbers).collect()
        };
        let grads = lists("grads").iter().map(|grad| matrix::<F32>(grad, 1)).collect();
        let (clipped, norm) = clip_by_global_norm(grads, case["max_norm"].as_f64().unwrap());
        assert_close(&values(norm), &[case["norm"].as_f64().unwrap()], 1e-6, "norm");
        for (actual, expected) in clipped.into_iter().zip(lists("clipped")) {
            assert_close(&values(actual), &expected, 1e-6, "clipped");
        }
    }
}

/// Compares two steps with the formula.
#[test]
fn adamw_by_hand() {
    let config = AdamW { beta1: 0.8, beta2: 0.9, epsilon: 0.01, weight_decay: 0.5 };
    let mut optimizer = Optimizer::<F64>::new(config);
    let (start, grads, lr) = (3.0, [2.0, -1.0], 0.1);
    // Step 1: the bias corrections cancel the averaging: m/c1 = g, sqrt(v/c2) = |g|.
    let first: f64 = start * 0.95 - 0.1 * 2.0 / 2.01;
    // Step 2: m = 0.8 * 0.4 - 0.2, v = 0.9 * 0.4 + 0.1, c1 = 1 - 0.64, c2 = 1 - 0.81.
    let second: f64 = first * 0.95 - 0.1 / 0.36 * 0.12 / ((0.46_f64 / 0.19).sqrt() + 0.01);
    let mut param = matrix::<F64>(&[start], 1);
    for (grad, expected) in grads.into_iter().zip([first, second]) {
        let update = NamedUpdate { name: "p".into(), param, grad: matrix(&[grad], 1) };
        param = optimizer.step(lr, vec![update]).remove(0);
        assert_close(&values(param.clone()), &[expected], 1e-14, "by hand");
    }
}

#[test]
fn norm_and_clipping_by_hand() {
    // 3, 4 and 12 make a norm of 13.
    let grads = vec![matrix::<F64>(&[3.0, -4.0], 2), matrix(&[12.0], 1)];
    assert_close(&values(global_norm(&grads)), &[13.0], 1e-15, "norm");
    let (clipped, norm) = clip_by_global_norm(grads.clone(), 6.5);
    assert_close(&values(norm), &[13.0], 1e-15, "norm");
    let factor = 6.5 / (13.0 + 1e-6);
    assert_close(&values(clipped[0].clone()), &[3.0 * factor, -4.0 * factor], 1e-15, "clipped");
    for max_norm in [0.0, 14.0] {
        let (same, _) = clip_by_global_norm(grads.clone(), max_norm);
        assert_eq!(values(same[1].clone()), [12.0]);
    }
    assert_eq!(values(global_norm::<F32>(&[])), [0.0]);
}

/// Returns a trained matrix of this name and value.
fn parameter(name: &str, value: &Tensor<F32, 2>) -> Parameter<F32> {
    let shape = value.dims().to_vec();
    Parameter { name: name.into(), role: Role::Weight, shape, value: value.clone() }
}

/// Returns `length` pseudorandom numbers in `[-1, 1)`.
fn noise(seed: u64, length: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as f64 / (1_u64 << 30) as f64 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn optimizer_state_is_exported_and_imported_bit_for_bit() {
    let config = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
    let step = |optimizer: &mut Optimizer<F32>, params: Vec<Tensor<F32, 2>>, seed: u64| {
        let updates = params.into_iter().zip(["layer.10.a", "layer.9.step"]).enumerate();
        let updates = updates.map(|(i, (param, name))| {
            let [rows, columns] = param.dims();
            let grad = matrix(&noise(seed + i as u64, rows * columns), columns);
            NamedUpdate { name: name.into(), param, grad }
        });
        optimizer.step(1e-2, updates.collect())
    };
    let start = vec![matrix(&noise(1, 21), 7), matrix(&noise(2, 10), 2)];
    let mut through = Optimizer::new(config);
    let mut params = start;
    for seed in 0..3 {
        params = step(&mut through, params, 100 * seed);
    }
    let exported = through.export();
    assert_eq!(exported.len(), 6);
    let like: Vec<Parameter<F32>> = ["layer.10.a", "layer.9.step"]
        .into_iter()
        .zip(&params)
        .map(|(name, param)| parameter(name, param))
        .collect();
    let restored = |tensors: NamedTensors| {
        Optimizer::new(config).restored(tensors, &like, &Default::default())
    };
    let mut again = restored(exported.clone()).unwrap();
    assert_eq!(again.export(), exported);
    let (a, b) = (step(&mut through, params.clone(), 7), step(&mut again, params, 7));
    for (a, b) in a.into_iter().zip(b) {
        assert_eq!(a.into_data(), b.into_data());
    }

    let refused = |change: &dyn Fn(&mut NamedTensors)| {
        let mut tensors = exported.clone();
        change(&mut tensors);
        restored(tensors).unwrap_err().to_string()
    };
    assert!(refused(&|tensors| drop(tensors.remove(0))).contains("layer.10.a.exp_avg: is missing"));
    assert!(refused(&|tensors| drop(tensors.remove(2))).contains("layer.10.a.step: is missing"));
    let further =
        |tensors: &mut NamedTensors| tensors.push(("x.step".into(), tensors[2].1.clone()));
    assert!(refused(&further).contains("x.step: is not part of an optimizer state"));
    assert!(refused(&|tensors| tensors[0].1 = tensors[2].1.clone()).contains("not a matrix"));
    assert!(
        refused(&|tensors| tensors[0].1 = tensors[3].1.clone()).contains("not a matrix [3, 7]")
    );
}

/// Returns the `f32` or `u8` values of a tensor in `bnb_steps/NAME.safetensors`.
fn golden_values(file: &safetensors::SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap();
    match view.dtype() {
        safetensors::Dtype::U8 => view.data().iter().map(|code| f32::from(*code)).collect(),
        _ => view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
    }
}

/// Returns a matrix in 8 bits as it stands in a checkpoint, from the codes and scales of bitsandbytes.
fn eight_bit_state(name: &str, codes: &[f32], absmax: &[f32]) -> NamedTensors {
    let mut bytes: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
    bytes.resize(codes.len().next_multiple_of(256), 0);
    let words: Vec<u32> =
        bytes.as_chunks().0.iter().map(|four| u32::from_le_bytes(*four)).collect();
    let count = words.len();
    vec![
        (format!("{name}.absmax"), TensorData::new(absmax.to_vec(), [absmax.len()])),
        (format!("{name}.words"), TensorData::new(words, [count])),
    ]
}

/// Compares every step of AdamW, Lion and AdEMAMix in 8 bits with bitsandbytes, each from the state that it stored. The codes
/// are its own, or the nearest, which its quantizer on the CPU sometimes misses.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn states_in_eight_bits_equal_bitsandbytes() {
    let Some(folder) = crate::support::shared("reference/optim/bnb_steps") else { return };
    let inputs = std::fs::read(folder.join("inputs.safetensors")).unwrap();
    let inputs = safetensors::SafeTensors::deserialize(&inputs).unwrap();
    for (name, optim, kinds) in [
        ("adamw8", Optim::Adamw8bit, &[("exp_avg", "1", 0), ("exp_avg_sq", "2", 0)][..]),
        ("lion8", Optim::Lion8bit, &[("exp_avg", "1", 0)]),
        (
            "ademamix8",
            Optim::AdEmaMix8bit,
            &[("exp_avg", "1", 0), ("exp_avg_slow", "1", 1), ("exp_avg_sq", "2", 0)],
        ),
    ] {
        let file = std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let (rate, beta2, weight_decay) = match name {
            "adamw8" => (1e-3, 0.999, 0.1),
            "lion8" => (3e-4, 0.99, 0.1),
            _ => (1e-3, 0.999, 0.01),
        };
        let train = TrainSection { optim, adam_beta2: beta2, weight_decay, ..Default::default() };
        let config = RunConfig { train, ..RunConfig::default() };
        for step in 1i64..=4 {
            let before = match step {
                1 => golden_values(&inputs, "start"),
                _ => golden_values(&file, &format!("param.{}", step - 1)),
            };
            let param = Tensor::<F32, 2>::from_data(
                TensorData::new(before, [41, 100]),
                &Default::default(),
            );
            let part = |values: Vec<f32>, size: usize, row: usize| {
                values[row * size..(row + 1) * size].to_vec()
            };
            let mut optimizer = Optimizer::of(&config).unwrap();
            if step > 1 {
                let mut tensors: NamedTensors =
                    vec![("p.step".into(), TensorData::new(vec![step - 1], [1]))];
                for (kind, index, row) in kinds {
                    let codes = golden_values(&file, &format!("state{index}.{}", step - 1));
                    let absmax = golden_values(&file, &format!("absmax{index}.{}", step - 1));
                    let (codes, absmax) = (part(codes, 4100, *row), part(absmax, 17, *row));
                    tensors.extend(eight_bit_state(&format!("p.{kind}"), &codes, &absmax));
                }
                let like = [parameter("p", &param)];
                optimizer = optimizer.restored(tensors, &like, &Default::default()).unwrap();
            }
            let grad = golden_values(&inputs, &format!("grad.{step}"));
            let grad = Tensor::from_data(TensorData::new(grad, [41, 100]), &Default::default());
            let update = NamedUpdate { name: "p".into(), param, grad };
            let param = values(optimizer.step(rate, vec![update]).remove(0));
            let expected = golden_values(&file, &format!("param.{step}"));
            let worst = param.iter().zip(&expected).map(|(a, b)| (a - f64::from(*b)).abs());
            assert!(worst.fold(0.0, f64::max) <= 1e-7, "{name} step {step}");
            let exported: std::collections::BTreeMap<_, _> =
                optimizer.export().into_iter().collect();
            for (kind, index, row) in kinds {
                let absmax = exported[&format!("p.{kind}.absmax")].to_vec::<f32>().unwrap();
                let theirs = part(golden_values(&file, &format!("absmax{index}.{step}")), 17, *row);
                for (ours, theirs) in absmax.iter().zip(&theirs) {
                    assert!((ours - theirs).abs() <= 1e-6 * theirs.abs(), "{name} {kind} {step}");
                }
                let words = exported[&format!("p.{kind}.words")].to_vec::<u32>().unwrap();
                let codes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
                let stored =
                    |name: &str| part(golden_values(&file, &format!("{name}.{step}")), 4100, *row);
                let theirs = stored(&format!("state{index}"));
                let nearest = stored(&format!("state{index}_nearest"));
                let others =
                    codes.iter().zip(theirs.iter().zip(&nearest)).filter(|(code, (a, b))| {
                        let code = f32::from(**code);
                        code != **a && code != **b
                    });
                assert_eq!(others.count(), 0, "{name} {kind} step {step}");
            }
        }
    }
}
