//! `arithmo iterate`: rounds of sampling, training and measuring.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use clap::Args;

use super::print_line;
use crate::error::Result;
use crate::iterate::rounds::{IterateConfig, iterate};
use crate::progress::ProgressMode;

/// Learn from the model's own answers, round by round.
#[derive(Args, Clone, Debug)]
pub struct IterateArgs {
    /// The rounds' configuration (see configs/iterate.toml).
    #[arg(long, value_name = "iterate.toml")]
    pub config: PathBuf,
}

/// Runs the rounds, or goes on with them; prints a line after each.
///
/// # Errors
/// As [`iterate`].
pub fn run<B: TrainBackend>(
    args: &IterateArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let config = IterateConfig::load(&args.config)?;
    print_line(&format!("{:>5}{:>8}{:>10}   95 % interval", "round", "pairs", "accuracy"))?;
    iterate::<B>(&config, mode, device, |round| {
        let pairs = round.pairs.map_or("-".to_string(), |pairs| pairs.to_string());
        let accuracy = match &round.accuracy {
            Some(rate) => {
                let [low, high] = rate.interval_95.map(|bound| 100.0 * bound);
                format!("{:>8.1} %   {low:.1} to {high:.1} %", 100.0 * rate.accuracy)
            }
            None => format!("{:>10}", "-"),
        };
        print_line(&format!("{:>5}{pairs:>8}{accuracy}", round.round))
    })
}
