//! How a phase begins: what comes before it without a gradient, its model, its optimizer, its data.

use molora_models::AdapterSpec;

use super::event::{Event, StageEvent};
use super::init::begin_with;
use super::setup::{Setup, attach, lengths, phase_seed};
use super::trainer::State;
use super::transform;
use crate::TrainError;
use crate::data::{Sampler, task_names};
use crate::error::RunProblem;
use crate::model::with_stable_ids;
use crate::recipe::{Phase, Scope, Transform};
use crate::store::{checkpoint, pool};

impl State {
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
        let config = setup.recipe.data.sampling.clone();
        let seed = phase_seed(setup, phase, "sampler").value();
        self.progress.sampler = Some(Sampler::new(config, &lengths(setup, phase), seed)?);
        let is_first_of_stage = number == 0 || setup.phases[number - 1].stage != phase.stage;
        if is_first_of_stage && self.progress.step > 0 {
            let names = task_names(setup.tasks);
            let spec = stage.spec(setup.spec);
            let snapshot = self.snapshot(&spec, &names, false);
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
