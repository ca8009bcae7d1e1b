//! Recipes and stages in a file, with the keys of earlier versions, and their paths in `--set`.
//!
//! | earlier key | what it is now |
//! |---|---|
//! | `scope = "each_task"`, `gated = true` in a stage | `scope = "each_gate"` |
//! | `[instructions]` beside `transform = "embed_instructions"` | `transform.embed_instructions` |
//!
//! Those of the adapter are in `molora-models` (`spec/file.rs`).

mod paths;

use molora_models::{AdapterSpec, ParameterKind};
use molora_parts::read;
use molora_regularize::ObjectiveConfig;
use serde::{Deserialize, Deserializer};

use crate::recipe::limits;
use crate::recipe::stage::{Scope, StageConfig, StageRouting, Transform};
use crate::recipe::{
    CheckpointConfig, ClusterTexts, DataConfig, GuardConfig, InstructionConfig, OptimizerConfig,
    Recipe, ReportConfig, ScheduleConfig, ValidationConfig,
};

pub(in crate::recipe) use paths::renamed;

/// A [`Recipe`] in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::recipe) struct RecipeFile {
    name: String,
    citation: String,
    checkpoint_every: usize,
    #[serde(default)]
    checkpoint: CheckpointConfig,
    #[serde(default)]
    validation: ValidationConfig,
    #[serde(default)]
    report: ReportConfig,
    #[serde(default)]
    guard: GuardConfig,
    data: DataConfig,
    adapter: AdapterSpec,
    instructions: Option<InstructionConfig>,
    objective: ObjectiveConfig,
    stages: Vec<StageConfig>,
    #[serde(default)]
    growth: Vec<StageConfig>,
}

impl TryFrom<RecipeFile> for Recipe {
    type Error = String;

    fn try_from(file: RecipeFile) -> Result<Self, String> {
        let mut recipe = Self {
            name: file.name,
            citation: file.citation,
            checkpoint_every: file.checkpoint_every,
            checkpoint: file.checkpoint,
            validation: file.validation,
            report: file.report,
            guard: file.guard,
            data: file.data,
            adapter: file.adapter,
            objective: file.objective,
            stages: file.stages,
            growth: file.growth,
        };
        if let Some(instructions) = file.instructions {
            let own = recipe.instructions_mut();
            let own = own.ok_or(
                "[instructions] needs a stage with transform = \"embed_instructions\"".to_owned(),
            )?;
            *own = instructions;
        }
        // Here too: what reads the recipe next may not be able to hold them.
        let problems = limits::problems(&recipe);
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        Ok(recipe)
    }
}

/// A [`StageConfig`] in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::recipe) struct StageFile {
    name: String,
    transform: Option<Transform>,
    #[serde(default)]
    scope: Scope,
    #[serde(default)]
    gated: bool,
    #[serde(default)]
    routing: StageRouting,
    #[serde(default)]
    tasks: Vec<String>,
    #[serde(default)]
    steps: usize,
    #[serde(default)]
    trainable: Vec<ParameterKind>,
    #[serde(default)]
    micro_batch_size: usize,
    #[serde(default)]
    gradient_checkpointing: bool,
    #[serde(default)]
    label_smoothing: f64,
    #[serde(default)]
    neftune_alpha: f64,
    objective: Option<ObjectiveConfig>,
    #[serde(default)]
    optimizer: OptimizerConfig,
    #[serde(default)]
    schedule: ScheduleConfig,
}

impl TryFrom<StageFile> for StageConfig {
    type Error = String;

    fn try_from(file: StageFile) -> Result<Self, String> {
        let scope = match (file.scope, file.gated) {
            (scope, false) => scope,
            (Scope::EachTask | Scope::EachGate, true) => Scope::EachGate,
            (Scope::Mixture | Scope::General, true) => {
                return Err("gated needs scope = \"each_task\"".into());
            }
        };
        Ok(Self {
            name: file.name,
            transform: file.transform,
            scope,
            routing: file.routing,
            tasks: file.tasks,
            steps: file.steps,
            trainable: file.trainable,
            micro_batch_size: file.micro_batch_size,
            gradient_checkpointing: file.gradient_checkpointing,
            label_smoothing: file.label_smoothing,
            neftune_alpha: file.neftune_alpha,
            objective: file.objective,
            optimizer: file.optimizer,
            schedule: file.schedule,
        })
    }
}

impl<'de> Deserialize<'de> for Transform {
    /// A name alone stands for the step with its default numbers.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read::<D, TransformTable, Self>(deserializer, TRANSFORMS, |name| match name {
            "given" => Some(Self::Given),
            "assemble" => Some(Self::Assemble),
            "collect_prototypes" => Some(Self::CollectPrototypes),
            "collect_directions" => Some(Self::CollectDirections),
            "cluster" => Some(Self::Cluster(ClusterTexts::default())),
            "embed_instructions" => Some(Self::EmbedInstructions(InstructionConfig::default())),
            _ => None,
        })
    }
}

const TRANSFORMS: &[&str] = &[
    "given",
    "assemble",
    "collect_prototypes",
    "collect_directions",
    "cluster",
    "embed_instructions",
    "tune_global_weight",
];

/// A [`Transform`] with numbers.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum TransformTable {
    Cluster(ClusterTexts),
    EmbedInstructions(InstructionConfig),
    TuneGlobalWeight { candidates: Vec<f64> },
}

impl From<TransformTable> for Transform {
    fn from(table: TransformTable) -> Self {
        match table {
            TransformTable::Cluster(config) => Self::Cluster(config),
            TransformTable::EmbedInstructions(config) => Self::EmbedInstructions(config),
            TransformTable::TuneGlobalWeight { candidates } => {
                Self::TuneGlobalWeight { candidates }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::find;

    /// A stage of `text`, as TOML.
    fn stage(text: &str) -> Result<StageConfig, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn a_gated_stage_of_an_earlier_file_trains_gates() {
        let old = stage("name = \"gates\"\nscope = \"each_task\"\ngated = true");
        let new = stage("name = \"gates\"\nscope = \"each_gate\"");
        assert_eq!(old.expect("an older file"), new.expect("a file of today"));
        let error = stage("name = \"gates\"\ngated = true").expect_err("the mixture has no gate");
        assert!(error.contains("gated needs scope"), "{error}");
    }

    #[test]
    fn instructions_of_an_earlier_file_belong_to_their_stage() {
        let glider = find("glider").expect("listed");
        let new = glider.to_toml();
        let start = new
            .find("[stages.transform.embed_instructions]")
            .expect(&new);
        let rest = &new[start..];
        let end = start + rest[1..].find("\n[").map_or(rest.len(), |end| end + 2);
        let table = new[start..end].replace("[stages.transform.embed_instructions]", "");
        let old = new.replace(&new[start..end], "").replace(
            "name = \"instructions\"",
            "name = \"instructions\"\ntransform = \"embed_instructions\"",
        );
        let table = table.replace("100.0", "50.0");
        let old = old.replacen("[data]", &format!("[instructions]{table}\n[data]"), 1);
        let mut read = Recipe::from_toml(&old, "old.toml").expect("an older file");
        let own = read.instructions_mut().expect("its instructions");
        assert_eq!(own.weight, 50.0);
        own.weight = 100.0;
        assert_eq!(read, glider);
        let lora = find("lora").expect("listed").to_toml();
        let text = lora.replacen("[data]", &format!("[instructions]{table}\n[data]"), 1);
        let error = Recipe::from_toml(&text, "old.toml").expect_err("no stage");
        assert!(error.to_string().contains("[instructions] needs a stage"));
    }
}
