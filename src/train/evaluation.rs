//! The evaluation of the held-out samples during a run.

use arithmo_backends::TrainBackend;

use crate::alarms::LENGTH_CORRELATION_KEY;
use crate::config::{EvalMeans, TrainSection};
use crate::objective::Objective;
use crate::objective::metrics::MicroBatchMetrics;
use crate::train::checkpoint::TrainState;
use crate::train::logger::Record;
use crate::train::step::Learner;

/// Evaluates `samples` and returns the record of their metrics, with the prefix `eval_`.
pub(super) fn evaluate<B: TrainBackend, O: Objective<B>>(
    learner: &Learner<B, O>,
    samples: &[O::Sample],
    train: &TrainSection,
    state: &TrainState,
) -> Record {
    let batches = learner.evaluate_in_batches(samples, train.per_device_eval_batch_size);
    let (loss, values) = match train.eval_means {
        EvalMeans::Pairs => {
            let pooled = MicroBatchMetrics::pooled(&batches);
            (pooled.loss, pooled.values())
        }
        EvalMeans::Trl => {
            let (_, values) = MicroBatchMetrics::mean(&batches);
            (MicroBatchMetrics::loss_by_pairs(&batches), values)
        }
    };
    let record = Record::new(state.step as u64)
        .with("eval_loss", loss)
        .with("eval_num_tokens", state.num_tokens as f64);
    let record = values
        .into_iter()
        .fold(record, |record, (key, value)| record.with(format!("eval_{key}"), value));
    match length_correlation(&batches) {
        Some(correlation) => record.with(LENGTH_CORRELATION_KEY, correlation),
        None => record,
    }
}

/// Smallest number of pairs over which a correlation is logged. Over 20 pairs without any relation it is above 0.7 or below
/// -0.7 in one of a thousand cases.
const MIN_PAIRS: usize = 20;

/// Returns the correlation between the margin and how many tokens longer the chosen completion is.
fn length_correlation(batches: &[MicroBatchMetrics]) -> Option<f64> {
    let sums = MicroBatchMetrics::length_margins(batches);
    sums.correlation().filter(|_| sums.count >= MIN_PAIRS)
}
