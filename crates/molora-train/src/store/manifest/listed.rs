//! Which files a manifest is about.

use std::path::Path;

use super::{FolderKind, MANIFEST};
use crate::TrainError;
use crate::base::files::{entries, is_own_folder};
use crate::base::place::is_temporary;
use crate::store::folder::{CHECKPOINTS, STAGES};
use crate::store::lock::LOCK;
use crate::store::names::{FOLDERS, is_work};
use crate::store::swap::{BEFORE, SWAP};

/// The paths of the files in a folder that a manifest is about, or would be if it knew them.
///
/// # Errors
/// If a folder cannot be read.
pub(crate) fn listed(folder: &Path, kind: FolderKind) -> Result<Vec<String>, TrainError> {
    let mut found = Vec::new();
    for name in entries(folder)? {
        let is_run = kind == FolderKind::Run;
        let is_by_product = name == MANIFEST || name == LOCK || is_temporary(&name);
        let is_state = is_run && (name == CHECKPOINTS || name == SWAP || is_work(&name));
        let is_folder = is_own_folder(&folder.join(&name));
        // Exports may lie in a run: folders, which have manifests of their own, and files of GGUF.
        let is_export = is_folder && !FOLDERS.contains(&&name[..]) || name.ends_with(".gguf");
        let is_other = is_run && is_export;
        if !is_by_product && !is_state && !is_other {
            add_listed(folder, name, &mut found)?;
        }
    }
    found.sort();
    Ok(found)
}

fn add_listed(root: &Path, path: String, found: &mut Vec<String>) -> Result<(), TrainError> {
    if !is_own_folder(&root.join(&path)) {
        found.push(path);
        return Ok(());
    }
    let mut names = entries(&root.join(&path))?.into_iter();
    names.try_for_each(|name| match is_temporary(&name) {
        true => Ok(()),
        false => add_listed(root, format!("{path}/{name}"), found),
    })
}

/// Whether the tensors of a file are listed one by one.
pub(super) fn has_tensors(path: &str) -> bool {
    let is_state = [STAGES, BEFORE].iter().any(|folder| {
        let rest = path.strip_prefix(folder);
        rest.is_some_and(|rest| rest.starts_with('/'))
    });
    path.ends_with(".safetensors") && !is_state
}
