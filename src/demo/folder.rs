//! The demo's folder: writes its inputs, and names the paths of its files.

use std::path::{Path, PathBuf};

use super::arithmetic::{Problem, Split, problems};
use crate::error::{Error, Result};
use crate::eval::folder::Folder;
use crate::input_file;
use crate::message::shell;
use crate::output::list::remove_files;
use crate::output::{is_taken, write_whole};
use crate::train::folder::RunFolder;

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

/// A training run of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Training {
    /// On the pairs from votes, from a new adapter.
    Voted,
    /// On the pairs of the model's own answers, from the adapter of the other run.
    Own,
}

impl Training {
    /// All runs, in their order.
    pub const ALL: [Self; 2] = [Self::Voted, Self::Own];

    /// Returns the name of the run's folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Voted => "run-voted",
            Self::Own => "run-own",
        }
    }

    /// Returns the configuration preset that the run follows.
    fn preset(self) -> &'static str {
        match self {
            Self::Voted => include_str!("../../configs/tiny.toml"),
            Self::Own => include_str!("../../configs/tiny-own.toml"),
        }
    }
}

const PREPARE: &str = "# The default rules, except for a larger held-out part, because there are few pairs.\n\
                       held_out_fraction = 0.2\n";

/// First line of the README that marks a folder as made by the demo, which may replace it.
const MARK: &str = "This folder was made by `arithmo demo`.";

/// The contents of the folder, with descriptions.
pub(super) const CONTENTS: [(&str, &str); 18] = [
    ("rows.jsonl", "questions with voted answers, invented"),
    ("prepare.toml", "rules of prepare"),
    ("pairs.jsonl", "preference pairs for training"),
    ("pairs.held-out.jsonl", "pairs never trained on"),
    ("pairs.stats.json", "every row that became no pair, and why"),
    ("problems.jsonl", "problems whose answers are known"),
    ("problems.held-out.jsonl", "problems never trained on"),
    ("model", "the small model, a Hugging Face folder"),
    ("before", "the model's answers to the held-out problems, judged"),
    ("own-pairs.jsonl", "pairs of the model's own answers, right against wrong"),
    ("run-voted.toml", "configuration of the run on the voted pairs"),
    ("run-voted/adapter", "the LoRA adapter after it, a PEFT folder"),
    ("run-voted/report/index.html", "the page of that run"),
    ("run-own.toml", "configuration of the run on its own pairs"),
    ("run-own/adapter", "the LoRA adapter after both runs"),
    ("run-own/report/index.html", "the page of that run"),
    ("after", "the answers with that adapter, judged"),
    ("comparison/index.html", "the page of changed answers"),
];

/// Names of the files at the top of the folder that [`DemoFolder::create`] or the steps write. The subfolders have
/// lists of their own; no other file is ever touched.
const FILES: [&str; 12] = [
    "rows.jsonl",
    "prepare.toml",
    "pairs.jsonl",
    "pairs.held-out.jsonl",
    "pairs.stats.json",
    "problems.jsonl",
    "problems.held-out.jsonl",
    "own-pairs.jsonl",
    "own-pairs.stats.json",
    "own-pairs.samples.jsonl",
    "run-voted.toml",
    "run-own.toml",
];

/// The folder in which the demo works.
#[derive(Clone, Debug)]
pub struct DemoFolder {
    path: PathBuf,
}

impl DemoFolder {
    /// Creates the folder and writes the inputs: rows, problems, model and configurations.
    ///
    /// # Errors
    /// The folder holds something other than a demo, or a demo while `overwrite` is not set; or it cannot be written.
    pub fn create(path: &Path, size: DemoSize, overwrite: bool) -> Result<Self> {
        let folder = Self { path: path.to_path_buf() };
        folder.check(overwrite)?;
        folder.clear()?;
        let contents = CONTENTS.map(|(name, what)| format!("- `{name}`: {what}\n"));
        let readme = format!("{MARK}\n\n{}", contents.concat());
        // The README comes first, so that an interrupted demo can be replaced too.
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
        for training in Training::ALL {
            let text = folder.run_toml(training, seed)?;
            write_whole(&folder.run_config(training), text.as_bytes())?;
        }
        Ok(folder)
    }

    /// Checks that the folder is new, or a demo that may be overwritten.
    fn check(&self, overwrite: bool) -> Result<()> {
        let path = &self.path;
        let refuse = |problem, remedy| Err(Error::file(path, problem, remedy));
        if path.is_file() {
            return refuse("is a file", "set --output to a folder");
        }
        if !is_taken(path) {
            return Ok(());
        }
        let ours =
            input_file::read_to_string(self.readme()).is_ok_and(|text| text.starts_with(MARK));
        match (ours, overwrite) {
            (true, true) => Ok(()),
            (true, false) => refuse(
                "already holds a demo",
                "replace it with --overwrite, or choose another --output",
            ),
            (false, _) => {
                refuse("is not empty, and no demo made it", "set --output to a new folder")
            }
        }
    }

    /// Removes the files of an earlier demo.
    fn clear(&self) -> Result<()> {
        let files = FILES.iter().map(|name| self.path.join(name));
        let model = MODEL.iter().map(|(name, _)| self.model().join(name));
        let comparison = ["comparison.json", "index.html"];
        let comparison = comparison.map(|name| self.comparison().join(name));
        let evaluated = ["before", "after"].map(|when| {
            let folder = self.evaluation(when);
            Folder::FILES.map(|name| folder.join(name))
        });
        let files: Vec<PathBuf> =
            files.chain(model).chain(comparison).chain(evaluated.into_iter().flatten()).collect();
        for training in Training::ALL {
            RunFolder::new(&self.run(training)).clear()?;
        }
        remove_files(&self.path, &files)
    }

    /// Returns the text of the run's preset with this folder's paths.
    fn run_toml(&self, training: Training, seed: u64) -> Result<String> {
        let mut text = training.preset().replace("seed = 42 ", &format!("seed = {seed} "));
        for (name, run) in
            [("configs/tiny.toml", Training::Voted), ("configs/tiny-own.toml", Training::Own)]
        {
            text = text.replace(name, &shell(&self.run_config(run)));
        }
        for (name, path) in [
            ("runs/tiny", self.run(Training::Voted)),
            ("runs/tiny/adapter", self.adapter(Training::Voted)),
            ("runs/tiny-own", self.run(Training::Own)),
            ("arithmo-demo/model", self.model()),
            ("arithmo-demo/pairs.jsonl", self.pairs()),
            ("arithmo-demo/pairs.held-out.jsonl", self.held_out()),
            ("arithmo-demo/own-pairs.jsonl", self.own_pairs()),
        ] {
            let Some(path) = path.to_str() else {
                let problem = "its name is not UTF-8, which a configuration file requires";
                return Err(Error::file(&self.path, problem, "choose another --output"));
            };
            let value = toml::Value::String(path.to_string()).to_string();
            text = text.replace(&format!("\"{name}\""), &value);
        }
        Ok(text)
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn readme(&self) -> PathBuf {
        self.path.join("README.md")
    }

    /// Returns the path of the embedded rows.
    pub fn rows(&self) -> PathBuf {
        self.path.join("rows.jsonl")
    }

    /// Returns the path of the rules for `prepare`.
    pub fn prepare_config(&self) -> PathBuf {
        self.path.join("prepare.toml")
    }

    /// Returns the path of the pairs from votes for training.
    pub fn pairs(&self) -> PathBuf {
        self.path.join("pairs.jsonl")
    }

    /// Returns the path of the held-out pairs that `prepare` writes.
    pub fn held_out(&self) -> PathBuf {
        self.path.join("pairs.held-out.jsonl")
    }

    /// Returns the path of the problems whose answers are sampled.
    pub fn problems(&self) -> PathBuf {
        self.path.join("problems.jsonl")
    }

    /// Returns the path of the problems for the evaluations.
    pub fn held_out_problems(&self) -> PathBuf {
        self.path.join("problems.held-out.jsonl")
    }

    /// Returns the path of the pairs from the model's own answers.
    pub fn own_pairs(&self) -> PathBuf {
        self.path.join("own-pairs.jsonl")
    }

    /// Returns the path of the evaluation `before` or `after` training.
    pub fn evaluation(&self, when: &str) -> PathBuf {
        self.path.join(when)
    }

    /// Returns the path of the comparison of the two evaluations.
    pub fn comparison(&self) -> PathBuf {
        self.path.join("comparison")
    }

    /// Returns the path of the small model.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// Returns the path of a training run's configuration.
    pub fn run_config(&self, training: Training) -> PathBuf {
        self.path.join(format!("{}.toml", training.name()))
    }

    /// Returns the path of a run's `output_dir`.
    pub fn run(&self, training: Training) -> PathBuf {
        self.path.join(training.name())
    }

    /// Returns the path of the adapter that a run trains.
    pub fn adapter(&self, training: Training) -> PathBuf {
        self.run(training).join("adapter")
    }
}

/// The amount of work in the demo.
#[derive(Clone, Copy, Debug)]
pub struct DemoSize {
    /// Number of problems whose answers are sampled; a quarter as many are held out.
    pub problems: usize,
    /// Seed of problems, samples and training.
    pub seed: u64,
}

/// Writes `count` problems of the split as JSON lines.
fn write_problems(path: &Path, split: Split, seed: u64, count: usize) -> Result<()> {
    let line = |problem: &Problem| format!("{}\n", problem.known());
    let lines: String = problems(split, seed, count).iter().map(line).collect();
    write_whole(path, lines.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::RunConfig;

    const SIZE: DemoSize = DemoSize { problems: 5, seed: 42 };

    #[test]
    fn the_runs_are_the_tiny_presets_in_another_place() {
        let parent = tempfile::tempdir().unwrap();
        let folder = DemoFolder::create(&parent.path().join("it's \"here\""), SIZE, false).unwrap();
        let load = |path: &Path| RunConfig::load(path, &[]).unwrap();
        let preset =
            |name: &str| load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name));
        let (voted, tiny) = (load(&folder.run_config(Training::Voted)), preset("tiny.toml"));
        assert_eq!(voted.output_dir, folder.run(Training::Voted));
        assert_eq!(voted.data.train_file, folder.pairs());
        assert_eq!(voted.data.eval_file, Some(folder.held_out()));
        let different: Vec<String> = tiny.diff(&voted);
        assert_eq!(different.len(), 3, "{different:?}");
        assert_eq!(voted.train, tiny.train);

        let (own, tiny) = (load(&folder.run_config(Training::Own)), preset("tiny-own.toml"));
        assert_eq!(own.output_dir, folder.run(Training::Own));
        assert_eq!(own.data.train_file, folder.own_pairs());
        assert_eq!(own.data.eval_file, None);
        assert_eq!(own.lora.adapter, Some(folder.adapter(Training::Voted)));
        let different: Vec<String> = tiny.diff(&own);
        assert_eq!(different.len(), 3, "{different:?}");
        assert_eq!(own.train, tiny.train);
    }

    #[test]
    fn files_that_are_not_the_demos_are_left_alone() {
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
        // A folder of someone else, with a subfolder named like one of the demo's.
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
