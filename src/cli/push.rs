//! Implements `arithmo push`, and the flags of other commands that push their result.

use std::path::PathBuf;

use clap::Args;

use super::print_line;
use crate::error::Result;
use crate::model::hub::PushTarget;
use crate::progress::ProgressMode;
use crate::train::push::Push;

/// Push an adapter, a model or the result of a run to the hub.
#[derive(Args, Clone, Debug)]
pub struct PushArgs {
    /// Push the adapter or model in this folder, or the result of the run in it. Other files are left out.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Push to this model repository, which is made if it does not exist; a NAME alone belongs to the token's account.
    #[arg(value_name = "OWNER/NAME")]
    pub repo: String,
    /// Make the repository private if it does not exist [default: the account's setting].
    #[arg(long)]
    pub private: bool,
    /// Push to this branch, which must exist.
    #[arg(long, default_value = "main", value_name = "BRANCH")]
    pub revision: String,
    /// Give the commit this message [default: Upload adapter (or model) with arithmo].
    #[arg(long, value_name = "TEXT")]
    pub commit_message: Option<String>,
}

/// Pushes the folder and prints the address of the repository on stdout.
///
/// # Errors
/// The folder holds no result; or same as [`Push::send`].
pub fn run(args: &PushArgs, mode: ProgressMode) -> Result<()> {
    let target = PushTarget {
        repo: args.repo.clone(),
        revision: args.revision.clone(),
        private: args.private.then_some(true),
        place: "arithmo push",
    };
    let pushed = Push::new(target, mode)?.send(&args.folder, args.commit_message.as_deref())?;
    print_line(&pushed.url)
}

/// The flags with which a command pushes its result.
#[derive(Args, Clone, Debug)]
pub struct PushFlags {
    /// Push the result to this model repository of the hub, which is made if it does not exist. HF_TOKEN is the access
    /// token.
    #[arg(long, value_name = "OWNER/NAME")]
    pub push_to_hub: Option<String>,
    /// Make the repository private if it does not exist [default: the account's setting].
    #[arg(long, requires = "push_to_hub")]
    pub private: bool,
}

impl PushFlags {
    /// The flag that names the repository.
    pub const FLAG: &str = "--push-to-hub";

    /// Returns the push that the flags ask for, checked.
    ///
    /// # Errors
    /// Same as [`Push::new`].
    pub fn push(&self, mode: ProgressMode) -> Result<Option<Push>> {
        let Some(repo) = &self.push_to_hub else {
            return Ok(None);
        };
        let private = self.private.then_some(true);
        Push::new(PushTarget { private, ..PushTarget::main(repo, Self::FLAG) }, mode).map(Some)
    }
}
