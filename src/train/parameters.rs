//! Access to the trained tensors: those of the policy that require a gradient, by name, in the order of the model's fields.
//! They are matrices; a vector, such as a norm's weight `[D]`, is `[1, D]` here.

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use crate::model::mistral::Mistral;

type Gradients<B> = <Autodiff<B> as AutodiffBackend>::Gradients;

/// Marks every weight of `model` as trainable.
pub fn train_all<B: TrainBackend>(model: Mistral<Autodiff<B>>) -> Mistral<Autodiff<B>> {
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

/// Returns the trained tensors with their names in files: Hugging Face's names for the model's own weights
/// (`model.layers.0.mlp.up_proj.weight`), and PEFT's names without `base_model.model.` for an adapter's.
pub fn trained_parameters<B: TrainBackend>(
    model: &Mistral<Autodiff<B>>,
) -> Vec<(String, Tensor<B, 2>)> {
    struct Values<B: TrainBackend> {
        path: Vec<String>,
        found: Vec<(String, Tensor<B, 2>)>,
    }
    impl<B: TrainBackend> ModuleVisitor<Autodiff<B>> for Values<B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            let tensor = param.val();
            if tensor.is_require_grad() {
                let name = file_name(&self.path);
                self.found.push((name, as_matrix(tensor.inner())));
            }
        }
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
    }
    let mut values = Values { path: Vec::new(), found: Vec::new() };
    model.visit(&mut values);
    values.found
}

/// Replaces the trained tensors by `values`, in the order of [`trained_parameters`]. They remain trainable.
///
/// # Panics
/// If their number or sizes differ.
pub fn set_trained_parameters<B: TrainBackend>(
    model: &mut Mistral<Autodiff<B>>,
    values: Vec<Tensor<B, 2>>,
) {
    struct Replace<B: TrainBackend>(std::vec::IntoIter<Tensor<B, 2>>);
    impl<B: TrainBackend> ModuleMapper<Autodiff<B>> for Replace<B> {
        fn map_float<const D: usize>(
            &mut self,
            param: Param<Tensor<Autodiff<B>, D>>,
        ) -> Param<Tensor<Autodiff<B>, D>> {
            let old = param.val();
            if !old.is_require_grad() {
                return param;
            }
            let value = self.0.next();
            assert!(value.is_some(), "set_trained_parameters: too few values");
            let value = value.map_or(old.clone().inner(), |v| v.reshape(old.dims()));
            Param::initialized(param.id, Tensor::from_inner(value).require_grad())
        }
    }
    let mut replace = Replace(values.into_iter());
    *model = model.clone().map(&mut replace);
    model.update_norms();
    let unused = replace.0.len();
    assert_eq!(unused, 0, "set_trained_parameters: {unused} values too many");
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

fn as_matrix<B: TrainBackend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, 2> {
    let columns = tensor.dims()[D - 1];
    let rows = tensor.shape().num_elements() / columns.max(1);
    tensor.reshape([rows, columns])
}

/// Converts a path of field names to the name of the tensor in files.
fn file_name(path: &[String]) -> String {
    let (mut parts, mut last) = (Vec::new(), "weight");
    for part in path {
        match part.as_str() {
            // `Float` is a variant of the enum of weights.
            "lora" | "dora" | "weight" | "Float" => {}
            "lora_a" => last = "lora_A.weight",
            "lora_b" => last = "lora_B.weight",
            "magnitude" => last = "lora_magnitude_vector",
            part => parts.push(part),
        }
    }
    let model = if path.first().is_some_and(|first| first == "lm_head") { "" } else { "model." };
    format!("{model}{}.{last}", parts.join("."))
}
