//! Shows one sample as it is trained on, so that a wrong template or prompt is seen before hours of training.

use crate::data::sample::Sample;
use crate::data::template_text::one_line;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;

/// Maximum number of tokens that are shown of a prompt (its last ones) and of what is trained on (its first ones).
const SHOWN: usize = 60;

/// Returns a line for each sequence of `sample`: the end of the text before it, and in `⟦ ⟧` the tokens that are trained on.
///
/// # Errors
/// The tokenizer cannot decode the ids.
pub(super) fn show_sample<S: Sample>(tokenizer: &Tokenizer, sample: &S) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (index, (side, name)) in sample.sides().into_iter().zip(S::SIDES).enumerate() {
        let (before, scored) = side.ids.split_at(sample.first_scored(index).min(side.ids.len()));
        let context = &before[before.len().saturating_sub(SHOWN)..];
        let shown = &scored[..scored.len().min(SHOWN)];
        let text = |ids: &[u32]| tokenizer.decode(ids, false).map(|text| one_line(&text));
        let more = |hidden: bool| if hidden { "..." } else { "" };
        lines.push(format!(
            "sample {}, {name}: {}{}\u{27e6}{}{}\u{27e7} ({} of {} tokens are trained on)",
            sample.id(),
            more(context.len() < before.len()),
            text(context)?,
            text(shown)?,
            more(shown.len() < scored.len()),
            scored.len(),
            side.ids.len(),
        ));
    }
    Ok(lines)
}
