//! From what a user calls a base model to the folder that holds it.
//!
//! | name | folder |
//! |---|---|
//! | `bundled:NAME` | one that the repository brings with it; where it is not here, from the Hub |
//! | an existing folder | itself |
//! | `org/name` or `org/name@revision` | downloaded from the Hub, see [`hub`] |
//! | `hub:org/name@revision` | the same, even if there is a folder `org/name` |

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::bundled;
use super::digest::sha256;
use crate::error::{RunProblem, TrainError};
use crate::hub;
use crate::hub::{HubConfig, HubError, ModelId, OnProgress};

/// A base model that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseModel {
    /// Folder with its files.
    pub folder: PathBuf,
    /// A name that leads to the same files from another folder and on another day:
    /// `bundled:NAME`, an absolute path or `hub:org/name@commit`.
    pub name: String,
}

/// Finds a base model, and downloads it if the Hub has it and the cache has not.
///
/// # Errors
/// If there is no such model; the error says what was tried. [`TrainError::Hub`] if it cannot be
/// downloaded.
pub fn find(name: &str, on_progress: &mut OnProgress<'_>) -> Result<BaseModel, TrainError> {
    let name = bundled_as_exported(name);
    if let Some(id) = name.strip_prefix("hub:") {
        return Ok(fetch(&id.parse()?, on_progress)?);
    }
    if bundled::is_on_hub(name) {
        return fetch_bundled(on_progress);
    }
    if name.starts_with("bundled:") || Path::new(name).is_dir() {
        return Ok(BaseModel {
            folder: bundled::folder(name)?,
            name: absolute(name),
        });
    }
    let Ok(id) = name.parse::<ModelId>() else {
        return Err(no_folder(name));
    };
    fetch(&id, on_progress).map_err(|error| match error {
        HubError::Stopped { .. } => error.into(),
        source => TrainError::NoModel {
            name: name.into(),
            source: source.into(),
        },
    })
}

/// Refuses what can be no base model, as far as that can be known without the Hub.
///
/// # Errors
/// If it is neither a folder nor a name on the Hub.
pub fn check(name: &str) -> Result<(), TrainError> {
    let name = bundled_as_exported(name);
    if let Some(id) = name.strip_prefix("hub:") {
        id.parse::<ModelId>()?;
        return Ok(());
    }
    if bundled::is_on_hub(name) {
        return Ok(());
    }
    let folder = bundled::folder(name)?;
    if folder.is_dir() || (!name.starts_with("bundled:") && name.parse::<ModelId>().is_ok()) {
        return Ok(());
    }
    Err(no_folder(&folder.to_string_lossy()))
}

/// The bundled model where a file names it as exports do, without `bundled:`, which Python does not know.
fn bundled_as_exported(name: &str) -> &str {
    let is_bundled = name == plain_name(bundled::MODEL) && !Path::new(name).exists();
    if is_bundled { bundled::MODEL } else { name }
}

/// The name of a base model for people and for other programs: without `bundled:`, `hub:` and the
/// commit.
pub(crate) fn plain_name(name: &str) -> &str {
    match name.strip_prefix("hub:") {
        Some(id) => id.split('@').next().unwrap_or(id),
        None => name.trim_start_matches("bundled:"),
    }
}

/// A path that still leads to the same place from another folder.
pub(crate) fn absolute(name: &str) -> String {
    if name.starts_with("bundled:") || name.starts_with("hub:") {
        return name.into();
    }
    let path = std::path::absolute(name).unwrap_or_else(|_| name.into());
    path.to_string_lossy().into_owned()
}

/// A progress callback that ignores progress and never cancels.
pub(crate) fn silent(_: hub::Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The bundled model from the cache, or else from the Hub, whose weights are known.
fn fetch_bundled(on_progress: &mut OnProgress<'_>) -> Result<BaseModel, TrainError> {
    let id: ModelId = bundled::MODEL_ON_HUB.parse()?;
    let config = HubConfig::from_env()?;
    let offline = HubConfig {
        offline: true,
        ..config.clone()
    };
    // It is always the same: what is in the cache needs no network.
    let kept = hub::fetch(&id, &offline, on_progress);
    let snapshot = kept.or_else(|_| hub::fetch(&id, &config, on_progress));
    let snapshot = snapshot.map_err(|error| match error {
        HubError::Stopped { .. } => error.into(),
        source => {
            let problem = source.to_string();
            TrainError::run(
                Path::new(bundled::MODEL),
                RunProblem::NoBundledModel { problem },
            )
        }
    })?;
    let weights = snapshot.folder.join("model.safetensors");
    let found = sha256(&weights)?;
    if !bundled::MODEL_SHA256.contains(&found.as_str()) {
        let expected = bundled::MODEL_SHA256[0].into();
        return Err(TrainError::run(
            &weights,
            RunProblem::OtherHash { found, expected },
        ));
    }
    Ok(BaseModel {
        name: format!("hub:{}", id.at(&snapshot.commit)),
        folder: snapshot.folder,
    })
}

fn fetch(id: &ModelId, on_progress: &mut OnProgress<'_>) -> Result<BaseModel, HubError> {
    let snapshot = hub::fetch(id, &HubConfig::from_env()?, on_progress)?;
    Ok(BaseModel {
        name: format!("hub:{}", id.at(&snapshot.commit)),
        folder: snapshot.folder,
    })
}

fn no_folder(name: &str) -> TrainError {
    let problem = match std::fs::metadata(name) {
        Ok(_) => "not a folder".to_owned(),
        Err(error) => error.to_string(),
    };
    TrainError::run(Path::new(name), RunProblem::NoModelFolder { problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_name_the_bundled_model_without_its_mark() {
        assert_eq!(
            bundled_as_exported(plain_name(bundled::MODEL)),
            bundled::MODEL
        );
        assert_eq!(bundled_as_exported("org/name"), "org/name");
    }

    #[test]
    fn plain_names() {
        for (name, expected) in [
            ("bundled:mini", "mini"),
            ("hub:org/name@0123", "org/name"),
            ("/models/mini", "/models/mini"),
        ] {
            assert_eq!(plain_name(name), expected);
        }
    }

    #[test]
    fn a_folder_is_itself() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let name = folder.path().to_str().expect("UTF-8");
        let found = find(name, &mut silent).expect("a folder");
        assert_eq!(
            (found.folder.as_path(), found.name.as_str()),
            (folder.path(), name)
        );
    }

    #[test]
    fn neither_folder_nor_name() {
        for name in ["modle", "./org/name", "/no/such/folder"] {
            let error = find(name, &mut silent)
                .expect_err("nothing there")
                .to_string();
            assert!(error.starts_with(name), "{error}");
            assert!(error.contains("org/name on the Hub"), "{error}");
        }
        let error = find("hub:name", &mut silent)
            .expect_err("no org")
            .to_string();
        assert_eq!(
            error,
            "`name` is no name of a model on the hub: expected org/name"
        );
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_hub_the_error_says_so() {
        let error = find("org/name", &mut silent).expect_err("not built");
        let text = "org/name: no such folder here, and as a model on the Hub: org/name: this \
                    molora was built without the feature `hub`; download the model's files and \
                    give their folder";
        assert_eq!(error.to_string(), text);
    }
}
