//! Rotary position embedding (arXiv 2104.09864), in Hugging Face's half-split order: feature `i` of a head turns with
//! feature `i + Dh/2`.
//!
//! The operation works on heads side by side, `[T, heads * Dh]`, and turns the first of them: queries and keys turn, the
//! values behind them are passed on. Backward turns the other way, so nothing but the angles is saved.

use burn::tensor::{Tensor, backend::Backend};

use crate::TrainBackend;

/// The angle of every token and frequency.
#[derive(Clone, Debug)]
pub struct RotaryAngles<B: Backend> {
    /// Cosines, `[T, Dh/2]`, in f32 (f64 on an f64 backend).
    pub cos: Tensor<B, 2>,
    /// Sines, `[T, Dh/2]`.
    pub sin: Tensor<B, 2>,
}

/// Which way heads are turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// By the token's angles.
    Forward,
    /// Back: the gradient of [`Turn::Forward`].
    Back,
}

/// Turns the first `turned` heads of each token.
///
/// # Shapes
/// - x: `[T, heads * Dh]`, `Dh` twice the width of the angles
/// - returns `[T, heads * Dh]`, of x's dtype
///
/// # Panics
/// If shapes do not fit together.
pub fn rope<B: TrainBackend>(
    x: Tensor<B, 2>,
    angles: &RotaryAngles<B>,
    turned: usize,
) -> Tensor<B, 2> {
    let ([tokens, width], [rows, half]) = (x.dims(), angles.cos.dims());
    assert_eq!(angles.sin.dims(), [rows, half], "rope: sines");
    assert!(
        rows == tokens && width % (2 * half) == 0 && turned * 2 * half <= width,
        "rope: {turned} heads of [{tokens}, {width}] by angles [{rows}, {half}]"
    );
    B::rope(x, angles, turned, Turn::Forward)
}

/// The reference body of [`TrainBackend::rope`].
pub fn reference<B: Backend>(
    x: Tensor<B, 2>,
    angles: &RotaryAngles<B>,
    turned: usize,
    turn: Turn,
) -> Tensor<B, 2> {
    let ([tokens, width], [_, half], dtype) = (x.dims(), angles.cos.dims(), x.dtype());
    let columns = turned * 2 * half;
    // As Hugging Face: angles are cast to x's dtype, and the products are taken in it.
    let angle = |t: &Tensor<B, 2>| t.clone().cast(dtype).reshape([tokens, 1, half]);
    let (cos, sin) = (angle(&angles.cos), angle(&angles.sin));
    let sin = match turn {
        Turn::Forward => sin,
        Turn::Back => sin.neg(),
    };
    let heads = x.clone().narrow(1, 0, columns).reshape([tokens, turned, 2 * half]);
    let (a, b) = (heads.clone().narrow(2, 0, half), heads.narrow(2, half, half));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = b * cos + a * sin;
    let heads = Tensor::cat(vec![first, second], 2).reshape([tokens, columns]);
    match width - columns {
        0 => heads,
        rest => Tensor::cat(vec![heads, x.narrow(1, columns, rest)], 1),
    }
}
