//! What is wrong with a recipe: each value against the others, the tasks and the model.

use molora_models::{AdapterSpec, Backbone, ParameterKind};
use molora_regularize::{Mixture, Need, ObjectiveConfig, Reduction};
use molora_routing::{Granularity, RouterConfig};

use super::order::order_problems;
use super::{Recipe, Scope, StageConfig, StageRouting};

/// The most beams: each is a row of the batch.
const MAX_BEAMS: usize = 64;

impl Recipe {
    /// The specification of the mixture for tasks, and what is wrong with it.
    pub(super) fn spec_for(&self, tasks: &[String]) -> (AdapterSpec, Vec<String>) {
        match self.adapter.for_tasks(tasks) {
            Ok(spec) => {
                let problems = spec.problems().iter().map(ToString::to_string).collect();
                (spec, problems)
            }
            Err(problem) => (self.adapter.clone(), vec![problem.to_string()]),
        }
    }

    /// What is wrong beside the specification of the mixture.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = self.data_problems();
        problems.extend(self.objective_problems("objective", &self.objective));
        problems.extend(self.stage_problems());
        let stages = self.stages.iter().filter(|stage| !stage.trains_alone());
        let objectives = stages.filter_map(|stage| stage.objective(&self.objective));
        let objectives: Vec<&ObjectiveConfig> = objectives.collect();
        problems.extend(self.guard.problems(&self.adapter, &objectives));
        problems
    }

    /// Texts and terms that name tasks which are not there.
    pub(super) fn tasks_that_lack(&self, tasks: &[String]) -> Vec<String> {
        let templates = self.data.writing.templates.keys();
        let weights = self.data.task_weights.keys();
        let named = templates
            .map(|task| ("data.writing.templates", task))
            .chain(weights.map(|task| ("data.task_weights", task)));
        let unknown = named.filter(|(_, task)| !tasks.contains(task));
        let known = tasks.join(", ");
        let mut problems: Vec<String> = unknown
            .map(|(field, task)| format!("{field} names the task `{task}`, expected of {known}"))
            .collect();
        problems.extend(self.tasks_of_terms(tasks));
        problems
    }

    /// Terms that name tasks which are not there.
    fn tasks_of_terms(&self, tasks: &[String]) -> Vec<String> {
        let at = |field: String, objective: &ObjectiveConfig| {
            let problems = objective.for_tasks(tasks).err().unwrap_or_default();
            let named = problems
                .into_iter()
                .map(move |found| format!("{field}.{found}"));
            named.collect::<Vec<_>>()
        };
        let mut problems = at("objective".into(), &self.objective);
        for (field, stages) in [("stages", &self.stages), ("growth", &self.growth)] {
            for (index, stage) in stages.iter().enumerate() {
                let own = stage.objective.iter();
                problems.extend(own.flat_map(|own| at(format!("{field}.{index}.objective"), own)));
            }
        }
        problems
    }

    pub(super) fn stage_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.stages.is_empty() {
            problems.push("stages is empty, expected at least one".into());
        }
        for (field, stages) in [("stages", &self.stages), ("growth", &self.growth)] {
            for (index, stage) in stages.iter().enumerate() {
                let at = |problem| format!("{field}.{index}.{problem}");
                problems.extend(stage.problems().into_iter().map(at));
                if let Some(objective) = &stage.objective {
                    let field = format!("{field}.{index}.objective");
                    problems.extend(self.objective_problems(&field, objective));
                }
                if self.lacks_labels(stage) {
                    let text = "domain_cross_entropy needs routing = \"label\"";
                    problems.push(format!("{field}.{index}: {text}"));
                }
            }
        }
        let order = order_problems("stages", &self.stages, &self.adapter);
        problems.extend(order);
        let mut kinds = self.stages.iter().flat_map(|stage| &stage.trainable);
        let has_saved = !self.adapter.modules_to_save.is_empty();
        if has_saved && !kinds.any(|kind| *kind == ParameterKind::Saved) {
            let text =
                "adapter.modules_to_save trains in no stage: expected saved in a stage's trainable";
            problems.push(text.into());
        }
        let mixture =
            |stage: &StageConfig| stage.scope == Scope::Mixture && stage.transform.is_none();
        if let Some(index) = self.growth.iter().position(|stage| !mixture(stage)) {
            let text = "trains no mixture: a new expert is trained and joins as in stages";
            problems.push(format!("growth.{index} {text}"));
        }
        problems
    }

    /// What is wrong with texts for a model.
    pub(super) fn model_problems(&self, model: &Backbone) -> Vec<String> {
        let mut problems = Vec::new();
        let (field, length) = match model.writes() {
            true => ("data.writing.max_length", self.data.writing.max_length),
            false => ("data.max_length", self.data.max_length),
        };
        if let Some(limit) = model.max_tokens().filter(|&limit| length > limit) {
            problems.push(format!(
                "{field} {length} exceeds the model's {limit} positions"
            ));
        }
        if model.writes() && length < 8 {
            problems.push(format!("{field} is {length}, expected at least 8"));
        }
        if !model.writes() && self.data.writing.has_templates() {
            let text = "is for models that write: an encoder reads input and input_b alone";
            problems.push(format!("data.writing.template {text}"));
        }
        problems.extend(self.packing_problem(model));
        problems
    }

    fn data_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let at_least_one = [
            ("checkpoint_every", self.checkpoint_every),
            ("data.eval_batch_size", self.data.eval_batch_size),
            ("data.max_length", self.data.max_length),
            ("data.shuffle_buffer", self.data.shuffle_buffer),
            ("data.streams", self.data.streams),
            ("data.writing.max_length", self.data.writing.max_length),
        ];
        for (field, value) in at_least_one {
            if value == 0 {
                problems.push(format!("{field} is 0, expected at least 1"));
            }
        }
        if let Err(problem) = self.data.sampling.check() {
            problems.push(format!("data.sampling: {problem}"));
        }
        problems.extend(self.template_problems());
        problems.extend(self.beam_problems());
        for (task, weight) in &self.data.task_weights {
            // What is multiplied by them is in f32.
            if !(1e-9..=1e9).contains(weight) {
                let text = "expected a number from 1e-9 to 1e9; --tasks leaves tasks out";
                problems.push(format!("data.task_weights.{task} is {weight}, {text}"));
            }
        }
        problems.extend(self.validation.problems());
        if self.data.streaming && self.cluster_texts().is_some() {
            let text = "data.streaming is true, but a stage clusters the training texts, which needs all of them";
            problems.push(text.into());
        }
        problems
    }

    fn beam_problems(&self) -> Vec<String> {
        let writing = &self.data.writing;
        let mut problems = Vec::new();
        if !(1..=MAX_BEAMS).contains(&writing.num_beams) {
            let found = writing.num_beams;
            problems.push(format!(
                "data.writing.num_beams is {found}, expected 1 to {MAX_BEAMS}"
            ));
        }
        if !(0.0..=10.0).contains(&writing.length_penalty) {
            let found = writing.length_penalty;
            problems.push(format!(
                "data.writing.length_penalty is {found}, expected a number from 0 to 10"
            ));
        }
        problems
    }

    fn template_problems(&self) -> Vec<String> {
        let writing = &self.data.writing;
        // A name that no task has: the template for all.
        let names = writing.templates.keys().map(String::as_str).chain([""]);
        let broken = names.filter_map(|name| writing.template_of(name).err());
        broken.map(|error| error.to_string()).collect()
    }

    /// Packed rows hold several texts of one task: what is decided for a whole row would be decided
    /// for all of them.
    fn packing_problem(&self, model: &Backbone) -> Option<String> {
        if !self.data.writing.packing {
            return None;
        }
        let by_sequence = |router: &RouterConfig| router.granularity == Granularity::Sequence;
        if !matches!(model, Backbone::Decoder(_)) {
            return Some(
                "data.writing.packing is true, but only a decoder reads packed rows".into(),
            );
        }
        if self.adapter.router.as_ref().is_some_and(by_sequence) {
            let text = "data.writing.packing is true, but the routers decide for whole sequences";
            return Some(text.into());
        }
        if self.adapter.num_clusters().is_some() {
            let text =
                "data.writing.packing is true, but the routers read the cluster of each text";
            return Some(text.into());
        }
        None
    }

    /// Whether a stage would compare routers with labels that it does not have.
    fn lacks_labels(&self, stage: &StageConfig) -> bool {
        let objective = stage.objective(&self.objective);
        let mut terms = objective.iter().flat_map(|objective| &objective.terms);
        let has_labels = stage.routing == StageRouting::Label;
        let trains = stage.transform.is_none();
        trains && !has_labels && terms.any(|config| config.term.needs_any(Need::Labels))
    }

    pub(super) fn objective_problems(
        &self,
        field: &str,
        objective: &ObjectiveConfig,
    ) -> Vec<String> {
        let mixture = Mixture {
            has_router: self.adapter.router.is_some(),
            has_rank_keys: self.adapter.has_rank_keys(),
            has_costs: self.adapter.bank.costs().is_some(),
            routes_tokens: self.adapter.routes_tokens(),
            learned: self
                .adapter
                .router
                .as_ref()
                .and_then(|r| r.normaliser.learns()),
        };
        let mut problems = Vec::new();
        for (index, config) in objective.terms.iter().enumerate() {
            let name = config.term.name();
            if let Some(need) = config.term.lacks(mixture) {
                problems.push(format!("{field}.{index}: {name} needs {need}"));
            }
            // Reports have one value for each name.
            let earlier = &objective.terms[..index];
            if earlier.iter().any(|other| other.term.name() == name) {
                problems.push(format!("{field}.{index}: {name} is listed twice"));
            }
            if let Some(problem) = config.term.problem() {
                problems.push(format!("{field}.{index}.term.{name}.{problem}"));
            }
            if config.term.is_of_model() && config.over_sites == Reduction::Sum {
                problems.push(format!(
                    "{field}.{index}.over_sites is sum, expected mean: {name} is about the mean of all layers"
                ));
            }
            if !(config.weight.is_finite() && config.weight >= 0.0) {
                let weight = config.weight;
                problems.push(format!(
                    "{field}.{index}.weight is {weight}, expected at least 0"
                ));
            }
        }
        problems
    }
}
