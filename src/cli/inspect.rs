//! Implements `arithmo inspect`: prints the counts of a file of pairs and writes its page.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::data::encode::{Compat, EncodeConfig};
use crate::data::pair::read_pairs;
use crate::data::prompt::PLAIN;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::inspect::{Inspection, counts, findings, inspect, length_rows, table};
use crate::model::hub::Hub;
use crate::output::list::listed_files;
use crate::output::{FileList, Lock, check, refuse_inputs_among, write_whole};
use crate::progress::ProgressMode;
use crate::report::evaluation::NumberTable;
use crate::report::inspection::{InspectionPage, LengthHistograms, write_inspection_page};

use super::at_least_one;
use super::evaluate::percent;
use super::template::TemplateArgs;

/// Names of the files that an inspection writes.
const DATA: &str = "inspection.json";
const PAGE: &str = "index.html";

/// Arguments of `arithmo inspect`.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// Inspect the pairs in this .jsonl, .json or .parquet file.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Count tokens with this model's tokenizer: a folder in Hugging Face layout, or a hub id OWNER/NAME.
    #[arg(long, value_name = "FOLDER|ID")]
    pub model: String,
    /// Use this branch, tag or commit of the hub.
    #[arg(long, default_value = "main")]
    pub revision: String,
    #[command(flatten)]
    pub(super) template: TemplateArgs,
    /// Count what training would truncate to N tokens of prompt + completion.
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = at_least_one)]
    pub max_length: usize,
    /// Count prompts that repeat a question of this test set: JSON Lines with "question" (GSM8K) or "problem" (MATH); may be
    /// repeated.
    #[arg(long, value_name = "FILE")]
    pub against: Vec<PathBuf>,
    /// Write inspection.json (every id) and index.html (the histogram) to this folder.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Replace the inspection that is in the output folder.
    #[arg(long)]
    pub overwrite: bool,
}

/// Inspects the file, prints the table, and writes the page if an output folder is given.
///
/// # Errors
/// The pairs, the tokenizer or a test set cannot be read, or the output cannot be written.
pub fn run(args: &InspectArgs, mode: ProgressMode) -> Result<()> {
    if let Some(folder) = &args.output {
        check_output(args, folder)?;
    }
    let config = EncodeConfig {
        max_length: Some(args.max_length),
        prompt_template: args.template.or(PLAIN)?,
        ..EncodeConfig::new(Compat::Trl1)
    };
    let folder = Hub::open(mode).config_folder(&args.model, &args.revision)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let inspection = inspect(
        &tokenizer,
        &read_pairs(&args.data, tokenizer.chat_template())?,
        &config,
        &args.against,
    )?;
    if let Some(folder) = &args.output {
        write(args, folder, &inspection)?;
    }
    super::print_line(&table(&inspection))?;
    match &args.output {
        Some(folder) => super::print_line(&format!("\n{}", folder.join(PAGE).display())),
        None => Ok(()),
    }
}

/// Checks that the files of the inspection may be written to `folder`.
///
/// # Errors
/// One of them is an input, belongs to an earlier inspection without `--overwrite`, or was not written by this program.
fn check_output(args: &InspectArgs, folder: &Path) -> Result<()> {
    let files = [DATA, PAGE].map(|name| folder.join(name));
    let inputs = args.against.iter().map(PathBuf::as_path);
    refuse_inputs_among(&files, inputs.chain([args.data.as_path(), Path::new(&args.model)]))?;
    refuse_inputs_among(&files, args.template.inputs())?;
    FileList::check(folder)?;
    let ours = listed_files(folder);
    match files.iter().find(|file| file.exists()) {
        Some(file) if !ours.contains(file) => {
            let problem = "is there, and no inspection of this program wrote it";
            Err(Error::file(file, problem, "give another --output"))
        }
        Some(file) if !args.overwrite => Err(check::exists_error(file)),
        _ => Ok(()),
    }
}

/// Writes the counts as JSON, and the page.
fn write(args: &InspectArgs, folder: &Path, inspection: &Inspection) -> Result<()> {
    let _lock = Lock::folder(folder)?;
    FileList::add(folder, [DATA, PAGE])?;
    let file = folder.join(DATA);
    let json = serde_json::to_string_pretty(inspection)
        .map_err(|e| Error::file(&file, e, "this is a defect of the program: report it"))?;
    write_whole(&file, format!("{json}\n").as_bytes())?;
    write_inspection_page(&folder.join(PAGE), &page(args, inspection))
}

/// Builds the page.
fn page(args: &InspectArgs, inspection: &Inspection) -> InspectionPage {
    let lengths = &inspection.lengths;
    let texts = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    let counts = counts(inspection);
    InspectionPage {
        subtitle: args.data.display().to_string(),
        cards: vec![
            ("pairs", inspection.pairs.to_string()),
            ("median tokens", lengths.sequence.median.to_string()),
            ("chosen is longer", percent(inspection.length_preference.longer_is_chosen.accuracy)),
        ],
        notes: findings(inspection),
        tables: vec![
            NumberTable {
                title: "Tokens".into(),
                head: texts(&["", "min", "median", "mean", "90 %", "99 %", "max"]),
                rows: length_rows(lengths).map(Vec::from).into(),
            },
            NumberTable {
                title: "Pairs".into(),
                head: texts(&["", "pairs"]),
                rows: counts.into_iter().map(Vec::from).collect(),
            },
        ],
        histograms: LengthHistograms {
            bucket_size: u32::try_from(lengths.bucket_size).unwrap_or(u32::MAX),
            prompt: lengths.prompt_histogram.clone(),
            chosen: lengths.chosen_histogram.clone(),
            rejected: lengths.rejected_histogram.clone(),
        },
        settings: vec![
            ["data".into(), args.data.display().to_string()],
            ["tokenizer".into(), args.model.clone()],
            ["max_length".into(), args.max_length.to_string()],
        ],
        data_file: DATA.to_string(),
    }
}
