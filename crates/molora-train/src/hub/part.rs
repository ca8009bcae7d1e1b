//! A partially downloaded file and its lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;

/// The beginning of a file, as far as it is there.
pub(super) struct PartialFile {
    path: PathBuf,
    file: File,
    pub(super) len: u64,
}

impl PartialFile {
    /// Opens the part and keeps other processes from it; `wait` is called while one has it.
    pub(super) fn open(
        path: PathBuf,
        wait: &mut dyn FnMut() -> Result<(), HubError>,
    ) -> Result<Self, HubError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let file = file.map_err(HubError::io(&path))?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => wait()?,
                // Not every file system has locks.
                Err(TryLockError::Error(_)) => break,
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let len = file.metadata().map_err(HubError::io(&path))?.len();
        Ok(Self { path, file, len })
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
