//! The manifest of a run that is finished.

use std::path::Path;

use molora_kernels::random::Seed;

use super::{Loaded, Opened};
use crate::base::place::{json_bytes, write_atomically};
use crate::data::task_names;
use crate::error::TrainError;
use crate::eval::{ProbeOutput, ProbeRow, Probed};
use crate::guide::{Clusters, Instructions};
use crate::report::RunSummary;
use crate::store::manifest::About;
use crate::store::{
    Digests, FolderKind, Manifest, ManifestBase, Probe, RunConfig, SUMMARY, checkpoint,
};

/// Writes the manifest and then the summary of a run that has all its other results: a finished run has
/// a manifest.
pub(super) fn write_summary(
    folder: &Path,
    config: &RunConfig,
    loaded: &Loaded,
    summary: &RunSummary,
) -> Result<(), TrainError> {
    let about = About {
        kind: FolderKind::Run,
        device: loaded.device_spec,
        base: base_of(config, loaded)?,
        probe: probe_of(folder, config, loaded)?,
    };
    let path = folder.join(SUMMARY);
    let summary = json_bytes(&path, summary)?;
    let mut manifest = Manifest::of(folder, about)?;
    manifest.put(SUMMARY, &summary);
    manifest.write(folder)?;
    // The last thing: from here on the run is finished and needs no checkpoint.
    write_atomically(&path, &summary)
}

/// The base model of a run, as it was when the run began.
///
/// # Errors
/// If its files cannot be read.
pub(crate) fn base_of(config: &RunConfig, loaded: &Loaded) -> Result<ManifestBase, TrainError> {
    Ok(ManifestBase {
        name: config.model.clone(),
        dtype: config.base_dtype,
        files: match &config.digests {
            Some(digests) => digests.base.clone(),
            None => Digests::of_base(&loaded.folder)?,
        },
    })
}

/// What the model of a run computes as its files have it; one that computes no numbers has no probe.
fn probe_of(folder: &Path, config: &RunConfig, loaded: &Loaded) -> Result<Probe, TrainError> {
    let names = task_names(&loaded.tasks);
    let mut model = loaded.mixture(Seed::new(config.seed))?;
    checkpoint::load_weights(folder, &mut model, &loaded.spec, &names)?;
    let has_instructions = config.recipe.instructions().is_some();
    let instructions = has_instructions.then(|| Instructions::load(folder, &names));
    let instructions = instructions.transpose()?;
    let clusters = Clusters::load_for(folder, &loaded.spec)?;
    let probed = Probed {
        model: &model,
        tasks: &names,
        instructions: instructions.as_ref(),
        clusters: clusters.as_ref(),
    };
    Ok(Probe::of(&probed))
}

/// What a run that was opened computes from rows.
///
/// # Errors
/// Rows that the model cannot read, and outputs that are no numbers.
pub(crate) fn probe_opened(
    opened: &Opened,
    rows: &[ProbeRow],
) -> Result<Vec<ProbeOutput>, TrainError> {
    let probed = Probed {
        model: &opened.model,
        tasks: &task_names(&opened.loaded.tasks),
        instructions: opened.instructions.as_ref(),
        clusters: opened.clusters.as_ref(),
    };
    probed.outputs(rows)
}
