//! Writing a whole model that transformers loads.

use std::path::{Path, PathBuf};

use molora_models::peft::{MergedDtype, PeftAdapter, merge_into, save_merged};
use molora_models::{Backbone, BaseDtype};

use super::lora::{LoraSelector, as_lora};
use super::{carry_ends, check_new, copy_heads};
use crate::TrainError;
use crate::base::place::NewFolder;
use crate::base::{AdapterFolder, DeviceSpec};
use crate::run::open_without_data;
use crate::verify::{Origin, certify_model, of_run};

/// What is merged, and where to.
#[derive(Debug, Clone)]
pub struct MergeRequest {
    /// The run folder.
    pub run: PathBuf,
    /// The mixture, or one expert.
    pub choice: LoraSelector,
    /// Folder to write.
    pub out: PathBuf,
    /// Type of the numbers.
    pub dtype: MergedDtype,
    /// The device; that of the run if `None`.
    pub device: Option<DeviceSpec>,
}

/// Adds an adapter that PEFT wrote to the weights of its base model and writes the whole model, with
/// configuration and tokenizer.
///
/// # Errors
/// A folder that is not empty; an adapter that cannot be read or does not fit the model; whatever writing gives.
pub fn merge_adapter(
    adapter: &AdapterFolder,
    out: &Path,
    dtype: MergedDtype,
    device: DeviceSpec,
) -> Result<Merged, TrainError> {
    check_new(out)?;
    let mut model = Backbone::from_folder(&adapter.base.folder, &device.open()?)?;
    let resolved = PeftAdapter::open(&adapter.folder)?.resolve(&model)?;
    merge_into(&mut model, &resolved);
    let new = NewFolder::for_place(out)?;
    save_merged(&model, &adapter.base.folder, new.path(), dtype)?;
    // The model is read again, and would be in memory twice.
    drop(model);
    certify_model(new.path(), Origin::of(&adapter.base, device)?)?;
    new.put_new()?;
    Ok(Merged {
        modules: resolved.num_modules(),
        has_heads: false,
    })
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Number of modules whose weights changed.
    pub modules: usize,
    /// Whether the heads of the run's tasks were written beside the model.
    pub has_heads: bool,
}

/// Adds the mixture of a run to the weights of its base model and writes the whole model, with
/// configuration and tokenizer.
///
/// # Errors
/// [`TrainError::Run`] if the mixture is not static, an expert or task does not exist, or the folder
/// is not empty; whatever reading the run and writing give.
pub fn merge(request: &MergeRequest) -> Result<Merged, TrainError> {
    check_new(&request.out)?;
    let opened = open_without_data(&request.run, request.device)?;
    let adapter = as_lora(&request.run, &opened, &request.choice)?;
    // Of a base that was kept in fewer bits the files still have all of them.
    let mut model = match opened.config.base_dtype {
        BaseDtype::F32 => opened.loaded.base.clone(),
        _ => Backbone::from_folder(&opened.loaded.folder, &opened.loaded.device)?,
    };
    merge_into(&mut model, &adapter);
    let new = NewFolder::for_place(&request.out)?;
    save_merged(&model, &opened.loaded.folder, new.path(), request.dtype)?;
    carry_ends(&opened, new.path())?;
    let has_heads = opened.model.heads.iter().any(Option::is_some);
    copy_heads(&request.run, new.path(), has_heads)?;
    let (origin, modules) = (of_run(&opened)?, adapter.num_modules());
    // The model is read again, and would be in memory twice.
    drop((model, opened));
    certify_model(new.path(), origin)?;
    new.put_new()?;
    Ok(Merged { modules, has_heads })
}
