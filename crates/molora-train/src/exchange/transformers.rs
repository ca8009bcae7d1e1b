//! Writing a whole model with its mixture, which transformers loads with Python of our own.

use std::path::PathBuf;

use molora_models::Adaptable;
use molora_models::transformers::{
    WholeMixture, why_not_computed, why_not_on, write_whole_mixture,
};
use serde_json::{Map, Value, json};

use super::{carry_ends, check_new};
use crate::TrainError;
use crate::base::DeviceSpec;
use crate::base::place::NewFolder;
use crate::error::RunProblem;
use crate::model::count;
use crate::run::{Opened, open_without_data};
use crate::verify::{certify_python, of_run};

/// What is exported, and where to.
#[derive(Debug, Clone)]
pub struct TransformersRequest {
    /// The run folder.
    pub run: PathBuf,
    /// The task that inputs are of where none is given; none is known by default.
    pub task: Option<String>,
    /// Folder to write.
    pub out: PathBuf,
    /// The device; that of the run if `None`.
    pub device: Option<DeviceSpec>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransformersWritten {
    /// Number of linear layers with a mixture.
    pub modules: usize,
    /// Number of parameters beside the base's.
    pub parameters: usize,
    /// Number of the run's tasks that have a head.
    pub heads: usize,
    /// Whether there has to be a vector of each text, by which routers go.
    pub reads_texts: bool,
}

/// Writes the base model of a run with its mixture as it is: transformers loads it, and generates with a cache.
///
/// # Errors
/// [`TrainError::Run`] for a mixture that the Python does not compute, with the choice that it lacks, a task that
/// does not exist, or a folder that is not empty; whatever reading the run and writing give.
pub fn export_transformers(
    request: &TransformersRequest,
) -> Result<TransformersWritten, TrainError> {
    check_new(&request.out)?;
    let opened = open_without_data(&request.run, request.device)?;
    let spec = &opened.loaded.spec;
    let has_heads = opened.model.heads.iter().any(Option::is_some);
    let of_base = why_not_on(&opened.model.backbone, has_heads).map(str::to_owned);
    if let Some(why) = why_not_computed(spec).or(of_base) {
        let name = &opened.config.recipe.name;
        let why = format!("{name}: {why}");
        return Err(TrainError::run(
            &request.run,
            RunProblem::NotInPython { why },
        ));
    }
    if let Some(task) = &request.task {
        opened.task_number(&request.run, task)?;
    }
    let tasks = opened.config.tasks.iter();
    let tasks: Vec<_> = tasks
        .map(|task| (task.name.clone(), task.labels.clone()))
        .collect();
    let model = &opened.model;
    let whole = WholeMixture {
        backbone: &model.backbone,
        spec,
        tasks: &tasks,
        heads: &model.heads,
        more: told(&opened, request.task.as_ref()),
    };
    let new = NewFolder::for_place(&request.out)?;
    write_whole_mixture(&whole, &opened.loaded.folder, new.path())?;
    carry_ends(&opened, new.path())?;
    certify_python(new.path(), of_run(&opened)?)?;
    new.put_new()?;
    let counts = count(model);
    Ok(TransformersWritten {
        modules: model.backbone.site_paths().len(),
        parameters: counts.adapters + counts.routers + counts.gates,
        heads: model.heads.iter().flatten().count(),
        reads_texts: opened.clusters.is_some(),
    })
}

/// What routers are told from outside, for the configuration.
fn told(opened: &Opened, task: Option<&String>) -> Map<String, Value> {
    let mut told = Map::new();
    told.insert("task".into(), json!(task));
    if let Some(clusters) = &opened.clusters {
        let fields = json!({"encoder": clusters.encoder, "clusters": clusters.clusters,
            "centroids": clusters.centroids});
        told.insert("clusters".into(), fields);
    }
    if let Some(instructions) = &opened.instructions {
        let vectors = instructions.experts.iter().map(|expert| &expert.vector);
        let fields = json!({"encoder": instructions.encoder, "weight": instructions.weight,
            "vectors": vectors.collect::<Vec<_>>()});
        told.insert("instructions".into(), fields);
    }
    told
}
