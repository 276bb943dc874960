//! Pushes files to a model repository of the hub in one commit, over the HTTP API that `huggingface_hub` uses.
//!
//! The hub says which files it has already and which are large. Large files go to its storage (`lfs`), small ones into
//! the commit itself. Every step can be repeated: what has arrived is not sent again, and a push of files that the
//! repository has makes no commit.

mod entry;
mod lfs;
mod outgoing;
mod requests;
mod steps;

use std::path::PathBuf;

use self::entry::Entry;
use super::Hub;
use super::address::redacted;
use super::client::Client;
use super::names::{self, quoted};
use crate::error::{Error, Result};

/// A repository to push to, as the user named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushTarget {
    /// `owner/name`, or a name that belongs to the token's user.
    pub repo: String,
    /// Branch that gets the commit.
    pub revision: String,
    /// Whether a repository that does not exist yet becomes private. `None` leaves it to the account's settings.
    pub private: Option<bool>,
    /// The flag or key that names the repository, for errors.
    pub place: &'static str,
}

impl PushTarget {
    /// Returns the target `repo` on the branch `main`, named by the flag or key `place`.
    pub fn main(repo: &str, place: &'static str) -> Self {
        Self { repo: repo.to_string(), revision: "main".to_string(), private: None, place }
    }
}

/// A repository that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// `owner/name`.
    pub repo: String,
    /// Branch that gets the commit.
    pub revision: String,
}

/// A file to push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushFile {
    /// Path on the disk.
    pub path: PathBuf,
    /// Path in the repository, with `/` between names.
    pub name: String,
}

/// The result of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Address of the repository.
    pub url: String,
    /// The new commit. `None` if the repository has all files already.
    pub commit: Option<String>,
    /// Number of files in the commit.
    pub files: usize,
    /// Number of large files that were sent; the others were in the storage already.
    pub sent: usize,
}

impl Hub {
    /// Checks, without contacting the hub, that a push to `target` is possible.
    ///
    /// # Errors
    /// The name or the branch is not valid, there is no token, or the network must not be used.
    pub fn check_push(&self, target: &PushTarget) -> Result<()> {
        if !names::is_id(&target.repo) {
            return Err(Error::invalid(
                target.place,
                format!("{} is not the name of a repository", quoted(&target.repo)),
                "write OWNER/NAME with letters, digits, '-', '_' and '.'",
            ));
        }
        if let Err(problem) = names::check_revision(&target.revision) {
            return Err(Error::invalid(
                target.place,
                format!("{} is not a branch: {problem}", quoted(&target.revision)),
                "name a branch, such as main",
            ));
        }
        if self.config.offline {
            return Err(Error::invalid(
                target.place,
                "HF_HUB_OFFLINE forbids contacting the hub",
                "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or push later with `arithmo push`",
            ));
        }
        if self.config.token.is_none() {
            let settings = format!("{}/settings/tokens", redacted(&self.config.endpoint));
            return Err(Error::invalid(
                target.place,
                "a push needs an access token, and HF_TOKEN is not set",
                format!("make a token that may write on {settings}, and set HF_TOKEN to it"),
            ));
        }
        Ok(())
    }

    /// Creates the repository of `target` unless it exists.
    ///
    /// # Errors
    /// Same as [`check_push`](Self::check_push); or the hub cannot be reached, or refuses the token or the repository.
    pub fn create_repository(&self, target: &PushTarget) -> Result<Destination> {
        self.check_push(target)?;
        let client = &self.client;
        let repo = if target.repo.contains('/') {
            target.repo.clone()
        } else {
            format!("{}/{}", client.retried(|_| {}, || client.user())?, target.repo)
        };
        let to = Destination { repo, revision: target.revision.clone() };
        let push = Push { client, to: &to };
        client.retried(|_| {}, || push.create(target.private))?;
        Ok(to)
    }

    /// Pushes `files` in one commit with this message. Files that the repository has already are not sent again.
    ///
    /// # Errors
    /// A file cannot be read or changes meanwhile; the hub cannot be reached, or refuses the token, the branch or a file;
    /// or the user interrupts. A repeated push sends only what is missing.
    pub fn push(&self, to: &Destination, files: &[PushFile], message: &str) -> Result<Pushed> {
        let files = files.iter().map(Entry::read).collect::<Result<Vec<_>>>()?;
        Ok(Push { client: &self.client, to }.run(&files, message)?)
    }
}

/// A push to one repository.
struct Push<'a> {
    client: &'a Client,
    to: &'a Destination,
}

/// Returns the error of a push that the user stopped.
fn stopped() -> Error {
    Error::Interrupted { note: "what has arrived is not sent again by the next push".into() }
}
