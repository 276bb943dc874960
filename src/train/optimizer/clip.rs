//! Gradient clipping by the global norm, like torch's `clip_grad_norm_`.

use arithmo_backends::TrainBackend;
use burn::tensor::{Tensor, backend::Backend};

/// Computes the L2 norm of all gradients as one vector, `[1]`: the norm of their norms, like torch's `clip_grad_norm_`.
/// Returns zero if there are no gradients.
pub fn global_norm<B: TrainBackend>(grads: &[Tensor<B, 2>]) -> Tensor<B, 1> {
    if grads.is_empty() {
        Tensor::zeros([1], &B::Device::default())
    } else {
        B::sum_of_squares(grads).sqrt()
    }
}

/// Computes `min(1, max_norm / (norm + 1e-6))`, `[1]`, by which torch multiplies every gradient.
fn clip_coefficient<B: Backend>(norm: Tensor<B, 1>, max_norm: f64) -> Tensor<B, 1> {
    norm.add_scalar(1e-6).recip().mul_scalar(max_norm).clamp_max(1.0)
}

/// Scales `grads` so that their global norm is at most `max_norm`. They are unchanged if `max_norm` is 0. Returns them and
/// the norm before clipping.
///
/// A norm that is not finite is not detected here, because that would need a device sync. The caller must check the norm
/// before it applies the gradients.
pub fn clip_by_global_norm<B: TrainBackend>(
    grads: Vec<Tensor<B, 2>>,
    max_norm: f64,
) -> (Vec<Tensor<B, 2>>, Tensor<B, 1>) {
    let norm = global_norm(&grads);
    if max_norm <= 0.0 {
        return (grads, norm);
    }
    let coefficient = clip_coefficient(norm.clone(), max_norm);
    (B::scale_all(grads, coefficient), norm)
}
