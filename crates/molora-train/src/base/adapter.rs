//! Folders with an adapter as PEFT writes it, in the place of a model.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use molora_models::peft::{PeftAdapter, attach};
use molora_models::{Backbone, BaseDtype};

use super::base_model::{BaseModel, find};
use crate::error::{RunProblem, TrainError};
use crate::hub::OnProgress;

/// A folder with an adapter and the base model that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterFolder {
    /// The folder.
    pub folder: PathBuf,
    /// The base model.
    pub base: BaseModel,
}

impl AdapterFolder {
    /// Whether a folder holds an adapter.
    pub fn is(folder: &Path) -> bool {
        folder.join("adapter_config.json").is_file()
    }

    /// Finds the base model of an adapter: the one that is named, or else the one that its configuration names.
    ///
    /// # Errors
    /// A configuration that is broken, or names no base model where none is named; as [`find`].
    pub fn find(
        folder: &Path,
        model: Option<&str>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Self, TrainError> {
        let own = match model {
            Some(_) => None,
            None => PeftAdapter::open(folder)?.config().base_model.clone(),
        };
        let Some(name) = model.map(str::to_owned).or(own) else {
            return Err(TrainError::run(folder, RunProblem::NamesNoBase));
        };
        let base = find(&name, on_progress).map_err(|source| match model {
            Some(_) => source,
            None => TrainError::run(
                folder,
                RunProblem::BaseOfAdapter {
                    problem: source.to_string(),
                },
            ),
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            base,
        })
    }

    /// Reads the base model, its matrices in the given type, with the adapter beside its weights.
    ///
    /// # Errors
    /// Whatever reading model and adapter give; an adapter that does not fit the model.
    pub fn open(&self, base_dtype: BaseDtype, device: &Device) -> Result<Backbone, TrainError> {
        let backbone = Backbone::from_folder_as(&self.base.folder, base_dtype, device)?;
        self.attach(backbone)
    }

    /// Its base model, which was read already, with the adapter beside its weights.
    ///
    /// # Errors
    /// An adapter that cannot be read or does not fit the model.
    pub(crate) fn attach(&self, mut backbone: Backbone) -> Result<Backbone, TrainError> {
        let adapter = PeftAdapter::open(&self.folder)?.resolve(&backbone)?;
        attach(&mut backbone, &adapter);
        Ok(backbone)
    }
}
