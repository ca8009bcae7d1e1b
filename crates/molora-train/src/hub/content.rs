//! Whether a file holds what the hub says: its SHA-256, or the hash that git gives it.
//!
//! Blobs of the cache are named by these hashes, so that what lies there can be checked without the
//! hub. A file that was found right is remembered by its path, size and time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::HubError;
use super::interruptible::Ask;

/// The hash of a file's content as lower-case hexadecimal digits: 64 of SHA-256, 40 of git's blob or
/// of SHA-1 alone, which mirrors of the hub name files by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Digest(String);

/// A hash that a file does not have.
pub(super) struct Mismatch {
    /// What it has instead.
    pub(super) found: String,
    pub(super) expected: String,
}

/// Files that were found right.
#[derive(Debug, Default)]
pub(super) struct Known {
    memory: Option<PathBuf>,
    files: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    size: u64,
    /// Nanoseconds since 1970.
    changed: u64,
    digests: Vec<Digest>,
}

/// More files than this are not remembered, so that the memory stays small.
const MAX_FILES: usize = 4096;

impl Digest {
    /// A hash from its digits.
    pub(super) fn new(text: &str) -> Option<Self> {
        let is_hash = matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_hash.then(|| Self(text.to_ascii_lowercase()))
    }

    /// The hash by which the cache names what a file of a snapshot links to.
    pub(super) fn of_cached(path: &Path) -> Option<Self> {
        let blob = std::fs::read_link(path).ok()?;
        Self::new(blob.file_name()?.to_str()?)
    }
}

impl Known {
    /// What is remembered in a file; nothing if it cannot be read.
    pub(super) fn read(memory: Option<PathBuf>) -> Self {
        let text = memory.as_ref().and_then(|path| std::fs::read(path).ok());
        let files = text.and_then(|text| serde_json::from_slice(&text).ok());
        Self {
            files: files.unwrap_or_default(),
            memory,
        }
    }

    /// The first of some hashes that a file does not have. `go_on` is called while it is read.
    pub(super) fn differs(
        &mut self,
        path: &Path,
        digests: &[Digest],
        go_on: &mut Ask<'_>,
    ) -> Result<Option<Mismatch>, HubError> {
        if digests.is_empty() {
            return Ok(None);
        }
        let path = std::fs::canonicalize(path).map_err(HubError::io(path))?;
        let (size, changed) = stamp(&path)?;
        if let Some(known) = self.files.get(&path)
            && (known.size, known.changed) == (size, changed)
            && digests.iter().all(|digest| known.digests.contains(digest))
        {
            return Ok(None);
        }
        let found = Hashes::of(&path, size, digests, go_on)?;
        for Digest(expected) in digests {
            if !found.0.contains(expected) {
                return Ok(Some(Mismatch {
                    found: found.like(expected).to_owned(),
                    expected: expected.clone(),
                }));
            }
        }
        self.remember(&path, digests);
        Ok(None)
    }

    /// Remembers that a file has these hashes. That it cannot be kept only costs time.
    pub(super) fn remember(&mut self, path: &Path, digests: &[Digest]) {
        let Ok(path) = std::fs::canonicalize(path) else {
            return;
        };
        let Ok((size, changed)) = stamp(&path) else {
            return;
        };
        if digests.is_empty() || path.extension().is_some_and(|end| end == "part") {
            return;
        }
        self.files.retain(|path, _| path.exists());
        if self.files.len() >= MAX_FILES {
            return;
        }
        let digests = digests.to_vec();
        self.files.insert(
            path,
            Entry {
                size,
                changed,
                digests,
            },
        );
        if let Some(memory) = &self.memory
            && let Err(error) = keep(&self.files, memory)
        {
            tracing::debug!("{} cannot be written: {error}", memory.display());
        }
    }
}

/// Checks the files of a snapshot that molora reads by the names of their blobs.
///
/// # Errors
/// [`HubError::Damaged`] for the first that is another; [`HubError::Stopped`] by `go_on`, which
/// gets the file.
pub(super) fn check_snapshot(
    folder: &Path,
    known: &RefCell<Known>,
    go_on: &mut dyn FnMut(&str) -> Result<(), HubError>,
) -> Result<(), HubError> {
    for entry in std::fs::read_dir(folder).map_err(HubError::io(folder))? {
        let path = entry.map_err(HubError::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_weights = name.starts_with("model") && name.ends_with(".safetensors");
        if !(is_weights || name.ends_with(".json") || name.ends_with(".jinja")) {
            continue;
        }
        let Some(digest) = Digest::of_cached(&path) else {
            continue;
        };
        let mut known = known.borrow_mut();
        if let Some(Mismatch { found, expected }) =
            known.differs(&path, &[digest], &mut || go_on(&name))?
        {
            let path = path.clone();
            return Err(HubError::Damaged {
                path,
                found,
                expected,
            });
        }
    }
    Ok(())
}

/// Hashes of one content.
struct Hashes(Vec<String>);

impl Hashes {
    fn of(
        path: &Path,
        size: u64,
        wanted: &[Digest],
        go_on: &mut Ask<'_>,
    ) -> Result<Self, HubError> {
        let mut file = File::open(path).map_err(HubError::io(path))?;
        let is_wanted = |length| wanted.iter().any(|digest| digest.0.len() == length);
        let mut sha256 = is_wanted(64).then(Sha256::new);
        let mut sha1 = is_wanted(40).then(|| {
            let mut git = Sha1::new();
            git.update(format!("blob {size}\0"));
            [git, Sha1::new()]
        });
        let mut piece = vec![0; 1 << 20];
        loop {
            go_on()?;
            let count = file.read(&mut piece).map_err(HubError::io(path))?;
            if count == 0 {
                break;
            }
            let piece = &piece[..count];
            sha256.iter_mut().for_each(|hash| hash.update(piece));
            sha1.iter_mut()
                .flatten()
                .for_each(|hash| hash.update(piece));
        }
        let sha1 = sha1
            .into_iter()
            .flatten()
            .map(|hash| digits(&hash.finalize()));
        let sha256 = sha256.map(|hash| digits(&hash.finalize()));
        Ok(Self(sha1.chain(sha256).collect()))
    }

    /// The hash of the kind of another, git's where there are two.
    fn like(&self, other: &str) -> &str {
        let like = self.0.iter().find(|hash| hash.len() == other.len());
        like.map_or("", String::as_str)
    }
}

fn digits(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

/// Size and time of a file.
fn stamp(path: &Path) -> Result<(u64, u64), HubError> {
    let found = std::fs::metadata(path).map_err(HubError::io(path))?;
    let changed = found.modified().map_err(HubError::io(path))?;
    let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((found.len(), changed.as_nanos() as u64))
}

/// Writes the memory in one step.
fn keep(files: &BTreeMap<PathBuf, Entry>, memory: &Path) -> std::io::Result<()> {
    let folder = memory.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(files)?)?;
    file.persist(memory).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC_SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABC_SHA1: &str = "a9993e364706816aba3e25717850c26c9cd0d89d";
    /// `printf abc | git hash-object --stdin`.
    const ABC_GIT: &str = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";

    fn digest(text: &str) -> Digest {
        Digest::new(text).expect("digits")
    }

    fn expected(known: &mut Known, path: &Path, digests: &[Digest]) -> Option<String> {
        let found = known.differs(path, digests, &mut || Ok(()));
        let mismatch = found.expect("readable");
        mismatch.map(|Mismatch { found, expected }| format!("{found} {expected}"))
    }

    #[test]
    fn hashes_are_those_of_the_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").expect("writable");
        let mut known = Known::default();
        for text in [ABC_SHA256, ABC_SHA1, ABC_GIT, &ABC_SHA256.to_uppercase()] {
            assert_eq!(expected(&mut known, &path, &[digest(text)]), None, "{text}");
        }
        let zeros = "0".repeat(64);
        let text = format!("{ABC_SHA256} {zeros}");
        let both = [digest(ABC_SHA256), digest(&zeros)];
        assert_eq!(expected(&mut known, &path, &both), Some(text));
        assert_eq!(expected(&mut known, &path, &[]), None);
        for bad in ["", "abc", &"g".repeat(64), &"0".repeat(41)] {
            assert!(Digest::new(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_file_is_read_once_and_again_when_it_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, memory) = (folder.path().join("abc"), folder.path().join("m/hub.json"));
        std::fs::write(&path, "abc").expect("writable");
        let read = || Known::read(Some(memory.clone()));
        assert_eq!(expected(&mut read(), &path, &[digest(ABC_SHA256)]), None);
        let stop = &mut || -> Result<(), HubError> { panic!("it is not read again") };
        let again = read().differs(&path, &[digest(ABC_SHA256)], stop);
        assert!(again.expect("remembered").is_none());
        std::fs::write(&path, "abcd").expect("writable");
        assert!(expected(&mut read(), &path, &[digest(ABC_SHA256)]).is_some());
        std::fs::write(&memory, "{").expect("writable");
        assert!(expected(&mut read(), &path, &[digest(ABC_SHA256)]).is_some());
    }
}
