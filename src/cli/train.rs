//! Implements `arithmo train`.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use clap::Args;

use super::push::PushFlags;
use crate::config::RunConfig;
use crate::error::Result;
use crate::plan::{Planned, parse_bytes};
use crate::progress::ProgressMode;
use crate::train::folder::Existing;
use crate::train::run::{Prepared, RunOptions, Start, run_from};

/// The configuration's keys in `train --help`.
const CONFIGURATION: &str = "\
The configuration's keys:
  output_dir, seed, method (dpo, kto, orpo, cpo or sft)
  [model]  the model to train: model_name_or_path, dtype, quantization, use_peft ...
  [data]   train_file, eval_file, prompt_template, max_length ...
  [lora]   the adapter: r, lora_alpha, target_modules, adapter ...
  [dpo]    the loss: loss_type, beta, reference ...; the other methods have tables of their names: [kto], [orpo], [cpo]
  [train]  batches, learning_rate, max_steps or num_train_epochs, save_steps ...
docs/configuration.md lists each key with its type, its default and that of TRL.
Examples are in configs/. Relative paths start at the working folder.";

/// Train a model as configured in a run.toml: DPO, KTO, ORPO, CPO or SFT, an adapter or all weights.
#[derive(Args, Clone, Debug)]
#[command(after_help = CONFIGURATION)]
pub struct TrainArgs {
    /// Read the run's configuration from this file (see configs/).
    #[arg(long, value_name = "run.toml")]
    pub config: PathBuf,
    /// Override a key of the file: table.key=value, such as train.max_steps=100; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Continue the run in output_dir from its newest complete checkpoint, or start it if there is none. The run may
    /// be longer than before (train.max_steps, train.num_train_epochs).
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Remove the run in output_dir and start again.
    #[arg(long)]
    pub overwrite: bool,
    /// Check the configuration, the model and the data, and list what would be truncated, dropped or refused, with the
    /// memory and time on the device; train nothing and write nothing. What output_dir holds is not checked.
    #[arg(long)]
    pub dry_run: bool,
    /// Limit the run to this much of the device's memory, such as 8GB, and refuse it if that is too little [default:
    /// all of it].
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<String>,
    /// Start even if the plan says that the run will not fit.
    #[arg(long)]
    pub ignore_plan: bool,
    /// Do not time a few layers on the device in a dry run (which takes at most ten seconds).
    #[arg(long, requires = "dry_run")]
    pub no_timing: bool,
    /// The push of the result.
    #[command(flatten)]
    pub push: PushFlags,
}

/// Trains the model and prints the folder of the adapter (or the model) on stdout.
///
/// # Errors
/// Same as [`run_from`]; or the run does not fit the device.
pub fn run<B: TrainBackend>(
    args: &TrainArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let config = args.configuration()?;
    let existing = match (args.resume, args.overwrite) {
        (true, _) => Existing::Resume,
        (_, true) => Existing::Overwrite,
        _ => Existing::Refuse,
    };
    let options = RunOptions { existing, dry_run: args.dry_run, progress: mode };
    let memory = args.device_memory.as_deref().map(parse_bytes).transpose()?;
    let mut ready = |prepared: &Prepared| {
        let planned = Planned::of::<B>(prepared, &config, memory, device)?;
        if args.dry_run {
            let timing = if args.no_timing { None } else { planned.timing::<B>(device)? };
            return super::plan::print(&planned, false, timing);
        }
        if mode != ProgressMode::Quiet {
            say!("{}", planned.summary());
        }
        if args.ignore_plan { Ok(()) } else { planned.check() }
    };
    let config_file = Some(args.config.as_path());
    let start = Start { device_memory: memory, config_file, ready: &mut ready };
    let summary = run_from::<B>(&config, &options, start, device);
    let flag = args.push.push_to_hub.is_some();
    let summary =
        summary.map_err(|e| if flag { e.at("train.hub_model_id", PushFlags::FLAG) } else { e })?;
    if let Some(output) = summary.output {
        super::print_line(&output.display().to_string())?;
    }
    Ok(())
}

impl TrainArgs {
    /// Reads the configuration and applies the flags that stand for its keys.
    fn configuration(&self) -> Result<RunConfig> {
        let mut config = RunConfig::load(&self.config, &self.set)?;
        if let Some(repo) = &self.push.push_to_hub {
            config.train.push_to_hub = true;
            config.train.hub_model_id = Some(repo.clone());
        }
        if self.push.private {
            config.train.hub_private_repo = Some(true);
        }
        Ok(config)
    }
}
