//! What became of the files of a manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use crate::base::digest::sha256_now;
use crate::error::TrainError;
use crate::store::manifest::{file_record, listed};
use crate::store::{Manifest, TensorRecord, Tensors};

/// What became of the files of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FileState {
    /// Number of files that have every byte.
    pub same: usize,
    /// Files with other bytes, each with the tensors that are others, where it is a file of tensors.
    pub changed: BTreeMap<String, Vec<ChangedTensor>>,
    /// Files that are not there.
    pub missing: Vec<String>,
    /// Files that the manifest does not know.
    pub extra: Vec<String>,
}

/// A tensor that is another one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChangedTensor {
    /// Its name in the file.
    pub name: String,
    /// What is other, in words, where it is no matter of values.
    pub what: Option<String>,
    /// The Euclidean length of the difference, estimated from sketches: exact where one value
    /// differs, and hardly any value differs by more.
    pub difference: Option<f64>,
    /// The same as a share of the length of the tensor as it was.
    pub relative: Option<f64>,
}

impl FileState {
    /// Reads every file of a folder.
    ///
    /// # Errors
    /// If one cannot be read.
    pub(super) fn of(folder: &Path, manifest: &Manifest) -> Result<Self, TrainError> {
        let there: BTreeSet<String> = listed(folder, manifest.kind)?.into_iter().collect();
        let is_known = |path: &&String| manifest.files.contains_key(*path);
        let mut state = Self {
            extra: there
                .iter()
                .filter(|path| !is_known(path))
                .cloned()
                .collect(),
            ..Self::default()
        };
        for (path, expected) in &manifest.files {
            if !there.contains(path) {
                state.missing.push(path.clone());
                continue;
            }
            let tensors = manifest.tensors.get(path);
            let place = folder.join(path);
            let (found, now) = match tensors {
                None => (sha256_now(&place)?, None),
                Some(_) => file_record(&place, true)?,
            };
            match (found == *expected, tensors) {
                (true, _) => state.same += 1,
                (false, None) => drop(state.changed.insert(path.clone(), Vec::new())),
                (false, Some(then)) => {
                    let changed = changed(then, now.as_ref());
                    state.changed.insert(path.clone(), changed);
                }
            }
        }
        Ok(state)
    }

    /// Whether all files are there as they were, and no other ones.
    pub fn is_same(&self) -> bool {
        self.changed.is_empty() && self.missing.is_empty() && self.extra.is_empty()
    }
}

/// The tensors that are others than they were; none are named of what is no file of tensors any more.
fn changed(then: &Tensors, now: Option<&Tensors>) -> Vec<ChangedTensor> {
    let Some(now) = now else {
        return vec![only("*", "no whole safetensors file")];
    };
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    let of = |name: &String| match (then.get(name), now.get(name)) {
        (Some(then), Some(now)) => tensor(name, then, now),
        (None, _) => Some(only(name, "is new")),
        (_, None) => Some(only(name, "is missing")),
    };
    names.into_iter().filter_map(of).collect()
}

fn only(name: &str, what: &str) -> ChangedTensor {
    ChangedTensor {
        name: name.into(),
        what: Some(what.into()),
        difference: None,
        relative: None,
    }
}

fn tensor(name: &str, then: &TensorRecord, now: &TensorRecord) -> Option<ChangedTensor> {
    if then == now {
        return None;
    }
    if (&then.shape, &then.dtype) != (&now.shape, &now.dtype) {
        let text = |one: &TensorRecord| format!("{} {:?}", one.dtype, one.shape);
        let what = format!("is {}, was {}", text(now), text(then));
        return Some(only(name, &what));
    }
    let (Some(was), Some(is)) = (&then.sketch, &now.sketch) else {
        return Some(only(name, "has other values, or some that are not finite"));
    };
    let difference = was.distance(is);
    let relative = (was.length() > 0.0).then(|| difference / was.length());
    Some(ChangedTensor {
        name: name.into(),
        what: None,
        difference: Some(difference),
        relative,
    })
}
