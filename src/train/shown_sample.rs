//! Shows one sample as it is trained on, so that a wrong template or prompt is seen before hours of training.

use crate::data::sample::Sample;
use crate::data::template_text::one_line;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;

/// Maximum number of tokens that are shown of a prompt (its last ones) and of what is trained on (its first ones).
const SHOWN: usize = 60;

/// Returns a line for each sequence of `sample`: the end of the text before it, and in `⟦ ⟧` the tokens that are trained on,
/// with those between them that are not.
///
/// # Errors
/// The tokenizer cannot decode the ids.
pub(super) fn show_sample<S: Sample>(tokenizer: &Tokenizer, sample: &S) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (index, (side, name)) in sample.sides().into_iter().zip(S::SIDES).enumerate() {
        let start = sample.first_scored(index).min(side.ids.len());
        let end = side.ids.len().min(start + SHOWN);
        let context = &side.ids[start.saturating_sub(SHOWN)..start];
        let text = |ids: &[u32]| tokenizer.decode(ids, false).map(|text| one_line(&text));
        let more = |hidden: bool| if hidden { "..." } else { "" };
        let mut shown = String::new();
        let mut at = start;
        loop {
            let is_scored = at == start || sample.is_scored(index, at);
            let same = |next: &usize| sample.is_scored(index, *next) == is_scored;
            let next = (at + 1..end).find(|next| !same(next)).unwrap_or(end).max(at);
            let part = text(&side.ids[at..next])?;
            let more = more(next == end && end < side.ids.len());
            shown.push_str(&if is_scored {
                format!("\u{27e6}{part}{more}\u{27e7}")
            } else {
                format!("{part}{more}")
            });
            at = next;
            if at >= end {
                break;
            }
        }
        lines.push(format!(
            "sample {}, {name}: {}{}{shown} ({} of {} tokens are trained on)",
            sample.id(),
            more(context.len() < start),
            text(context)?,
            sample.scored_tokens(index),
            side.ids.len(),
        ));
    }
    Ok(lines)
}
