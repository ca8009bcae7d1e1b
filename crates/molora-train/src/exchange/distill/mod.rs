//! The nearest LoRA of a mixture that no LoRA equals.
//!
//! For every adapted layer, with the inputs `x_n` of the real tokens of calibration records and the
//! deltas `y_n` that the mixture adds there, it is the LoRA of rank R that minimises
//!
//! ```text
//! sum_n |y_n - x_n A B|^2 + lambda |A B|^2
//! ```
//!
//! the reduced-rank regression of Izenman (1975), see [`fit`]. Each layer is fitted to the mixture's
//! own inputs, so that layers do not depend on each other; what their errors add up to is measured
//! on the tasks' test split.

mod fit;
mod moments;
mod solve;
mod teacher;

use std::path::PathBuf;

use molora_adapters::ExpertBank;
use molora_kernels::random::Seed;
use molora_models::peft::static_mixture;
use molora_models::{Adaptable, Backbone, TaskModel};
use rayon::prelude::*;

use self::fit::Fit;
use self::moments::{Moments, moments};
pub use self::teacher::Teacher;
use super::lora::not_by_layer;
use super::{Exported, check_new, export};
use crate::base::DeviceSpec;
use crate::data::Split;
use crate::error::{RunProblem, TrainError};
use crate::eval::{EvalScope, evaluate};
use crate::guide::{Guide, Query};
use crate::model::with_stable_ids;
use crate::report::EvalReport;
use crate::run::Opened;
use crate::train::Event;

/// What is distilled, and where to.
#[derive(Debug, Clone)]
pub struct DistillRequest {
    /// The mixture or adapter.
    pub teacher: Teacher,
    /// Rank R of the LoRA.
    pub rank: usize,
    /// Number of calibration records, from the training splits of all tasks in equal parts.
    pub samples: usize,
    /// Folder to write.
    pub out: PathBuf,
    /// The device; that of the run, or the CPU, if `None`.
    pub device: Option<DeviceSpec>,
}

/// How well the LoRA of one layer fits.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteFit {
    /// The layer's path.
    pub site: String,
    /// `sqrt(sum |y - x A B|^2 / sum |y|^2)` on the calibration records.
    pub error: f64,
    /// The same on records of the validation splits, where there are any.
    pub held_out: Option<f64>,
}

/// What was distilled.
#[derive(Debug)]
pub struct Distilled {
    /// The files.
    pub exported: Exported,
    /// Number of calibration records, and of their real tokens.
    pub samples: (usize, usize),
    /// The layers, in the order of the forward pass.
    pub sites: Vec<SiteFit>,
    /// Scores of the mixture on the test split.
    pub mixture: EvalReport,
    /// Scores of the LoRA on the test split.
    pub lora: EvalReport,
}

/// Fits a LoRA to the mixture of a run, or to an adapter, writes it as PEFT's files and measures both on the
/// test split.
///
/// # Errors
/// A rank or number of samples of 0, experts that no layer has to itself, an adapter that changes more than
/// linear layers, a folder that is not empty, tasks without training records; whatever reading and writing give.
pub fn distill(
    request: &DistillRequest,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Distilled, TrainError> {
    check_new(&request.out)?;
    let folder = request.teacher.folder();
    for (option, value) in [("--rank", request.rank), ("--samples", request.samples)] {
        if value == 0 {
            return Err(TrainError::run(folder, RunProblem::Zero { option }));
        }
    }
    on_event(Event::Phase("loading model and tasks"));
    let opened = request.teacher.open(request.device)?;
    let mut tasks = opened.loaded.tasks.iter();
    if tasks.any(|task| task.streamed.is_some()) {
        return Err(TrainError::streamed("molora distill"));
    }
    if !opened.loaded.spec.modules_to_save.is_empty() {
        let what = "trained its embeddings or head whole (adapter.modules_to_save)".to_owned();
        return Err(TrainError::run(folder, RunProblem::NotDistilled { what }));
    }
    if let Some(why) = not_by_layer(&opened) {
        let problem = RunProblem::NotByLayer { why: why.into() };
        return Err(TrainError::run(folder, problem));
    }
    on_event(Event::Phase("calibrating"));
    let guide = guide(&opened, Split::Train)?;
    let named = (folder, &opened);
    let train = moments(named, Split::Train, request.samples, guide.as_ref())?;
    if train.records == 0 {
        return Err(TrainError::run(folder, RunProblem::NoTrainingRecords));
    }
    let guide = self::guide(&opened, Split::Validation)?;
    let held_out = moments(named, Split::Validation, request.samples, guide.as_ref())?;
    on_event(Event::Phase("fitting"));
    let fits: Vec<Fit> = train
        .sites
        .par_iter()
        .map(|moments| fit::fit(moments, request.rank))
        .collect();
    let sites = site_fits(&opened, &fits, &train.sites, &held_out);
    let backbone = attached(&opened, &fits)?;
    let adapter = static_mixture(&backbone)?;
    on_event(Event::Phase("evaluating on the test split"));
    let (mixture, lora) = scores(&opened, backbone)?;
    let exported = export::write(folder, &opened, &adapter, &request.out, "default")?;
    Ok(Distilled {
        exported,
        samples: (train.records, train.tokens),
        sites,
        mixture,
        lora,
    })
}

/// The guidance of the routers for a split.
fn guide(opened: &Opened, split: Split) -> Result<Option<Guide>, TrainError> {
    let (Some(instructions), Some(config)) =
        (&opened.instructions, opened.config.recipe.instructions())
    else {
        return opened.guide();
    };
    match Query::from(config.query) {
        Query::Task => opened.guide(),
        query => {
            let encoder = instructions.text_encoder(&opened.loaded.device)?;
            let guide = instructions.guide_of(&query, &opened.loaded.tasks, split, &encoder)?;
            Ok(Some(guide))
        }
    }
}

fn site_fits(
    opened: &Opened,
    fits: &[Fit],
    train: &[Moments],
    held_out: &moments::Calibration,
) -> Vec<SiteFit> {
    let paths = opened.model.backbone.sites();
    let site = |(number, (path, _)): (usize, (String, _))| SiteFit {
        site: path,
        error: fit::error(&fits[number], &train[number]),
        held_out: (held_out.records > 0)
            .then(|| fit::error(&fits[number], &held_out.sites[number])),
    };
    paths.into_iter().enumerate().map(site).collect()
}

/// The base model with the fitted LoRA beside its weights.
fn attached(opened: &Opened, fits: &[Fit]) -> Result<Backbone, TrainError> {
    let mut backbone = opened.loaded.base.clone();
    let spec = opened.loaded.spec.one_expert(false);
    let device = &opened.loaded.device;
    backbone.attach(&spec, 0, Seed::new(0), device)?;
    for ((_, site), fit) in backbone.sites_mut().into_iter().zip(fits) {
        let [a, b] = fit.factors(device);
        site.bank = ExpertBank::of_matrices(a, b, 1, 1.0);
    }
    Ok(backbone)
}

fn scores(opened: &Opened, backbone: Backbone) -> Result<(EvalReport, EvalReport), TrainError> {
    let lora = with_stable_ids(TaskModel {
        backbone,
        heads: opened.model.heads.clone(),
    });
    let guide = guide(opened, Split::Test)?;
    let rows = opened.config.recipe.data.eval_batch_size;
    let score = |model: &TaskModel, guide: Option<&Guide>| {
        let (tasks, device) = (&opened.loaded.tasks, &opened.loaded.device);
        let scope = EvalScope::own(Split::Test, rows, tasks.len());
        evaluate(model, tasks, scope, device, guide, |_| Ok(()))
    };
    let mixture = score(&opened.model, guide.as_ref())?;
    Ok((mixture.scores, score(&lora, None)?.scores))
}
