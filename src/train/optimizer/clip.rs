//! Gradient clipping by the global norm, like torch's `clip_grad_norm_`.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// Computes the L2 norm of all gradients as one vector, `[1]`: the norm of their norms, like torch's `clip_grad_norm_`.
/// Returns zero if there are no gradients.
pub fn global_norm<B: Backend>(grads: &[Tensor<B, 2>]) -> Tensor<B, 1> {
    let squares: Vec<Tensor<B, 1>> = grads.iter().map(|grad| grad.clone().square().sum()).collect();
    if squares.is_empty() {
        Tensor::zeros([1], &B::Device::default())
    } else {
        Tensor::cat(squares, 0).sum().sqrt()
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
pub fn clip_by_global_norm<B: Backend>(
    grads: Vec<Tensor<B, 2>>,
    max_norm: f64,
) -> (Vec<Tensor<B, 2>>, Tensor<B, 1>) {
    let norm = global_norm(&grads);
    if max_norm <= 0.0 {
        return (grads, norm);
    }
    let coefficient = clip_coefficient(norm.clone(), max_norm).unsqueeze::<2>();
    let grads = grads.into_iter().map(|grad| grad * coefficient.clone()).collect();
    (grads, norm)
}
