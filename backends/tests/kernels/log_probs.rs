//! Log-probabilities of targets, their statistics and their slopes.

use arithmo_backends::{LogProbStats, LogProbs, TrainBackend, ops};
use burn::tensor::{DType, Int, Tensor, backend::Backend};

use super::host::{Cpu, Gpu, Layout, Source, close, ints, starts, tolerance, variants};

/// `slack`: by how much more the slopes may differ, which one product sums over the vocabulary term by term.
fn check(shape: [usize; 3], variants: &[(DType, Layout)], slack: f32) {
    let [tokens, width, vocabulary] = shape;
    let mut source = Source::new(tokens * width + vocabulary);
    let hidden = source.floats([tokens, width]);
    let head = source.floats([vocabulary, width]);
    let targets: Vec<_> = (0..tokens).map(|_| (source.next() % vocabulary as u64) as i64).collect();
    fn on<B: Backend>(targets: &[i64]) -> Tensor<B, 1, Int> {
        ints(targets, [targets.len()])
    }
    for stats in [LogProbStats::All, LogProbStats::None] {
        let with_slopes = stats == LogProbStats::All;
        let exact: LogProbs<Cpu> = ops::log_probs::reference(
            hidden.exact(),
            head.exact().into(),
            on::<Cpu>(&targets),
            stats,
            with_slopes,
        );
        for (dtype, layout) in variants {
            let what = format!("log_probs {shape:?} {stats:?} {dtype:?} {layout:?}");
            let ours = Gpu::completion_log_probs(
                hidden.on(*dtype, *layout),
                Tensor::into(head.on(*dtype, *layout)),
                on::<Gpu>(&targets),
                stats,
                with_slopes,
            );
            close(&what, ours.columns, exact.columns.clone(), 2.0 * tolerance(*dtype));
            match (ours.slopes, &exact.slopes) {
                (Some(ours), Some(exact)) => {
                    close(
                        &format!("{what}: slopes"),
                        ours,
                        exact.clone(),
                        slack * tolerance(*dtype),
                    );
                }
                (ours, exact) => assert!(ours.is_none() && exact.is_none(), "{what}"),
            }
        }
    }
}

#[test]
fn log_probs() {
    if !starts() {
        return;
    }
    for shape in [[1, 3, 2], [9, 5, 11], [77, 40, 301], [6, 48, 1000]] {
        check(shape, &variants(), 1.0);
    }
}

/// In two chunks.
#[test]
fn log_probs_in_chunks() {
    if !starts() {
        return;
    }
    check([300, 2, 70_001], &[(DType::F32, Layout::Contiguous)], 10.0);
}

/// Rows beyond 65,535 groups of anything.
#[test]
fn log_probs_of_a_huge_vocabulary() {
    if !starts() {
        return;
    }
    check([3, 2, 300_001], &[(DType::F32, Layout::Contiguous)], 10.0);
}
