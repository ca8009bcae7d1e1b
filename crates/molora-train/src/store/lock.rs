//! One writer at a time for a folder.
//!
//! A command that writes keeps the system's lock on the folder's `.lock`, which says who has it. The
//! system takes the lock from a process that ends, however it ends. Commands that read need none.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{RunProblem, TrainError};

/// File of the lock in a folder that is being written.
pub(super) const LOCK: &str = ".lock";

/// The lock on a folder; whoever has it is the only writer until it is dropped.
#[derive(Debug)]
pub(crate) struct FolderLock {
    file: File,
    path: PathBuf,
}

impl FolderLock {
    /// Takes the lock of a folder that is there.
    ///
    /// # Errors
    /// [`RunProblem::InUse`] with the process that has it; [`TrainError::Io`] if the folder cannot be
    /// written to.
    pub(crate) fn take(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(LOCK);
        loop {
            if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
                return Err(TrainError::run(&path, RunProblem::NotPlain));
            }
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let mut file = options.open(&path).map_err(|error| named(&path, &error))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let holder = holder(&mut file);
                    return Err(TrainError::run(folder, RunProblem::InUse { holder }));
                }
                // Not every file system has locks.
                Err(TryLockError::Error(error)) => tracing::warn!(
                    "{}: the file system has no locks ({error}): nothing keeps a second molora from \
                     writing here",
                    folder.display()
                ),
            }
            // The one that had it may have removed the file, or replaced the folder, meanwhile.
            if is_same(&file, &path) {
                file.set_len(0)
                    .and_then(|()| writeln!(file, "process {}", std::process::id()))
                    .map_err(|error| named(&path, &error))?;
                return Ok(Self { file, path });
            }
        }
    }

    /// Says that the locked folder has another name now.
    pub(super) fn moved_to(&mut self, folder: &Path) {
        self.path = folder.join(LOCK);
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Whoever opened it meanwhile sees that it is gone, and makes another one. A file that stays
        // does no harm.
        if cfg!(unix) && is_same(&self.file, &self.path) {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Who has a lock, as it wrote.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(64).read_to_string(&mut text);
    let is_number = |id: &&str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
    let id = text.trim_end().strip_prefix("process ").filter(is_number);
    match (read, id) {
        (Ok(_), Some(id)) => format!("process {id}"),
        _ => "another process".into(),
    }
}

fn named(path: &Path, error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(unix)]
fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |one: &std::fs::Metadata, other: &std::fs::Metadata| {
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    matches!((file.metadata(), path.symlink_metadata()), (Ok(one), Ok(other)) if same(&one, &other))
}

#[cfg(not(unix))]
fn is_same(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_hears_of_the_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = FolderLock::take(folder.path()).expect("free");
        let error = FolderLock::take(folder.path()).expect_err("taken");
        let expected = format!("process {} is writing here", std::process::id());
        assert!(error.to_string().contains(&expected), "{error}");
        drop(first);
        drop(FolderLock::take(folder.path()).expect("free again"));
        // As a killed process leaves it.
        std::fs::write(folder.path().join(LOCK), "process 1\n").expect("writable");
        FolderLock::take(folder.path()).expect("nobody has it");
    }

    #[cfg(unix)]
    #[test]
    fn many_threads_have_it_one_after_the_other() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let folder = tempfile::tempdir().expect("a folder");
        let (inside, had) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        if let Ok(lock) = FolderLock::take(folder.path()) {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            had.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(had.into_inner() > 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (outside, run) = (folder.path().join("outside"), folder.path().join("run"));
        std::fs::create_dir(&run).expect("writable");
        std::os::unix::fs::symlink(&outside, run.join(LOCK)).expect("writable");
        let error = FolderLock::take(&run).expect_err("a link").to_string();
        assert!(error.contains("run/.lock: is a link"), "{error}");
        assert!(!outside.exists());
    }
}
