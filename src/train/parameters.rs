//! Marks weights as trained, and finds the gradients of those that are, in the order of [`trained_parameters`].

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use crate::adapter::parameters::as_matrix;
pub use crate::adapter::parameters::{set_trained_parameters, trained_parameters};
use crate::model::decoder::Decoder;

type Gradients<B> = <Autodiff<B> as AutodiffBackend>::Gradients;

/// Marks every weight of `model` as trainable.
pub fn train_all<B: TrainBackend>(model: Decoder<Autodiff<B>>) -> Decoder<Autodiff<B>> {
    struct All;
    impl<B: TrainBackend> ModuleMapper<Autodiff<B>> for All {
        fn map_float<const D: usize>(
            &mut self,
            param: Param<Tensor<Autodiff<B>, D>>,
        ) -> Param<Tensor<Autodiff<B>, D>> {
            Param::initialized(param.id, param.val().require_grad())
        }
    }
    model.map(&mut All)
}

/// Returns the gradients of the trained tensors of a part of the model, in the order of [`trained_parameters`]. A tensor
/// on which the loss does not depend has a zero gradient.
pub(super) fn gradients_of<B: TrainBackend, M: Module<Autodiff<B>>>(
    part: &M,
    grads: &Gradients<B>,
) -> Vec<Tensor<B, 2>> {
    struct Found<'a, B: TrainBackend> {
        grads: &'a Gradients<B>,
        found: Vec<Tensor<B, 2>>,
    }
    impl<B: TrainBackend> ModuleVisitor<Autodiff<B>> for Found<'_, B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            let tensor = param.val();
            if tensor.is_require_grad() {
                let grad = tensor.grad(self.grads);
                let grad = grad.unwrap_or_else(|| tensor.inner().zeros_like());
                self.found.push(as_matrix(grad));
            }
        }
    }
    let mut found = Found { grads, found: Vec::new() };
    part.visit(&mut found);
    found.found
}

/// Returns whether a part of the model has a trained tensor.
pub(super) fn is_trained<B: TrainBackend, M: Module<Autodiff<B>>>(part: &M) -> bool {
    struct Any(bool);
    impl<B: TrainBackend> ModuleVisitor<Autodiff<B>> for Any {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            self.0 |= param.val().is_require_grad();
        }
    }
    let mut any = Any(false);
    part.visit(&mut any);
    any.0
}
