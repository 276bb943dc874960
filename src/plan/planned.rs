//! A plan together with the changes that make it fit.

use arithmo_backends::TrainBackend;

use super::Plan;
use super::fit::{Change, changes, largest_batch};
use super::job::Job;
use super::passes::Samples;
use super::profile::Profile;
use super::table::Report;
use super::time::{Timing, measure};
use crate::config::RunConfig;
use crate::error::Result;
use crate::model::config::DecoderConfig;
use crate::train::run::Prepared;

/// A plan together with the changes that make it fit.
#[derive(Clone, Debug)]
pub struct Planned {
    job: Job,
    profile: Profile,
    plan: Plan,
    largest: Option<(usize, usize)>,
    changes: Vec<Change>,
}

impl Planned {
    /// Plans `config` on a model of `shape`, and searches for changes that make it fit if it does
    /// not.
    ///
    /// # Errors
    /// The adapter from which training starts cannot be read.
    pub fn new(
        shape: &DecoderConfig,
        config: &RunConfig,
        samples: &Samples,
        profile: Profile,
    ) -> Result<Self> {
        let job = Job::new(shape, config, samples, &profile)?;
        let plan = Plan::new(&job, &profile);
        let changes = match plan.fits() {
            Some(false) => changes(shape, config, samples, &profile)?,
            _ => Vec::new(),
        };
        Ok(Self { largest: largest_batch(&job, &profile), job, profile, plan, changes })
    }

    /// Plans a run whose data has been read.
    ///
    /// # Errors
    /// The adapter from which training starts cannot be read.
    pub fn of<B: TrainBackend>(
        prepared: &Prepared,
        config: &RunConfig,
        memory: Option<u64>,
        device: &B::Device,
    ) -> Result<Self> {
        let samples = Samples { train: prepared.train.clone(), eval: prepared.eval.clone() };
        let profile = Profile::of::<B>(device, memory);
        Self::new(&prepared.shape, config, &samples, profile)
    }

    /// Estimates the time of the run from a few layers that are timed on the device.
    ///
    /// # Errors
    /// The device fails, or the user interrupts.
    pub fn timing<B: TrainBackend>(&self, device: &B::Device) -> Result<Option<Timing>> {
        measure::<B>(&self.job, &self.plan, &self.profile, device)
    }

    /// Returns whether the run fits; `None` if the device does not report its memory.
    pub fn fits(&self) -> Option<bool> {
        self.plan.fits()
    }

    /// Refuses a run that does not fit.
    ///
    /// # Errors
    /// The run does not fit.
    pub fn check(&self) -> Result<()> {
        match self.plan.fits() {
            Some(false) => Err(self.report(None).refusal()),
            _ => Ok(()),
        }
    }

    /// Returns the line that is printed at the start of a run.
    pub fn summary(&self) -> String {
        self.report(None).summary()
    }

    /// Returns the whole report, with the estimated time if it was measured.
    pub fn report(&self, timing: Option<Timing>) -> Report<'_> {
        Report {
            job: &self.job,
            profile: &self.profile,
            plan: &self.plan,
            largest: self.largest,
            changes: &self.changes,
            timing,
        }
    }
}
