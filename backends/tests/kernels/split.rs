//! Weights in parts beside whole ones.

use arithmo_backends::{Format, LogProbStats, SplitWeight, TrainBackend, Weight, ops};
use burn::tensor::{DType, Tensor};

use super::host::{Cpu, Gpu, Host, Layout, Source, close, ints, starts, tolerance, variants};
use super::packed::{Packed, projections};

/// Rows of the parts.
const ROWS: [usize; 3] = [17, 30, 6];

/// A weight in parts: floats, or packed.
struct Parts {
    floats: Vec<Host>,
    packed: Option<Vec<Packed>>,
}

impl Parts {
    fn random(format: Option<Format>, d_in: usize, source: &mut Source) -> Self {
        let packed = format.map(|format| {
            let part = |rows| Packed::random(format, [rows, d_in], false, source);
            ROWS.map(part).into()
        });
        let floats = ROWS.map(|rows| source.floats([rows, d_in])).into();
        Self { floats, packed }
    }

    fn on<B: TrainBackend>(&self, dtype: DType) -> Vec<Weight<B>> {
        let floats = self.floats.iter();
        match &self.packed {
            Some(packed) => packed.iter().map(|part| part.on::<B>().into()).collect(),
            None => floats.map(|part| part.on::<B>(dtype, Layout::Contiguous).into()).collect(),
        }
    }

    fn split(&self, dtype: DType) -> Weight<Gpu> {
        SplitWeight::new(self.on(dtype)).into()
    }

    fn whole(&self) -> Weight<Cpu> {
        let parts = self.on::<Cpu>(DType::F32).into_iter();
        Tensor::cat(parts.map(|part| part.floats(DType::F32)).collect(), 0).into()
    }
}

const FORMATS: [Option<Format>; 3] = [None, Some(Format::Nf4), Some(Format::Bf16)];

#[test]
fn products() {
    if !starts() {
        return;
    }
    let d_out: usize = ROWS.iter().sum();
    for format in FORMATS {
        for (tokens, d_in) in [(3, 96), (33, 70)] {
            let mut source = Source::new(tokens);
            let parts = Parts::random(format, d_in, &mut source);
            let beside = source.floats([7, d_in]);
            let adapter = [[3, d_in], [d_out, 3]].map(|shape| source.floats(shape));
            let x = source.floats([tokens, d_in]);
            let [residual, grad] = [(); 2].map(|()| source.floats([tokens, d_out + 7]));
            let exact = projections([parts.whole(), beside.exact().into()], &adapter);
            let expected =
                ops::adapted_linear::reference(x.exact(), &exact, Some(residual.exact()));
            let of_expected = ops::adapted_linear::reference_backward(
                Some(x.exact()),
                &exact,
                expected.low.clone(),
                grad.exact(),
                true,
            );
            for (dtype, layout) in variants() {
                let what = format!("{format:?} {tokens} {dtype:?} {layout:?}");
                let float = beside.on::<Gpu>(dtype, Layout::Contiguous).into();
                let ours = projections([parts.split(dtype), float], &adapter);
                let on = |host: &Host| host.on::<Gpu>(dtype, layout);
                let y = Gpu::adapted_linear(on(&x), &ours, Some(on(&residual)));
                close(&what, y.output, expected.output.clone(), tolerance(dtype));
                let d = Gpu::adapted_linear_backward(Some(on(&x)), &ours, y.low, on(&grad), true);
                let of_x = of_expected.x.clone().unwrap();
                close(&format!("{what}: d x"), d.x.unwrap(), of_x, tolerance(dtype));
                let alone = Gpu::frozen_linear(on(&x), ours[0].weight.clone());
                let of_alone = ops::linear::reference(x.exact(), exact[0].weight.clone());
                close(&format!("{what}: alone"), alone, of_alone, tolerance(dtype));
            }
        }
    }
}

#[test]
fn rows_and_log_probs() {
    if !starts() {
        return;
    }
    let vocabulary: i64 = ROWS.iter().sum::<usize>() as i64;
    for format in FORMATS {
        let mut source = Source::new(5);
        let parts = Parts::random(format, 40, &mut source);
        let (split, whole) = (parts.split(DType::F32), parts.whole());
        let ids: Vec<i64> = [0, 16, 17, 46, 47, vocabulary - 1, 3, 46].into();
        let rows = split.clone().rows(ints(&ids, [8]), DType::F32);
        let exact = whole.clone().rows(ints(&ids, [8]), DType::F32);
        close(&format!("{format:?} rows"), rows, exact, 0.0);
        let hidden = source.floats([8, 40]);
        for slopes in [false, true] {
            let stats = LogProbStats::All;
            let exact = ops::log_probs::reference(
                hidden.exact(),
                whole.clone(),
                ints(&ids, [8]),
                stats,
                slopes,
            );
            let hidden = hidden.on(DType::F32, Layout::Contiguous);
            let targets = ints(&ids, [8]);
            let ours = Gpu::completion_log_probs(hidden, split.clone(), targets, stats, slopes);
            close(&format!("{format:?}"), ours.columns, exact.columns, 2e-5);
            if let (Some(ours), Some(exact)) = (ours.slopes, exact.slopes) {
                close(&format!("{format:?}: slopes"), ours, exact, 2e-5);
            }
        }
    }
}
