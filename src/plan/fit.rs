//! Searches for the largest batch that fits, and for changes that make a run fit.

use burn::tensor::DType;

use super::Plan;
use super::job::Job;
use super::passes::{PassShape, Samples};
use super::profile::Profile;
use super::time::relative;
use crate::config::{GradientCheckpointing, Method, ModelDtype, Quantization, RunConfig};
use crate::data::lengths::SampleLengths;
use crate::error::Result;
use crate::model::config::DecoderConfig;

/// The largest number of proposed changes.
const PROPOSED: usize = 3;

/// The largest number of samples that is tried as a batch.
const LARGEST: usize = 4096;

/// A change that makes a run fit.
#[derive(Clone, Debug)]
pub struct Change {
    /// The settings, as `--set` expects them.
    pub settings: Vec<String>,
    /// The plan with these settings.
    pub plan: Plan,
    /// Time of a step with these settings, relative to one without them.
    pub time: f64,
    /// How much the trained weights differ.
    pub effect: Effect,
}

/// How much a change affects the trained weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// The trained weights are the same.
    None,
    /// Values are rounded more coarsely.
    Rounding,
    /// Other weights are trained, or on less data.
    Training,
}

impl Effect {
    /// Returns the text that is shown to users.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "same result",
            Self::Rounding => "rounds more",
            Self::Training => "trains differently",
        }
    }
}

/// Returns how many of the longest samples can be computed at once, and their packed tokens; `None`
/// if not one fits or the device does not report its memory.
pub fn largest_batch(job: &Job, profile: &Profile) -> Option<(usize, usize)> {
    let mut samples = job.train_samples();
    samples.sort_by_key(|sample| std::cmp::Reverse(sample.packed()));
    if !job.knows_samples()
        && let Some(longest) = samples.first().cloned()
    {
        samples = vec![longest; LARGEST];
    }
    let pass = |count: usize| PassShape::of(&samples[..count]);
    let fits = |count: usize| Plan::for_pass(job, profile, pass(count), 1).fits() == Some(true);
    let max = last_that_fits(1, samples.len().min(LARGEST), fits)?;
    Some((max, pass(max).tokens))
}

/// Returns the largest number from `first` to `last` for which `fits` holds, by bisection: `fits`
/// must hold for all numbers up to some limit and for none beyond it.
fn last_that_fits(first: usize, last: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    if last < first || !fits(first) {
        return None;
    }
    let (mut good, mut bad) = (first, last + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    Some(good)
}

/// Returns at most three changes of `config` that make the run fit, each with its plan. Changes
/// that leave the trained weights as they are come first, then those that cost the least time.
///
/// # Errors
/// The adapter from which training starts cannot be read.
pub fn changes(
    shape: &DecoderConfig,
    config: &RunConfig,
    samples: &Samples,
    profile: &Profile,
) -> Result<Vec<Change>> {
    let current = Job::new(shape, config, samples, profile)?;
    let search = Search { plan: Plan::new(&current, profile), current, profile };
    let mut found: Vec<Change> = Vec::new();
    // A single adjustment if one suffices, otherwise several together.
    for count in 1..=3 {
        for adjustments in combinations(&Adjustment::ALL, count) {
            // A combination is left out if a part of it suffices.
            let names =
                |change: &Change| change.settings.iter().map(|s| key(s)).collect::<Vec<_>>();
            if let Some(change) = search.apply_all(&adjustments)?
                && !found.iter().any(|other| {
                    let keys = names(&change);
                    names(other).iter().all(|key| keys.contains(key))
                })
            {
                found.push(change);
            }
        }
        if found.len() >= PROPOSED {
            break;
        }
    }
    found.sort_by(|a, b| a.effect.cmp(&b.effect).then(a.time.total_cmp(&b.time)));
    found.truncate(PROPOSED);
    Ok(found)
}

/// Returns the key of a `key=value` setting.
fn key(setting: &str) -> String {
    setting.split('=').next().unwrap_or_default().to_string()
}

/// Returns all combinations of `count` elements of `all`, in order.
fn combinations(all: &[Adjustment], count: usize) -> Vec<Vec<Adjustment>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let from = |(index, first): (usize, &Adjustment)| {
        let rest = combinations(&all[index + 1..], count - 1).into_iter();
        let first = *first;
        rest.map(move |rest| [vec![first], rest].concat())
    };
    all.iter().enumerate().flat_map(from).collect()
}

/// A setting that saves memory. Those whose value is searched for come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adjustment {
    Recompute,
    PrecomputedBatch,
    HalfPrecision,
    Quantize,
    Adapter,
    Tokens,
    Length,
    Rank,
}

impl Adjustment {
    const ALL: [Self; 8] = [
        Self::Recompute,
        Self::PrecomputedBatch,
        Self::HalfPrecision,
        Self::Quantize,
        Self::Adapter,
        Self::Tokens,
        Self::Length,
        Self::Rank,
    ];

    fn effect(self) -> Effect {
        match self {
            Self::Recompute | Self::PrecomputedBatch | Self::Tokens => Effect::None,
            Self::HalfPrecision | Self::Quantize => Effect::Rounding,
            Self::Adapter | Self::Length | Self::Rank => Effect::Training,
        }
    }

    /// Returns the step size of the values that are tried.
    fn step(self) -> usize {
        match self {
            Self::Tokens => 64,
            Self::Length => 32,
            _ => 1,
        }
    }
}

struct Search<'a> {
    current: Job,
    plan: Plan,
    profile: &'a Profile,
}

impl Search<'_> {
    /// Applies all `adjustments`; returns the change if each one applies and the run then fits.
    fn apply_all(&self, adjustments: &[Adjustment]) -> Result<Option<Change>> {
        let mut config = self.current.config.clone();
        let mut settings = Vec::new();
        for (index, adjustment) in adjustments.iter().enumerate() {
            let last = index + 1 == adjustments.len();
            let Some(setting) = self.apply(*adjustment, &mut config, last)? else {
                return Ok(None);
            };
            settings.extend(setting);
        }
        let (job, plan) = self.planned(&config)?;
        if plan.fits() != Some(true) {
            return Ok(None);
        }
        let effects = adjustments.iter().map(|adjustment| adjustment.effect());
        Ok(Some(Change {
            settings,
            time: relative((&self.current, &self.plan), (&job, &plan)),
            plan,
            effect: effects.max().unwrap_or(Effect::None),
        }))
    }

    /// Returns the job and the plan of another configuration.
    fn planned(&self, config: &RunConfig) -> Result<(Job, Plan)> {
        let job = Job::new(&self.current.shape, config, &self.current.samples, self.profile)?;
        let plan = Plan::new(&job, self.profile);
        Ok((job, plan))
    }

    /// Applies one adjustment to `config` and returns its settings; `None` if it does not apply.
    /// The last adjustment takes the largest value that fits, the ones before it the smallest.
    fn apply(
        &self,
        adjustment: Adjustment,
        config: &mut RunConfig,
        last: bool,
    ) -> Result<Option<Vec<String>>> {
        let setting = |text: String| Ok(Some(vec![text]));
        let (model, train) = (&mut config.model, &mut config.train);
        match adjustment {
            Adjustment::Recompute if self.plan.kept_blocks > 0 => {
                train.gradient_checkpointing = GradientCheckpointing::On;
                setting("train.gradient_checkpointing=true".into())
            }
            Adjustment::PrecomputedBatch
                if self
                    .current
                    .config
                    .precompute_sizes()
                    .is_some_and(|sizes| sizes.largest() > 1) =>
            {
                let sizes = match config.method {
                    Method::Kto => &mut config.kto.precompute_ref_batch_size,
                    _ => &mut config.dpo.precompute_ref_batch_size,
                };
                *sizes = Some(1);
                setting(format!("{}.precompute_ref_batch_size=1", config.method.name()))
            }
            Adjustment::HalfPrecision
                if self.current.dtype.size() > 2
                    && !self.current.bf16_storage
                    && model.use_peft =>
            {
                let half =
                    [(DType::BF16, ModelDtype::Bf16, "bf16"), (DType::F16, ModelDtype::F16, "f16")];
                // bf16 can be stored even if the device cannot compute in it.
                let here =
                    |(dtype, ..): &(DType, ModelDtype, &str)| self.profile.dtypes.contains(dtype);
                let (_, dtype, name) = half.into_iter().find(here).unwrap_or(half[0]);
                model.dtype = dtype;
                setting(format!("model.dtype={name}"))
            }
            Adjustment::Quantize if !self.current.is_quantized() && model.use_peft => {
                model.quantization = Quantization::Nf4;
                model.double_quant = true;
                Ok(Some(vec!["model.quantization=nf4".into(), "model.double_quant=true".into()]))
            }
            Adjustment::Adapter if !model.use_peft && !model.from_scratch => {
                model.use_peft = true;
                setting("model.use_peft=true".into())
            }
            Adjustment::Tokens => {
                let longest = self.current.train_samples();
                let longest = longest.iter().map(SampleLengths::packed).max().unwrap_or(1);
                let range = (longest, self.plan.pass.tokens);
                self.apply_largest(adjustment, config, last, range, "train.max_tokens_per_pass")
            }
            Adjustment::Length => {
                let max = config.data.max_length;
                self.apply_largest(adjustment, config, last, (64, max), "data.max_length")
            }
            Adjustment::Rank if model.use_peft && config.lora.adapter.is_none() => {
                let max = config.lora.r;
                self.apply_largest(adjustment, config, last, (1, max), "lora.r")
            }
            _ => Ok(None),
        }
    }

    /// Sets `key` to the largest value from `min` to below `max` that fits, or to the smallest
    /// value if this is not the `last` adjustment.
    fn apply_largest(
        &self,
        adjustment: Adjustment,
        config: &mut RunConfig,
        last: bool,
        (min, max): (usize, usize),
        key: &str,
    ) -> Result<Option<Vec<String>>> {
        let step = adjustment.step();
        let with = |value: usize| {
            let mut config = config.clone();
            match adjustment {
                Adjustment::Length => config.data.max_length = value,
                Adjustment::Rank => config.lora.r = value,
                _ => config.train.max_tokens_per_pass = Some(value),
            }
            config
        };
        let first = min.div_ceil(step);
        let end = max.saturating_sub(1) / step;
        let fits = |steps: usize| {
            let plan = self.planned(&with(steps * step));
            plan.is_ok_and(|(_, plan)| plan.fits() == Some(true))
        };
        let steps =
            if last { last_that_fits(first, end, fits) } else { (first <= end).then_some(first) };
        let Some(value) = steps.map(|steps| steps * step) else {
            return Ok(None);
        };
        *config = with(value);
        Ok(Some(vec![format!("{key}={value}")]))
    }
}
