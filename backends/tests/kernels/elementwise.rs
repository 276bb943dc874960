//! Norm, rotary embedding, gated product.

use arithmo_backends::{RotaryAngles, TrainBackend, Turn, ops};
use burn::tensor::DType;

use super::host::{Cpu, Gpu, Layout, Source, close, starts, tolerance, variants};

/// `[T, D]`: one value, beyond a cube, every length of vectors.
const SHAPES: [[usize; 2]; 7] =
    [[1, 1], [7, 5], [3, 48], [33, 100], [2, 1000], [5, 4097], [70_000, 3]];

#[test]
fn rms_norm() {
    if !starts() {
        return;
    }
    for shape in SHAPES {
        let mut source = Source::new(shape[1]);
        let [x, weight, grad] = [shape, [1, shape[1]], shape].map(|s| source.floats(s));
        let flat = |dtype| weight.on::<Gpu>(dtype, Layout::Contiguous).squeeze_dim::<1>(0);
        let exact = ops::rms_norm::reference(x.exact(), weight.exact().squeeze_dim(0), 1e-3);
        let exact_grad = ops::rms_norm::reference_backward(
            x.exact(),
            weight.exact().squeeze_dim(0),
            1e-3,
            grad.exact(),
        );
        for (dtype, layout) in variants() {
            let what = format!("rms_norm {shape:?} {dtype:?} {layout:?}");
            let y = Gpu::rms_norm(x.on(dtype, layout), flat(dtype), 1e-3);
            close(&what, y, exact.clone(), tolerance(dtype));
            let d_x = Gpu::rms_norm_backward(
                x.on(dtype, layout),
                flat(dtype),
                1e-3,
                grad.on(dtype, layout),
            );
            close(&what, d_x, exact_grad.clone(), tolerance(dtype));
        }
    }
}

#[test]
fn swiglu() {
    if !starts() {
        return;
    }
    for [tokens, width] in SHAPES {
        let mut source = Source::new(width);
        let gate_up = source.floats([tokens, 2 * width]);
        let grad = source.floats([tokens, width]);
        let exact = ops::swiglu::reference(gate_up.exact());
        let exact_grad = ops::swiglu::reference_backward(gate_up.exact(), grad.exact());
        for (dtype, layout) in variants() {
            let what = format!("swiglu [{tokens}, {width}] {dtype:?} {layout:?}");
            let y = Gpu::swiglu(gate_up.on(dtype, layout));
            close(&what, y, exact.clone(), tolerance(dtype));
            let d = Gpu::swiglu_backward(gate_up.on(dtype, layout), grad.on(dtype, layout));
            close(&what, d, exact_grad.clone(), tolerance(dtype));
        }
    }
}

/// Saturated gates: the exponential overflows, the result does not.
#[test]
fn swiglu_far_from_zero() {
    if !starts() {
        return;
    }
    let mut gate_up = Source::new(1).floats([1, 8]);
    gate_up.values[..4].copy_from_slice(&[-1e3, -90.0, 90.0, 1e3]);
    let ours = Gpu::swiglu(gate_up.on(DType::F32, Layout::Contiguous));
    close("swiglu", ours, ops::swiglu::reference(gate_up.exact()), 1e-6);
}

#[test]
fn rope() {
    if !starts() {
        return;
    }
    // Tokens, heads, heads that turn, half a head.
    for [tokens, heads, turned, half] in
        [[1, 1, 1, 1], [9, 3, 2, 5], [130, 6, 4, 24], [3, 4, 1, 50], [17, 5, 5, 64]]
    {
        let mut source = Source::new(tokens);
        let x = source.floats([tokens, heads * 2 * half]);
        let [cos, sin] = [[tokens, half]; 2].map(|s| source.floats(s));
        let angles = RotaryAngles::<Cpu> { cos: cos.exact(), sin: sin.exact() };
        for (dtype, layout) in variants() {
            let ours = RotaryAngles::<Gpu> {
                cos: cos.on(DType::F32, layout),
                sin: sin.on(DType::F32, layout),
            };
            for turn in [Turn::Forward, Turn::Back] {
                let what = format!("rope {tokens}x{heads}x{half} {turn:?} {dtype:?} {layout:?}");
                let y = Gpu::rope(x.on(dtype, layout), &ours, turned, turn);
                let exact = ops::rope::reference(x.exact(), &angles, turned, turn);
                close(&what, y, exact, tolerance(dtype));
            }
        }
    }
}
