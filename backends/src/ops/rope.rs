//! Rotary position embedding (arXiv 2104.09864) in Hugging Face's half-split order: feature `i` of a head is rotated
//! together with feature `i + Dh/2`.
//!
//! The operation rotates the first of the heads that lie side by side in `[T, heads * Dh]`: queries and keys are
//! rotated, and the values after them are copied. Backward is the inverse rotation, so only the angles are saved.

use burn::tensor::{Tensor, backend::Backend};

use crate::TrainBackend;

/// The cosines and sines of the angle of every token and frequency.
#[derive(Clone, Debug)]
pub struct RotaryAngles<B: Backend> {
    /// Cosines, `[T, Dh/2]`, in f32 (f64 on an f64 backend).
    pub cos: Tensor<B, 2>,
    /// Sines, `[T, Dh/2]`.
    pub sin: Tensor<B, 2>,
}

/// The direction of the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// By the token's angles.
    Forward,
    /// By the negative angles: the gradient of [`Rotation::Forward`].
    Inverse,
}

/// Rotates the first `rotated_heads` heads of each token.
///
/// # Shapes
/// - x: `[T, heads * Dh]`, with `Dh` twice the width of the angles
/// - returns `[T, heads * Dh]`, in x's dtype
///
/// # Panics
/// If shapes do not match.
pub fn rope<B: TrainBackend>(
    x: Tensor<B, 2>,
    angles: &RotaryAngles<B>,
    rotated_heads: usize,
) -> Tensor<B, 2> {
    let ([tokens, width], [rows, half]) = (x.dims(), angles.cos.dims());
    assert_eq!(angles.sin.dims(), [rows, half], "rope: sines");
    assert!(
        rows == tokens && width % (2 * half) == 0 && rotated_heads * 2 * half <= width,
        "rope: {rotated_heads} heads of [{tokens}, {width}] by angles [{rows}, {half}]"
    );
    B::rope(x, angles, rotated_heads, Rotation::Forward)
}

/// The reference body of [`TrainBackend::rope`].
pub fn reference<B: Backend>(
    x: Tensor<B, 2>,
    angles: &RotaryAngles<B>,
    rotated_heads: usize,
    rotation: Rotation,
) -> Tensor<B, 2> {
    let ([tokens, width], [_, half], dtype) = (x.dims(), angles.cos.dims(), x.dtype());
    let columns = rotated_heads * 2 * half;
    // As in Hugging Face's code, the angles are cast to x's dtype and multiplied in it.
    let angle = |t: &Tensor<B, 2>| t.clone().cast(dtype).reshape([tokens, 1, half]);
    let (cos, sin) = (angle(&angles.cos), angle(&angles.sin));
    let sin = match rotation {
        Rotation::Forward => sin,
        Rotation::Inverse => sin.neg(),
    };
    let heads = x.clone().narrow(1, 0, columns).reshape([tokens, rotated_heads, 2 * half]);
    let (a, b) = (heads.clone().narrow(2, 0, half), heads.narrow(2, half, half));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = b * cos + a * sin;
    let heads = Tensor::cat(vec![first, second], 2).reshape([tokens, columns]);
    match width - columns {
        0 => heads,
        rest => Tensor::cat(vec![heads, x.narrow(1, columns, rest)], 1),
    }
}
