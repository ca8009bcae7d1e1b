//! The base model's scores beside a run's: computed once and kept in the user's cache.
//!
//! What each task gave lies in `molora/base` of the cache folder, in a file that is named by the hash of
//! everything that decides it: the base model's files, the task's files, and how texts are made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use molora_models::{BaseDtype, TaskModel};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{debug, warn};

use super::Loaded;
use crate::TrainError;
use crate::base::machine::cache_folder;
use crate::base::place::write_json_atomically;
use crate::data::{Split, TokenizedTask, WritingConfig};
use crate::eval::base::{BaseAnswers, BaseScope, PENALTY_RECORDS, PROBE_RECORDS, ask_base};
use crate::report::{
    BaseReport, BaseWay, EvalReport, PredictionReport, Predictions, SCHEMA_VERSION, TaskScore,
};
use crate::store::RunConfig;
use crate::train::Event;

/// What a kept score depends on beside the inputs: it grows when the computation changes.
const COMPUTATION: u32 = 2;

/// Everything that decides what the base model answers to a task.
#[derive(Serialize)]
struct Key<'a> {
    computation: u32,
    probe: [usize; 2],
    base: &'a BTreeMap<String, String>,
    base_dtype: BaseDtype,
    task: &'a BTreeMap<String, String>,
    device: &'a str,
    split: Split,
    max_length: usize,
    eval_batch_size: usize,
    writing: &'a WritingConfig,
}

/// What was found for a task.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    way: BaseWay,
    score: TaskScore,
    predictions: Predictions,
}

/// The scores of a run's base model alone on the split that the run is scored on; `None` where they are
/// not requested, and for trials of settings. A model whose outputs are no numbers gives a warning: the
/// run itself is none the worse for it.
///
/// # Errors
/// [`TrainError::Interrupted`], which `go_on` says between two batches; what tasks gave by then is kept.
pub(super) fn base_report(
    config: &RunConfig,
    loaded: &Loaded,
    go_on: &dyn Fn() -> Result<(), TrainError>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<BaseReport>, TrainError> {
    if !config.recipe.report.base || config.scored != Split::Test {
        return Ok(None);
    }
    let mut tasks = loaded.tasks.iter();
    if tasks.any(|task| task.streamed.is_some() && task.written.is_none()) {
        warn!(
            "the base model's scores are left out: a probe needs training records, and they are streamed"
        );
        return Ok(None);
    }
    let backbone = loaded.base.clone();
    let heads = Vec::new();
    let model = TaskModel { backbone, heads }.valid();
    let asked = Asked {
        config,
        loaded,
        model,
        go_on,
    };
    match asked.all(on_event) {
        Ok(report) => Ok(Some(report)),
        Err(error @ TrainError::Interrupted { .. }) => Err(error),
        Err(error) => {
            warn!("the base model's scores are left out: {error}");
            Ok(None)
        }
    }
}

struct Asked<'a> {
    config: &'a RunConfig,
    loaded: &'a Loaded,
    model: TaskModel,
    go_on: &'a dyn Fn() -> Result<(), TrainError>,
}

impl Asked<'_> {
    fn all(&self, on_event: &mut dyn FnMut(Event<'_>)) -> Result<BaseReport, TrainError> {
        let split = self.config.scored;
        let (mut ways, mut scores, mut answers) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for task in &self.loaded.tasks {
            (self.go_on)()?;
            let known = self.task(task, on_event)?;
            ways.insert(task.name.clone(), known.way);
            scores.insert(task.name.clone(), known.score);
            answers.insert(task.name.clone(), known.predictions);
        }
        Ok(BaseReport {
            version: SCHEMA_VERSION,
            ways,
            scores: EvalReport::new(split.name(), scores),
            predictions: PredictionReport {
                version: SCHEMA_VERSION,
                split: split.name().into(),
                tasks: answers,
            },
        })
    }

    /// What is kept of a task, or else what the model answers.
    fn task(
        &self,
        task: &TokenizedTask,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Known, TrainError> {
        let scope = self.scope();
        let place = self.place(&task.name);
        let is_usable = |known: &Known| known.score.n == task.split(scope.split).len();
        let kept = place.as_deref().and_then(read);
        if let Some(known) = kept.filter(is_usable) {
            return Ok(known);
        }
        let kept = match place {
            Some(_) => " (once: it is kept for later runs)",
            None => "",
        };
        on_event(Event::Phase(&format!(
            "scoring the base model on {}{kept}",
            task.name
        )));
        let mut progress = |done, total| {
            on_event(Event::Evaluated(done, total));
            (self.go_on)()
        };
        let BaseAnswers {
            way,
            score,
            predictions,
        } = ask_base(&self.model, task, scope, &mut progress)?;
        let known = Known {
            way,
            score,
            predictions,
        };
        if let Some(place) = place {
            keep(&place, &known);
        }
        Ok(known)
    }

    fn scope(&self) -> BaseScope<'_> {
        BaseScope {
            split: self.config.scored,
            batch_size: self.config.recipe.data.eval_batch_size,
            device: &self.loaded.device,
        }
    }

    /// Where the answers to a task are kept, if it is known what decides them.
    fn place(&self, task: &str) -> Option<PathBuf> {
        let digests = self.config.digests.as_ref()?;
        let data = &self.config.recipe.data;
        let key = Key {
            computation: COMPUTATION,
            probe: [PROBE_RECORDS, PENALTY_RECORDS],
            base: &digests.base,
            base_dtype: self.config.base_dtype,
            task: digests.tasks.get(task)?,
            device: &self.config.device,
            split: self.config.scored,
            max_length: data.max_length,
            eval_batch_size: data.eval_batch_size,
            writing: &data.writing,
        };
        let key = serde_json::to_vec(&key).ok()?;
        let name = format!("{:x}.json", Sha256::digest(key));
        Some(cache_folder()?.join("molora/base").join(name))
    }
}

/// What is kept in a file; a file that cannot be read is as good as none.
fn read(place: &Path) -> Option<Known> {
    // Reading a device or a pipe may never end.
    if !place.metadata().ok()?.is_file() {
        return None;
    }
    let bytes = std::fs::read(place).ok()?;
    let known = serde_json::from_slice(&bytes);
    known
        .inspect_err(|error| debug!("{} is not used: {error}", place.display()))
        .ok()
}

/// Makes a folder for the user alone: answers may repeat what private texts say.
fn make_own(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn keep(place: &Path, known: &Known) {
    let folder = place.parent().unwrap_or(Path::new("."));
    let made = make_own(folder).map_err(TrainError::from);
    if let Err(error) = made.and_then(|()| write_json_atomically(place, known)) {
        debug!("{} cannot be kept: {error}", place.display());
    }
}
