//! Putting many files of a run in place at once.
//!
//! New files are written into `<work>/ready/new`, and `<work>/ready/drop` lists what goes away. One
//! rename makes that folder the run's `.swap`: before it the run is what it was, from it on the run
//! is the new one. [`settle`] then moves every file to its place. It can be repeated until nothing is
//! left to move, and whoever opens a run begins with it: a kill in between is finished there.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::pool::EXPERTS;
use crate::TrainError;
use crate::base::files::{copy, entries, remove, sync, sync_all};

/// Folder of what additions have replaced in a run folder.
pub(crate) const BEFORE: &str = "before";

const SWAP: &str = ".swap";
const NEW: &str = "new";
const DROP: &str = "drop";

/// Folders whose entries are put in place one by one.
const SHARED: [&str; 2] = [BEFORE, EXPERTS];

/// A change of a run that is being made ready.
pub(crate) struct Swap {
    ready: PathBuf,
}

impl Swap {
    /// An empty change in a working folder, in place of one that was left there.
    pub(crate) fn prepare(work: &Path) -> Result<Self, TrainError> {
        let ready = work.join("ready");
        remove(&ready)?;
        let swap = Self { ready };
        fs_err::create_dir_all(swap.new_files())?;
        Ok(swap)
    }

    /// Folder for the new files.
    pub(crate) fn new_files(&self) -> PathBuf {
        self.ready.join(NEW)
    }

    /// Keeps what the new files, and those that are to go, replace as `before/<task>`.
    pub(crate) fn keep(&self, run: &Path, task: &str, to_go: &str) -> Result<(), TrainError> {
        let new = self.new_files();
        let kept = new.join(BEFORE).join(task);
        fs_err::create_dir_all(&kept)?;
        let replaced = entries(&new)?.into_iter().chain([to_go.to_owned()]);
        for name in replaced.filter(|name| !SHARED.contains(&&name[..])) {
            let old = run.join(&name);
            if old.exists() {
                copy(&old, &kept.join(&name))?;
            }
        }
        Ok(())
    }

    /// Changes the run: removes the paths in `drop`, which are relative to it and none of the new
    /// files', and puts the new files in place.
    pub(crate) fn commit(self, run: &Path, drop: &[String]) -> Result<(), TrainError> {
        let list = self.ready.join(DROP);
        fs_err::write(&list, drop.join("\n"))?;
        sync_all(&self.ready)?;
        let swap = run.join(SWAP);
        fs_err::rename(&self.ready, &swap)?;
        sync(run)?;
        settle(run)
    }
}

/// Finishes a change that has been committed; does nothing without one.
///
/// # Errors
/// [`TrainError::Io`] if a file cannot be moved or removed.
pub(crate) fn settle(run: &Path) -> Result<(), TrainError> {
    let swap = run.join(SWAP);
    if !swap.is_dir() {
        return Ok(());
    }
    let list = swap.join(DROP);
    match fs_err::read_to_string(&list) {
        Ok(text) => text.lines().try_for_each(|path| remove(&run.join(path)))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let new = swap.join(NEW);
    if new.is_dir() {
        move_into(&new, run)?;
    }
    remove(&swap)?;
    // Only an empty folder can be removed so.
    drop(std::fs::remove_dir(run.join(BEFORE)));
    Ok(())
}

fn move_into(from: &Path, to: &Path) -> Result<(), TrainError> {
    fs_err::create_dir_all(to)?;
    for name in entries(from)? {
        let (from, to) = (from.join(&name), to.join(&name));
        if SHARED.contains(&&name[..]) {
            move_into(&from, &to)?;
            continue;
        }
        if to.is_dir() {
            remove(&to)?;
        }
        fs_err::rename(&from, &to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = folder.join(name);
            fs_err::create_dir_all(path.parent().expect("below the folder")).expect("writable");
            std::fs::write(path, text).expect("writable");
        }
    }

    fn read(folder: &Path, name: &str) -> Option<String> {
        std::fs::read_to_string(folder.join(name)).ok()
    }

    /// A run with a change that is ready.
    fn ready(run: &Path) -> Swap {
        write(
            run,
            &[
                ("a", "old"),
                ("b", "old"),
                ("stages/x", "old"),
                ("experts/one/e", "1"),
            ],
        );
        let swap = Swap::prepare(&run.join(".work")).expect("writable");
        write(&swap.new_files(), &[("a", "new"), ("b", "new")]);
        swap.keep(run, "two", "stages").expect("writable");
        write(&swap.new_files(), &[("experts/two/e", "2")]);
        swap
    }

    fn assert_changed(run: &Path) {
        for (name, expected) in [
            ("a", Some("new")),
            ("b", Some("new")),
            ("stages/x", None),
            ("experts/one/e", Some("1")),
            ("experts/two/e", Some("2")),
            ("before/two/a", Some("old")),
            ("before/two/b", Some("old")),
            ("before/two/stages/x", Some("old")),
        ] {
            assert_eq!(read(run, name).as_deref(), expected, "{name}");
        }
        let mut left = entries(run).expect("readable");
        left.sort();
        assert_eq!(left, ["a", "b", "before", "experts"]);
    }

    #[test]
    fn a_change_replaces_keeps_and_drops() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let run = folder.path();
        let swap = ready(run);
        assert_eq!(read(run, "a").as_deref(), Some("old"));
        swap.commit(run, &["stages".into(), ".work".into()])
            .expect("writable");
        assert_changed(run);
    }

    #[test]
    fn a_change_that_a_kill_cut_short_is_finished_by_the_next_reader() {
        for moved in 0..4 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let run = folder.path();
            let swap = ready(run);
            std::fs::write(swap.ready.join(DROP), "stages\n.work").expect("writable");
            let there = run.join(SWAP);
            std::fs::rename(&swap.ready, &there).expect("writable");
            let steps: [&dyn Fn(); 3] = [
                &|| remove(&run.join("stages")).expect("writable"),
                &|| std::fs::rename(there.join("new/a"), run.join("a")).expect("writable"),
                &|| {
                    let to = run.join("experts/two");
                    std::fs::rename(there.join("new/experts/two"), to).expect("writable");
                },
            ];
            steps[..moved].iter().for_each(|step| step());
            settle(run).expect("writable");
            assert_changed(run);
            settle(run).expect("nothing is left to do");
            assert_changed(run);
        }
    }
}
