//! Names of what a run folder has. A run may come from anywhere: a name in it that is not among
//! these, or could lead out of the folder, is refused, and so is a link.

use std::path::Path;

use super::folder::{
    BASE, CHECKPOINTS, EVAL, EXAMPLES, EXPERT_REPORT, PREDICTIONS, REPORT, ROUTING, STAGES, STEPS,
    SUMMARY, TENSORBOARD, UNSEEN,
};
use super::pool::{EXPERTS, GENERAL};
use super::swap::{BEFORE, SWAP};
use super::{MANIFEST, RUN, checkpoint};
use crate::base::files::{entries, is_there};
use crate::base::place::is_temporary;
use crate::error::{RunProblem, TrainError};
use crate::guide::{CLUSTERS, INSTRUCTIONS};

/// Files of a run folder.
pub(super) const FILES: [&str; 18] = [
    RUN,
    STEPS,
    SUMMARY,
    MANIFEST,
    EVAL,
    ROUTING,
    PREDICTIONS,
    REPORT,
    UNSEEN,
    BASE,
    EXAMPLES,
    EXPERT_REPORT,
    INSTRUCTIONS,
    CLUSTERS,
    checkpoint::HEADS,
    "adapter_config.json",
    "adapter_model.safetensors",
    super::lock::LOCK,
];
/// Folders of a run folder.
pub(super) const FOLDERS: [&str; 7] = [
    CHECKPOINTS,
    STAGES,
    EXPERTS,
    GENERAL,
    BEFORE,
    SWAP,
    TENSORBOARD,
];
/// Of these, what nothing but molora makes.
const OWN: [&str; 7] = [RUN, STEPS, CHECKPOINTS, STAGES, ROUTING, PREDICTIONS, SWAP];
/// Beginning of the folder in which an expert is added.
pub(crate) const GROWING: &str = ".growing-";
/// Beginning of the folder in which one is taken out.
pub(crate) const REMOVING: &str = ".removing-";

/// Whether a name can be that of a file or folder inside another one, and of nothing else.
pub(crate) fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && !name.contains(['/', '\\'])
        && !name.contains(char::is_control)
}

/// Refuses a name that is to be that of a folder and cannot.
pub(crate) fn check_name(file: &Path, what: &'static str, name: &str) -> Result<(), TrainError> {
    match is_plain(name) {
        true => Ok(()),
        false => {
            let name = name.escape_debug().to_string();
            Err(TrainError::run(file, RunProblem::Name { what, name }))
        }
    }
}

/// Whether a file of this name can come with a change of a run.
pub(super) fn is_file(name: &str) -> bool {
    FILES.contains(&name) && name != super::lock::LOCK
}

/// Whether a run folder has, or may have, something of this name.
pub(super) fn is_name_of_run(name: &str) -> bool {
    FILES.contains(&name) || FOLDERS.contains(&name) || is_work(name) || is_temporary(name)
}

/// Whether a name is that of a folder in which the experts are being changed.
pub(super) fn is_work(name: &str) -> bool {
    let task = name.strip_prefix(GROWING).or(name.strip_prefix(REMOVING));
    task.is_some_and(is_plain)
}

/// Whether a folder holds nothing, or nothing but what a killed process left before a run began.
pub(crate) fn is_empty(folder: &Path) -> Result<bool, TrainError> {
    let is_ours = |name: &String| is_temporary(name) || name == super::lock::LOCK;
    Ok(entries(folder)?.iter().all(is_ours))
}

/// Whether a folder holds what is left of a run that was being removed, and nothing else.
pub(super) fn is_remains(folder: &Path) -> Result<bool, TrainError> {
    let names = entries(folder)?;
    let is_known = |name: &String| is_name_of_run(name);
    let is_own = |name: &String| OWN.contains(&&name[..]);
    Ok(names.iter().all(is_known) && names.iter().any(is_own))
}

/// Refuses a run with a link where molora writes: it could lead anywhere.
pub(super) fn refuse_links(run: &Path) -> Result<(), TrainError> {
    for name in entries(run)? {
        let path = run.join(&name);
        if FOLDERS.contains(&&name[..]) || is_work(&name) {
            refuse_links_below(&path)?;
        } else if FILES.contains(&&name[..]) && !path.symlink_metadata()?.is_file() {
            return Err(TrainError::run(&path, RunProblem::NotPlain));
        }
    }
    Ok(())
}

/// Refuses what is neither a file nor a folder, at any depth.
pub(super) fn refuse_links_below(path: &Path) -> Result<(), TrainError> {
    let found = path.symlink_metadata()?;
    if found.is_dir() {
        let names = entries(path)?;
        return names.iter().try_for_each(|name| {
            let path = path.join(name);
            // A name that is no UTF-8, which molora does not write, is not found again.
            match is_there(&path) {
                true => refuse_links_below(&path),
                false => Err(TrainError::run(&path, RunProblem::NotPlain)),
            }
        });
    }
    match found.is_file() {
        true => Ok(()),
        false => Err(TrainError::run(path, RunProblem::NotPlain)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names() {
        for name in ["pets", ".hidden", "a b", "..."] {
            assert!(is_plain(name), "{name}");
        }
        for name in [
            "", ".", "..", "/", "a/b", "../a", "/a", "a\\b", "a\nb", "a\0",
        ] {
            assert!(!is_plain(name), "{name:?}");
        }
        assert!(is_work(".growing-pets") && is_work(".removing-pets"));
        assert!(!is_work(".growing-") && !is_work(".growing-../a") && !is_work("pets"));
    }

    #[test]
    fn remains_of_a_run_are_told_from_other_folders() {
        for (names, expected) in [
            (&["steps.jsonl", "experts"][..], true),
            (&["checkpoints", ".lock"], true),
            (&["adapter_config.json", "adapter_model.safetensors"], false),
            (&["steps.jsonl", "thesis.tex"], false),
            (&[], false),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            for name in names {
                std::fs::write(folder.path().join(name), "").expect("writable");
            }
            let found = is_remains(folder.path()).expect("readable");
            assert_eq!(found, expected, "{names:?}");
        }
    }
}
