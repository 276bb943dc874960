//! PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use arithmo_backends::TrainBackend;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};

use super::config::{LoraConfig, TargetModules};
use super::linear::{attach_one, parameters, set_parameters};
use crate::error::{Error, Result};
use crate::model::config::MistralConfig;
use crate::model::mistral::{Mistral, PROJECTIONS};
use crate::model::quantize::Quantization;
use crate::model::save::{NamedTensors, load_safetensors_f32, save_safetensors};
use crate::output::write_whole;

/// What PEFT puts before a module's own name.
const PREFIX: &str = "base_model.model.";
/// The settings of an adapter folder.
pub const CONFIG: &str = "adapter_config.json";
/// Name of the adapter's group of tensors in a checkpoint, whose folder so opens in PEFT too.
pub const CHECKPOINT_GROUP: &str = "adapter_model";
/// The weights of an adapter folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// What the base was packed as while the adapter was trained, where it was; PEFT does not mind the file.
pub const BASE: &str = "base_quantization.json";

/// The two matrices of each branch, by the module's name (`model.layers.0.self_attn.q_proj`): `lora_a` `[r, D_in]`,
/// then `lora_b` `[D_out, r]`, in f32.
pub type Branches = BTreeMap<String, [TensorData; 2]>;

/// Reads a PEFT adapter folder onto `model`, replacing any adapter it has.
///
/// # Errors
/// As [`read`].
pub fn load<B: TrainBackend>(
    model: &mut Mistral<B>,
    folder: &Path,
    device: &B::Device,
) -> Result<LoraConfig> {
    let (config, mut branches) = read(&model.config, folder)?;
    for (site, (name, linear)) in model.projections_mut().enumerate() {
        linear.lora = None;
        if let Some(weights) = branches.remove(&name) {
            attach_one(linear, &config, site, weights, device);
        }
    }
    Ok(config)
}

/// Reads a PEFT adapter folder made for a model of shape `model`, without needing the model.
///
/// # Errors
/// A file is missing or damaged, the adapter uses something not built here, or its tensors do not fit the model: each
/// missing, extra or misshapen one is named.
pub fn read(model: &MistralConfig, folder: &Path) -> Result<(LoraConfig, Branches)> {
    let config = read_config(folder)?;
    let path = folder.join(WEIGHTS);
    let mut tensors = load_safetensors_f32(&path)?;
    let targets = targets(model, &config)?;
    check(&config, &targets, &tensors, &path)?;
    let mut branches = Branches::new();
    for (name, _) in targets {
        let mut take = |side: &str| tensors.remove(&format!("{PREFIX}{name}.lora_{side}.weight"));
        if let (Some(a), Some(b)) = (take("A"), take("B")) {
            let data = [a, b].map(|(shape, values)| TensorData::new(values, shape));
            branches.insert(name, data);
        }
    }
    Ok((config, branches))
}

/// Reads and checks `adapter_config.json` of an adapter folder.
///
/// # Errors
/// As [`load`].
pub fn read_config(folder: &Path) -> Result<LoraConfig> {
    let path = folder.join(CONFIG);
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    LoraConfig::from_json(&text, &path.display().to_string())
}

/// Writes `model`'s adapter as a PEFT folder with `config` (see [`config_json`]), and a note if its base is packed; each file
/// is whole or absent.
///
/// # Errors
/// The folder cannot be written.
pub fn save<B: TrainBackend>(model: &Mistral<B>, config: &str, folder: &Path) -> Result<()> {
    let tensors: Vec<_> = (tensors(model).into_iter())
        .map(|(name, data)| (name, data.shape.to_vec(), data.iter::<f32>().collect()))
        .collect();
    save_safetensors(&folder.join(WEIGHTS), &tensors)?;
    if let Some(packed) = model.config.quantization {
        let text = format!("{:#}\n", packed.description());
        write_whole(&folder.join(BASE), text.as_bytes())?;
    }
    write_whole(&folder.join(CONFIG), config.as_bytes())
}

/// What the base of the adapter in `folder` was packed as while it was trained; `None`: not at all, or it is not known.
///
/// # Errors
/// It is noted, and the note cannot be read.
pub fn trained_on(folder: &Path) -> Result<Option<Quantization>> {
    let path = folder.join(BASE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "read", e)),
    };
    let noted = serde_json::from_slice(&text).ok();
    let noted = noted.and_then(|value| Quantization::from_description(&value));
    noted.map(Some).ok_or_else(|| {
        let problem = "does not say what the adapter's base was packed as";
        Error::file(&path, problem, "remove the file: it is a note only")
    })
}

/// The adapter's tensors under PEFT's names, bit for bit.
pub fn tensors<B: TrainBackend>(model: &Mistral<B>) -> Vec<(String, TensorData)> {
    let named =
        |(name, tensor): (String, Tensor<B, 2>)| (format!("{PREFIX}{name}"), tensor.into_data());
    parameters(model).into_iter().map(named).collect()
}

/// Puts `saved` tensors, as [`tensors`] gives them, back on a model that has the same adapter; `place` is named in
/// errors.
///
/// # Errors
/// A tensor is missing or has another shape.
pub fn restore<B>(
    model: &mut Mistral<B>,
    saved: Vec<(String, TensorData)>,
    place: &Path,
    device: &B::Device,
) -> Result<()>
where
    B: TrainBackend + AutodiffBackend,
{
    let mut saved: BTreeMap<String, TensorData> = saved.into_iter().collect();
    let mut values = Vec::new();
    for (name, tensor) in parameters(model) {
        let data = saved.remove(&format!("{PREFIX}{name}"));
        match data.filter(|data| data.shape == tensor.shape()) {
            Some(data) => values.push(Tensor::from_data(data, device)),
            None => {
                let problem = format!("{name} is missing or not {:?}", tensor.dims());
                return Err(Error::file(place, problem, "remove this checkpoint folder"));
            }
        }
    }
    set_parameters(model, values);
    Ok(())
}

/// The text of `adapter_config.json` for `model`'s adapter.
pub fn config_json<B: TrainBackend>(
    model: &Mistral<B>,
    config: &LoraConfig,
    base_model: &str,
    revision: Option<&str>,
) -> String {
    config.to_json(&written_targets(model, config), base_model, revision)
}

/// `all-linear` and patterns are written as the names they stand for, sorted, as PEFT does.
fn written_targets<B: TrainBackend>(model: &Mistral<B>, config: &LoraConfig) -> Vec<String> {
    let names: BTreeSet<String> = match &config.target_modules {
        TargetModules::Names(names) => names.iter().cloned().collect(),
        TargetModules::AllLinear => {
            let last = |name: String| name.rsplit('.').next().map(String::from);
            model.projections().filter_map(|(name, _)| last(name)).collect()
        }
        TargetModules::Pattern(_) => (model.projections())
            .filter(|(_, linear)| linear.lora.is_some())
            .map(|(name, _)| name)
            .collect(),
    };
    names.into_iter().collect()
}

/// The targeted projections of a model, each with the shape `[D_out, D_in]` of its weight.
fn targets(model: &MistralConfig, config: &LoraConfig) -> Result<Vec<(String, [usize; 2])>> {
    let mut targets = Vec::new();
    for (name, shape) in model.tensors() {
        let name = name.trim_end_matches(".weight");
        let projection = PROJECTIONS.iter().any(|path| name.ends_with(path));
        if let ([d_out, d_in], true) = (shape.as_slice(), projection)
            && config.target_modules.matches(name)?
        {
            targets.push((name.to_string(), [*d_out, *d_in]));
        }
    }
    Ok(targets)
}

fn check(
    config: &LoraConfig,
    targets: &[(String, [usize; 2])],
    tensors: &NamedTensors,
    path: &Path,
) -> Result<()> {
    let mut expected = BTreeMap::new();
    for (name, [d_out, d_in]) in targets {
        let of = |side: &str| format!("{PREFIX}{name}.lora_{side}.weight");
        expected.insert(of("A"), vec![config.r, *d_in]);
        expected.insert(of("B"), vec![*d_out, config.r]);
    }
    let missing = expected.keys().filter(|name| !tensors.contains_key(*name));
    let extra = tensors.keys().filter(|name| !expected.contains_key(*name));
    let misshapen = tensors.iter().filter_map(|(name, (shape, _))| {
        let wanted = expected.get(name).filter(|wanted| *wanted != shape)?;
        Some(format!("{name} is {shape:?}, must be {wanted:?}"))
    });
    let problems: Vec<String> = (missing.map(|name| format!("{name} is missing")))
        .chain(extra.map(|name| format!("{name} has no place in this model")))
        .chain(misshapen)
        .collect();
    if problems.is_empty() && !expected.is_empty() {
        return Ok(());
    }
    let listed = match problems.is_empty() {
        true => "its target_modules name no projection of this model".to_string(),
        false => problems.join("; "),
    };
    Err(Error::file(path, listed, "use the adapter with the base model it was trained on"))
}
