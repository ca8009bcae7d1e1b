//! Manifests of exports, and whether a folder still is what its manifest says.

mod certify;
mod files;
mod result;

use std::path::{Path, PathBuf};

use molora_models::Backbone;
use molora_models::peft::{PeftAdapter, attach};

pub(crate) use certify::{
    Origin, certify_adapter, certify_method, certify_model, certify_python, of_run,
};
pub use files::{ChangedTensor, FileState};
pub use result::{BaseState, ChangedOutput, ProbeState, TOLERANCE, Verified};

use crate::base::base_model::{BaseModel, find, silent};
use crate::base::digest::sha256_now;
use crate::base::{AdapterFolder, DeviceSpec};
use crate::error::{RunProblem, TrainError};
use crate::eval::{ProbeOutput, ProbeRecord, ProbeRow};
use crate::run::{check_finished, open_without_data, probe_opened};
use crate::store::{Digests, FolderKind, Manifest, Probe, is_run, read_config};
use crate::train::Event;
use certify::probed_alone;

/// What is verified, and how.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// A finished run or an export.
    pub folder: PathBuf,
    /// Its base model; the one that the manifest names if `None`.
    pub model: Option<String>,
    /// The device that the probe is computed on; that of the manifest if `None`.
    pub device: Option<DeviceSpec>,
}

/// Reads every byte of a folder that has a manifest, computes its probe again, and says what differs.
///
/// # Errors
/// [`RunProblem::NoManifest`] for a folder without a manifest; a run that is not finished, or whose
/// experts are being changed; a file that cannot be read. What differs is no error.
pub fn verify(
    request: &VerifyRequest,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Verified, TrainError> {
    let folder = &request.folder;
    if !folder.is_dir() {
        return Err(TrainError::run(folder, RunProblem::NoManifestHere));
    }
    if is_run(folder)? {
        read_config(folder)?;
        check_finished(folder)?;
    }
    let Some(manifest) = Manifest::read(folder)? else {
        return Err(TrainError::run(folder, RunProblem::NoManifest));
    };
    on_event(Event::Phase("reading files"));
    let files = FileState::of(folder, &manifest)?;
    let (base, found) = base_state(request, &manifest)?;
    on_event(Event::Phase("computing the probe"));
    let probe = match &manifest.probe {
        Probe::None { why } => ProbeState::None { why: why.clone() },
        Probe::Recorded(record) => probe_state(request, &manifest, found, record),
    };
    Ok(Verified {
        folder: folder.clone(),
        kind: manifest.kind,
        molora_version: manifest.molora_version,
        burn_version: manifest.burn_version,
        device: manifest.device,
        files,
        base,
        probe,
    })
}

/// The base model, if it is found, and whether its files are those of the manifest.
fn base_state(
    request: &VerifyRequest,
    manifest: &Manifest,
) -> Result<(BaseState, Option<BaseModel>), TrainError> {
    let name = request.model.as_ref().unwrap_or(&manifest.base.name);
    let model = match find(name, &mut silent) {
        Ok(model) => model,
        Err(error) => {
            let (name, why) = (name.clone(), error.to_string());
            return Ok((BaseState::NotFound { name, why }, None));
        }
    };
    let digests = |files| Digests {
        base: files,
        ..Digests::default()
    };
    let now = digests(Digests::of_base_by(&model.folder, sha256_now)?);
    let changed = digests(manifest.base.files.clone()).changed(&now);
    let name = name.clone();
    let state = match changed.is_empty() {
        true => BaseState::Same { name },
        false => BaseState::Changed {
            name,
            files: changed,
        },
    };
    Ok((state, Some(model)))
}

/// What the probe gives now; whatever keeps it from being computed is reported instead.
fn probe_state(
    request: &VerifyRequest,
    manifest: &Manifest,
    base: Option<BaseModel>,
    record: &ProbeRecord,
) -> ProbeState {
    if base.is_none() && manifest.kind != FolderKind::Model {
        let why = "the base model is not there".to_owned();
        return ProbeState::NotComputed { why };
    }
    match computed(request, manifest, base, &record.rows) {
        Ok(outputs) => ProbeState::of(&record.outputs, &outputs),
        Err(error) => ProbeState::NotComputed {
            why: error.to_string(),
        },
    }
}

fn computed(
    request: &VerifyRequest,
    manifest: &Manifest,
    base: Option<BaseModel>,
    rows: &[ProbeRow],
) -> Result<Vec<ProbeOutput>, TrainError> {
    let folder = &request.folder;
    let invalid = |problem| TrainError::run(folder, RunProblem::Device(problem));
    let device = match request.device {
        Some(device) => device,
        None => manifest.device.parse().map_err(invalid)?,
    };
    if manifest.kind == FolderKind::Run {
        let opened = open_without_data(folder, Some(device))?;
        return probe_opened(&opened, rows);
    }
    let device = device.open()?;
    let backbone = match base {
        Some(base) if manifest.kind == FolderKind::Adapter => {
            let folder = folder.clone();
            AdapterFolder { folder, base }.open(manifest.base.dtype, &device)?
        }
        _ => Backbone::from_folder(folder, &device)?,
    };
    probed_alone(backbone, |probed| probed.outputs(rows))
}

/// A base model with the adapter of a folder beside its weights.
fn adapted(folder: &Path, base: &Backbone) -> Result<Backbone, TrainError> {
    let mut backbone = base.clone();
    let adapter = PeftAdapter::open(folder)?.resolve(&backbone)?;
    attach(&mut backbone, &adapter);
    Ok(backbone)
}
