//! An index of the minima of all questions kept, searched by band. The latest questions are in memory and older ones in
//! temporary files, so that memory does not grow with the number of questions.
//!
//! The bands of older questions are in one file, band after band. Its entries, sorted by hash, are the hash of a band and
//! the number of the first question with it. The hash of every 512th entry is kept in memory, so that a lookup reads 4 KiB.
//! When memory holds enough latest questions, they are merged into a new file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::words::mix;
use crate::error::{Error, Result};
use crate::read_at::read_exact_at;

/// Number of minima per question.
pub(super) const MINIMA: usize = 64;
/// Number of minima per band.
const BAND: usize = 4;
/// Number of bands per question.
const BANDS: usize = MINIMA / BAND;
/// Maximum number of questions in memory, which take 300 bytes each. A hash table of 2^18 slots holds as many.
const MAX_IN_MEMORY: usize = 7 << 15;
/// Number of entries per page.
const PAGE: usize = 512;
/// Size of an entry in bytes.
const ENTRY: usize = 8;
/// Size of a question in the file of minima, in bytes.
const QUESTION: usize = 2 * MINIMA + 8;

/// The MinHash minima of a question.
pub(super) type Minima = [u16; MINIMA];

/// The minima and split keys of all questions, searched by band.
#[derive(Debug)]
pub(super) struct Remembered {
    folder: PathBuf,
    /// Number of questions in memory at which they are written to disk.
    max_in_memory: usize,
    /// Minima and split keys of the questions in memory.
    minima: Vec<(Minima, u64)>,
    /// For each band, maps its hash to the index in `minima` of the first question with it.
    bands: Vec<HashMap<u32, u32>>,
    older: Option<Older>,
}

impl Remembered {
    /// Creates an empty index. Temporary files are created in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self::with_max_in_memory(MAX_IN_MEMORY, folder)
    }

    fn with_max_in_memory(max_in_memory: usize, folder: &Path) -> Self {
        Self {
            folder: folder.to_path_buf(),
            max_in_memory,
            minima: Vec::new(),
            bands: vec![HashMap::new(); BANDS],
            older: None,
        }
    }

    /// Finds a question that is `similar` and shares a band with `minima`, and returns its split key. Of each band, only
    /// the first question with an equal hash is considered.
    pub(super) fn find(
        &self,
        minima: &Minima,
        similar: impl Fn(&Minima) -> bool,
    ) -> Result<Option<u64>> {
        for (band, hash) in bands(minima).enumerate() {
            // Questions on disk are older, so they take precedence.
            let older = self.older.as_ref().map(|older| older.find(band, hash));
            let found = older.transpose().map_err(|e| self.fail(e))?.flatten();
            let latest = || {
                let index = self.bands.get(band)?.get(&hash)?;
                self.minima.get(*index as usize).copied()
            };
            if let Some((other, key)) = found.or_else(latest)
                && similar(&other)
            {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// Adds a question with its split key.
    pub(super) fn insert(&mut self, minima: &Minima, key: u64) -> Result<()> {
        let index = self.minima.len() as u32;
        self.minima.push((*minima, key));
        for (hash, band) in bands(minima).zip(&mut self.bands) {
            band.entry(hash).or_insert(index);
        }
        if self.minima.len() == self.max_in_memory {
            let merged =
                Older::merge(self.older.take(), &self.minima, &mut self.bands, &self.folder);
            self.older = Some(merged.map_err(|e| self.fail(e))?);
            self.minima.clear();
        }
        Ok(())
    }

    fn fail(&self, error: io::Error) -> Error {
        Error::io(&self.folder, "use a temporary file", error)
    }
}

/// Returns the hash of each band.
fn bands(minima: &Minima) -> impl Iterator<Item = u32> {
    minima.chunks_exact(BAND).map(|band| {
        let hash = |hash, &minimum| mix(hash ^ u64::from(minimum));
        (band.iter().fold(0, hash) >> 32) as u32
    })
}

/// The questions on disk.
#[derive(Debug)]
struct Older {
    /// Number of questions.
    questions: u32,
    /// File of the minima and split keys of each question.
    minima: File,
    /// File of the entries of all bands.
    entries: File,
    bands: Vec<Band>,
}

/// The entries of one band in the file.
#[derive(Debug, Default)]
struct Band {
    /// Number of entries before the band.
    start: u64,
    /// Number of entries in the band.
    len: u64,
    /// First hash of each page.
    pages: Vec<u32>,
}

impl Older {
    /// Returns the minima and the split key of the first question whose band `band` has this hash.
    fn find(&self, band: usize, hash: u32) -> io::Result<Option<(Minima, u64)>> {
        let Some(band) = self.bands.get(band) else {
            return Ok(None);
        };
        let page = band.pages.partition_point(|&first| first <= hash);
        let Some(first) = page.checked_sub(1).map(|page| (page * PAGE) as u64) else {
            return Ok(None);
        };
        let mut bytes = [0; PAGE * ENTRY];
        let bytes = &mut bytes[..ENTRY * (band.len - first).min(PAGE as u64) as usize];
        let start = (band.start + first) * ENTRY as u64;
        read_exact_at(&self.entries, bytes, start)?;
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        let mut entries = entries.iter().map(|bytes| split(*bytes));
        let found = entries.find(|(other, _)| *other == hash);
        found.map(|(_, question)| self.question(question)).transpose()
    }

    /// Reads the minima and the split key of a question.
    fn question(&self, index: u32) -> io::Result<(Minima, u64)> {
        let mut bytes = [0; QUESTION];
        let start = u64::from(index) * QUESTION as u64;
        read_exact_at(&self.minima, &mut bytes, start)?;
        let (halves, _) = bytes.as_chunks::<2>();
        let half = |at: usize| halves.get(at).map_or(0, |half| u16::from_le_bytes(*half));
        let key = (0..4).rev().fold(0, |key, at| key << 16 | u64::from(half(MINIMA + at)));
        Ok((std::array::from_fn(half), key))
    }

    /// Merges the questions in memory, `minima` and `bands`, into `older`. Empties `bands`.
    fn merge(
        older: Option<Self>,
        minima: &[(Minima, u64)],
        bands: &mut [HashMap<u32, u32>],
        folder: &Path,
    ) -> io::Result<Self> {
        let mut older = match older {
            Some(older) => older,
            None => Self {
                questions: 0,
                minima: tempfile::tempfile_in(folder)?,
                entries: tempfile::tempfile_in(folder)?,
                bands: bands.iter().map(|_| Band::default()).collect(),
            },
        };
        let mut entries = BufWriter::new(tempfile::tempfile_in(folder)?);
        let (mut merged, mut start) = (Vec::with_capacity(bands.len()), 0);
        for (old, latest) in older.bands.iter().zip(bands) {
            let numbered = latest.drain().map(|(hash, index)| (hash, older.questions + index));
            let mut latest: Vec<_> = numbered.collect();
            latest.sort_unstable();
            let band = old.merge(&older.entries, latest, start, &mut entries)?;
            start += band.len;
            merged.push(band);
        }
        older.minima.seek(SeekFrom::End(0))?;
        let mut file = BufWriter::new(&older.minima);
        for (minima, key) in minima {
            minima.iter().try_for_each(|minimum| file.write_all(&minimum.to_le_bytes()))?;
            file.write_all(&key.to_le_bytes())?;
        }
        file.flush()?;
        drop(file);
        Ok(Self {
            questions: older.questions + minima.len() as u32,
            minima: older.minima,
            entries: entries.into_inner().map_err(io::IntoInnerError::into_error)?,
            bands: merged,
        })
    }
}

impl Band {
    /// Merges the entries of this band with the `latest` ones and writes them to `out`, after `start` other entries. Of two
    /// entries with the same hash, the older one is kept.
    fn merge(
        &self,
        mut entries: &File,
        latest: Vec<(u32, u32)>,
        start: u64,
        out: &mut impl Write,
    ) -> io::Result<Self> {
        let mut merged = Self { start, len: 0, pages: Vec::new() };
        let mut push = |(hash, question): (u32, u32)| {
            if merged.len.is_multiple_of(PAGE as u64) {
                merged.pages.push(hash);
            }
            merged.len += 1;
            out.write_all(&hash.to_le_bytes())?;
            out.write_all(&question.to_le_bytes())
        };
        entries.seek(SeekFrom::Start(self.start * ENTRY as u64))?;
        let mut reader = BufReader::new(entries);
        let mut latest = latest.into_iter().peekable();
        for _ in 0..self.len {
            let mut bytes = [0; ENTRY];
            reader.read_exact(&mut bytes)?;
            let entry = split(bytes);
            while let Some(before) = latest.next_if(|(hash, _)| *hash < entry.0) {
                push(before)?;
            }
            latest.next_if(|(hash, _)| *hash == entry.0);
            push(entry)?;
        }
        latest.try_for_each(push)?;
        Ok(merged)
    }
}

/// Returns the hash and the question number of an entry.
fn split(entry: [u8; ENTRY]) -> (u32, u32) {
    let both = u64::from_le_bytes(entry);
    (both as u32, (both >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index with few questions in memory finds the same questions as one with all in memory.
    #[test]
    fn questions_on_disk_are_found_like_those_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = Remembered::new(folder.path());
        let mut few = Remembered::with_max_in_memory(100, folder.path());
        // With 12 values and 4 minima per band, bands occur again and again, over several pages.
        let mut state = 1u64;
        let mut found = 0;
        for n in 0..3000u64 {
            let minima: Minima = std::array::from_fn(|_| {
                state = mix(state);
                (state % 12) as u16
            });
            let look = |seen: &Remembered, nth: usize| {
                let count = std::cell::Cell::new(0);
                let is_nth = |_: &Minima| count.replace(count.get() + 1) == nth;
                seen.find(&minima, is_nth).unwrap()
            };
            for nth in 0..3 {
                assert_eq!(look(&all, nth), look(&few, nth), "question {n}");
            }
            found += usize::from(look(&all, 0).is_some());
            all.insert(&minima, mix(n)).unwrap();
            few.insert(&minima, mix(n)).unwrap();
        }
        assert!(found > 1000 && few.older.is_some_and(|older| older.questions == 3000), "{found}");
    }
}
