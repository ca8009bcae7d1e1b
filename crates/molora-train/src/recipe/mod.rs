//! Methods as values: one file per paper, each of which reads like the paper's table.

mod about;
mod adamole;
mod arrow;
mod at_moe;
mod check;
mod cluster_texts;
mod data;
mod duo_lora;
mod earlier;
mod flylora;
mod glider;
mod goat;
mod growth;
mod guard;
mod hmora;
mod hydralora;
mod instructions;
mod jiuzhang;
mod ld_mole;
mod lily;
mod limits;
mod lora;
mod loramoe;
mod malora;
mod mhr;
mod mixlora;
mod mixlora_cfs;
mod moa;
mod mocle;
mod mod_squad;
mod mode;
mod moelora;
mod mola;
mod mole_topk;
mod mor1e;
mod mosld;
mod mtl_lora;
mod mtlora;
mod olora;
mod omoe;
mod optimizer;
mod order;
pub mod overrides;
mod phases;
mod phatgoose;
mod pissa;
mod poly;
mod profile;
mod report;
mod samora;
mod schema;
mod stage;
mod top_p;
mod validation;
mod x_lora;

use molora_models::{AdapterSpec, Backbone};
use molora_regularize::ObjectiveConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::TrainError;
pub use about::{About, Group, about};
pub use cluster_texts::ClusterTexts;
pub use data::DataConfig;
use earlier::RecipeFile;
pub(crate) use guard::balances;
pub use guard::{GuardAction, GuardConfig, GuardRule, Watched};
pub use instructions::{InstructionConfig, QuerySource};
pub use limits::MAX_STEPS;
pub(crate) use optimizer::clip_global_norm;
pub use optimizer::{Decay, OptimizerConfig, ScheduleConfig};
pub use phases::{Phase, phases};
pub use profile::BaseKind;
pub use report::{LogFormat, ReportConfig};
pub use schema::schema;
pub use stage::{Scope, StageConfig, StageRouting, Transform};
pub use validation::{CheckpointConfig, FinalState, ValidationConfig};

/// Makes a recipe with its default values.
type Maker = fn() -> Recipe;

/// All recipes by name, sorted.
const RECIPES: &[(&str, Maker, About)] = &[
    ("adamole", adamole::recipe, adamole::ABOUT),
    ("arrow", arrow::recipe, arrow::ABOUT),
    ("at-moe", at_moe::recipe, at_moe::ABOUT),
    ("duo-lora", duo_lora::recipe, duo_lora::ABOUT),
    ("flylora", flylora::recipe, flylora::ABOUT),
    ("glider", glider::recipe, glider::ABOUT),
    ("goat", goat::recipe, goat::ABOUT),
    ("hmora", hmora::recipe, hmora::ABOUT),
    ("hydralora", hydralora::recipe, hydralora::ABOUT),
    ("jiuzhang", jiuzhang::recipe, jiuzhang::ABOUT),
    ("ld-mole", ld_mole::recipe, ld_mole::ABOUT),
    ("lily", lily::recipe, lily::ABOUT),
    ("lora", lora::recipe, lora::ABOUT),
    ("loramoe", loramoe::recipe, loramoe::ABOUT),
    ("malora", malora::recipe, malora::ABOUT),
    ("mhr", mhr::recipe, mhr::ABOUT),
    ("mixlora", mixlora::recipe, mixlora::ABOUT),
    ("mixlora-cfs", mixlora_cfs::recipe, mixlora_cfs::ABOUT),
    ("moa", moa::recipe, moa::ABOUT),
    ("mocle", mocle::recipe, mocle::ABOUT),
    ("mod-squad", mod_squad::recipe, mod_squad::ABOUT),
    ("mode", mode::recipe, mode::ABOUT),
    ("moelora", moelora::recipe, moelora::ABOUT),
    ("mola", mola::recipe, mola::ABOUT),
    ("mole-topk", mole_topk::recipe, mole_topk::ABOUT),
    ("mor1e", mor1e::recipe, mor1e::ABOUT),
    ("mosld", mosld::recipe, mosld::ABOUT),
    ("mtl-lora", mtl_lora::recipe, mtl_lora::ABOUT),
    ("mtlora", mtlora::recipe, mtlora::ABOUT),
    ("olora", olora::recipe, olora::ABOUT),
    ("omoe", omoe::recipe, omoe::ABOUT),
    ("phatgoose", phatgoose::recipe, phatgoose::ABOUT),
    ("pissa", pissa::recipe, pissa::ABOUT),
    ("poly", poly::recipe, poly::ABOUT),
    ("samora", samora::recipe, samora::ABOUT),
    ("top-p", top_p::recipe, top_p::ABOUT),
    ("x-lora", x_lora::recipe, x_lora::ABOUT),
];

/// The layers that the bundled recipes adapt: query, key, value and output of every attention.
const ATTENTION: [&str; 1] = ["all-attention"];

/// The layers of recipes whose papers adapt feed-forwards: every linear layer outside attention.
const FEED_FORWARD: [&str; 1] = ["all-feed-forward"];

/// A method and how it is trained, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "RecipeFile")]
#[schemars(!try_from, deny_unknown_fields)]
pub struct Recipe {
    /// Name of the method.
    pub name: String,
    /// Authors, title and arXiv number of its paper.
    pub citation: String,
    /// A checkpoint is written every so many steps.
    pub checkpoint_every: usize,
    /// Which states are kept.
    #[schemars(default)]
    pub checkpoint: CheckpointConfig,
    /// When the validation split is scored.
    #[schemars(default)]
    pub validation: ValidationConfig,
    /// What the report shows.
    #[schemars(default)]
    pub report: ReportConfig,
    /// What watches the routers.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(default)]
    pub guard: GuardConfig,
    /// Texts and batches.
    pub data: DataConfig,
    /// Which layers get which experts, router and gate.
    pub adapter: AdapterSpec,
    /// Auxiliary terms that are added to the task loss.
    pub objective: ObjectiveConfig,
    /// What is trained, one after the other.
    pub stages: Vec<StageConfig>,
    /// What is trained after a new expert has joined the others; nothing where it is only put
    /// beside them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub growth: Vec<StageConfig>,
}

fn is_default(guard: &GuardConfig) -> bool {
    *guard == GuardConfig::default()
}

impl Recipe {
    /// A recipe with the usual data, 600 joint steps and no auxiliary terms.
    pub(crate) fn new(name: &str, citation: &str, adapter: AdapterSpec) -> Self {
        Self {
            name: name.into(),
            citation: citation.into(),
            checkpoint_every: 100,
            checkpoint: CheckpointConfig::default(),
            validation: ValidationConfig::default(),
            report: ReportConfig::default(),
            guard: GuardConfig::default(),
            data: DataConfig::default(),
            adapter,
            objective: ObjectiveConfig::default(),
            stages: vec![StageConfig::joint(600)],
            growth: Vec::new(),
        }
    }

    /// How experts are compared by the texts of their tasks, beside the routers, if they are.
    pub fn instructions(&self) -> Option<&InstructionConfig> {
        self.stages.iter().find_map(|stage| match &stage.transform {
            Some(Transform::EmbedInstructions(config)) => Some(config),
            _ => None,
        })
    }

    /// How training texts are divided into clusters, if they are.
    pub fn cluster_texts(&self) -> Option<&ClusterTexts> {
        self.stages.iter().find_map(|stage| match &stage.transform {
            Some(Transform::Cluster(config)) => Some(config),
            _ => None,
        })
    }

    /// The sentence encoder of the recipe, if it reads texts beside the base model.
    pub fn text_encoder(&self) -> Option<&String> {
        let of_instructions = self.instructions().map(|config| &config.encoder);
        of_instructions.or(self.cluster_texts().map(|config| &config.encoder))
    }

    /// As [`instructions`](Self::instructions), to be changed.
    pub fn instructions_mut(&mut self) -> Option<&mut InstructionConfig> {
        let mut stages = self.stages.iter_mut();
        stages.find_map(|stage| match &mut stage.transform {
            Some(Transform::EmbedInstructions(config)) => Some(config),
            _ => None,
        })
    }

    /// Gives the recipe `total` optimizer steps, which its stages share as before; each that trains
    /// keeps at least one.
    pub fn set_total_steps(&mut self, total: usize) {
        // As wide numbers: both may be as large as a number of steps can be.
        let steps = self.stages.iter().map(|stage| stage.steps as u128);
        let old: u128 = steps.sum();
        let mut trained: Vec<&mut StageConfig> = self
            .stages
            .iter_mut()
            .filter(|stage| stage.steps > 0)
            .collect();
        let Some((last, others)) = trained.split_last_mut() else {
            return; // named among the recipe's other problems
        };
        let mut left = total;
        for stage in others {
            let share = (stage.steps as u128 * total as u128 + old / 2) / old;
            let share = usize::try_from(share).unwrap_or(usize::MAX);
            stage.steps = share.clamp(1, left.max(1));
            left = left.saturating_sub(stage.steps);
        }
        last.steps = left.max(usize::from(total > 0));
    }

    /// The recipe as TOML with every value spelled out.
    ///
    /// # Panics
    /// Never: a recipe is plain data.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("recipes are plain data")
    }

    /// Reads a recipe; `file` is named in errors.
    ///
    /// # Errors
    /// [`TrainError::RecipeText`] with file and line for text that is no recipe.
    pub fn from_toml(text: &str, file: &str) -> Result<Self, TrainError> {
        toml::from_str(text).map_err(|error| text_error(text, file, &error))
    }

    /// Checks every value against the others: all that can be known before there are tasks and a
    /// model.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] with all problems, each with the path of its field.
    pub fn check(&self) -> Result<(), TrainError> {
        self.refuse(limits::problems(self))?;
        // How many experts there are for tasks is not known yet.
        let spec = match self.adapter.has_expert_per_task() {
            true => Vec::new(),
            false => self.spec_for(&[]).1,
        };
        self.refuse([spec, self.problems()].concat())
    }

    /// [`check`](Self::check), also against the tasks' names; returns the specification of the
    /// mixture for these tasks.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] with all problems, each with the path of its field.
    pub fn for_tasks(&self, tasks: &[String]) -> Result<AdapterSpec, TrainError> {
        self.refuse(limits::problems(self))?;
        let (spec, problems) = self.spec_for(tasks);
        let lacking = self.tasks_that_lack(tasks);
        self.refuse([problems, self.problems(), lacking].concat())?;
        Ok(spec)
    }

    /// Checks what depends on the model.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] with all problems, each with the path of its field.
    pub fn fits(&self, model: &Backbone) -> Result<(), TrainError> {
        self.refuse(self.model_problems(model))
    }

    /// [`for_tasks`](Self::for_tasks) and [`fits`](Self::fits).
    ///
    /// # Errors
    /// [`TrainError::Recipe`] with the problems of the first that finds any.
    pub fn resolve(&self, model: &Backbone, tasks: &[String]) -> Result<AdapterSpec, TrainError> {
        let spec = self.for_tasks(tasks)?;
        self.fits(model)?;
        Ok(spec)
    }

    fn refuse(&self, problems: Vec<String>) -> Result<(), TrainError> {
        match problems.is_empty() {
            true => Ok(()),
            false => Err(TrainError::Recipe {
                name: self.name.clone(),
                problems,
            }),
        }
    }
}

/// What is wrong with a TOML text, with file and line.
pub(crate) fn text_error(text: &str, file: &str, error: &toml::de::Error) -> TrainError {
    let line = error
        .span()
        .map(|span| 1 + text[..span.start].matches('\n').count());
    TrainError::RecipeText {
        place: line.map_or(file.to_owned(), |line| format!("{file}:{line}")),
        problem: error.message().replace('\n', " "),
    }
}

/// Names of all recipes, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|(name, ..)| *name)
}

/// The recipe of that name, with the numbers that fit an encoder.
///
/// # Errors
/// As [`find_for`].
pub fn find(name: &str) -> Result<Recipe, TrainError> {
    find_for(name, BaseKind::Encoder)
}

/// The recipe of that name, with the numbers that fit a kind of base model (see
/// [`Recipe::for_base`]).
///
/// # Errors
/// [`TrainError::NoSuchRecipe`] with the names that exist and one that is near.
pub fn find_for(name: &str, kind: BaseKind) -> Result<Recipe, TrainError> {
    if let Some((_, recipe, _)) = RECIPES.iter().find(|(known, ..)| *known == name) {
        return Ok(recipe().for_base(kind));
    }
    let near = names()
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(score, _)| *score > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    Err(TrainError::NoSuchRecipe {
        name: name.into(),
        known: names().collect::<Vec<_>>().join(", "),
        hint: near.map_or(String::new(), |(_, known)| {
            format!("; did you mean `{known}`?")
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_survives_its_own_text() {
        for name in names() {
            let recipe = find(name).expect("it is listed");
            assert_eq!(recipe.name, name);
            let has_source = ["arXiv:", "openreview:"].map(|at| recipe.citation.contains(at));
            assert!(has_source.contains(&true), "{name} has a citation");
            assert_eq!(
                Recipe::from_toml(&recipe.to_toml(), name).expect("its own text"),
                recipe
            );
            let mut adapter = recipe.adapter.clone();
            let tasks = ["a", "b", "c"].map(String::from);
            if name == "at-moe" {
                let groups = adapter.task_groups_mut().expect("it has groups");
                *groups = [("all".into(), tasks.to_vec())].into();
            }
            let spec = adapter.for_tasks(&tasks).expect("fits any tasks");
            let problems = spec.problems();
            assert!(problems.is_empty(), "{name}: {problems:?}");
            let terms = recipe.objective_problems("objective", &recipe.objective);
            let stages = recipe.stage_problems();
            assert!(
                terms.is_empty() && stages.is_empty(),
                "{name}: {terms:?} {stages:?}"
            );
        }
        assert!(names().is_sorted());
    }

    #[test]
    fn weights_of_tasks_are_relative() {
        let of = |weights: &[(&str, f64)]| {
            let weights = weights
                .iter()
                .map(|&(task, weight)| (task.to_owned(), weight));
            let data = DataConfig {
                task_weights: weights.collect(),
                ..DataConfig::default()
            };
            data.relative_weights(["a", "b"])
        };
        assert!(of(&[]).is_empty());
        assert!(of(&[("a", 0.1), ("b", 0.1)]).is_empty());
        assert!(of(&[("b", 1.0)]).is_empty());
        assert_eq!(of(&[("a", 3.0)]), [1.5, 0.5]);
        assert_eq!(of(&[("a", 6.0), ("b", 2.0)]), [1.5, 0.5]);
    }

    #[test]
    fn stages_keep_their_shares_of_the_steps() {
        let steps = |name: &str, total| -> Vec<usize> {
            let mut recipe = find(name).expect("listed");
            recipe.set_total_steps(total);
            recipe.stages.iter().map(|stage| stage.steps).collect()
        };
        assert_eq!(steps("lora", 7), [7]);
        assert_eq!(steps("at-moe", 600), [150, 300, 0, 150]);
        assert_eq!(steps("at-moe", 402), [101, 201, 0, 100]);
        assert_eq!(steps("phatgoose", 300), [260, 40, 0, 0]);
        assert_eq!(steps("moa", 2), [1, 0, 1]);
        assert_eq!(steps("lora", 0), [0], "refused when the recipe is resolved");
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line() {
        let text = find("samora")
            .expect("listed")
            .to_toml()
            .replace("rank = ", "rnak = ");
        let error = Recipe::from_toml(&text, "mine.toml")
            .expect_err("misspelt")
            .to_string();
        let line = 1 + text
            .lines()
            .position(|line| line.starts_with("rnak"))
            .expect("replaced");
        assert!(
            error.starts_with(&format!("mine.toml:{line}: unknown field `rnak`")),
            "{error}"
        );
        assert!(error.contains("`rank`") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn an_unknown_recipe_lists_what_there_is() {
        let error = find("samroa").expect_err("misspelt").to_string();
        let known = names().collect::<Vec<_>>().join(", ");
        let expected = format!("no recipe `samroa`; there are: {known}; did you mean `samora`?");
        assert_eq!(error, expected);
    }
}
