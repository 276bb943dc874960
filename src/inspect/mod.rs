//! Inspects a file of preference pairs before any training: lengths, truncation, duplicates, overlap with test sets, how
//! often the longer answer is the chosen one, and pairs that would train on nothing.

mod duplicates;
mod lengths;
mod table;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use duplicates::Duplicates;
pub use lengths::{LengthPreference, Lengths, Summary};
pub(crate) use table::{counts, length_rows};
pub use table::{findings, table};

use crate::data::encode::{EncodeConfig, EncodeReport, encode_pairs};
use crate::data::pair::PreferencePair;
use crate::data::prepare::Excluded;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;

/// Share of a test question's eight-word sequences that a prompt must contain to repeat it: `prepare`'s default.
const OVERLAP: f64 = 0.5;

/// The results of an inspection.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Pairs in the file.
    pub pairs: usize,
    /// Token counts before truncation.
    pub lengths: Lengths,
    /// Whether longer answers are preferred.
    pub length_preference: LengthPreference,
    /// What encoding does to the pairs, by id: truncation, and pairs that train on nothing.
    pub encoding: EncodeReport,
    /// Pairs and prompts that repeat or contradict each other.
    pub duplicates: Duplicates,
    /// Prompts that repeat a question of a test set, one entry per file.
    pub overlap: Vec<Overlap>,
}

/// Prompts that repeat a question of one test set.
#[derive(Clone, Debug, Serialize)]
pub struct Overlap {
    /// The file of the test set.
    pub file: PathBuf,
    /// Questions in it.
    pub questions: usize,
    /// Ids of the pairs whose prompt repeats one of them.
    pub ids: Vec<String>,
}

/// Inspects `pairs` as `train` with this `config` would see them. `against` lists files of test questions (JSON Lines
/// with the key `question` or `problem`).
///
/// # Errors
/// The configuration contradicts itself, a text cannot be encoded, or a file of questions cannot be read.
pub fn inspect(
    tokenizer: &Tokenizer,
    pairs: &[PreferencePair],
    config: &EncodeConfig,
    against: &[PathBuf],
) -> Result<Inspection> {
    let overlap = against.iter().map(|file| overlap(pairs, file)).collect::<Result<_>>()?;
    let encoding = encode_pairs(tokenizer, pairs, config)?.report;
    let unlimited = EncodeConfig { max_length: Some(usize::MAX), ..config.clone() };
    let whole = encode_pairs(tokenizer, pairs, &unlimited)?.pairs;
    Ok(Inspection {
        pairs: pairs.len(),
        lengths: Lengths::new(&whole),
        length_preference: LengthPreference::new(&whole),
        encoding,
        duplicates: Duplicates::find(pairs)?,
        overlap,
    })
}

/// Finds the pairs whose prompt repeats a question in `file`.
fn overlap(pairs: &[PreferencePair], file: &Path) -> Result<Overlap> {
    let questions = Excluded::load(&[file], OVERLAP)?;
    let repeats = pairs.iter().filter(|pair| questions.is_repeated_by(&pair.prompt));
    Ok(Overlap {
        file: file.to_path_buf(),
        questions: questions.len(),
        ids: repeats.map(|pair| pair.id.clone()).collect(),
    })
}
