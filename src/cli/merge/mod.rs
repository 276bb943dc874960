//! Implements `arithmo merge`: writes base and adapter as one model.

pub(super) mod base;
mod measure;

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use burn::tensor::DType;

use self::base::BaseArgs;
use self::measure::measure;
use super::model::note_base_mismatch;
use super::print_line;
use super::push::PushFlags;
use crate::adapter::merge::{MergeConfig, MergeTarget, merge};
use crate::adapter::peft;
use crate::config::ModelDtype;
use crate::error::Result;
use crate::model::config::DecoderConfig;
use crate::model::hub::Hub;
use crate::model::weights::WeightFiles;
use crate::output::list::listed_files;
use crate::output::refuse_inputs_among;
use crate::progress::{Progress, ProgressMode};
use crate::train::card::write_merged_card;

/// Arguments of `arithmo merge`.
#[derive(Clone, Debug, clap::Args)]
pub struct MergeArgs {
    /// Load this base model: a folder in Hugging Face layout, or a hub id OWNER/NAME.
    #[arg(long, value_name = "M")]
    pub model: String,
    /// Use this branch, tag or commit of the hub.
    #[arg(long, default_value = "main")]
    pub revision: String,
    /// Merge the PEFT adapter in this folder.
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Choose the adapter with this name in the folder of --adapter [default: default, which PEFT saves at the top].
    #[arg(long, value_name = "NAME")]
    pub adapter_name: Option<String>,
    /// Write the merged model to this folder.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Set the dtype of the written weights; auto keeps that of the base. With a quantized base, f32 stores exactly
    /// the trained model, while bf16 and f16 round it.
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: ModelDtype,
    /// How the base was quantized.
    #[command(flatten)]
    pub(super) base: BaseArgs,
    /// Measure the effect of each target on the pairs in this file [default: the run's own pairs, or a few built-in
    /// texts].
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Do not measure the effect of each target.
    #[arg(long, conflicts_with = "data")]
    pub no_measure: bool,
    /// Replace the output folder if it holds a model.
    #[arg(long)]
    pub overwrite: bool,
    /// The push of the result.
    #[command(flatten)]
    pub push: PushFlags,
}

/// Merges on `device` and prints the output folder; for a quantized base, it first reports the effect of each target.
///
/// # Errors
/// Same as [`merge`], or the base cannot be downloaded.
pub fn run<B: TrainBackend>(
    args: &MergeArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let mut push = args.push.push(mode)?;
    let model = Hub::open(mode).resolve(&args.model, &args.revision)?;
    let shape = DecoderConfig::load(&model)?;
    let needs_quantized = args.data.as_ref().map(|_| "--data");
    let quantization =
        args.base.quantization(shape.quantization, Some(&args.adapter), needs_quantized)?;
    let config = MergeConfig {
        model,
        adapter: args.adapter.clone(),
        output: args.output.clone(),
        dtype: args.dtype.dtype(),
        base_quantization: quantization,
        target: args.base.target.unwrap_or_default(),
        overwrite: args.overwrite,
    };
    config.check_output()?;
    refuse_inputs_among(&listed_files(&config.output), args.data.as_deref())?;
    note_base_mismatch(&config.adapter, quantization, mode)?;
    if let Some(push) = &mut push {
        push.prepare()?;
    }
    let _lock = config.lock_output()?;
    if let Some(to) = quantization
        && !args.no_measure
        && mode != ProgressMode::Quiet
    {
        measure::<B>(args, &config, to, mode, device)?;
    }
    if quantization.is_some() && mode != ProgressMode::Quiet {
        note_rounding(&config, &shape)?;
    }
    let tensors = shape.tensors().len();
    let progress = Progress::new("merge", Some(tensors as u64), "weights", mode);
    let summary = merge::<B>(&config, device, |_| progress.inc(1))?;
    write_merged_card(&config.adapter, &config.output)?;
    progress.println(&format!(
        "{} weights merged, {} written without a branch",
        summary.merged, summary.copied
    ));
    progress.finish();
    if let Some(push) = &mut push {
        push.result(&config.output)?;
    }
    print_line(&config.output.display().to_string())
}

/// Prints a note if 16 bits cannot represent the sums of a quantized base and an adapter exactly.
fn note_rounding(config: &MergeConfig, shape: &DecoderConfig) -> Result<()> {
    let written = match config.dtype {
        Some(dtype) => dtype,
        None => {
            WeightFiles::open_model(&config.model, shape)?.dtype("model.embed_tokens.weight")?
        }
    };
    if config.target == MergeTarget::Dequantized && ![DType::F32, DType::F64].contains(&written) {
        say!(
            "note: the weights are rounded to {}; --dtype f32 stores exactly the trained model, at twice the size",
            written.name()
        );
    }
    Ok(())
}

impl MergeArgs {
    /// Replaces the folder of `--adapter` by that of the adapter which `--adapter-name` chooses in it.
    ///
    /// # Errors
    /// There is no adapter of that name.
    pub(super) fn resolve_adapter(&mut self) -> Result<()> {
        if let Some(name) = &self.adapter_name {
            self.adapter = peft::named_adapter(&self.adapter, name)?;
        }
        Ok(())
    }
}
