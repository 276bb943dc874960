//! The folder of a run, with `manifest.json`, `metrics.jsonl`, `checkpoints/step-N/`, and `adapter/` or `model/`.

use std::path::{Path, PathBuf};

use crate::adapter::peft;
use crate::config::RunConfig;
use crate::data::tokenizer::TOKENIZER_FILES;
use crate::error::{Error, Result};
use crate::model::save::{check_replaceable, is_model_file};
use crate::output::list::{self, FileList, listed_files, remove_files};
use crate::output::lock;
use crate::output::part::{check_writable, remove_all_dead};
use crate::output::same_file;
use crate::train::card::is_edited_card;
use crate::train::checkpoint::Checkpoint;
use crate::train::logger::{EVENTS_FOLDER, METRICS_FILE};
use crate::train::manifest::{MANIFEST_FILE, RunManifest};
use crate::train::steps::{checkpoint_files, clear_unfinished};
use crate::train::tensorboard::event_files;

/// How to treat a run that already exists in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse to start.
    Refuse,
    /// Continue it from its newest complete checkpoint, or from the start if it has none.
    Resume,
    /// Remove it and start a new run.
    Overwrite,
}

/// The folder of a run, its `output_dir`.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

/// The files that a run writes at the top of its folder.
const OWN_FILES: [&str; 2] = [MANIFEST_FILE, METRICS_FILE];
/// The files of an adapter itself.
const PEFT_FILES: [&str; 3] = [peft::WEIGHTS, peft::CONFIG, peft::BASE_QUANTIZATION];
/// The folders that a run writes at the top of its folder.
const OWN_FOLDERS: [&str; 5] = [EVENTS_FOLDER, "checkpoints", "adapter", "model", "report"];

/// Returns the names of all files and folders that a run writes at the top of its folder.
fn own() -> impl Iterator<Item = &'static str> {
    OWN_FILES.into_iter().chain(OWN_FOLDERS)
}

impl RunFolder {
    /// Creates a value for the folder at `path`, which need not exist.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// Returns the path of `checkpoints/`.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Returns the path of `adapter/`.
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// Returns the path of `model/`, which a run that trains all weights writes.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// Checks, before anything expensive is done, that a run may write into this folder.
    ///
    /// # Errors
    /// The folder contains a run that is to be neither continued nor removed, or other files under names that a run uses.
    pub fn check(&self, existing: Existing) -> Result<()> {
        if self.path.is_file() {
            return Err(Error::file(&self.path, "is a file", "name a folder as output_dir"));
        }
        FileList::check(&self.path)?;
        let there = |path: PathBuf| path.exists() || path.is_symlink();
        let found = own().find(|name| there(self.path.join(name)));
        let ours = RunManifest::path(&self.path).is_file();
        match (existing, found) {
            (_, Some(name)) if !ours => Err(Error::file(
                &self.path,
                format!(
                    "has {name} but no {MANIFEST_FILE}: no run of this program is known to have made it"
                ),
                "choose another output_dir",
            )),
            (Existing::Refuse, Some(name)) => Err(Error::file(
                &self.path,
                format!("already holds a run (it has {name})"),
                "continue it with --resume, replace it with --overwrite, or choose another output_dir",
            )),
            // A readable manifest proves that the files belong to a run.
            (Existing::Overwrite, Some(_)) => {
                RunManifest::read(&self.path)?;
                match own().map(|name| self.path.join(name)).find(|path| path.is_symlink()) {
                    Some(link) => Err(Error::file(
                        &link,
                        "is a link, and the run would write over what it leads to",
                        "choose another output_dir",
                    )),
                    None => self.check_kinds(),
                }
            }
            _ => self.check_kinds(),
        }
    }

    /// Checks that each file and folder of a run, if it exists, is of the right kind and not a dangling link.
    fn check_kinds(&self) -> Result<()> {
        for name in own() {
            let path = self.path.join(name);
            let problem = match std::fs::metadata(&path) {
                Err(_) if path.is_symlink() => "is a link that leads nowhere",
                Ok(found) if OWN_FILES.contains(&name) && !found.is_file() => "is no regular file",
                Ok(found) if OWN_FOLDERS.contains(&name) && !found.is_dir() => "is no folder",
                _ => continue,
            };
            let problem = format!("{problem}, and the run writes there");
            return Err(Error::file(
                &path,
                problem,
                "move it elsewhere, or choose another output_dir",
            ));
        }
        Ok(())
    }

    /// Checks that the folders of checkpoints and result, which are written late in a run, are writable.
    ///
    /// # Errors
    /// A folder exists and is not writable.
    pub fn check_writable(&self) -> Result<()> {
        let late = [self.checkpoints(), self.adapter(), self.model()];
        late.iter().filter(|folder| folder.is_dir()).try_for_each(|folder| check_writable(folder))
    }

    /// Checks that a run that trains all weights can write its model, with the tokenizer of the folder `base`, into `model/`.
    ///
    /// # Errors
    /// `model/` has a file that does not belong to a model.
    pub fn check_model(&self, existing: Existing, base: &Path) -> Result<()> {
        // The model of a run of an older version that wrote no list is removed with the run.
        let old_run = FileList::read(&self.path).is_none() && self.wrote_model();
        if existing == Existing::Overwrite && old_run {
            Ok(())
        } else {
            check_replaceable(&self.model(), base)
        }
    }

    /// Checks that no input is inside a folder in which a run writes, because `--overwrite` would remove it. Each input is
    /// given with its configuration key.
    ///
    /// # Errors
    /// An input is inside such a folder.
    pub fn check_inputs<'a>(
        &self,
        inputs: impl IntoIterator<Item = (&'a str, &'a Path)>,
    ) -> Result<()> {
        for (key, input) in inputs {
            // A missing input is reported when it is read.
            let Ok(real) = std::fs::canonicalize(input) else {
                continue;
            };
            // The files of a folder may be links to other places.
            let entries = std::fs::read_dir(&real).into_iter().flatten().flatten();
            let entries = entries.filter_map(|entry| std::fs::canonicalize(entry.path()).ok());
            let all: Vec<PathBuf> = std::iter::once(real.clone()).chain(entries).collect();
            for name in own().chain([lock::NAME, list::NAME]) {
                let place = self.path.join(name);
                let inside =
                    |real: &PathBuf| real.ancestors().any(|above| same_file(above, &place));
                if all.iter().any(inside) {
                    let problem = format!(
                        "{} lies in {}, where a run in this output_dir writes",
                        input.display(),
                        place.display()
                    );
                    let remedy = "move the input elsewhere, or choose another output_dir";
                    return Err(Error::invalid(key, problem, remedy));
                }
            }
        }
        Ok(())
    }

    /// Returns the checkpoint from which to continue, or `None` if the run is not to be resumed or has no checkpoint.
    ///
    /// # Errors
    /// The run in the folder was started with another configuration, model or data. The error names every difference.
    pub fn resume_point(
        &self,
        existing: Existing,
        now: &RunManifest,
    ) -> Result<Option<Checkpoint>> {
        if existing != Existing::Resume {
            return Ok(None);
        }
        if let Some(before) = RunManifest::read(&self.path)? {
            before.check_resume(&self.path, now)?;
        }
        Checkpoint::newest_whole(&self.checkpoints(), &mut |warning| {
            say!("warning: {warning}");
        })
    }

    /// Prepares the folder for a run: removes the files of an earlier run unless this one continues it, and writes the
    /// manifest and the list of the files that this run will write.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn prepare(&self, existing: Existing, manifest: &RunManifest, resumed: bool) -> Result<()> {
        if existing != Existing::Refuse {
            self.make_room(resumed)?;
        }
        if !resumed {
            return self.begin(manifest);
        }
        self.write_file_list(&manifest.config)
    }

    /// Removes the files of an earlier run, unless this run resumes it, and the temporary files of killed processes. The
    /// old manifest stays until the new one replaces it: without a manifest the folder would not be recognized as a run's,
    /// and the same command would be refused if this process were killed.
    fn make_room(&self, resumed: bool) -> Result<()> {
        if !resumed {
            remove_files(&self.path, &self.own_files()?)?;
        }
        remove_all_dead(&self.path);
        remove_all_dead(&self.adapter());
        for name in peft::named_adapters(&self.adapter()) {
            remove_all_dead(&self.adapter().join(name));
        }
        clear_unfinished(&self.checkpoints())
    }

    /// Writes the manifest and the list of the files that this run will write.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn begin(&self, manifest: &RunManifest) -> Result<()> {
        manifest.write(&self.path)?;
        self.write_file_list(&manifest.config)
    }

    /// Adds the files that this run will write to the folder's [`FileList`]. If the run was started by an older version,
    /// which wrote no list, its existing files are added too.
    fn write_file_list(&self, config: &RunConfig) -> Result<()> {
        let subfolders = [config.lora.adapter_name.as_str(), peft::REFERENCE_NAME];
        let named = subfolders.into_iter().flat_map(|subfolder| {
            PEFT_FILES.iter().map(move |name| format!("adapter/{subfolder}/{name}"))
        });
        let adapter = adapter_files().map(|name| format!("adapter/{name}")).chain(named);
        let names = [MANIFEST_FILE, METRICS_FILE].map(str::to_string);
        // The run may be one of an older version that wrote no list.
        let unlisted = match FileList::read(&self.path) {
            Some(_) => Vec::new(),
            None => self.files_of_old_run()?,
        };
        let unlisted = unlisted.iter().filter_map(|file| {
            let name = file.strip_prefix(&self.path).ok()?;
            Some(name.to_string_lossy().into_owned())
        });
        let names = names.into_iter().chain(adapter).chain(unlisted);
        FileList::add(&self.path, names)
    }

    /// Removes the files of the run in the folder, if there is one.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn clear(&self) -> Result<()> {
        let manifest = RunManifest::path(&self.path);
        if !manifest.is_file() {
            return Ok(());
        }
        remove_files(&self.path, &self.own_files()?)?;
        // Last, after the folders that are empty now: while anything is left, it says whose it is.
        remove_files(&self.path, &[manifest])
    }

    /// Returns the files of the run in the folder, all but the manifest and a card that the user edited.
    fn own_files(&self) -> Result<Vec<PathBuf>> {
        let manifest = RunManifest::path(&self.path);
        if !manifest.is_file() {
            return Ok(Vec::new());
        }
        let mut files = match FileList::read(&self.path) {
            Some(_) => self.listed(),
            None => self.files_of_old_run()?,
        };
        files.extend(listed_files(&self.path.join("report")));
        if self.wrote_model() {
            files.extend(listed_files(&self.model()));
        }
        files.extend(checkpoint_files(&self.checkpoints())?);
        files.retain(|file| *file != manifest && !is_edited_card(file));
        Ok(files)
    }

    /// Returns the files of the run in the folder's list, and the list itself unless it also lists files of another command,
    /// such as a merge.
    fn listed(&self) -> Vec<PathBuf> {
        let ours = |path: &PathBuf| own().any(|name| path.starts_with(self.path.join(name)));
        let list = self.path.join(list::NAME);
        let mut files = listed_files(&self.path);
        files.retain(|path| *path != list);
        let shared = !files.iter().all(ours);
        files.retain(ours);
        if !shared {
            files.push(list);
        }
        files
    }

    /// Returns whether the run in the folder trains all weights and therefore wrote `model/`. Otherwise a model there belongs to
    /// another command or to the user, for example one that was merged from the adapter.
    fn wrote_model(&self) -> bool {
        let manifest = RunManifest::read(&self.path).ok().flatten();
        manifest.is_some_and(|manifest| !manifest.config.model.use_peft)
    }

    /// Returns the files of a run of an older version that wrote no list.
    fn files_of_old_run(&self) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> =
            adapter_files().map(|name| self.adapter().join(name)).collect();
        files.push(self.path.join(METRICS_FILE));
        if self.wrote_model() {
            files.extend(model_files(&self.model())?);
        }
        let events = event_files(&self.path.join(EVENTS_FOLDER))?;
        files.extend(events.into_iter().filter(|file| !by_other_writer(file)));
        let report = std::fs::read_dir(self.path.join("report")).into_iter();
        let report = report.flatten().flatten().map(|entry| entry.path());
        let page = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("html" | "svg" | "png"))
        };
        files.extend(report.filter(page));
        files.retain(|file| file.is_file());
        Ok(files)
    }
}

/// Returns the folder of the run that wrote `adapter`, a default adapter or one with a name, if the path is that of a run.
pub fn run_of_adapter(adapter: &Path) -> Option<&Path> {
    let whole = adapter.ancestors().take(2).find(|folder| folder.ends_with("adapter"))?;
    whole.parent()
}

/// Returns whether an event file was written by TensorBoard's own writers, whose names end with a process id and a count.
fn by_other_writer(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut last = name.rsplit('.').take(2);
    last.all(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Returns the names of all files that an adapter's folder can have.
fn adapter_files() -> impl Iterator<Item = &'static str> {
    PEFT_FILES.into_iter().chain(TOKENIZER_FILES)
}

/// Returns the files in `folder` whose names are those of a model's files.
fn model_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let entries = entries.flatten();
    let files = entries.filter(|entry| is_model_file(&entry.file_name().to_string_lossy()));
    Ok(files.map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::train::manifest::StartingModel;

    /// A process that is killed between removing the old run and writing the new one must leave a folder that the same
    /// command accepts, also where files of others are in it.
    #[test]
    fn the_manifest_outlives_everything_else() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(&parent.path().join("run"));
        let path = RunManifest::path(&folder.path);
        let old = RunManifest::new(RunConfig::default(), StartingModel::default(), "ndarray");
        folder.begin(&old).unwrap();
        fs::create_dir_all(folder.adapter()).unwrap();
        for name in [peft::WEIGHTS, "notes"] {
            fs::write(folder.adapter().join(name), "").unwrap();
        }
        let mut new = old;
        new.command = vec!["new".into()];
        folder.make_room(false).unwrap();
        assert!(path.is_file() && !folder.adapter().join(peft::WEIGHTS).exists());
        folder.check(Existing::Overwrite).unwrap();
        folder.prepare(Existing::Overwrite, &new, false).unwrap();
        assert_eq!(RunManifest::read(&folder.path).unwrap().unwrap().command, ["new"]);
        assert!(folder.adapter().join("notes").is_file());

        folder.clear().unwrap();
        assert!(!path.exists() && folder.adapter().join("notes").is_file());
    }
}
