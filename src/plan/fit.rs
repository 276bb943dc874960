//! What fits: the largest batch, and the changes that make a run fit.

use burn::tensor::DType;

use super::Plan;
use super::job::Job;
use super::passes::{PassShape, Samples};
use super::profile::Profile;
use super::time::relative;
use crate::config::{GradientCheckpointing, ModelDtype, Quantization, RunConfig};
use crate::data::lengths::SampleLengths;
use crate::error::Result;
use crate::model::config::MistralConfig;

/// Changes proposed, at most.
const PROPOSED: usize = 3;

/// Samples looked at for the largest batch, at most.
const LARGEST: usize = 4096;

/// A change that makes a run fit.
#[derive(Clone, Debug)]
pub struct Change {
    /// What to set, as `--set` takes it.
    pub settings: Vec<String>,
    /// What the run takes then.
    pub plan: Plan,
    /// Time of a step then, in that of one now.
    pub time: f64,
    /// How far what is learnt changes.
    pub effect: Effect,
}

/// How far a change reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// The weights that come out are the same.
    None,
    /// Numbers are rounded more.
    Rounding,
    /// Something else is trained, or on less.
    Training,
}

impl Effect {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "same result",
            Self::Rounding => "rounds more",
            Self::Training => "trains differently",
        }
    }
}

/// The most samples, of the longest, that can be computed at once, with their packed tokens; `None`: not one, or the device
/// does not tell.
pub fn largest_batch(job: &Job, profile: &Profile) -> Option<(usize, usize)> {
    let mut samples = job.train_samples();
    samples.sort_by_key(|sample| std::cmp::Reverse(sample.packed()));
    if !job.knows_samples()
        && let Some(longest) = samples.first().cloned()
    {
        samples = vec![longest; LARGEST];
    }
    let pass = |count: usize| PassShape::of(&samples[..count]);
    let fits = |count: usize| Plan::of_pass(job, profile, pass(count), 1).fits() == Some(true);
    let most = largest(1, samples.len().min(LARGEST), fits)?;
    Some((most, pass(most).tokens))
}

/// The largest number from `first` to `last` for which `fits` holds, if it holds for all up to some number.
fn largest(first: usize, last: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    if last < first || !fits(first) {
        return None;
    }
    let (mut good, mut bad) = (first, last + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        match fits(middle) {
            true => good = middle,
            false => bad = middle,
        }
    }
    Some(good)
}

/// The cheapest changes of `config` that make it fit, at most three, each planned again: those that leave the result as it
/// is first, then those that cost the least time.
///
/// # Errors
/// As [`Job::new`].
pub fn changes(
    shape: &MistralConfig,
    config: &RunConfig,
    samples: &Samples,
    profile: &Profile,
) -> Result<Vec<Change>> {
    let now = Job::new(shape, config, samples, profile)?;
    let search = Search { plan: Plan::new(&now, profile), now, profile };
    let mut found: Vec<Change> = Vec::new();
    // One move alone if possible, else several together.
    for count in 1..=3 {
        for moves in combinations(&Move::ALL, count) {
            // What part of it does alone needs no more.
            let names =
                |change: &Change| change.settings.iter().map(|s| key(s)).collect::<Vec<_>>();
            if let Some(change) = search.made(&moves)?
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

fn key(setting: &str) -> String {
    setting.split('=').next().unwrap_or_default().to_string()
}

/// All choices of `count` of `all`, in order.
fn combinations(all: &[Move], count: usize) -> Vec<Vec<Move>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let from = |(index, first): (usize, &Move)| {
        let rest = combinations(&all[index + 1..], count - 1).into_iter();
        let first = *first;
        rest.map(move |rest| [vec![first], rest].concat())
    };
    all.iter().enumerate().flat_map(from).collect()
}

/// Something that takes less memory. Those that are searched for a value come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Recompute,
    PrecomputedBatch,
    HalfPrecision,
    Quantize,
    Adapter,
    Tokens,
    Length,
    Rank,
}

impl Move {
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

    /// Values to be searched, from the least to the most, in steps of this.
    fn step(self) -> usize {
        match self {
            Self::Tokens => 64,
            Self::Length => 32,
            _ => 1,
        }
    }
}

struct Search<'a> {
    now: Job,
    plan: Plan,
    profile: &'a Profile,
}

impl Search<'_> {
    /// All of `moves` made, if each is a change and they make it fit.
    fn made(&self, moves: &[Move]) -> Result<Option<Change>> {
        let mut config = self.now.config.clone();
        let mut settings = Vec::new();
        for (index, made) in moves.iter().enumerate() {
            let last = index + 1 == moves.len();
            let Some(setting) = self.make(*made, &mut config, last)? else {
                return Ok(None);
            };
            settings.extend(setting);
        }
        let (job, plan) = self.planned(&config)?;
        if plan.fits() != Some(true) {
            return Ok(None);
        }
        let effects = moves.iter().map(|made| made.effect());
        Ok(Some(Change {
            settings,
            time: relative((&self.now, &self.plan), (&job, &plan)),
            plan,
            effect: effects.max().unwrap_or(Effect::None),
        }))
    }

    fn planned(&self, config: &RunConfig) -> Result<(Job, Plan)> {
        let job = Job::new(&self.now.shape, config, &self.now.samples, self.profile)?;
        let plan = Plan::new(&job, self.profile);
        Ok((job, plan))
    }

    /// Makes one move; the settings that say so. A value is the largest that fits, or where other moves follow the least.
    fn make(&self, made: Move, config: &mut RunConfig, last: bool) -> Result<Option<Vec<String>>> {
        let setting = |text: String| Ok(Some(vec![text]));
        let (model, train) = (&mut config.model, &mut config.train);
        match made {
            Move::Recompute if self.plan.kept_blocks > 0 => {
                train.gradient_checkpointing = GradientCheckpointing::On;
                setting("train.gradient_checkpointing=true".into())
            }
            Move::PrecomputedBatch if self.batch_of_reference() > 1 => {
                config.dpo.precompute_ref_batch_size = Some(1);
                setting("dpo.precompute_ref_batch_size=1".into())
            }
            Move::HalfPrecision
                if self.now.dtype.size() > 2 && !self.now.halves && model.use_peft =>
            {
                let half =
                    [(DType::BF16, ModelDtype::Bf16, "bf16"), (DType::F16, ModelDtype::F16, "f16")];
                // What nothing computes in can be held in bf16 all the same.
                let here =
                    |(dtype, ..): &(DType, ModelDtype, &str)| self.profile.dtypes.contains(dtype);
                let (_, dtype, name) = half.into_iter().find(here).unwrap_or(half[0]);
                model.dtype = dtype;
                setting(format!("model.dtype={name}"))
            }
            Move::Quantize if !self.now.is_quantized() && model.use_peft => {
                model.quantization = Quantization::Nf4;
                model.double_quant = true;
                Ok(Some(vec!["model.quantization=nf4".into(), "model.double_quant=true".into()]))
            }
            Move::Adapter if !model.use_peft && !model.from_scratch => {
                model.use_peft = true;
                setting("model.use_peft=true".into())
            }
            Move::Tokens => {
                let longest = self.now.train_samples();
                let longest = longest.iter().map(SampleLengths::packed).max().unwrap_or(1);
                self.value(
                    made,
                    config,
                    last,
                    (longest, self.plan.pass.tokens),
                    "train.max_tokens_per_pass",
                )
            }
            Move::Length => {
                let most = config.data.max_length;
                self.value(made, config, last, (64, most), "data.max_length")
            }
            Move::Rank if model.use_peft && config.lora.adapter.is_none() => {
                let most = config.lora.r;
                self.value(made, config, last, (1, most), "lora.r")
            }
            _ => Ok(None),
        }
    }

    /// The largest value from `least` up to, but not, `most` that fits.
    fn value(
        &self,
        made: Move,
        config: &mut RunConfig,
        last: bool,
        (least, most): (usize, usize),
        key: &str,
    ) -> Result<Option<Vec<String>>> {
        let step = made.step();
        let with = |value: usize| {
            let mut config = config.clone();
            match made {
                Move::Length => config.data.max_length = value,
                Move::Rank => config.lora.r = value,
                _ => config.train.max_tokens_per_pass = Some(value),
            }
            config
        };
        let first = least.div_ceil(step);
        let end = most.saturating_sub(1) / step;
        let fits = |steps: usize| {
            let plan = self.planned(&with(steps * step));
            plan.is_ok_and(|(_, plan)| plan.fits() == Some(true))
        };
        let steps = match last {
            true => largest(first, end, fits),
            false => (first <= end).then_some(first),
        };
        let Some(value) = steps.map(|steps| steps * step) else {
            return Ok(None);
        };
        *config = with(value);
        Ok(Some(vec![format!("{key}={value}")]))
    }

    fn batch_of_reference(&self) -> usize {
        let config = &self.now.config;
        let size = config.dpo.precompute_ref_batch_size;
        let size = size.unwrap_or(config.train.per_device_train_batch_size);
        if config.dpo.precompute_ref_log_probs { size } else { 1 }
    }
}
