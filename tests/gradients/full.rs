//! Full fine-tuning: compares the gradient of every weight with finite differences.

use arithmo::data::batch::PackedBatch;
use arithmo::data::encode::{EncodedExample, EncodedSequence};
use arithmo::model::load::random;
use arithmo::model::mistral::Mistral;
use arithmo::objective::log_probs::{DeviceBatch, score};
use arithmo::train::gradient::{Loss, gradients};
use arithmo::train::parameters::{set_trained_parameters, train_all, trained_parameters};
use arithmo_backends::LogProbStats;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor, TensorData};

use super::{A, B, config};

fn examples() -> Vec<EncodedExample> {
    let example = |(ids, completion_start): (&[u32], usize)| EncodedExample {
        id: String::new(),
        sequence: EncodedSequence { ids: ids.to_vec(), completion_start, hidden: Vec::new() },
    };
    let all: [(&[u32], usize); 3] = [
        (&[1, 7, 8, 15, 5, 16, 11, 2], 2),
        (&[1, 15, 12, 21, 12, 2], 4),
        (&[1, 9, 22, 6, 17, 16, 28, 17, 2], 0),
    ];
    all.map(example).into()
}

fn loss(model: &Mistral<B>, on_device: &DeviceBatch<B>) -> f64 {
    let sums = score(model, on_device, LogProbStats::None).sums;
    -sums.into_data().iter::<f64>().sum::<f64>()
}

/// Compares three elements of every weight's gradient with central differences of the loss, with and without gradient
/// checkpointing.
#[test]
fn gradients_of_all_weights_equal_finite_differences() {
    let device = Default::default();
    let examples = examples();
    let refs: Vec<&EncodedExample> = examples.iter().collect();
    let batch = PackedBatch::new(&refs);
    for (tied, keep) in [(false, usize::MAX), (true, 0), (true, 1)] {
        let model: Mistral<A> = random(config(tied), 5, DType::F64, &device).unwrap();
        let mut model = train_all(model);
        let table = model.valid().position_table(64, &device);
        let on_device = DeviceBatch::new(&batch, &table, &device);
        let completions = on_device.completions.to_autodiff::<A>();
        let head = model.head();
        let (_, grads) = gradients(&model, &on_device.input, keep, |hidden| Loss {
            loss: completions.score(hidden, head, LogProbStats::All).sums.sum().neg(),
            output: (),
        });
        let all = trained_parameters(&model);
        assert_eq!(all.len(), grads.len());
        assert_eq!(all.len(), if tied { 20 } else { 21 });
        for (index, (name, weight)) in all.iter().enumerate() {
            let grad: Vec<f64> = grads[index].clone().into_data().to_vec().unwrap();
            let count = grad.len();
            for at in [0, count / 3, count - 1] {
                let mut at_distance = |distance: f64| {
                    let mut values: Vec<f64> = weight.clone().into_data().to_vec().unwrap();
                    values[at] += distance;
                    let changed = TensorData::new(values, weight.dims());
                    let mut values: Vec<_> = all.iter().map(|(_, weight)| weight.clone()).collect();
                    values[index] = Tensor::from_data(changed, &device);
                    set_trained_parameters(&mut model, values);
                    loss(&model.valid(), &on_device)
                };
                let step = 1e-5;
                let slope = (at_distance(step) - at_distance(-step)) / (2.0 * step);
                let near = (grad[at] - slope).abs() < 1e-6 * slope.abs().max(1.0);
                assert!(near, "{name}[{at}]: {} is not {slope}", grad[at]);
            }
        }
    }
}
