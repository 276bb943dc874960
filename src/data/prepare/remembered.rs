//! The minima of all questions kept, found by band: the latest ones in memory, those before in temporary files, so that
//! memory does not grow with the questions.
//!
//! The older questions' bands are one file: band after band, entries of a hash and the number of the question that was
//! first with it, sorted by hash; the hash of every 512th entry is in memory, and a look-up reads 4 KiB. When enough
//! latest ones have come together, they are merged into a new such file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::words::mix;
use crate::error::{Error, Result};
use crate::read_at::read_exact_at;

/// Minima per question.
pub(super) const MINIMA: usize = 64;
/// Minima per band.
const BAND: usize = 4;
const BANDS: usize = MINIMA / BAND;
/// Questions held in memory, 300 bytes each: as many as a hash table of 2^18 places takes.
const LATEST: usize = 7 << 15;
/// Entries of a page, and bytes of an entry.
const PAGE: usize = 512;
const ENTRY: usize = 8;
/// Bytes of a question in the file of minima.
const QUESTION: usize = 2 * MINIMA + 8;

pub(super) type Minima = [u16; MINIMA];

/// Questions with their split keys.
#[derive(Debug)]
pub(super) struct Remembered {
    folder: PathBuf,
    /// When so many are in memory, they go to disk.
    most: usize,
    minima: Vec<(Minima, u64)>,
    /// Band to the question that was first in it, counted from the first in memory.
    bands: Vec<HashMap<u32, u32>>,
    older: Option<Older>,
}

impl Remembered {
    /// None yet; temporary files go to `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self::with_most(LATEST, folder)
    }

    pub(super) fn with_most(most: usize, folder: &Path) -> Self {
        Self {
            folder: folder.to_path_buf(),
            most,
            minima: Vec::new(),
            bands: vec![HashMap::new(); BANDS],
            older: None,
        }
    }

    /// The split key of the first of the questions that share a band with `minima`, of those that were first in it,
    /// that is `similar`.
    pub(super) fn find(
        &self,
        minima: &Minima,
        similar: impl Fn(&Minima) -> bool,
    ) -> Result<Option<u64>> {
        for (band, hash) in bands(minima).enumerate() {
            // What is on disk came first.
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

    pub(super) fn insert(&mut self, minima: &Minima, key: u64) -> Result<()> {
        let index = self.minima.len() as u32;
        self.minima.push((*minima, key));
        for (hash, seen) in bands(minima).zip(&mut self.bands) {
            seen.entry(hash).or_insert(index);
        }
        if self.minima.len() == self.most {
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

/// Hashes of the bands.
fn bands(minima: &Minima) -> impl Iterator<Item = u32> {
    minima.chunks_exact(BAND).map(|band| {
        let hash = |hash, &minimum| mix(hash ^ u64::from(minimum));
        (band.iter().fold(0, hash) >> 32) as u32
    })
}

/// Questions on disk.
#[derive(Debug)]
struct Older {
    questions: u32,
    minima: File,
    entries: File,
    bands: Vec<Band>,
}

/// Where a band's entries are.
#[derive(Debug, Default)]
struct Band {
    /// Number of entries before it, and in it.
    start: u64,
    len: u64,
    /// The first hash of each page.
    pages: Vec<u32>,
}

impl Older {
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

    fn question(&self, index: u32) -> io::Result<(Minima, u64)> {
        let mut bytes = [0; QUESTION];
        let start = u64::from(index) * QUESTION as u64;
        read_exact_at(&self.minima, &mut bytes, start)?;
        let (halves, _) = bytes.as_chunks::<2>();
        let half = |at: usize| halves.get(at).map_or(0, |half| u16::from_le_bytes(*half));
        let key = (0..4).rev().fold(0, |key, at| key << 16 | u64::from(half(MINIMA + at)));
        Ok((std::array::from_fn(half), key))
    }

    /// The questions of `older` and those of `minima` and `bands`, which is emptied.
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
    /// Writes the entries of this band and the `latest` to `out`, where `start` entries are before them. Of two with one
    /// hash, the older stays.
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

/// An entry's hash and question.
fn split(entry: [u8; ENTRY]) -> (u32, u32) {
    let both = u64::from_le_bytes(entry);
    (both as u32, (both >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Few in memory or all: the same questions are found, the first ones met.
    #[test]
    fn what_is_on_disk_is_found_as_what_is_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = Remembered::new(folder.path());
        let mut few = Remembered::with_most(100, folder.path());
        // 12 values, 4 to a band: bands are met again and again, over several pages.
        let mut state = 1u64;
        let mut found = 0;
        for n in 0..3000u64 {
            let minima: Minima = std::array::from_fn(|_| {
                state = mix(state);
                (state % 12) as u16
            });
            let look = |seen: &Remembered, nth: usize| {
                let count = std::cell::Cell::new(0);
                let nth_met = |_: &Minima| count.replace(count.get() + 1) == nth;
                seen.find(&minima, nth_met).unwrap()
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
