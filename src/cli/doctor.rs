//! Implements `arithmo doctor`.

use arithmo_backends::TrainBackend;
use clap::Args;

use crate::doctor::doctor;
use crate::error::Result;

/// Find the devices, check every operation on the one in use, and measure it.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Print all results again at the end, as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// Examines the device and prints the results on stdout.
///
/// # Errors
/// Same as [`doctor`].
pub fn run<B: TrainBackend>(args: &DoctorArgs, device: &B::Device) -> Result<()> {
    doctor::<B>(args.json, device, &mut super::print_line)
}
