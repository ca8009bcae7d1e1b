//! Writing the manifest of an export.

use std::path::Path;

use molora_models::{Backbone, BaseDtype, TaskModel};

use super::adapted;
use crate::base::DeviceSpec;
use crate::base::base_model::BaseModel;
use crate::error::TrainError;
use crate::eval::Probed;
use crate::run::{Opened, base_of};
use crate::store::manifest::About;
use crate::store::{Digests, FolderKind, Manifest, ManifestBase, Probe};

/// What an export was made of, and where its probe is computed.
#[derive(Clone)]
pub(crate) struct Origin {
    base: ManifestBase,
    device: DeviceSpec,
}

impl Origin {
    /// A base model that is read in f32.
    ///
    /// # Errors
    /// If its files cannot be read.
    pub(crate) fn of(base: &BaseModel, device: DeviceSpec) -> Result<Self, TrainError> {
        let base = ManifestBase {
            name: base.name.clone(),
            dtype: BaseDtype::F32,
            files: Digests::of_base(&base.folder)?,
        };
        Ok(Self { base, device })
    }
}

/// The base model of a run.
///
/// # Errors
/// If its files cannot be read.
pub(crate) fn of_run(opened: &Opened) -> Result<Origin, TrainError> {
    Ok(Origin {
        base: base_of(&opened.config, &opened.loaded)?,
        device: opened.loaded.device_spec,
    })
}

/// Writes the manifest of a folder with a LoRA, whose probe is that of the files as they were written.
///
/// # Errors
/// If the folder cannot be read again or written to.
pub(crate) fn certify_adapter(
    folder: &Path,
    base: &Backbone,
    origin: Origin,
) -> Result<(), TrainError> {
    let probe = probed_alone(adapted(folder, base)?, Probe::of);
    write(folder, FolderKind::Adapter, origin, probe)
}

/// Writes the manifest of a folder with a method of PEFT, which is `what`, by its files alone.
///
/// # Errors
/// If the folder cannot be read again or written to.
pub(crate) fn certify_method(folder: &Path, what: &str, origin: Origin) -> Result<(), TrainError> {
    let why = format!("{what}: molora reads it as a run only (molora import)");
    write(folder, FolderKind::Adapter, origin, Probe::None { why })
}

/// Writes the manifest of a folder with a whole model that other programs compute by Python of its own.
///
/// # Errors
/// If the folder cannot be read again or written to.
pub(crate) fn certify_python(folder: &Path, origin: Origin) -> Result<(), TrainError> {
    let why = "its Python computes it, and molora reads the run".to_owned();
    write(folder, FolderKind::Model, origin, Probe::None { why })
}

/// Writes the manifest of a folder with a whole model, which is read again.
///
/// # Errors
/// As [`certify_adapter`].
pub(crate) fn certify_model(folder: &Path, mut origin: Origin) -> Result<(), TrainError> {
    let backbone = Backbone::from_folder(folder, &origin.device.open()?)?;
    origin.base.dtype = BaseDtype::F32;
    let probe = probed_alone(backbone, Probe::of);
    write(folder, FolderKind::Model, origin, probe)
}

fn write(folder: &Path, kind: FolderKind, origin: Origin, probe: Probe) -> Result<(), TrainError> {
    let about = About {
        kind,
        device: origin.device,
        base: origin.base,
        probe,
    };
    Manifest::of(folder, about)?.write(folder)
}

/// Probes a model without tasks.
pub(super) fn probed_alone<T>(backbone: Backbone, probe: impl FnOnce(&Probed<'_>) -> T) -> T {
    let heads = Vec::new();
    probe(&Probed {
        model: &TaskModel { backbone, heads },
        tasks: &[],
        instructions: None,
        clusters: None,
    })
}
