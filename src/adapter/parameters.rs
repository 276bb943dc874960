//! The tensors of an adapter, and those that a run trains, as one list with names, roles and shapes.

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::model::decoder::Decoder;

/// Name of DoRA's magnitudes in PEFT's files, below the module's name.
pub(super) const MAGNITUDE: &str = "lora_magnitude_vector";

/// The role of a tensor in the model or its adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `lora_a` of a branch, `[r, D_in]`.
    LoraA,
    /// `lora_b` of a branch, `[D_out, r]`.
    LoraB,
    /// Bias of `lora_b`, `[D_out]`.
    LoraBias,
    /// Magnitudes of DoRA, `[D_out]`.
    Magnitude,
    /// Copy of a weight of the model that an adapter trains in full: see [`saved`](super::saved).
    Saved,
    /// A weight of the model itself.
    Weight,
}

impl Role {
    /// Returns whether the tensor belongs to an adapter.
    pub fn is_adapter(self) -> bool {
        self != Self::Weight
    }
}

/// A tensor with its name, role and shape.
#[derive(Clone, Debug)]
pub struct Parameter<B: Backend> {
    /// Name in files: Hugging Face's for the model's own weights (`model.layers.0.mlp.up_proj.weight`), and PEFT's
    /// without `base_model.model.` for an adapter's (`model.layers.0.mlp.up_proj.lora_A.weight`).
    pub name: String,
    /// What the tensor is.
    pub role: Role,
    /// Shape in files.
    pub shape: Vec<usize>,
    /// The values as a matrix; a vector `[D]` is `[1, D]`.
    pub value: Tensor<B, 2>,
}

impl<B: Backend> Parameter<B> {
    /// Copies the values to the host, in the shape of files.
    pub fn into_data(self) -> TensorData {
        let mut data = self.value.into_data();
        data.shape = self.shape.into();
        data
    }

    /// Returns whether the tensor is a vector.
    pub fn is_vector(&self) -> bool {
        self.shape.len() == 1
    }
}

/// Returns the tensors of `model`'s adapter, in the order of the model's fields.
pub fn adapter_parameters<B: TrainBackend>(model: &Decoder<B>) -> Vec<Parameter<B>> {
    collect(model, |role, _| role.is_adapter())
}

/// Returns the tensors that require a gradient, in the order of the model's fields.
pub fn trained_parameters<B: TrainBackend>(model: &Decoder<Autodiff<B>>) -> Vec<Parameter<B>> {
    let trained = collect(model, |_, requires_grad| requires_grad).into_iter();
    let inner = |Parameter { name, role, shape, value }: Parameter<Autodiff<B>>| Parameter {
        name,
        role,
        shape,
        value: value.inner(),
    };
    trained.map(inner).collect()
}

/// Replaces the tensors that require a gradient by `values`, in the order of [`trained_parameters`]. They remain
/// trainable. The row norms of DoRA are computed anew from them.
///
/// # Panics
/// If their number or sizes differ.
pub fn set_trained_parameters<B: TrainBackend>(
    model: &mut Decoder<Autodiff<B>>,
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

/// Returns the parameters of a model for which `wanted(role, requires_grad)` is true.
fn collect<B: TrainBackend>(
    model: &Decoder<B>,
    wanted: impl Fn(Role, bool) -> bool,
) -> Vec<Parameter<B>> {
    struct Visit<B: TrainBackend, F> {
        path: Vec<String>,
        wanted: F,
        found: Vec<Parameter<B>>,
    }
    impl<B: TrainBackend, F: Fn(Role, bool) -> bool> ModuleVisitor<B> for Visit<B, F> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let (name, role) = name_and_role(&self.path);
            let tensor = param.val();
            if (self.wanted)(role, tensor.is_require_grad()) {
                let shape = tensor.dims().to_vec();
                // Reshaping must not extend a graph.
                let value = as_matrix(tensor.detach());
                self.found.push(Parameter { name, role, shape, value });
            }
        }
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
    }
    let mut visit = Visit { path: Vec::new(), wanted, found: Vec::new() };
    model.visit(&mut visit);
    visit.found
}

/// Returns a vector `[D]` as `[1, D]`, and a matrix unchanged.
pub fn as_matrix<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, 2> {
    let columns = tensor.dims()[D - 1];
    let rows = tensor.shape().num_elements() / columns.max(1);
    tensor.reshape([rows, columns])
}

/// Converts a path of field names to the name of the tensor in files, and its role.
fn name_and_role(path: &[String]) -> (String, Role) {
    let (mut parts, mut end, mut role) = (Vec::new(), "weight", Role::Weight);
    for part in path {
        match part.as_str() {
            // `Float` is a variant of the enum of stored weights.
            "lora" | "dora" | "weight" | "stored" | "Float" => {}
            "trained" => role = Role::Saved,
            "bias" => end = "bias",
            "trained_bias" => (end, role) = ("bias", Role::Saved),
            "lora_b_bias" => (end, role) = ("lora_B.bias", Role::LoraBias),
            "lora_a" => (end, role) = ("lora_A.weight", Role::LoraA),
            "lora_b" => (end, role) = ("lora_B.weight", Role::LoraB),
            "magnitude" => (end, role) = (MAGNITUDE, Role::Magnitude),
            part => parts.push(part),
        }
    }
    let model = if path.first().is_some_and(|first| first == "lm_head") { "" } else { "model." };
    (format!("{model}{}.{end}", parts.join(".")), role)
}
