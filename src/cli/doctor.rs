//! `arithmo doctor`.

use arithmo_backends::TrainBackend;
use clap::Args;

use crate::doctor::doctor;
use crate::error::Result;

/// Look for devices, check every operation on the one in use, and measure it.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Print everything once more, as one line of JSON at the end.
    #[arg(long)]
    pub json: bool,
}

/// Examines the device; prints on stdout.
///
/// # Errors
/// As [`doctor`].
pub fn run<B: TrainBackend>(args: &DoctorArgs, device: &B::Device) -> Result<()> {
    doctor::<B>(args.json, device, &mut super::print_line)
}
