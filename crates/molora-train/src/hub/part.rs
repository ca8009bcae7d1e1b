//! A partially downloaded file and its lock.
//!
//! The lock is a file of its own, which stays: a part gets another name when it is whole, and whoever
//! opens the old name between that and the file's link in its commit would find a new, unlocked part.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;

/// The beginning of a file, as far as it is there.
pub(super) struct PartialFile {
    path: PathBuf,
    file: File,
    /// Held until the part is dropped.
    _lock: File,
    pub(super) len: u64,
}

impl PartialFile {
    /// Opens the part and keeps other processes from it by a lock at `lock`; `wait` is called while one
    /// has it.
    pub(super) fn open(
        path: PathBuf,
        lock: &Path,
        wait: &mut dyn FnMut() -> Result<(), HubError>,
    ) -> Result<Self, HubError> {
        let lock = open(lock)?;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => wait()?,
                // Not every file system has locks.
                Err(TryLockError::Error(_)) => break,
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let file = open(&path)?;
        let len = file.metadata().map_err(HubError::io(&path))?.len();
        Ok(Self {
            path,
            file,
            _lock: lock,
            len,
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        let written = self.file.write_all(bytes);
        written.map_err(HubError::io(&self.path))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn cut(&mut self) -> Result<(), HubError> {
        self.len = 0;
        self.file.set_len(0).map_err(HubError::io(&self.path))
    }

    pub(super) fn remove(&self) -> Result<(), HubError> {
        std::fs::remove_file(&self.path).map_err(HubError::io(&self.path))
    }

    /// Gives the whole file its name, once its bytes are on the disk.
    pub(super) fn finish(&self, blob: &Path) -> Result<(), HubError> {
        self.file.sync_all().map_err(HubError::io(&self.path))?;
        std::fs::rename(&self.path, blob).map_err(HubError::io(blob))
    }
}

/// Opens a file to append to it, which is made if it is not there.
fn open(path: &Path) -> Result<File, HubError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(HubError::io(folder))?;
    }
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.map_err(HubError::io(path))
}
