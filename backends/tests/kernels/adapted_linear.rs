//! Projections with and without branches, dropout and a residual.

use arithmo_backends::{Adapter, Projection, TrainBackend, ops};
use burn::tensor::{DType, Tensor};

use super::host::{Cpu, Gpu, Host, Layout, Source, close, starts, tolerance, variants};

struct Case {
    tokens: usize,
    d_in: usize,
    /// Width, and rank of a branch, 0 for none.
    projections: &'static [(usize, usize)],
    dropout: bool,
    residual: bool,
}

/// Numbers of one projection.
struct Numbers {
    weight: Host,
    /// `a`, `b` and a dropout mask.
    adapter: Option<[Host; 3]>,
}

impl Case {
    fn numbers(&self, source: &mut Source) -> Vec<Numbers> {
        let of = |(d_out, rank): &(usize, usize)| Numbers {
            weight: source.floats([*d_out, self.d_in]),
            adapter: (*rank > 0).then(|| {
                let [a, b] = [[*rank, self.d_in], [*d_out, *rank]].map(|s| source.floats(s));
                let mut mask = source.floats([self.tokens, self.d_in]);
                for value in &mut mask.values {
                    *value = if *value > -0.5 { 1.25 } else { 0.0 };
                }
                [a, b, mask]
            }),
        };
        self.projections.iter().map(of).collect()
    }

    fn on<B: TrainBackend>(
        &self,
        numbers: &[Numbers],
        dtype: DType,
        layout: Layout,
    ) -> Vec<Projection<B>> {
        let of = |numbers: &Numbers| Projection {
            weight: numbers.weight.on::<B>(dtype, layout).into(),
            adapter: numbers.adapter.as_ref().map(|[a, b, mask]| Adapter {
                a: a.on(DType::F32, Layout::Contiguous),
                b: b.on(DType::F32, Layout::Contiguous),
                scaling: 0.375,
                dropout_mask: self.dropout.then(|| mask.on(DType::F32, Layout::Contiguous)),
            }),
        };
        numbers.iter().map(of).collect()
    }

    fn check(&self) {
        let width = self.projections.iter().map(|(d_out, _)| d_out).sum();
        let mut source = Source::new(self.tokens * self.d_in + width);
        let x = source.floats([self.tokens, self.d_in]);
        let [residual, grad] = [(); 2].map(|()| source.floats([self.tokens, width]));
        let numbers = self.numbers(&mut source);
        let exact = self.on::<Cpu>(&numbers, DType::F32, Layout::Contiguous);
        let given = self.residual.then(|| residual.exact());
        let expected = ops::adapted_linear::reference(x.exact(), &exact, given);
        let of_expected = ops::adapted_linear::reference_backward(
            Some(x.exact()),
            &exact,
            expected.low.clone(),
            grad.exact(),
            true,
        );
        for (dtype, layout) in variants() {
            let what = format!("{:?} {dtype:?} {layout:?}", self.projections);
            let tolerance = tolerance(dtype);
            let ours = self.on::<Gpu>(&numbers, dtype, layout);
            let given: Option<Tensor<Gpu, 2>> = self.residual.then(|| residual.on(dtype, layout));
            let y = Gpu::adapted_linear(x.on(dtype, layout), &ours, given);
            close(&what, y.output, expected.output.clone(), tolerance);
            assert_eq!(y.low.is_some(), expected.low.is_some(), "{what}");
            if let (Some(low), Some(expected)) = (y.low.clone(), &expected.low) {
                assert_eq!(low.dtype(), DType::F32);
                close(&what, low, expected.clone(), 1e-5);
            }
            for needs_x in [true, false] {
                let (x, grad) = (x.on(dtype, layout), grad.on(dtype, layout));
                let d = Gpu::adapted_linear_backward(Some(x), &ours, y.low.clone(), grad, needs_x);
                assert_eq!(d.x.is_some(), needs_x, "{what}");
                if let (Some(d_x), Some(expected)) = (d.x, &of_expected.x) {
                    close(&format!("{what}: d x"), d_x, expected.clone(), tolerance);
                }
                assert_eq!(d.adapters.len(), of_expected.adapters.len(), "{what}");
                for (ours, exact) in d.adapters.into_iter().zip(&of_expected.adapters) {
                    for (ours, exact) in ours.into_iter().zip(exact) {
                        assert_eq!(ours.dtype(), DType::F32);
                        close(&format!("{what}: d adapter"), ours, exact.clone(), 1e-5);
                    }
                }
            }
        }
    }
}

#[test]
fn adapted_linear() {
    if !starts() {
        return;
    }
    let case = |tokens, d_in, projections, dropout, residual| Case {
        tokens,
        d_in,
        projections,
        dropout,
        residual,
    };
    for case in [
        case(1, 1, &[(1, 1)], false, false),
        case(7, 5, &[(3, 0)], false, false),
        case(33, 48, &[(100, 16)], false, true),
        case(70, 65, &[(48, 4), (20, 0), (36, 7)], false, false),
        case(5, 100, &[(48, 0), (5, 0)], false, true),
        case(130, 31, &[(70, 40), (5, 3)], true, true),
        case(66, 40, &[(9, 8), (9, 8), (9, 8)], false, false),
    ] {
        case.check();
    }
}
