//! Finding the adapters of a folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::PeftConfig;
use super::key::{Key, ModuleTensor};
use crate::checkpoint::ModelWeights;
use crate::{AdapterFiles, ModelError};

/// Stem of the files with an adapter's tensors.
const STEM: &str = "adapter_model";

/// The name of an adapter that was saved without one.
const DEFAULT_NAME: &str = "default";

/// One adapter of a folder: its configuration and the names of its tensors, which are read when the
/// adapter is resolved.
#[derive(Debug, Clone)]
pub struct PeftAdapter {
    name: String,
    config: PeftConfig,
    pub(super) weights: Arc<ModelWeights>,
    /// Names in the file with what they mean.
    pub(super) keys: Vec<(String, Key)>,
}

impl PeftAdapter {
    /// Opens the only adapter of a folder: `adapter_config.json` beside `adapter_model.safetensors`
    /// or the files of its index, or the same in the only folder below.
    ///
    /// # Errors
    /// As [`open_all`](Self::open_all), or [`ModelError::File`] with the names if there are several.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let own = AdapterFiles::in_folder(folder).config.is_file();
        let mut found = match own {
            true => open_folder(folder, DEFAULT_NAME)?,
            false => Self::open_all(folder)?,
        };
        match found.len() {
            1 => Ok(found.remove(0)),
            _ => {
                let names: Vec<&str> = found.iter().map(Self::name).collect();
                let problem = format!("holds several adapters, expected one: {}", names.join(", "));
                Err(ModelError::file(folder, problem))
            }
        }
    }

    /// Opens the adapter of a folder that has this name.
    ///
    /// # Errors
    /// As [`open_all`](Self::open_all), or [`ModelError::File`] with the names that exist.
    pub fn open_named(folder: &Path, name: &str) -> Result<Self, ModelError> {
        let found = Self::open_all(folder)?;
        let names: Vec<String> = found.iter().map(|adapter| adapter.name.clone()).collect();
        let mut named = found.into_iter().filter(|adapter| adapter.name == name);
        named.next().ok_or_else(|| {
            let problem = format!("has no adapter {name}, but {}", names.join(", "));
            ModelError::file(folder, problem)
        })
    }

    /// Opens every adapter of a folder: the one in the folder itself, which PEFT calls `default`, and
    /// one in each folder below that has an `adapter_config.json`, which is called like the folder.
    /// Names in the keys of a file go first.
    ///
    /// # Errors
    /// A missing or broken file, a configuration in use that is not supported, or a tensor that no
    /// LoRA has; each names the file and the field or tensor.
    pub fn open_all(folder: &Path) -> Result<Vec<Self>, ModelError> {
        let mut found = Vec::new();
        if AdapterFiles::in_folder(folder).config.is_file() {
            found.extend(open_folder(folder, DEFAULT_NAME)?);
        }
        for below in folders_below(folder)? {
            let name = below.file_name().unwrap_or_default().to_string_lossy();
            found.extend(open_folder(&below, &name)?);
        }
        if found.is_empty() {
            let problem = "no adapter_config.json is in this folder or in one below it";
            return Err(ModelError::file(folder, problem));
        }
        Ok(found)
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its `adapter_config.json` says.
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }
}

/// Folders below with an `adapter_config.json`, sorted.
fn folders_below(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let io = |source| ModelError::Io {
        path: folder.into(),
        source,
    };
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if AdapterFiles::in_folder(&path).config.is_file() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

fn open_folder(folder: &Path, name: &str) -> Result<Vec<PeftAdapter>, ModelError> {
    let config = PeftConfig::from_file(&AdapterFiles::in_folder(folder).config)?;
    let weights = open_weights(folder)?;
    let mut keys = Vec::new();
    for text in weights.names() {
        let Some(key) = Key::parse(text).filter(|key| key.part != ModuleTensor::BBias) else {
            let problem = format!("tensor `{text}` is no part of a LoRA");
            return Err(ModelError::file(weights.path(), problem));
        };
        keys.push((text.clone(), key));
    }
    if keys.is_empty() {
        return Err(ModelError::file(weights.path(), "holds no tensors"));
    }
    let weights = Arc::new(weights);
    let adapter = |(own, keys): (Option<String>, _)| PeftAdapter {
        name: own.unwrap_or_else(|| name.to_owned()),
        config: config.clone(),
        weights: weights.clone(),
        keys,
    };
    Ok(by_adapter(keys).into_iter().map(adapter).collect())
}

fn open_weights(folder: &Path) -> Result<ModelWeights, ModelError> {
    let pickle = folder.join("adapter_model.bin");
    let has_tensors = ["", ".index.json"]
        .iter()
        .any(|end| folder.join(format!("{STEM}.safetensors{end}")).exists());
    if !has_tensors && pickle.exists() {
        let problem = "is a pickle, expected adapter_model.safetensors: save it again with \
                       safe_serialization=True";
        return Err(ModelError::file(&pickle, problem));
    }
    ModelWeights::open_stem(folder, STEM)
}

type Keys = Vec<(String, Key)>;

/// Keys by the adapter that they name; a parameter of the base that names none belongs to all.
fn by_adapter(keys: Keys) -> Vec<(Option<String>, Keys)> {
    let is_common = |key: &Key| {
        key.adapter.is_none() && matches!(key.part, ModuleTensor::Base(_) | ModuleTensor::Full(_))
    };
    let names: BTreeSet<Option<String>> = keys
        .iter()
        .filter(|(_, key)| !is_common(key))
        .map(|(_, key)| key.adapter.clone())
        .collect();
    if names.is_empty() {
        return vec![(None, keys)];
    }
    let of = |name: Option<String>| {
        let own = |(_, key): &&(String, Key)| is_common(key) || key.adapter == name;
        let keys = keys.iter().filter(own).cloned().collect();
        (name, keys)
    };
    names.into_iter().map(of).collect()
}
