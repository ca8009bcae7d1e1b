//! A stage of a recipe: what trains, on which tasks, for how long; or a step without gradient.

use molora_models::{AdapterSpec, ParameterKind, TaskModel};
use molora_regularize::ObjectiveConfig;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use super::earlier::StageFile;
use super::{ClusterTexts, InstructionConfig, OptimizerConfig, ScheduleConfig};
use crate::model::{count, set_trainable};

/// Which part of the method a stage trains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The whole mixture.
    #[default]
    Mixture,
    /// The expert of each task, one after the other, each alone on the base model and on its task's
    /// data. An expert's result depends on seed, stage and task alone, not on the other tasks.
    EachTask,
    /// The gate of each task's expert, one after the other: the expert, which is frozen, stands behind
    /// the sigmoid of a linear gate, whose parameters count as routers (PHATGOOSE's second stage).
    EachGate,
    /// The general expert, alone on the base model and on the data of all tasks.
    General,
}

impl Scope {
    /// Whether the tasks are gone through one after the other.
    pub fn is_by_task(self) -> bool {
        matches!(self, Self::EachTask | Self::EachGate)
    }
}

/// What decides which experts a sequence gets while a stage trains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StageRouting {
    /// The routers.
    #[default]
    Router,
    /// The sequence's task: its own expert with weight 1 (Mixture-of-LoRAs' second stage).
    Label,
    /// Chance: each decision is for one expert, drawn anew (Duo-LLM's first stage). Outside training the
    /// routers decide.
    Random,
}

/// A step between stages that computes without gradients.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = by_name_alone)]
pub enum Transform {
    /// The experts were trained elsewhere and given as files to `molora assemble`; nothing is
    /// computed.
    Given,
    /// Makes the mixture: the separately trained experts become a bank at every site, beside fresh
    /// routers.
    Assemble,
    /// The trained gates of the experts become the routers' prototypes.
    CollectPrototypes,
    /// The direction that each expert stretches most becomes its routers' row: Arrow.
    CollectDirections,
    /// The training texts are divided into clusters, by which routers decide: MoCLE.
    Cluster(ClusterTexts),
    /// The tasks' instructions become vectors that the experts are compared by.
    EmbedInstructions(InstructionConfig),
    /// Takes the global weight from `candidates` that gives the best mean score on the validation
    /// split; the first of equally good ones.
    TuneGlobalWeight {
        /// The weights that are tried.
        candidates: Vec<f64>,
    },
}

/// The steps with numbers may stand as their names alone, with default numbers.
fn by_name_alone(schema: &mut Schema) {
    if let Some(forms) = schema
        .get_mut("oneOf")
        .and_then(|forms| forms.as_array_mut())
    {
        forms
            .push(serde_json::json!({"type": "string", "enum": ["cluster", "embed_instructions"]}));
    }
}

/// One stage of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "StageFile")]
#[schemars(!try_from, deny_unknown_fields)]
pub struct StageConfig {
    /// Name in reports, unlike that of any other stage.
    pub name: String,
    /// The step without gradient that this stage is; everything below is then left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<Transform>,
    /// Which part of the method trains.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(default)]
    pub scope: Scope,
    /// What decides which experts a sequence gets.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(default)]
    pub routing: StageRouting,
    /// Names of the tasks whose data it trains on; all of the run if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub tasks: Vec<String>,
    /// Number of optimizer steps, over all tasks together where they train one after the other.
    #[schemars(default)]
    pub steps: usize,
    /// Which kinds of parameters train; the base never does.
    #[schemars(default)]
    pub trainable: Vec<ParameterKind>,
    /// Rows per forward pass; a batch with more is split and its gradients are added up exactly.
    /// 0 for the whole batch at once.
    #[schemars(default)]
    pub micro_batch_size: usize,
    /// Whether the backward pass computes every layer again instead of keeping what is inside it:
    /// the memory of one layer for one forward pass more. Not for an encoder-decoder.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(default)]
    pub gradient_checkpointing: bool,
    /// Label smoothing, of classes that a head predicts and of generated tokens: the share of the
    /// probability that is spread evenly over all classes, as in PyTorch's `CrossEntropyLoss`. Scores on the
    /// validation and test splits are computed without it.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(default)]
    pub label_smoothing: f64,
    /// NEFTune's alpha: noise on the embedded tokens while the stage trains, see
    /// [`molora_models::EmbeddingNoise`]; 0 for none.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(default)]
    pub neftune_alpha: f64,
    /// Auxiliary terms in place of the recipe's; experts that train alone have none without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<ObjectiveConfig>,
    /// The optimizer.
    #[schemars(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate over the stage, or over each task's share of it.
    #[schemars(default)]
    pub schedule: ScheduleConfig,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl StageConfig {
    /// A stage that trains parameters of the mixture.
    pub fn new(name: &str, steps: usize, trainable: &[ParameterKind]) -> Self {
        Self {
            name: name.into(),
            transform: None,
            scope: Scope::Mixture,
            routing: StageRouting::Router,
            tasks: Vec::new(),
            steps,
            trainable: trainable.to_vec(),
            micro_batch_size: 0,
            gradient_checkpointing: false,
            label_smoothing: 0.0,
            neftune_alpha: 0.0,
            objective: None,
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
        }
    }

    /// A stage that trains everything but the base.
    pub fn joint(steps: usize) -> Self {
        use ParameterKind::{Adapters, Gates, Heads, Routers, Saved};
        Self::new("joint", steps, &[Adapters, Routers, Gates, Heads, Saved])
    }

    /// A step without gradient.
    pub fn transform(name: &str, transform: Transform) -> Self {
        Self {
            transform: Some(transform),
            ..Self::new(name, 0, &[])
        }
    }

    /// Whether the stage trains experts that stand alone on the base model.
    pub fn trains_alone(&self) -> bool {
        self.transform.is_none() && self.scope != Scope::Mixture
    }

    /// The specification of the model that the stage trains, from that of the whole mixture.
    pub fn spec(&self, mixture: &AdapterSpec) -> AdapterSpec {
        match self.trains_alone() {
            true => mixture.one_expert(self.scope == Scope::EachGate),
            false => mixture.clone(),
        }
    }

    /// The auxiliary terms of the stage, from those of its recipe.
    pub fn objective<'a>(&'a self, of_recipe: &'a ObjectiveConfig) -> Option<&'a ObjectiveConfig> {
        let of_recipe = (!self.trains_alone()).then_some(of_recipe);
        self.objective.as_ref().or(of_recipe)
    }

    /// What is out of range, each with the name of its field.
    pub fn problems(&self) -> Vec<String> {
        match &self.transform {
            Some(transform) => self.transform_problems(transform),
            None => self.training_problems(),
        }
    }

    fn transform_problems(&self, transform: &Transform) -> Vec<String> {
        let mut problems = Vec::new();
        if self.steps > 0 || !self.trainable.is_empty() {
            problems.push("transform computes no gradient: expected no steps and trainable".into());
        }
        if self.routing != StageRouting::Router {
            problems.push("transform computes no gradient: expected no routing".into());
        }
        if self.label_smoothing != 0.0 || self.neftune_alpha != 0.0 {
            let keys = "label_smoothing and neftune_alpha";
            problems.push(format!(
                "transform computes no gradient: expected no {keys}"
            ));
        }
        if let Transform::Cluster(config) = transform {
            let at = |problem| format!("transform.cluster.{problem}");
            problems.extend(config.problems().into_iter().map(at));
        }
        if let Transform::EmbedInstructions(config) = transform {
            let at = |problem| format!("transform.embed_instructions.{problem}");
            problems.extend(config.problems().into_iter().map(at));
        }
        if let Transform::TuneGlobalWeight { candidates } = transform {
            let in_range = |weight: &f64| weight.is_finite() && *weight >= 0.0;
            if candidates.is_empty() || !candidates.iter().all(in_range) {
                problems.push(format!(
                    "transform.tune_global_weight.candidates is {candidates:?}, expected one or more \
                     weights of at least 0"
                ));
            }
        }
        problems
    }

    fn training_problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self
            .optimizer
            .problems()
            .into_iter()
            .map(|problem| format!("optimizer.{problem}"))
            .collect();
        if self.steps == 0 {
            problems.push("steps is 0, expected at least 1".into());
        }
        if self.trainable.is_empty() {
            problems.push("trainable is empty: the stage would train nothing".into());
        }
        if self.trainable.contains(&ParameterKind::Base) {
            problems.push("trainable has base, which is always frozen".into());
        }
        if self.trainable.contains(&ParameterKind::Frozen) {
            problems.push("trainable has frozen, which no gradient trains".into());
        }
        if self.scope == Scope::EachGate && self.trainable.contains(&ParameterKind::Adapters) {
            problems.push("trainable has adapters, but an expert behind its gate is frozen".into());
        }
        if self.routing == StageRouting::Random && self.trainable.contains(&ParameterKind::Routers)
        {
            problems.push(
                "routing is random, and trainable has routers, which learn nothing while chance decides"
                    .into(),
            );
        }
        if self.routing != StageRouting::Router && self.scope != Scope::Mixture {
            problems.push("routing = \"label\" or \"random\" needs scope = \"mixture\"".into());
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let found = self.label_smoothing;
            problems.push(format!(
                "label_smoothing is {found}, expected at least 0 and less than 1"
            ));
        }
        if !(self.neftune_alpha.is_finite() && self.neftune_alpha >= 0.0) {
            let found = self.neftune_alpha;
            problems.push(format!("neftune_alpha is {found}, expected at least 0"));
        }
        if !(0.0..1.0).contains(&self.schedule.warmup) {
            let warmup = self.schedule.warmup;
            problems.push(format!(
                "schedule.warmup is {warmup}, expected at least 0 and less than 1"
            ));
        }
        problems
    }

    /// Makes exactly this stage's parameters trainable: the only place that decides it.
    pub fn apply(&self, model: TaskModel) -> TaskModel {
        set_trainable(model, &self.trainable)
    }

    /// Number of scalars that this stage would train in a model.
    pub fn num_trained(&self, model: &TaskModel) -> usize {
        let counts = count(model);
        let of = |kind: &ParameterKind| match kind {
            ParameterKind::Base | ParameterKind::Frozen => 0,
            ParameterKind::Adapters => counts.adapters,
            ParameterKind::Routers => counts.routers,
            ParameterKind::Gates => counts.gates,
            ParameterKind::Heads => counts.heads,
            ParameterKind::Saved => counts.saved,
        };
        self.trainable.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_do_not_learn_while_chance_decides() {
        let mut stage = StageConfig::joint(3);
        stage.routing = StageRouting::Random;
        assert!(stage.problems()[0].starts_with("routing is random"));
        stage
            .trainable
            .retain(|kind| *kind != ParameterKind::Routers);
        assert!(stage.problems().is_empty());
        let mut transform = StageConfig::transform("assemble", Transform::Assemble);
        transform.routing = StageRouting::Random;
        assert!(transform.problems()[0].contains("expected no routing"));
    }

    #[test]
    fn smoothing_and_noise_out_of_range_are_named() {
        let mut stage = StageConfig::joint(3);
        (stage.label_smoothing, stage.neftune_alpha) = (1.0, f64::NAN);
        let expected = [
            "label_smoothing is 1, expected at least 0 and less than 1",
            "neftune_alpha is NaN, expected at least 0",
        ];
        assert_eq!(stage.problems(), expected);
        let mut transform = StageConfig::transform("assemble", Transform::Assemble);
        transform.label_smoothing = 0.1;
        assert!(transform.problems()[0].contains("expected no label_smoothing"));
    }

    #[test]
    fn a_transform_trains_nothing() {
        let mut stage = StageConfig::transform("assemble", Transform::Assemble);
        assert!(stage.problems().is_empty());
        stage.steps = 3;
        assert!(stage.problems()[0].starts_with("transform computes no gradient"));
        let tune = Transform::TuneGlobalWeight {
            candidates: vec![-1.0],
        };
        let found = StageConfig::transform("tune", tune).problems();
        assert!(found[0].contains("candidates is [-1.0]"), "{found:?}");
    }
}
