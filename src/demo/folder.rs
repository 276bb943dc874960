//! The demo's folder: what is put into it at the start, where each thing is.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::data::arithmetic::{Problem, Split, problems};
use crate::error::{Error, Result};
use crate::output::{remove, write_whole};

/// Rows in the schema of HuggingFaceH4/stack-exchange-preferences (see assets/README.md).
const ROWS: &[u8] = include_bytes!("../../assets/demo/rows.jsonl");

/// The files of the small model.
const MODEL: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../../assets/demo/model/config.json")),
    ("generation_config.json", include_bytes!("../../assets/demo/model/generation_config.json")),
    ("model.safetensors", include_bytes!("../../assets/demo/model/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../assets/demo/model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../assets/demo/model/tokenizer_config.json")),
];

/// The preset that the demo runs.
const TINY: &str = include_str!("../../configs/tiny.toml");

const PREPARE: &str = "# The default rules, but for a larger held-out part: there are few pairs.\n\
                       held_out_fraction = 0.2\n";

/// The first line of the README of a folder that the demo made, and may replace.
const MARK: &str = "This folder was made by `arithmo demo`.";

/// Everything in the folder, with what it is.
pub(super) const CONTENTS: [(&str, &str); 16] = [
    ("rows.jsonl", "questions with voted answers, made up"),
    ("prepare.toml", "rules of prepare"),
    ("pairs.jsonl", "preference pairs for training"),
    ("pairs.held-out.jsonl", "pairs never trained on"),
    ("pairs.stats.json", "every row that became no pair, and why"),
    ("problems.jsonl", "problems whose answers are known"),
    ("problems.held-out.jsonl", "problems never trained on"),
    ("model", "the small model, a Hugging Face folder"),
    ("before", "its answers to the held-out problems, judged"),
    ("own-pairs.jsonl", "its own answers, right beside wrong"),
    ("train.jsonl", "the pairs of both kinds, voted ones first"),
    ("run.toml", "the training run's configuration"),
    ("run/adapter", "the trained LoRA adapter, a PEFT folder"),
    ("after", "the answers with the adapter, judged"),
    ("comparison/index.html", "the page of what changed"),
    ("run/report/index.html", "the page of the training"),
];

/// What [`DemoFolder::create`] writes or the steps leave; nothing else in the folder is ever touched.
const OWN: [&str; 16] = [
    "rows.jsonl",
    "prepare.toml",
    "pairs.jsonl",
    "pairs.held-out.jsonl",
    "pairs.stats.json",
    "problems.jsonl",
    "problems.held-out.jsonl",
    "model",
    "before",
    "own-pairs.jsonl",
    "own-pairs.stats.json",
    "train.jsonl",
    "run.toml",
    "run",
    "after",
    "comparison",
];

/// The folder the demo works in.
#[derive(Clone, Debug)]
pub struct DemoFolder {
    path: PathBuf,
}

impl DemoFolder {
    /// Makes the folder and writes the inputs: rows, problems, model, configurations.
    ///
    /// # Errors
    /// It holds something that is no demo, or a demo and `overwrite` is not set; or it cannot be written.
    pub fn create(path: &Path, size: DemoSize, overwrite: bool) -> Result<Self> {
        let folder = Self { path: path.to_path_buf() };
        folder.check(overwrite)?;
        for name in OWN {
            remove(&path.join(name))?;
        }
        let contents = CONTENTS.map(|(name, what)| format!("- `{name}`: {what}\n"));
        let readme = format!("{MARK}\n\n{}", contents.concat());
        // First, so that a demo cut short can be replaced too.
        write_whole(&folder.readme(), readme.as_bytes())?;
        write_whole(&folder.rows(), ROWS)?;
        write_whole(&folder.prepare_config(), PREPARE.as_bytes())?;
        for (name, bytes) in MODEL {
            write_whole(&folder.model().join(name), bytes)?;
        }
        let DemoSize { problems, seed } = size;
        write_problems(&folder.problems(), Split::Train, seed, problems)?;
        let held_out = folder.held_out_problems();
        write_problems(&held_out, Split::HeldOut, seed, problems.div_ceil(4))?;
        write_whole(&folder.run_config(), folder.run_toml(seed)?.as_bytes())?;
        Ok(folder)
    }

    fn check(&self, overwrite: bool) -> Result<()> {
        let path = &self.path;
        let refuse = |problem, remedy| Err(Error::file(path, problem, remedy));
        match fs::read_dir(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return refuse("is a file", "give --output a folder");
            }
            Err(error) => return Err(Error::io(path, "read the folder", error)),
            Ok(mut entries) => {
                if entries.next().is_none() {
                    return Ok(());
                }
            }
        }
        let ours = fs::read_to_string(self.readme()).is_ok_and(|text| text.starts_with(MARK));
        match (ours, overwrite) {
            (true, true) => Ok(()),
            (true, false) => refuse(
                "holds a demo already",
                "replace it with --overwrite, or give another --output",
            ),
            (false, _) => refuse("is not empty, and no demo made it", "give --output a new folder"),
        }
    }

    /// `configs/tiny.toml`, with this folder's paths.
    fn run_toml(&self, seed: u64) -> Result<String> {
        let mut text = TINY.replace("configs/tiny.toml", &shell(&self.run_config()));
        text = text.replace("seed = 42 ", &format!("seed = {seed} "));
        for (name, path) in [
            ("runs/tiny", self.run()),
            ("arithmo-demo/model", self.model()),
            ("arithmo-demo/train.jsonl", self.train_pairs()),
            ("arithmo-demo/pairs.held-out.jsonl", self.held_out()),
        ] {
            let Some(path) = path.to_str() else {
                let problem = "the name is not UTF-8, which a configuration file must be";
                return Err(Error::file(&self.path, problem, "give another --output"));
            };
            let value = toml::Value::String(path.to_string()).to_string();
            text = text.replace(&format!("\"{name}\""), &value);
        }
        Ok(text)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn readme(&self) -> PathBuf {
        self.path.join("README.md")
    }

    /// The embedded rows.
    pub fn rows(&self) -> PathBuf {
        self.path.join("rows.jsonl")
    }

    /// Rules of `prepare`.
    pub fn prepare_config(&self) -> PathBuf {
        self.path.join("prepare.toml")
    }

    /// The training pairs.
    pub fn pairs(&self) -> PathBuf {
        self.path.join("pairs.jsonl")
    }

    /// The pairs not trained on, where `prepare` puts them.
    pub fn held_out(&self) -> PathBuf {
        self.path.join("pairs.held-out.jsonl")
    }

    /// Problems to sample answers to.
    pub fn problems(&self) -> PathBuf {
        self.path.join("problems.jsonl")
    }

    /// Problems to measure with.
    pub fn held_out_problems(&self) -> PathBuf {
        self.path.join("problems.held-out.jsonl")
    }

    /// Pairs of the model's own answers.
    pub fn own_pairs(&self) -> PathBuf {
        self.path.join("own-pairs.jsonl")
    }

    /// Those, and the pairs from votes.
    pub fn train_pairs(&self) -> PathBuf {
        self.path.join("train.jsonl")
    }

    /// The evaluation `before` or `after` training.
    pub fn evaluation(&self, when: &str) -> PathBuf {
        self.path.join(when)
    }

    /// What the two evaluations differ in.
    pub fn comparison(&self) -> PathBuf {
        self.path.join("comparison")
    }

    /// The small model.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// Configuration of the training run.
    pub fn run_config(&self) -> PathBuf {
        self.path.join("run.toml")
    }

    /// The run's `output_dir`.
    pub fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    /// The trained adapter.
    pub fn adapter(&self) -> PathBuf {
        self.run().join("adapter")
    }
}

/// How much the demo does.
#[derive(Clone, Copy, Debug)]
pub struct DemoSize {
    /// Problems whose answers are sampled; a quarter as many are held out.
    pub problems: usize,
    /// Seeds problems, samples and training.
    pub seed: u64,
}

fn write_problems(path: &Path, split: Split, seed: u64, count: usize) -> Result<()> {
    let line = |problem: &Problem| format!("{}\n", problem.known());
    let lines: String = problems(split, seed, count).iter().map(line).collect();
    write_whole(path, lines.as_bytes())
}

/// A path as a word of a shell command.
pub(super) fn shell(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

/// A word of a bash command that means `text`.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_string();
    }
    if !text.contains(char::is_control) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let escaped = text.replace('\\', r"\\").replace('\'', r"\'");
    format!("$'{}'", escaped.replace('\n', r"\n").replace('\t', r"\t"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;

    const SIZE: DemoSize = DemoSize { problems: 5, seed: 42 };

    #[test]
    fn words_mean_the_same_to_bash() {
        for text in ["a/b.c", "a b", "it's", "Question: {p}\n\nAnswer:", "", "\\n'\n", "$x"] {
            let script = format!("printf %s {}", quote(text));
            let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text, "{script}");
        }
    }

    #[test]
    fn the_run_is_the_tiny_preset_in_another_place() {
        let parent = tempfile::tempdir().unwrap();
        let folder = DemoFolder::create(&parent.path().join("it's \"here\""), SIZE, false).unwrap();
        let run = RunConfig::load(&folder.run_config(), &[]).unwrap();
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny.toml");
        let tiny = RunConfig::load(&tiny, &[]).unwrap();
        assert_eq!(run.output_dir, folder.run());
        assert_eq!(run.data.train_file, folder.train_pairs());
        assert_eq!(run.data.eval_file, Some(folder.held_out()));
        let different: Vec<String> = tiny.diff(&run);
        assert_eq!(different.len(), 3, "{different:?}");
        assert_eq!(run.train, tiny.train);
    }

    #[test]
    fn what_is_not_the_demos_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("demo");
        fs::create_dir(&path).unwrap();
        DemoFolder::create(&path, SIZE, false).unwrap();
        fs::write(path.join("mine.txt"), "mine").unwrap();
        fs::write(path.join("rows.jsonl"), "changed").unwrap();
        let error = DemoFolder::create(&path, SIZE, false).unwrap_err().to_string();
        assert!(error.contains("--overwrite"), "{error}");
        DemoFolder::create(&path, SIZE, true).unwrap();
        assert_eq!(fs::read_to_string(path.join("mine.txt")).unwrap(), "mine");
        assert_eq!(fs::read(path.join("rows.jsonl")).unwrap(), ROWS);
        // A folder of somebody else's, with a folder named like one of ours.
        let other = parent.path().join("other");
        fs::create_dir_all(other.join("model")).unwrap();
        let error = DemoFolder::create(&other, SIZE, true).unwrap_err().to_string();
        assert!(error.contains("no demo made it"), "{error}");
        assert!(other.join("model").is_dir());
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(DemoFolder::create(&file, SIZE, true).is_err());
    }
}
