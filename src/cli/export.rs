//! Implements `arithmo export`: writes a model, with an adapter merged into it, as a GGUF file.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::tensor::DType;

use super::merge::base::BaseArgs;
use super::model::note_base_mismatch;
use super::print_line;
use crate::adapter::merge::MergeTarget;
use crate::adapter::merged::{MergeSource, MergedWeights};
use crate::adapter::peft;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::stop_ids;
use crate::model::config::DecoderConfig;
use crate::model::gguf::{FileType, GgufFile, GgufSettings};
use crate::model::hub::Hub;
use crate::output::OutputFile;
use crate::progress::{Progress, ProgressMode};

/// Arguments of `arithmo export`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExportArgs {
    /// Export this model: a folder in Hugging Face layout, or a hub id OWNER/NAME.
    #[arg(long, value_name = "M")]
    pub model: String,
    /// Use this branch, tag or commit of the hub.
    #[arg(long, default_value = "main")]
    pub revision: String,
    /// Merge the PEFT adapter in this folder into the model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Choose the adapter with this name in the folder of --adapter [default: default, which PEFT saves at the top].
    #[arg(long, value_name = "NAME", requires = "adapter")]
    pub adapter_name: Option<String>,
    /// Write the GGUF file to this path.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Set the type of the weights; norms and biases stay f32.
    #[arg(long = "type", value_enum)]
    pub file_type: FileType,
    /// How the base was quantized.
    #[command(flatten)]
    pub(super) base: BaseArgs,
    /// Replace the output file if it exists.
    #[arg(long)]
    pub overwrite: bool,
}

/// Exports the model, merging on `device`, and prints the path of the file.
///
/// # Errors
/// The model cannot be read or GGUF cannot hold it, the adapter does not fit, the output exists or is an input, the disk is
/// full, or the user interrupts.
pub fn run<B: TrainBackend>(
    args: &ExportArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let output = OutputFile { path: &args.output, overwrite: args.overwrite, stream: false };
    output.check(args.adapter.as_deref())?;
    let folder = Hub::open(mode).resolve(&args.model, &args.revision)?;
    output.check([folder.as_path()].into_iter().chain(args.adapter.as_deref()))?;
    let target = args.base.target.unwrap_or_default();
    if target == MergeTarget::Requantized {
        return Err(Error::invalid(
            "--target",
            "requantized makes weights of bitsandbytes, which GGUF cannot hold",
            "choose dequantized or original, and a smaller --type",
        ));
    }
    let shape = DecoderConfig::load(&folder)?;
    let adapter = args.adapter.as_deref();
    let base_quantization = args.base.quantization(shape.quantization, adapter, None)?;
    let source = MergeSource { model: &folder, adapter, base_quantization, target };
    let weights = MergedWeights::<B>::open(source, device)?;
    if let Some(adapter) = adapter {
        note_base_mismatch(adapter, base_quantization, mode)?;
    }
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let settings = GgufSettings {
        folder: &folder,
        name: &model_name(&args.model, &folder),
        file_type: args.file_type,
        tokenizer: &tokenizer,
        stop_ids: &stop_ids(&folder, &shape, tokenizer.eos_id())?,
    };
    let file = GgufFile::new(&shape, settings)?;
    let progress = Progress::new("export", Some(file.tensor_count() as u64), "tensors", mode);
    for note in file.notes() {
        progress.println(&format!("note: {note}"));
    }
    file.write(&args.output, |name| weights.values(name, DType::F32), || progress.inc(1))?;
    progress.finish_with(&[summary(&file, weights.changed())]);
    print_line(&args.output.display().to_string())
}

/// Returns the name of the model: the last part of its hub id or of its folder's path.
fn model_name(model: &str, folder: &Path) -> String {
    let name = Path::new(model).file_name().map(|name| name.to_string_lossy().into_owned());
    let of_folder = || {
        std::fs::canonicalize(folder).ok()?.file_name().map(|n| n.to_string_lossy().into_owned())
    };
    name.or_else(of_folder).unwrap_or_else(|| "model".to_string())
}

/// Describes the tensors of a file in a line.
fn summary(file: &GgufFile, changed: usize) -> String {
    let types: Vec<String> =
        file.types().iter().map(|(kind, count)| format!("{count} in {kind:?}")).collect();
    let merged =
        if changed > 0 { format!(", {changed} with the adapter merged") } else { String::new() };
    let megabytes = file.tensor_bytes() as f64 / 1e6;
    format!("{} tensors ({}){merged}: {megabytes:.1} MB", file.tensor_count(), types.join(", "))
}

impl ExportArgs {
    /// Replaces the folder of `--adapter` by that of the adapter which `--adapter-name` chooses in it.
    ///
    /// # Errors
    /// There is no adapter of that name.
    pub(super) fn resolve_adapter(&mut self) -> Result<()> {
        if let (Some(folder), Some(name)) = (&mut self.adapter, &self.adapter_name) {
            *folder = peft::named_adapter(folder, name)?;
        }
        Ok(())
    }
}
