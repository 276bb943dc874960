//! Statistics of the problems and samples of `sample-pairs`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pairing::CheckedAnswer;
use super::sample::SampleOptions;
use crate::eval::settings::Settings;

/// Statistics of the problems and samples, saved as `STEM.stats.json` beside the pairs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SampleStats {
    /// Number of problems.
    pub problems: usize,
    /// Number of problems with a pair.
    pub paired: usize,
    /// Number of problems whose every sample is right: nothing to learn.
    pub all_right: usize,
    /// Number of problems without a right sample: no pair.
    pub all_wrong: usize,
    /// Number of problems without a pair because every right sample was cut off.
    pub right_but_cut_off: usize,
    /// Number of problems without a pair because every wrong sample was cut off.
    #[serde(default)]
    pub wrong_but_cut_off: usize,
    /// Number of pairs written.
    pub pairs: usize,
    /// Number of answers sampled.
    pub samples: usize,
    /// Number of right samples.
    pub samples_right: usize,
    /// Number of samples that state no number.
    pub samples_without_answer: usize,
    /// Number of samples that reached the token limit.
    pub samples_cut_off: usize,
    /// Mean tokens of the chosen sides.
    pub mean_tokens_chosen: f64,
    /// Mean tokens of the rejected sides.
    pub mean_tokens_rejected: f64,
    /// Mean difference in tokens between the two sides of a pair.
    #[serde(default)]
    pub mean_length_gap: f64,
    /// Settings of the sampling.
    pub settings: SampleSettings,
    /// The sampled model and the problems it was asked.
    #[serde(default)]
    pub asked: Settings,
}

/// The settings of a sampling, for the record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is the option of the same name")]
pub struct SampleSettings {
    pub samples: usize,
    pub pairs_per_problem: usize,
    #[serde(default)]
    pub keep_cut_off: bool,
    pub temperature: f64,
    pub top_k: usize,
    pub top_p: f64,
    pub max_new_tokens: usize,
    pub seed: u64,
    pub prompt_template: String,
}

impl SampleStats {
    /// Creates empty statistics that record the settings.
    pub(super) fn new(options: &SampleOptions) -> Self {
        let generate = &options.generate;
        Self {
            settings: SampleSettings {
                samples: options.samples,
                pairs_per_problem: options.pairs_per_problem,
                keep_cut_off: options.keep_cut_off,
                temperature: generate.temperature,
                top_k: generate.top_k,
                top_p: generate.top_p,
                max_new_tokens: generate.max_new_tokens,
                seed: generate.seed,
                prompt_template: options.prompt_format.identity(),
            },
            ..Self::default()
        }
    }

    /// Adds the samples and pairs of one problem. The means are sums until [`Self::finish`].
    pub(super) fn count(
        &mut self,
        samples: &[CheckedAnswer],
        pairs: &[(&CheckedAnswer, &CheckedAnswer)],
    ) {
        let count = |is: &dyn Fn(&CheckedAnswer) -> bool| samples.iter().filter(|s| is(s)).count();
        let right = count(&|sample| sample.correct);
        self.problems += 1;
        self.samples += samples.len();
        self.samples_right += right;
        self.samples_without_answer += count(&|sample| sample.answer.is_none());
        self.samples_cut_off += count(&|sample| !sample.ended);
        self.pairs += pairs.len();
        let chosen_exists = samples.iter().any(|sample| sample.correct && sample.ended);
        *match (pairs.is_empty(), right) {
            (false, _) => &mut self.paired,
            (true, 0) => &mut self.all_wrong,
            (true, right) if right == samples.len() => &mut self.all_right,
            _ if chosen_exists => &mut self.wrong_but_cut_off,
            _ => &mut self.right_but_cut_off,
        } += 1;
        for (right, wrong) in pairs {
            self.mean_tokens_chosen += right.tokens as f64;
            self.mean_tokens_rejected += wrong.tokens as f64;
            self.mean_length_gap += right.tokens.abs_diff(wrong.tokens) as f64;
        }
    }

    /// Converts sums to means.
    pub(super) fn finish(&mut self) {
        let pairs = self.pairs.max(1) as f64;
        self.mean_tokens_chosen /= pairs;
        self.mean_tokens_rejected /= pairs;
        self.mean_length_gap /= pairs;
    }

    /// Returns the data file and the number of problems, then every setting of the sampling except the template, as rows of
    /// name and value.
    pub fn setting_rows(&self) -> Vec<[String; 2]> {
        let settings = serde_json::to_value(&self.settings).unwrap_or_default();
        let unknown = Value::from("\u{2013}");
        let asked = ["data", "problems"];
        let asked = asked.map(|name| (name, self.asked.0.get(name).unwrap_or(&unknown)));
        let settings = settings.as_object().into_iter().flatten();
        let settings = settings.map(|(name, value)| (name.as_str(), value));
        let shown = settings.filter(|(name, _)| *name != "prompt_template");
        let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_string);
        asked
            .into_iter()
            .chain(shown)
            .map(|(name, value)| [name.to_string(), text(value)])
            .collect()
    }

    /// Formats the statistics as a few lines of text.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "{} pairs from {} of {} problems; {} were always right, {} never. {} of {} samples are right ({:.1} %).",
            self.pairs,
            self.paired,
            self.problems,
            self.all_right,
            self.all_wrong,
            self.samples_right,
            self.samples,
            100.0 * self.samples_right as f64 / self.samples.max(1) as f64,
        );
        if self.samples_cut_off > 0 {
            let usage = if self.settings.keep_cut_off {
                "right ones are not used"
            } else {
                "they are in no pair"
            };
            text += &format!(
                " {} were cut off at max_new_tokens = {}: {usage}.",
                self.samples_cut_off, self.settings.max_new_tokens
            );
        }
        if self.pairs > 0 {
            text += &format!(
                " Mean length {:.1} tokens chosen, {:.1} rejected; {:.1} apart in a pair.",
                self.mean_tokens_chosen, self.mean_tokens_rejected, self.mean_length_gap
            );
        }
        text
    }
}
