//! The given experts, and what is known of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_models::peft::{PeftAdapter, ResolvedAdapter};
use molora_models::{AdapterFiles, Backbone, TaskHead, Weights, load_heads};

use super::CombineRequest;
use crate::base::base_model::{self, BaseModel};
use crate::error::{RunProblem, TrainError};
use crate::exchange::lora::{LoraSelector, as_lora};
use crate::run::{find_model, open_without_data};
use crate::store::checkpoint::HEADS;
use crate::store::pool::{EXPERTS, HEAD};
use crate::store::{RunConfig, is_run, read_config};
use crate::train::Event;

/// An expert that has been read for the base model.
pub(super) struct Expert {
    pub(super) adapter: ResolvedAdapter,
    /// The heads that it brings, by task.
    pub(super) heads: Vec<(String, TaskHead)>,
}

/// Where an expert is from.
pub(super) struct Origin {
    folder: PathBuf,
    /// Whether it is a run itself, whose mixture has to be one LoRA.
    is_run: bool,
    /// The run that it is, or is an expert of.
    pub(super) run: Option<RunConfig>,
    /// The base model that it says it belongs to.
    base: Option<String>,
}

impl Origin {
    /// Looks at what is there, without reading any tensor.
    ///
    /// # Errors
    /// A folder that is not there, or neither a run nor an adapter.
    pub(super) fn of(folder: &Path) -> Result<Self, TrainError> {
        if !fs_err::metadata(folder)?.is_dir() {
            return Err(TrainError::run(folder, RunProblem::NoExpertHere));
        }
        if is_run(folder)? {
            let run = read_config(folder)?;
            return Ok(Self {
                folder: folder.into(),
                is_run: true,
                base: Some(run.base_name().into()),
                run: Some(run),
            });
        }
        let files = AdapterFiles::in_folder(folder);
        let open = || PeftAdapter::open(folder);
        let adapter = match files.config.is_file() {
            true => open()?,
            // The adapter may be in the only folder below.
            false => open().map_err(|_| TrainError::run(folder, RunProblem::NoExpertHere))?,
        };
        let run = run_of(folder)?.as_deref().map(read_config).transpose()?;
        Ok(Self {
            folder: folder.into(),
            is_run: false,
            base: adapter.config().base_model.clone(),
            run,
        })
    }

    /// Reads it for the base model.
    ///
    /// # Errors
    /// A mixture that no LoRA equals, a LoRA with magnitudes or whole parameters, a tensor that is of
    /// another model.
    pub(super) fn read(
        &self,
        base: &Backbone,
        request: &CombineRequest,
        device: &Device,
    ) -> Result<Expert, TrainError> {
        let folder = &self.folder;
        let adapter = match self.is_run {
            true => {
                let opened = open_without_data(folder, Some(request.device))?;
                placed(as_lora(folder, &opened, &LoraSelector::default())?, device)
            }
            false => PeftAdapter::open(folder)?.resolve(base)?,
        };
        if adapter.loras.iter().any(|lora| lora.magnitude.is_some()) {
            return Err(TrainError::run(folder, RunProblem::Dora));
        }
        if let Some(full) = adapter.full.first() {
            let path = full.path.clone();
            return Err(TrainError::run(folder, RunProblem::HoldsWhole { path }));
        }
        Ok(Expert {
            heads: heads_of(folder, base, device)?,
            adapter,
        })
    }
}

/// The same numbers on the device of the base, which may keep gradients.
fn placed(mut adapter: ResolvedAdapter, device: &Device) -> ResolvedAdapter {
    for lora in &mut adapter.loras {
        for factor in [&mut lora.a, &mut lora.b] {
            *factor = Tensor::from_data(factor.clone().into_data(), device);
        }
    }
    adapter
}

/// The run that a folder is an expert of.
fn run_of(folder: &Path) -> Result<Option<PathBuf>, TrainError> {
    let folder = fs_err::canonicalize(folder)?;
    let parent = folder.parent();
    let run = parent.filter(|parent| parent.file_name().is_some_and(|name| name == EXPERTS));
    match run.and_then(Path::parent) {
        Some(run) if is_run(run)? => Ok(Some(run.into())),
        _ => Ok(None),
    }
}

/// The heads beside an expert, by the tasks that its file names.
fn heads_of(
    folder: &Path,
    base: &Backbone,
    device: &Device,
) -> Result<Vec<(String, TaskHead)>, TrainError> {
    let files = [HEAD, HEADS].map(|file| folder.join(file));
    let Some(path) = files.into_iter().find(|path| path.is_file()) else {
        return Ok(Vec::new());
    };
    let weights = Weights::open(&path)?;
    let ends = weights.names().iter();
    let tasks = ends.filter_map(|name| name.strip_suffix(".weight").map(str::to_owned));
    let tasks: Vec<String> = tasks.collect();
    let fresh = |task: &String| {
        let shape = weights.shape(&format!("{task}.weight")).unwrap_or_default();
        let classes = shape.first().copied().unwrap_or(1);
        Some(TaskHead::new(base.width(), classes, Seed::new(0), device))
    };
    let mut heads: Vec<Option<TaskHead>> = tasks.iter().map(fresh).collect();
    load_heads(&path, &tasks, &mut heads)?;
    Ok(tasks.into_iter().zip(heads.into_iter().flatten()).collect())
}

/// Finds the base model: the one that is requested, that of the first expert of a run, or the one that
/// the first adapter names.
///
/// # Errors
/// If it is not known, cannot be found, or experts belong to different ones.
pub(super) fn base(
    request: &CombineRequest,
    origins: &[Origin],
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<BaseModel, TrainError> {
    check_bases(origins)?;
    let of_run = || {
        origins
            .iter()
            .find_map(|origin| Some(origin.run.as_ref()?.model.clone()))
    };
    let named = || origins.iter().find_map(|origin| origin.base.clone());
    let Some(name) = request.base.clone().or_else(of_run).or_else(named) else {
        let folder = &request.experts[0];
        return Err(TrainError::run(folder, RunProblem::NoBaseNamed));
    };
    base_model::check(&name)?;
    find_model(&name, stop, on_event)
}

/// Refuses experts that say that they belong to different base models. Folders and names on the Hub
/// are compared by their last part.
fn check_bases(origins: &[Origin]) -> Result<(), TrainError> {
    let short = |name: &str| {
        let name = name.trim_end_matches(['/', '\\']);
        name.rsplit(['/', '\\']).next().unwrap_or(name).to_owned()
    };
    let mut named = origins.iter().filter_map(|o| Some((o, o.base.as_ref()?)));
    let Some((first, base)) = named.next() else {
        return Ok(());
    };
    match named.find(|(_, other)| short(other) != short(base)) {
        None => Ok(()),
        Some((origin, other)) => {
            let problem = RunProblem::DifferentBases {
                found: other.clone(),
                first: first.folder.display().to_string(),
                expected: base.clone(),
            };
            Err(TrainError::run(&origin.folder, problem))
        }
    }
}

/// The name of the base model that adapter files get: what the experts say, or that of the folder.
pub(super) fn base_name(origins: &[Origin], model: &BaseModel) -> String {
    let named = origins.iter().find_map(|origin| origin.base.clone());
    named.unwrap_or_else(|| base_model::plain_name(&model.name).into())
}
