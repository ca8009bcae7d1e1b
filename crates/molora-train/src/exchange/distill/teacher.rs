//! What is distilled: a run, or an adapter that no run holds.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_models::peft::{PeftAdapter, ResolvedAdapter, attach};
use molora_models::{
    Adaptable, Backbone, ExpertCount, TaskHead, TaskModel, load_heads, shortest_names,
};

use crate::base::base_model::absolute;
use crate::base::{AdapterFolder, DeviceSpec, bundled};
use crate::data::{Split, load_tasks, task_names};
use crate::error::{RunProblem, TrainError};
use crate::model::with_stable_ids;
use crate::recipe::{BaseKind, DataConfig, find_for};
use crate::run::{Loaded, Opened, open, tokenized};
use crate::store::checkpoint::HEADS;
use crate::store::{FORMAT, RunConfig, TaskLabels, fresh_head};

/// What is distilled.
#[derive(Debug, Clone)]
pub enum Teacher {
    /// A finished run.
    Run {
        /// Its folder.
        folder: PathBuf,
        /// Folder of the tasks; that of the run if `None`.
        data: Option<String>,
    },
    /// A LoRA as PEFT or [`export`](crate::exchange::export) writes it, with its base model.
    Adapter {
        /// The adapter.
        adapter: AdapterFolder,
        /// Folder of the tasks.
        data: String,
        /// These of them; all if `None`.
        tasks: Option<Vec<String>>,
        /// How texts are made of their records.
        texts: Box<DataConfig>,
    },
}

impl Teacher {
    /// Its folder.
    pub fn folder(&self) -> &Path {
        match self {
            Self::Run { folder, .. } => folder,
            Self::Adapter { adapter, .. } => &adapter.folder,
        }
    }

    /// Reads model and tasks.
    ///
    /// # Errors
    /// Whatever reading gives; an adapter that is not LoRAs of linear layers alone, as nothing else of it
    /// would be in what is distilled; an encoder's without heads.
    pub(super) fn open(&self, device: Option<DeviceSpec>) -> Result<Opened, TrainError> {
        match self {
            Self::Run { folder, data } => open(folder, data.as_deref(), device, false),
            Self::Adapter {
                adapter,
                data,
                tasks,
                texts,
            } => {
                let device = device.unwrap_or(DeviceSpec::Cpu);
                open_adapter(adapter, data, tasks.as_deref(), texts, device)
            }
        }
    }
}

fn open_adapter(
    adapter: &AdapterFolder,
    data: &str,
    names: Option<&[String]>,
    texts: &DataConfig,
    spec: DeviceSpec,
) -> Result<Opened, TrainError> {
    spec.check()?;
    let tasks = load_tasks(&bundled::folder(data)?, names)?;
    let (folder, device) = (&adapter.base.folder, spec.open()?);
    let base = Backbone::from_folder(folder, &device)?;
    let resolved = PeftAdapter::open(&adapter.folder)?.resolve(&base)?;
    let mut backbone = base.clone();
    let modules = attach(&mut backbone, &resolved);
    refuse_more(adapter, &resolved, &modules)?;
    let mut recipe = find_for("lora", BaseKind::of(folder)?)?;
    recipe.data = texts.clone();
    let own = backbone.sites().into_iter().map(|(path, _)| path);
    let all = base.linears().into_iter().map(|(path, _)| path);
    let (own, all): (Vec<String>, Vec<String>) = (own.collect(), all.collect());
    recipe.adapter.targets = shortest_names(&own, &all);
    recipe.adapter.experts = ExpertCount::Same;
    let config = RunConfig {
        format: FORMAT,
        molora_version: env!("CARGO_PKG_VERSION").into(),
        git_commit: None,
        model: adapter.base.name.clone(),
        base_dtype: Default::default(),
        data: absolute(data),
        seed: 0,
        device: spec.to_string(),
        scored: Split::Test,
        tasks: tasks.iter().map(TaskLabels::of).collect(),
        init: None,
        recipe,
        digests: None,
    };
    let tasks = tokenized(folder, &base, &tasks, texts)?;
    let names = task_names(&tasks);
    let heads = heads(adapter, &base, &config, &device)?;
    Ok(Opened {
        loaded: Loaded {
            spec: config.recipe.resolve(&base, &names)?,
            heads: heads.clone(),
            base,
            tasks,
            device_spec: spec,
            device,
            folder: folder.clone(),
        },
        config,
        model: with_stable_ids(TaskModel { backbone, heads }),
        instructions: None,
        clusters: None,
    })
}

/// The heads of an encoder's tasks, which lie beside its adapter.
fn heads(
    adapter: &AdapterFolder,
    base: &Backbone,
    config: &RunConfig,
    device: &Device,
) -> Result<Vec<Option<TaskHead>>, TrainError> {
    let tasks = config.tasks.iter();
    let head = |task: &TaskLabels| fresh_head(base, task, Seed::new(0), device);
    let mut heads: Vec<Option<TaskHead>> = tasks.map(head).collect();
    if heads.iter().any(Option::is_some) {
        let path = adapter.folder.join(HEADS);
        if !path.is_file() {
            let problem = RunProblem::NoHeadsBeside { file: HEADS };
            return Err(TrainError::run(&adapter.folder, problem));
        }
        let names: Vec<String> = config.tasks.iter().map(|task| task.name.clone()).collect();
        load_heads(&path, &names, &mut heads)?;
    }
    Ok(heads)
}

/// Refuses what a LoRA of linear layers does not hold.
fn refuse_more(
    adapter: &AdapterFolder,
    resolved: &ResolvedAdapter,
    modules: &[String],
) -> Result<(), TrainError> {
    let is_odd = |path: &&String| !modules.contains(path);
    let full = resolved.full.first().map(|full| &full.path);
    let other = resolved.loras.iter().map(|lora| &lora.path).find(is_odd);
    if resolved.loras.iter().any(|lora| lora.magnitude.is_some()) {
        let what = "is a DoRA adapter, whose magnitudes no LoRA holds".to_owned();
        return Err(TrainError::run(
            &adapter.folder,
            RunProblem::NotDistilled { what },
        ));
    }
    if let Some(path) = full.or(other) {
        let what = format!("changes {path} otherwise than by a LoRA of a linear layer");
        return Err(TrainError::run(
            &adapter.folder,
            RunProblem::NotDistilled { what },
        ));
    }
    Ok(())
}
