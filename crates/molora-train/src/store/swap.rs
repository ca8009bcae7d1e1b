//! Putting many files of a run in place at once.
//!
//! New files are written into `<work>/ready/new`, and `<work>/ready/drop` lists what goes away. One
//! rename makes that folder the run's `.swap`: before it the run is what it was, from it on the run
//! is the new one. [`recover`] then moves every file to its place. It can be repeated until nothing is
//! left to move, and every command that writes begins with it: a kill in between is finished there.
//! Commands that only read say what is pending and leave it.
//!
//! A run may come from anywhere, so the folder is believed nothing: [`check`] refuses all that no
//! change of this molora has, before anything is moved or removed.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::names::{GROWING, REMOVING, is_file, is_plain, is_work, refuse_links_below};
use super::pool::{EXPERTS, GATE, HEAD};
use super::{MANIFEST, STAGES, checkpoint};
use crate::base::files::{copy, entries, is_own_folder, is_there, remove, sync, sync_all};
use crate::base::place::discard;
use crate::error::{RunProblem, TrainError};

/// Folder of what additions have replaced in a run folder.
pub(crate) const BEFORE: &str = "before";

/// Folder of a change that has been committed.
pub(crate) const SWAP: &str = ".swap";
const NEW: &str = "new";
const DROP: &str = "drop";

/// Folders whose entries are put in place one by one.
pub(super) const SHARED: [&str; 2] = [BEFORE, EXPERTS];

/// A change of a run that is being made ready.
pub(crate) struct Swap {
    ready: PathBuf,
}

impl Swap {
    /// An empty change in a working folder, in place of one that was left there.
    pub(crate) fn prepare(work: &Path) -> Result<Self, TrainError> {
        let ready = work.join("ready");
        discard(&ready)?;
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
        // What an earlier addition kept comes from the run, too.
        check(run, &self.ready)?;
        sync_all(&self.ready)?;
        let swap = run.join(SWAP);
        fs_err::rename(&self.ready, &swap)?;
        sync(run)?;
        recover(run)?;
        Ok(())
    }
}

/// What change of a run has been committed and not finished, in words.
pub(crate) fn pending(run: &Path) -> Option<String> {
    let swap = run.join(SWAP);
    if !is_there(&swap) {
        return None;
    }
    let list = std::fs::read_to_string(swap.join(DROP)).unwrap_or_default();
    let known = |begin: &str, words: &str| {
        let task = list.lines().find_map(|line| line.strip_prefix(begin));
        let task = task.filter(|task| is_plain(task));
        task.map(|task| format!("{words} {task}"))
    };
    let found = known(GROWING, "adding the expert of");
    let found = found.or_else(|| known(REMOVING, "removing the expert of"));
    Some(found.unwrap_or_else(|| "a change of the experts".into()))
}

/// Finishes a change that has been committed, and says which; does nothing without one.
///
/// # Errors
/// [`TrainError::Run`] if there is anything in it that no change has, in which case nothing has been
/// done; [`TrainError::Io`] if a file cannot be moved or removed.
pub(super) fn recover(run: &Path) -> Result<Option<String>, TrainError> {
    let Some(what) = pending(run) else {
        return Ok(None);
    };
    let swap = run.join(SWAP);
    let dropped = check(run, &swap)?;
    dropped
        .iter()
        .try_for_each(|path| remove(&run.join(path)))?;
    let new = swap.join(NEW);
    if is_there(&new) {
        move_into(&new, run)?;
    }
    remove_empty(&run.join(BEFORE))?;
    sync(run)?;
    discard(&swap)?;
    Ok(Some(what))
}

/// Removes a folder if it is there and empty: `before`, from which the last addition was taken back.
pub(super) fn remove_empty(folder: &Path) -> Result<(), TrainError> {
    match fs_err::remove_dir(folder) {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(error.into())
        }
        _ => Ok(()),
    }
}

/// Refuses a change that could reach anything but what a change of experts is about; returns the
/// paths that are to go.
fn check(run: &Path, swap: &Path) -> Result<Vec<String>, TrainError> {
    refuse_links_below(swap)?;
    for folder in SHARED.map(|name| run.join(name)) {
        if is_there(&folder) && !is_own_folder(&folder) {
            return Err(TrainError::run(&folder, RunProblem::NotPlain));
        }
    }
    let foreign = |name: &str| {
        let name = name.escape_debug().take(200).collect();
        TrainError::run(swap, RunProblem::ForeignChange { name })
    };
    for name in entries(swap)? {
        let is_ours = match &name[..] {
            NEW => is_own_folder(&swap.join(NEW)),
            DROP => !is_own_folder(&swap.join(DROP)),
            _ => false,
        };
        if !is_ours {
            return Err(foreign(&name));
        }
    }
    let list = match fs_err::read_to_string(swap.join(DROP)) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let dropped: Vec<String> = list.lines().map(str::to_owned).collect();
    if let Some(path) = dropped.iter().find(|path| !may_go(path)) {
        return Err(foreign(path));
    }
    match new_paths(&swap.join(NEW))?
        .iter()
        .find(|path| !may_come(path))
    {
        Some(path) => Err(foreign(&path.join("/"))),
        None => Ok(dropped),
    }
}

/// Whether a change may remove a path of the run.
fn may_go(path: &str) -> bool {
    match path.split_once('/') {
        None => path == STAGES || path == BEFORE || path == MANIFEST || is_work(path),
        Some((folder, task)) => SHARED.contains(&folder) && is_plain(task),
    }
}

/// Whether a change may bring a file, or an empty folder, of that path.
fn may_come(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match &path[..] {
        [EXPERTS] | [EXPERTS, _] | [BEFORE] | [BEFORE, _] => true,
        [EXPERTS, _, file] => is_expert_file(file),
        [BEFORE, _, rest @ ..] | rest => match rest {
            [file] => is_file(file) || *file == STAGES,
            [STAGES, _] => true,
            [STAGES, _, file] => is_file(file) || checkpoint::is_file(file),
            _ => false,
        },
    }
}

fn is_expert_file(name: &str) -> bool {
    name == HEAD || name == GATE || is_file(name)
}

/// The paths of all files and empty folders below a folder, by their names.
fn new_paths(folder: &Path) -> Result<Vec<Vec<String>>, TrainError> {
    if !is_there(folder) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for name in entries(folder)? {
        let path = folder.join(&name);
        let below = match is_own_folder(&path) {
            true => new_paths(&path)?,
            false => Vec::new(),
        };
        match below.is_empty() {
            true => found.push(vec![name]),
            false => {
                let whole = |rest: Vec<String>| [vec![name.clone()], rest].concat();
                found.extend(below.into_iter().map(whole));
            }
        }
    }
    Ok(found)
}

fn move_into(from: &Path, to: &Path) -> Result<(), TrainError> {
    fs_err::create_dir_all(to)?;
    for name in entries(from)? {
        let (from, to) = (from.join(&name), to.join(&name));
        if SHARED.contains(&&name[..]) {
            move_into(&from, &to)?;
            continue;
        }
        if is_own_folder(&to) {
            remove(&to)?;
        }
        fs_err::rename(&from, &to)?;
    }
    sync(to)
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
                ("run.toml", "old"),
                ("eval.json", "old"),
                ("stages/x/state.json", "old"),
                ("experts/one/head.safetensors", "1"),
            ],
        );
        let swap = Swap::prepare(&run.join(".growing-two")).expect("writable");
        write(
            &swap.new_files(),
            &[("run.toml", "new"), ("eval.json", "new")],
        );
        swap.keep(run, "two", "stages").expect("writable");
        write(&swap.new_files(), &[("experts/two/head.safetensors", "2")]);
        swap
    }

    fn assert_changed(run: &Path) {
        for (name, expected) in [
            ("run.toml", Some("new")),
            ("eval.json", Some("new")),
            ("stages/x/state.json", None),
            ("experts/one/head.safetensors", Some("1")),
            ("experts/two/head.safetensors", Some("2")),
            ("before/two/run.toml", Some("old")),
            ("before/two/eval.json", Some("old")),
            ("before/two/stages/x/state.json", Some("old")),
        ] {
            assert_eq!(read(run, name).as_deref(), expected, "{name}");
        }
        let mut left = entries(run).expect("readable");
        left.sort();
        assert_eq!(left, ["before", "eval.json", "experts", "run.toml"]);
    }

    #[test]
    fn a_change_replaces_keeps_and_drops() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let run = folder.path();
        let swap = ready(run);
        assert_eq!(read(run, "run.toml").as_deref(), Some("old"));
        swap.commit(run, &["stages".into(), ".growing-two".into()])
            .expect("writable");
        assert_changed(run);
    }

    /// A run with a change that is committed and not begun.
    fn committed(run: &Path, drop: &str) {
        let swap = ready(run);
        std::fs::write(swap.ready.join(DROP), drop).expect("writable");
        std::fs::rename(&swap.ready, run.join(SWAP)).expect("writable");
    }

    #[test]
    fn a_change_that_a_kill_cut_short_is_finished_by_the_next_writer() {
        for moved in 0..4 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let run = folder.path();
            committed(run, "stages\n.growing-two");
            let there = run.join(SWAP);
            let steps: [&dyn Fn(); 3] = [
                &|| remove(&run.join("stages")).expect("writable"),
                &|| {
                    let to = run.join("run.toml");
                    std::fs::rename(there.join("new/run.toml"), to).expect("writable");
                },
                &|| {
                    let to = run.join("experts/two");
                    std::fs::rename(there.join("new/experts/two"), to).expect("writable");
                },
            ];
            steps[..moved].iter().for_each(|step| step());
            let what = recover(run).expect("writable");
            assert_eq!(what.as_deref(), Some("adding the expert of two"));
            assert_changed(run);
            assert_eq!(recover(run).expect("nothing is left to do"), None);
            assert_changed(run);
        }
    }

    #[test]
    fn nothing_but_a_change_of_experts_is_believed() {
        for (drop, file, named) in [
            ("../outside", "", "../outside"),
            ("/tmp/outside", "", "/tmp/outside"),
            ("stages\nexperts/../../outside", "", "experts/../../outside"),
            ("experts", "", "experts"),
            ("run.toml", "", "run.toml"),
            (".growing-../outside", "", ".growing-../outside"),
            (
                "",
                ".swap/new/.git/hooks/post-commit",
                ".git/hooks/post-commit",
            ),
            ("", ".swap/new/experts/a/run.sh", "experts/a/run.sh"),
            ("", ".swap/new/.lock", ".lock"),
            ("", ".swap/new/before/a/b/c", "before/a/b/c"),
            ("", ".swap/more", "more"),
        ] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let run = folder.path().join("run");
            committed(&run, drop);
            write(folder.path(), &[("outside", "kept")]);
            if !file.is_empty() {
                write(&run, &[(file, "")]);
            }
            let error = recover(&run).expect_err(named).to_string();
            assert!(error.contains(&format!("`{named}` is not")), "{error}");
            assert_eq!(read(&run, "run.toml").as_deref(), Some("old"), "{named}");
            assert_eq!(read(folder.path(), "outside").as_deref(), Some("kept"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        use std::os::unix::fs::symlink;
        for link in ["experts", "before", ".swap", ".swap/new/experts/two"] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let (run, outside) = (folder.path().join("run"), folder.path().join("outside"));
            committed(&run, "stages");
            let path = run.join(link);
            match path.exists() {
                true => std::fs::rename(&path, &outside).expect("writable"),
                false => std::fs::create_dir(&outside).expect("writable"),
            }
            symlink(&outside, &path).expect("writable");
            let before = entries(&outside).expect("readable");
            let error = recover(&run).expect_err(link).to_string();
            assert!(error.contains("is a link"), "{link}: {error}");
            assert_eq!(entries(&outside).expect("readable"), before, "{link}");
            assert_eq!(read(&run, "run.toml").as_deref(), Some("old"), "{link}");
        }
    }
}
