//! Keeps hashes of weights on disk: the files of a 7B model have 14.5 GB, and are hashed only once.
//!
//! A hash is kept under the metadata of the files: device, inode, size, time of modification (mtime) and time of
//! change (ctime). Programs can reset the mtime, but not the ctime, so any write causes a new hash. Since these times
//! are only as fine as the system's clock, no hash is kept of files that changed a moment ago. A write can go
//! unnoticed only if the file system does not record it: to a mounted disk image from outside, on a network file
//! system with a clock of its own, and, where there is no ctime, as on Windows, a write of the same size after which
//! the mtime was reset.

use std::fs::{self, Metadata};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::hex;
use crate::error::Result;
use crate::input_file;
use crate::model::quantize::cache::user_folder;
use crate::model::weights::WeightFiles;
use crate::output::write_whole;

/// Part of each key; must change whenever the same weights would be hashed differently.
const VERSION: &str = "arithmo weights 1";

/// Bytes of the smallest weights whose hash is kept; smaller ones are hashed in no time.
const WORTH_KEEPING: u64 = 64 << 20;

/// Age from which a file's times reveal whether it changed: the coarsest file systems have a resolution of two
/// seconds.
const SETTLED: Duration = Duration::from_secs(4);

/// Returns the hash that `compute` returned before for the same files, or calls `compute`.
///
/// # Errors
/// The error of `compute`. A hash that cannot be kept is computed again each time.
pub(super) fn digest(
    files: &WeightFiles,
    compute: impl FnOnce() -> Result<String>,
) -> Result<String> {
    let worth = files.total_bytes() >= WORTH_KEEPING;
    let folder = worth.then(|| user_folder("identities")).flatten();
    digest_in(folder, files, SystemTime::now(), compute)
}

/// Implements [`digest`] with hashes kept in `folder`, at the time `now`.
fn digest_in(
    folder: Option<PathBuf>,
    files: &WeightFiles,
    now: SystemTime,
    compute: impl FnOnce() -> Result<String>,
) -> Result<String> {
    let state = || state(&files.metadata().ok()?, now);
    let (Some(folder), Some(before)) = (folder, state()) else {
        return compute();
    };
    let path = folder.join(&before);
    let kept = input_file::read_to_string(&path).unwrap_or_default();
    let is_whole = |hash: &str| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    if is_whole(kept.trim_end()) {
        return Ok(kept.trim_end().to_string());
    }
    let hash = compute()?;
    if state() == Some(before) && fs::create_dir_all(&folder).is_ok() {
        // A cache that cannot be written only costs time.
        let _ = write_whole(&path, format!("{hash}\n").as_bytes());
    }
    Ok(hash)
}

/// Returns the hash of the files' metadata, or `None` if a file changed so shortly before `now` that its times reveal
/// nothing.
fn state(files: &[Metadata], now: SystemTime) -> Option<String> {
    let settled = now.checked_sub(SETTLED)?;
    let mut hasher = Sha256::new();
    hasher.update(VERSION);
    for file in files {
        if last_change(file)? > settled {
            return None;
        }
        hasher.update(describe(file));
    }
    Some(hex(hasher.finalize()))
}

/// Returns the later of the times of modification and of change.
#[cfg(unix)]
fn last_change(file: &Metadata) -> Option<SystemTime> {
    use std::os::unix::fs::MetadataExt;
    let seconds = u64::try_from(file.ctime()).ok()?;
    let nanos = u32::try_from(file.ctime_nsec()).ok()?;
    let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))?;
    Some(changed.max(file.modified().ok()?))
}

/// Formats the metadata that changes whenever the file changes.
#[cfg(unix)]
fn describe(file: &Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!(
        "{} {} {} {} {} {} {}\n",
        file.dev(),
        file.ino(),
        file.len(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec()
    )
}

#[cfg(not(unix))]
fn last_change(file: &Metadata) -> Option<SystemTime> {
    file.modified().ok()
}

#[cfg(not(unix))]
fn describe(file: &Metadata) -> String {
    format!("{} {:?} {:?}\n", file.len(), file.modified().ok(), file.created().ok())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::{File, FileTimes, OpenOptions};
    use std::io::{Seek, SeekFrom, Write};

    use super::*;

    /// Sets the times of `path` to an hour ago, as far as a program can.
    fn age(path: &std::path::Path) {
        let past = SystemTime::now() - Duration::from_secs(3600);
        let times = FileTimes::new().set_modified(past);
        let file = File::options().write(true).open(path).unwrap();
        file.set_times(times).unwrap();
    }

    #[test]
    fn files_that_changed_a_moment_ago_are_hashed_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "text").unwrap();
        let (now, later) = (SystemTime::now(), Duration::from_secs(60));
        let state = |now| state(&[fs::metadata(&path).unwrap()], now);
        assert_eq!(state(now), None);
        assert!(state(now + later).is_some());
        // The time of modification alone is trusted only on systems without a time of change.
        age(&path);
        assert_eq!(state(now).is_none(), cfg!(unix));
    }

    #[cfg(unix)]
    #[test]
    fn a_hash_is_computed_once_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let header = br#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(b"abcd");
        fs::write(&path, &bytes).unwrap();

        let kept = folder.path().join("kept");
        let computed = Cell::new(0);
        let hash = || {
            let files = WeightFiles::open_file(&path).unwrap();
            let compute = || {
                computed.set(computed.get() + 1);
                Ok(hex(files.digest()?))
            };
            let later = SystemTime::now() + 2 * SETTLED;
            digest_in(Some(kept.clone()), &files, later, compute).unwrap()
        };
        let first = hash();
        assert_eq!((hash(), computed.get()), (first.clone(), 1));

        // A damaged entry is ignored.
        let entry = fs::read_dir(&kept).unwrap().next().unwrap().unwrap();
        fs::write(entry.path(), "12").unwrap();
        assert_eq!((hash(), computed.get()), (first.clone(), 2));

        // One byte is changed in place, and the time of modification is restored.
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        let mut file = OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::End(-1)).unwrap();
        file.write_all(b"e").unwrap();
        file.set_times(FileTimes::new().set_modified(before)).unwrap();
        assert_ne!(hash(), first);
        assert_eq!(computed.get(), 3);
    }
}
