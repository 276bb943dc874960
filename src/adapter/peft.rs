//! Reads and writes PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::{Value, json};

use super::biases::{Biases, TrainedBias, name_in_files, trained_biases};
use super::config::{BranchConfig, LoraConfig};
use super::lora::{Branch, attach_one, check_other_modules};
use super::modules::TargetModules;
use super::parameters::{MAGNITUDE, Parameter, Role, adapter_parameters, set_trained_parameters};
use super::residual;
use super::saved::{SavedWeights, attach_saved, saved_modules};
use crate::error::{Error, Result, first_few};
use crate::input_file;
use crate::model::config::DecoderConfig;
use crate::model::decoder::Decoder;
use crate::model::identity::ModelIdentity;
use crate::model::quantize::Quantization;
use crate::model::save::{NamedTensors, OutTensor, load_safetensors_f32, save_tensors};
use crate::output::write_whole;

/// Prefix that PEFT puts before every module's name.
pub(super) const PREFIX: &str = "base_model.model.";
/// Name of an adapter folder's settings file.
pub const CONFIG: &str = "adapter_config.json";
/// Name of the adapter's group of tensors in a checkpoint, chosen so that PEFT opens the checkpoint folder too.
pub const CHECKPOINT_GROUP: &str = "adapter_model";
/// Name of an adapter folder's weights file.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Name of the adapter that PEFT saves at the top of a folder.
pub const DEFAULT_NAME: &str = "default";

/// Name under which TRL adds a reference that is an adapter to a model, and PEFT saves it.
pub const REFERENCE_NAME: &str = "ref";

/// Name of the adapter's folder within a run's folder.
const RUN_ADAPTER: &str = "adapter";

/// Name of the file that records how the base was quantized while the adapter was trained, if it was; PEFT ignores
/// the file.
pub const BASE_QUANTIZATION: &str = "base_quantization.json";

/// The weights of an adapter, in f32.
#[derive(Clone, Debug, Default)]
pub struct AdapterWeights {
    /// Each low-rank branch by module name (`model.layers.0.self_attn.q_proj`).
    pub branches: BTreeMap<String, Branch>,
    /// The weights that were trained in full.
    pub saved: SavedWeights,
    /// The biases of the model that were trained.
    pub biases: Biases,
}

/// Loads a PEFT adapter folder into `model`, replacing any adapter it has.
///
/// # Errors
/// Same as [`read`].
pub fn load<B: TrainBackend>(
    model: &mut Decoder<B>,
    folder: &Path,
    device: &B::Device,
) -> Result<LoraConfig> {
    let (config, weights) = read(&model.config, folder)?;
    let AdapterWeights { mut branches, saved, biases } = weights;
    model.remove_adapter();
    for (site, (name, linear)) in model.projections_mut().enumerate() {
        if let Some(branch) = branches.remove(&name) {
            attach_one(linear, &config, site, branch, device);
        }
    }
    attach_saved(model, &config, (saved, biases), device)?;
    Ok(config)
}

/// Reads a PEFT adapter folder that belongs to a model of shape `model`, without needing the model itself.
///
/// # Errors
/// A file is missing or damaged, the adapter uses an unsupported feature, or its tensors do not fit the model: the
/// first few that are missing, unexpected or misshapen are named.
pub fn read(model: &DecoderConfig, folder: &Path) -> Result<(LoraConfig, AdapterWeights)> {
    let folder = &adapter_folder(folder);
    let config = read_config(folder)?;
    let path = folder.join(WEIGHTS);
    if !path.exists() {
        return Err(without_weights(folder));
    }
    let mut tensors = load_safetensors_f32(&path)?;
    let place = format!("{}: ", folder.join(CONFIG).display());
    let within = |error: Error| error.within(&place);
    check_other_modules(model, &config).map_err(within)?;
    let targets = targets(model, &config).map_err(within)?;
    check_order(&targets, &config).map_err(within)?;
    let saved_modules = saved_modules(model, &config).map_err(within)?;
    let trained_biases = trained_biases(model, &config).map_err(within)?;
    check(&config, &targets, (&saved_modules, &trained_biases), &tensors, &path)?;
    let mut weights = AdapterWeights::default();
    let mut take = |name: String| {
        let (shape, values) = tensors.remove(&format!("{PREFIX}{name}"))?;
        Some(TensorData::new(values, shape))
    };
    for Target { name, branch, .. } in targets {
        let matrices =
            [take(format!("{name}.lora_A.weight")), take(format!("{name}.lora_B.weight"))];
        if let [Some(a), Some(b)] = matrices {
            let bias = take(format!("{name}.lora_B.bias"));
            let magnitude = take(format!("{name}.{MAGNITUDE}"));
            let scaling = branch.scaling;
            weights.branches.insert(name, Branch { a, b, bias, magnitude, scaling });
        }
    }
    for (name, _) in saved_modules {
        let weight = take(format!("{name}.weight"));
        weights.saved.extend(weight.map(|weight| (name, weight)));
    }
    for bias in trained_biases {
        let values = take(bias.name());
        weights.biases.extend(values.map(|values| (bias.module, values)));
    }
    Ok((config, weights))
}

impl ModelIdentity {
    /// Adds the settings and weights of the adapter in `folder` to the identity.
    ///
    /// # Errors
    /// A file of the adapter is missing or cannot be read.
    pub fn with_adapter(mut self, folder: &Path) -> Result<Self> {
        let folder = adapter_folder(folder);
        for name in [CONFIG, WEIGHTS] {
            self.add_file(name, &folder.join(name))?;
        }
        Ok(self)
    }
}

/// Reads and checks `adapter_config.json` of an adapter folder.
///
/// # Errors
/// Same as [`load`].
pub fn read_config(folder: &Path) -> Result<LoraConfig> {
    let folder = &adapter_folder(folder);
    let path = folder.join(CONFIG);
    let text = input_file::read_to_string(&path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => without_config(folder),
        _ => Error::io(&path, "read", e),
    })?;
    LoraConfig::from_json(&text, &path.display().to_string())
}

/// Returns the adapter folder that `folder` stands for: `folder` itself, or the adapter within a run's folder.
pub fn adapter_folder(folder: &Path) -> PathBuf {
    let run_adapter = folder.join(RUN_ADAPTER);
    let is_run = run_adapter.join(CONFIG).is_file() || !named_adapters(&run_adapter).is_empty();
    let no_others = named_adapters(folder).iter().all(|name| name == RUN_ADAPTER);
    if !folder.join(CONFIG).exists() && no_others && is_run {
        run_adapter
    } else {
        folder.to_path_buf()
    }
}

/// Returns the folder of the adapter called `name` in `folder`, where PEFT saves it: `folder` itself for `default`, else the
/// subfolder of that name. `folder` may be a run's folder.
///
/// # Errors
/// There is no adapter of that name; the error lists those that there are.
pub fn named_adapter(folder: &Path, name: &str) -> Result<PathBuf> {
    let folder = adapter_folder(folder);
    let own = folder.join(CONFIG).is_file().then(|| DEFAULT_NAME.to_string());
    let names: Vec<String> = own.into_iter().chain(named_adapters(&folder)).collect();
    if !names.iter().any(|known| known == name) {
        let problem = format!("{} holds no adapter called {name:?}", folder.display());
        let remedy = if names.is_empty() {
            "choose a folder in which PEFT saved an adapter".to_string()
        } else {
            format!("choose one of {}", first_few(names, ", "))
        };
        return Err(Error::invalid("--adapter-name", problem, remedy));
    }
    Ok(folder_of(&folder, name))
}

/// Returns the folder in which PEFT saves the adapter called `name` if it saves a model in `folder`.
pub fn folder_of(folder: &Path, name: &str) -> PathBuf {
    if name == DEFAULT_NAME { folder.to_path_buf() } else { folder.join(name) }
}

/// Returns the problem with `name` as the name of an adapter; `None` if PEFT can use it.
pub fn name_problem(name: &str) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        Some(
            "must consist of letters, digits, '_' and '-', as the name of a module and of a folder",
        )
    } else if "lora_".contains(name) {
        Some("is a part of \"lora_\", which PEFT takes for the names of weights")
    } else {
        None
    }
}

/// Returns the names of the adapters that PEFT saved in subfolders of `folder`, sorted.
pub fn named_adapters(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let inside = entries.filter(|entry| entry.path().join(CONFIG).is_file());
    let mut names: Vec<String> =
        inside.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Returns the error for a folder without an adapter; it names adapters inside the folder, if any.
fn without_config(folder: &Path) -> Error {
    if !folder.is_dir() {
        let remedy = "check the path; relative ones start at the working folder";
        return Error::file(folder, "is not a folder", remedy);
    }
    let inside = named_adapters(folder);
    let problem = format!("holds no {CONFIG}");
    if inside.is_empty() {
        return Error::file(folder, problem, "choose a folder in which PEFT saved an adapter");
    }
    let inside = first_few(inside.iter().map(|name| folder.join(name).display().to_string()), ", ");
    Error::file(
        folder,
        format!("{problem}, but folders in it do"),
        format!("choose one of them: {inside}"),
    )
}

/// Returns the error for an adapter folder without safetensors weights.
fn without_weights(folder: &Path) -> Error {
    const PICKLED: &str = "adapter_model.bin";
    if folder.join(PICKLED).is_file() {
        Error::file(
            folder,
            format!("holds pickled weights ({PICKLED}) and no {WEIGHTS}"),
            "convert it: open it with PEFT, then model.save_pretrained(folder, safe_serialization=True)",
        )
    } else {
        Error::file(folder, format!("holds no {WEIGHTS}"), "fetch or save the adapter again")
    }
}

/// Writes `model`'s adapter as a PEFT folder with `config` (see [`config_json`]). If the base is quantized, also writes
/// [`BASE_QUANTIZATION`]. Each file appears complete or not at all.
///
/// # Errors
/// The folder cannot be written.
pub fn save<B: TrainBackend>(model: &Decoder<B>, config: &str, folder: &Path) -> Result<()> {
    // Modules that are trained in full are large: none of them is copied more often than needed.
    let tensors = tensors(model).into_iter().map(|(name, data)| {
        let shape = data.shape.to_vec();
        OutTensor::new(name, shape, DType::F32, move || Ok(data.iter::<f32>().collect()))
    });
    save_tensors(&folder.join(WEIGHTS), tensors.collect())?;
    if let Some(quantization) = model.config.quantization {
        let text = format!("{:#}\n", quantization.description());
        write_whole(&folder.join(BASE_QUANTIZATION), text.as_bytes())?;
    }
    write_whole(&folder.join(CONFIG), config.as_bytes())
}

/// Returns the quantization of the base while the adapter in `folder` was trained; `None` if it had none or that is
/// unknown.
///
/// # Errors
/// The record of the quantization exists but cannot be read.
pub fn base_quantization(folder: &Path) -> Result<Option<Quantization>> {
    let path = adapter_folder(folder).join(BASE_QUANTIZATION);
    let text = match input_file::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "read", e)),
    };
    let recorded = serde_json::from_slice(&text).ok();
    let recorded = recorded.and_then(|value| Quantization::from_description(&value));
    recorded.map(Some).ok_or_else(|| {
        let problem = "does not say how the adapter's base was quantized";
        Error::file(&path, problem, "remove the file, which is only a record")
    })
}

/// Returns the adapter's tensors under PEFT's names, bit for bit. An adapter that started with a part of the base has
/// the form of the original base: see [`residual`].
pub fn tensors<B: TrainBackend>(model: &Decoder<B>) -> Vec<(String, TensorData)> {
    let named = |parameter: Parameter<B>| {
        (format!("{PREFIX}{}", name_in_file(model, &parameter)), parameter.into_data())
    };
    let mut tensors: Vec<_> = adapter_parameters(model).into_iter().map(named).collect();
    residual::convert(model, &mut tensors);
    tensors
}

/// Returns the name of an adapter's tensor in files, without the prefix.
fn name_in_file<B: TrainBackend, P: Backend>(
    model: &Decoder<B>,
    parameter: &Parameter<P>,
) -> String {
    let is_saved = parameter.role == Role::Saved;
    match parameter.name.strip_suffix(".bias").filter(|_| is_saved) {
        Some(module) => {
            let mut projections = model.projections();
            let own = projections.find(|(name, _)| name == module);
            name_in_files(module, own.is_some_and(|(_, linear)| linear.lora.is_some()))
        }
        None => parameter.name.clone(),
    }
}

/// Copies `saved` tensors, as [`tensors`] returns them, back into a model that has the same adapter; errors name
/// `place`.
///
/// # Errors
/// A tensor is missing or has another shape.
pub fn restore<B: TrainBackend>(
    model: &mut Decoder<Autodiff<B>>,
    saved: Vec<(String, TensorData)>,
    place: &Path,
    device: &B::Device,
) -> Result<()> {
    let mut saved: BTreeMap<String, TensorData> = saved.into_iter().collect();
    residual::revert(model, &mut saved);
    let mut values = Vec::new();
    for parameter in adapter_parameters(model) {
        let name = name_in_file(model, &parameter);
        let Parameter { shape, value, .. } = parameter;
        let data = saved.remove(&format!("{PREFIX}{name}"));
        match data.filter(|data| data.shape[..] == shape[..]) {
            Some(data) => {
                let data = TensorData { shape: value.dims().into(), ..data };
                values.push(Tensor::from_data(data, device));
            }
            None => {
                let problem = format!("{name} is missing or not {shape:?}");
                return Err(Error::file(place, problem, "remove this checkpoint folder"));
            }
        }
    }
    set_trained_parameters(model, values);
    Ok(())
}

/// Returns the text of `adapter_config.json` for `model`'s adapter.
pub fn config_json<B: TrainBackend>(
    model: &Decoder<B>,
    config: &LoraConfig,
    base_model: &str,
    revision: Option<&str>,
) -> String {
    let targets = written_targets(model, config);
    config.for_original_base().to_json(&targets, base_model, revision)
}

/// Returns the target modules as PEFT writes them: sorted names, with `all-linear` resolved, or the pattern.
fn written_targets<B: TrainBackend>(model: &Decoder<B>, config: &LoraConfig) -> Value {
    let names: BTreeSet<String> = match &config.target_modules {
        TargetModules::Names(names) => names.iter().cloned().collect(),
        TargetModules::AllLinear => {
            let last = |name: String| name.rsplit('.').next().map(String::from);
            model.projections().filter_map(|(name, _)| last(name)).collect()
        }
        TargetModules::Pattern(pattern) => return json!(pattern),
    };
    json!(names)
}

/// A projection with a branch.
struct Target {
    /// Module name.
    name: String,
    d_out: usize,
    d_in: usize,
    branch: BranchConfig,
}

/// Lists the projections of a model that get a branch. The list is empty if `config` targets none.
///
/// # Errors
/// Same as [`LoraConfig::at`].
fn targets(model: &DecoderConfig, config: &LoraConfig) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for tensor in model.tensors().iter().filter(|tensor| tensor.is_projection()) {
        let name = tensor.module();
        if let Some([d_out, d_in]) = tensor.dims()
            && let Some(branch) = config.at(name)?
        {
            targets.push(Target { name: name.to_string(), d_out, d_in, branch });
        }
    }
    Ok(targets)
}

/// Checks that patterns of ranks and alphas mean the same after they are sorted, as they are when the adapter is saved
/// again. PEFT's own files are sorted.
fn check_order(targets: &[Target], config: &LoraConfig) -> Result<()> {
    for Target { name, .. } in targets {
        if !config.rank_pattern.is_sorted() {
            config.rank_pattern.check_one_value("rank_pattern", name)?;
        }
        if !config.alpha_pattern.is_sorted() {
            config.alpha_pattern.check_one_value("alpha_pattern", name)?;
        }
    }
    Ok(())
}

/// Checks that the tensors of the file are those of the targeted projections and of the modules that are trained in
/// full.
fn check(
    config: &LoraConfig,
    targets: &[Target],
    (saved_modules, trained_biases): (&[(String, Vec<usize>)], &[TrainedBias]),
    tensors: &NamedTensors,
    path: &Path,
) -> Result<()> {
    let mut expected = BTreeMap::new();
    for Target { name, d_out, d_in, branch } in targets {
        let tensor_name = |side: &str| format!("{PREFIX}{name}.lora_{side}.weight");
        expected.insert(tensor_name("A"), vec![branch.r, *d_in]);
        expected.insert(tensor_name("B"), vec![*d_out, branch.r]);
        if config.lora_bias {
            expected.insert(format!("{PREFIX}{name}.lora_B.bias"), vec![*d_out]);
        }
        if config.use_dora {
            expected.insert(format!("{PREFIX}{name}.{MAGNITUDE}"), vec![*d_out]);
        }
    }
    for (name, shape) in saved_modules {
        expected.insert(format!("{PREFIX}{name}.weight"), shape.clone());
    }
    for bias in trained_biases {
        expected.insert(format!("{PREFIX}{}", bias.name()), vec![bias.width]);
    }
    let problem = if targets.is_empty() {
        Some("its target_modules match no projection of this model".to_string())
    } else {
        differences(&expected, tensors)
    };
    let Some(problem) = problem else {
        return Ok(());
    };
    let remedy = "use the adapter with the base model it was trained on";
    Err(badly_named(&expected, tensors, path).unwrap_or_else(|| Error::file(path, problem, remedy)))
}

/// Describes how tensors differ from the `expected` ones, the first few and their number; returns `None` if all
/// match.
fn differences(expected: &BTreeMap<String, Vec<usize>>, tensors: &NamedTensors) -> Option<String> {
    let missing = expected.keys().filter(|name| !tensors.contains_key(*name));
    let extra = tensors.keys().filter(|name| !expected.contains_key(*name));
    let misshapen = tensors.iter().filter_map(|(name, (shape, _))| {
        let wanted = expected.get(name).filter(|wanted| *wanted != shape)?;
        Some(format!("{name} is {shape:?}, must be {wanted:?}"))
    });
    let problems: Vec<String> = (misshapen)
        .chain(missing.map(|name| format!("{name} is missing")))
        .chain(extra.map(|name| format!("{name} has no place in this model")))
        .collect();
    let count = problems.len();
    (count > 0)
        .then(|| format!("{count} tensors do not fit the model: {}", first_few(problems, "; ")))
}

/// Returns the error for tensors whose names are not those of PEFT's `save_pretrained`: with the adapter's name in
/// them, or without the prefix. Returns `None` if there are no such names.
fn badly_named(
    expected: &BTreeMap<String, Vec<usize>>,
    tensors: &NamedTensors,
    path: &Path,
) -> Option<Error> {
    let error = |problem: String| {
        let remedy =
            "save the adapter with PEFT's model.save_pretrained(..), not from its state_dict()";
        Some(Error::file(path, problem, remedy))
    };
    let missing = |name: &&String| !expected.contains_key(*name);
    for name in tensors.keys().filter(missing) {
        for side in [".lora_A.", ".lora_B."] {
            let Some((module, rest)) = name.split_once(side) else {
                continue;
            };
            let own = rest.strip_suffix(".weight").filter(|own| !own.is_empty());
            if let Some(own) = own {
                return error(format!(
                    "{name} has the adapter's name in it: PEFT saves it as {module}{side}weight, without {own:?}"
                ));
            }
            if expected.contains_key(&format!("{PREFIX}{name}")) {
                return error(format!(
                    "{name} lacks the prefix {PREFIX:?} that PEFT puts before every module's name"
                ));
            }
        }
    }
    None
}
