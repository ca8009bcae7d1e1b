//! Writing an adapter that PEFT loads.

use std::path::{Path, PathBuf};

use molora_models::Adaptable;
use molora_models::peft::{FullTensor, PeftAbout, ResolvedAdapter, write_adapter};

use super::lora::{LoraSelector, as_lora};
use super::method::Method;
use super::{carry_ends, check_new, copy_heads};
use crate::TrainError;
use crate::base::DeviceSpec;
use crate::base::place::NewFolder;
use crate::run::{Opened, open_without_data};
use crate::verify::{certify_adapter, of_run};

/// What is exported, and where to.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// The run folder.
    pub run: PathBuf,
    /// The mixture, or one expert.
    pub choice: LoraSelector,
    /// Folder to write.
    pub out: PathBuf,
    /// Name of the adapter; PEFT keeps any but `default` in a folder below of that name.
    pub name: String,
    /// The device; that of the run if `None`.
    pub device: Option<DeviceSpec>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// What it is, in words.
    pub kind: &'static str,
    /// Folder of the two files.
    pub folder: PathBuf,
    /// Number of adapted modules.
    pub modules: usize,
    /// Paths of the modules that it holds whole.
    pub whole: Vec<String>,
    /// The smallest and the largest rank.
    pub ranks: (usize, usize),
    /// Number of parameters.
    pub parameters: usize,
    /// Whether the heads of the run's tasks were written beside them.
    pub has_heads: bool,
    /// What there is to know about what PEFT makes of it.
    pub note: Option<&'static str>,
}

/// Writes the mixture of a run, or one of its experts, as an adapter that PEFT loads: as PEFT's own method
/// where it has the run's, else as one LoRA.
///
/// # Errors
/// [`TrainError::Run`] if neither computes the same, an expert or task does not exist, or the folder
/// is not empty; whatever reading the run and writing give.
pub fn export(request: &ExportRequest) -> Result<Exported, TrainError> {
    check_new(&request.out)?;
    let opened = open_without_data(&request.run, request.device)?;
    let is_whole = request.choice.expert.is_none() && request.choice.task.is_none();
    if let Some(method) = Method::of(&opened).filter(|_| is_whole) {
        return method.write(request, &opened);
    }
    let adapter = as_lora(&request.run, &opened, &request.choice)?;
    write(&request.run, &opened, &adapter, &request.out, &request.name)
}

/// Writes a LoRA for the base model of a run, and the heads of the run.
pub(super) fn write(
    run: &Path,
    opened: &Opened,
    adapter: &ResolvedAdapter,
    out: &Path,
    name: &str,
) -> Result<Exported, TrainError> {
    let base = &opened.loaded.base;
    let about = PeftAbout {
        name: name.into(),
        base_model: opened.config.base_name().into(),
        task_type: Some(base.task_type().into()),
    };
    let new = NewFolder::for_place(out)?;
    let written = write_adapter(new.path(), base, adapter, &about)?;
    carry_ends(opened, &written)?;
    let has_heads = opened.model.heads.iter().any(Option::is_some);
    copy_heads(run, &written, has_heads)?;
    certify_adapter(&written, base, of_run(opened)?)?;
    let folder = match written == new.path() {
        true => out.to_owned(),
        false => out.join(name),
    };
    new.put_new()?;
    Ok(exported(folder, adapter, has_heads))
}

pub(super) fn exported(folder: PathBuf, adapter: &ResolvedAdapter, has_heads: bool) -> Exported {
    let ranks = || adapter.loras.iter().map(|lora| lora.a.dims()[1]);
    let size = |dims: [usize; 2]| dims[0] * dims[1];
    let factors = adapter.loras.iter();
    let factors = factors.map(|lora| size(lora.a.dims()) + size(lora.b.dims()));
    let whole = adapter.full.iter();
    Exported {
        kind: "a LoRA",
        note: None,
        folder,
        modules: adapter.loras.len(),
        ranks: (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0)),
        parameters: factors
            .chain(whole.clone().map(FullTensor::num_values))
            .sum(),
        whole: whole.map(|full| full.path.clone()).collect(),
        has_heads,
    }
}
