//! How a training goes on from a checkpoint, and how a phase begins: what comes before it without a gradient,
//! its model, its optimizer, its data.

use std::path::Path;

use molora_models::AdapterSpec;

use super::event::{Event, StageEvent};
use super::init::begin_with;
use super::setup::{Setup, attach, lengths, phase_seed};
use super::trainer::State;
use super::{streaming, transform};
use crate::TrainError;
use crate::data::{Sampler, task_names};
use crate::error::RunProblem;
use crate::guide::{Clusters, Instructions};
use crate::model::with_stable_ids;
use crate::recipe::{Phase, Scope, StageConfig, Transform};
use crate::store::{checkpoint, pool};

impl State {
    /// Goes on from a checkpoint.
    pub(super) fn load(
        &mut self,
        setup: &Setup<'_>,
        path: &Path,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        self.progress = checkpoint::load_progress(path)?;
        let steps: Vec<usize> = setup.phases.iter().map(|phase| phase.steps).collect();
        if let Some(problem) = self.progress.problem(&steps) {
            return Err(TrainError::run(path, RunProblem::State(problem)));
        }
        let phase = setup.phases.get(self.progress.phase);
        let last = setup.phases.last();
        let stage = phase.or(last).map(|phase| &setup.stages[phase.stage]);
        let spec = stage.map_or(setup.spec.clone(), |stage| stage.spec(setup.spec));
        self.model = attach(setup, phase, &spec.to_be_filled(), self.model.heads.clone())?;
        self.is_mixture = !stage.is_some_and(StageConfig::trains_alone);
        let names = task_names(setup.tasks);
        checkpoint::load_weights(path, &mut self.model, &spec, &names)?;
        for phase in &setup.phases[..self.progress.phase] {
            match &setup.stages[phase.stage].transform {
                Some(Transform::EmbedInstructions(_)) => {
                    let instructions = Instructions::load(setup.folder, &names)?;
                    self.guide = Some(instructions.guide(setup.device));
                }
                Some(Transform::Cluster(_)) => {
                    let clusters = Clusters::load_for(setup.folder, setup.spec)?;
                    let guide = clusters.map(|found| found.guide(setup.tasks, setup.device));
                    self.guide = guide.transpose()?;
                }
                _ => {}
            }
        }
        let Some((phase, stage)) = phase.zip(stage) else {
            return Ok(());
        };
        let streams = self.progress.streams.take();
        if let Some(sampler) = &self.progress.sampler {
            sampler.check(&setup.recipe.data.sampling, &lengths(setup, phase))?;
        }
        self.optimizer = stage.optimizer.init(&self.model);
        if self.progress.phase_step > 0 {
            let fresh = stage.optimizer.init(&self.model);
            self.optimizer = checkpoint::load_optimizer(path, &self.progress, fresh)?;
        }
        self.model = self.to_be_trained(stage);
        // The run was stopped between two stages, or at the end of one.
        if self.is_done(phase) {
            if !self.progress.best.is_empty() {
                self.leave(setup, phase, on_event)?;
            }
            return self.enter(setup, self.progress.phase + 1, on_event);
        }
        if let Some(state) = streams {
            self.streams = streaming::resume(setup, phase, &state)?;
        }
        Ok(())
    }

    /// Begins a phase, after the steps without gradient in front of it.
    pub(super) fn enter(
        &mut self,
        setup: &Setup<'_>,
        number: usize,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let progress = &mut self.progress;
        if progress.is_early {
            progress.skipped += setup.phases[progress.phase].steps - progress.phase_step;
        }
        (progress.phase, progress.phase_step, progress.is_early) = (number, 0, false);
        (progress.sampler, progress.since_best) = (None, 0);
        self.streams = None;
        progress.balance_factor = None;
        let Some(phase) = setup.phases.get(number) else {
            return Ok(());
        };
        let stage = &setup.stages[phase.stage];
        let expert = phase.expert.map(|task| &setup.tasks[task].name[..]);
        on_event(Event::Stage(StageEvent {
            name: &stage.name,
            expert,
            number: phase.stage + 1,
            total: setup.stages.len(),
        }));
        if let Some(transform) = &stage.transform {
            self.transform(setup, transform)?;
            return self.enter(setup, number + 1, on_event);
        }
        if stage.trains_alone() || !self.is_mixture {
            let spec = stage.spec(setup.spec);
            let heads = self.model.heads.clone();
            self.model = attach(setup, Some(phase), &spec, heads)?;
            self.is_mixture = !stage.trains_alone();
            if self.progress.step == 0
                && let Some(init) = setup.init
            {
                begin_with(init, setup, &mut self.model, &spec)?;
            }
            self.take_from_pool(setup, phase, &spec)?;
        }
        self.model = with_stable_ids(self.to_be_trained(stage));
        self.optimizer = stage.optimizer.init(&self.model);
        self.streams = streaming::begin(setup, phase);
        if self.streams.is_none() {
            let config = setup.recipe.data.sampling.clone();
            let seed = phase_seed(setup, phase, "sampler").value();
            self.progress.sampler = Some(Sampler::new(config, &lengths(setup, phase), seed)?);
        }
        let is_first_of_stage = number == 0 || setup.phases[number - 1].stage != phase.stage;
        if is_first_of_stage && self.progress.step > 0 {
            let names = task_names(setup.tasks);
            let spec = stage.spec(setup.spec);
            let progress = self.noted(setup)?;
            let snapshot = self.snapshot(&progress, &spec, &names, false);
            checkpoint::save_stage(setup.folder, &stage.name, &snapshot)?;
        }
        Ok(())
    }

    /// A gate is trained on the expert that an earlier stage left in the run folder.
    fn take_from_pool(
        &mut self,
        setup: &Setup<'_>,
        phase: &Phase,
        spec: &AdapterSpec,
    ) -> Result<(), TrainError> {
        let is_gate = setup.stages[phase.stage].scope == Scope::EachGate;
        let Some(task) = phase.expert.filter(|_| is_gate) else {
            return Ok(());
        };
        let folder = pool::expert_folder(setup.folder, &setup.tasks[task].name);
        pool::load(&folder, &mut self.model.backbone, spec, setup.base.1)
    }

    fn transform(&mut self, setup: &Setup<'_>, transform: &Transform) -> Result<(), TrainError> {
        match transform {
            Transform::Given if self.is_mixture => {}
            Transform::Given => {
                return Err(TrainError::run(setup.folder, RunProblem::GivenElsewhere));
            }
            Transform::Assemble => {
                self.model = transform::assemble(setup, self.model.heads.clone())?;
                self.is_mixture = true;
            }
            Transform::CollectDirections => transform::collect_directions(&mut self.model),
            Transform::CollectPrototypes => {
                transform::collect_prototypes(setup, &mut self.model)?;
            }
            Transform::Cluster(_) => self.guide = Some(transform::cluster(setup)?),
            Transform::EmbedInstructions(_) => {
                self.guide = Some(transform::embed_instructions(setup)?);
            }
            Transform::TuneGlobalWeight { candidates } => {
                let guide = transform::tune_global_weight(setup, &self.model, candidates)?;
                self.guide = Some(guide);
            }
        }
        Ok(())
    }
}
