//! The method of an assembled run.

use molora_models::{
    Adaptable, AdapterSpec, Backbone, ExpertCount, ParameterKind, RouterScope, shortest_names,
};
use molora_routing::normaliser::IdentityConfig;
use molora_routing::scorer::{ArrowConfig, PerceptronConfig, PrototypeConfig, UniformConfig};
use molora_routing::{Granularity, Pooling, RouterConfig, ScorerConfig, Selection};

use super::AssembleRequest;
use super::experts::Experts;
use crate::data::PromptStyle;
use crate::recipe::{InstructionConfig, Recipe, StageConfig, Transform};
use crate::{TrainError, recipe};

/// How given experts are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterChoice {
    /// By the direction of its input that each expert stretches most; needs nothing but the experts.
    Arrow,
    /// By the gates that were trained with the experts.
    Phatgoose,
    /// By the experts' gates, if they have any, and instructions.
    Glider,
    /// All alike.
    Uniform,
    /// By a gate of each layer that adds up what experts change (arXiv:2402.00433).
    Wemoe,
    /// By one gate for all layers, of experts without their small entries (arXiv:2410.21804).
    EWemoe,
}

impl RouterChoice {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arrow => "arrow",
            Self::Phatgoose => "phatgoose",
            Self::Glider => "glider",
            Self::Uniform => "uniform",
            Self::Wemoe => "wemoe",
            Self::EWemoe => "e-wemoe",
        }
    }

    /// Whether the routers are gates that are learned from unlabelled records.
    pub(crate) fn adapts(self) -> bool {
        matches!(self, Self::Wemoe | Self::EWemoe)
    }

    fn scorer(self) -> ScorerConfig {
        match self {
            Self::Arrow => ArrowConfig.into(),
            Self::Phatgoose | Self::Glider => PrototypeConfig.into(),
            Self::Uniform => UniformConfig.into(),
            Self::Wemoe | Self::EWemoe => PerceptronConfig::default().into(),
        }
    }

    /// As many experts for a token as the papers' codes and PEFT take.
    fn top_k(self) -> Option<usize> {
        match self {
            Self::Arrow => Some(3),
            Self::Phatgoose | Self::Glider => Some(2),
            Self::Uniform | Self::Wemoe | Self::EWemoe => None,
        }
    }

    fn citation(self) -> Result<String, TrainError> {
        Ok(match self {
            Self::Arrow => "Ostapenko et al., Towards Modular LLMs by Building and Reusing a \
                            Library of LoRAs, ICML 2024, arXiv:2405.11157"
                .into(),
            Self::Uniform => "The mean of the experts".into(),
            Self::Wemoe => {
                "Tang et al., Merging Multi-Task Models via Weight-Ensembling Mixture of \
                            Experts, ICML 2024, arXiv:2402.00433"
                    .into()
            }
            Self::EWemoe => "Shen et al., Efficient and Effective Weight-Ensembling Mixture of \
                             Experts for Multi-Task Model Merging, arXiv:2410.21804"
                .into(),
            Self::Phatgoose | Self::Glider => recipe::find(self.name())?.citation,
        })
    }
}

/// The recipe of the run. A model with a chat template is prompted by it.
///
/// # Errors
/// [`TrainError::Recipe`] for numbers that the router has no use for.
pub(super) fn recipe(
    request: &AssembleRequest,
    experts: &Experts<'_>,
    base: &Backbone,
    has_template: bool,
) -> Result<Recipe, TrainError> {
    check(request)?;
    let choice = request.router;
    let count = request.experts.len();
    let selection = match request.top_k.or(choice.top_k().map(|k| k.min(count))) {
        Some(k) => Selection::TopK(k),
        None => Selection::Dense,
    };
    let mut router = RouterConfig {
        scorer: choice.scorer(),
        selection,
        ..RouterConfig::default()
    };
    if choice.adapts() {
        router.normaliser = IdentityConfig.into();
        router.granularity = Granularity::Sequence;
        router.pooling = Pooling::Scores;
    }
    let mut adapter = adapter(router, experts, base);
    if choice.adapts() {
        adapter.router_scope = RouterScope::Layer;
    }
    let mut recipe = Recipe::new(choice.name(), &choice.citation()?, adapter);
    of_given(&mut recipe, base, has_template);
    if choice == RouterChoice::Glider {
        let embed = Transform::EmbedInstructions(InstructionConfig::default());
        recipe
            .stages
            .push(StageConfig::transform("instructions", embed));
    }
    if request.steps > 0 {
        let mut kinds = vec![ParameterKind::Routers];
        // A head that no expert brought is random.
        kinds.extend(experts.lacks_heads(base).then_some(ParameterKind::Heads));
        let stage = StageConfig::new("routers", request.steps, &kinds);
        recipe.stages.push(stage);
    }
    Ok(recipe)
}

/// Fits a recipe to a model, with one stage in which all adapters are given.
pub(in crate::exchange) fn of_given(recipe: &mut Recipe, base: &Backbone, has_template: bool) {
    let limit = base.max_tokens().unwrap_or(usize::MAX);
    let data = &mut recipe.data;
    data.max_length = data.max_length.min(limit);
    data.writing.max_length = data.writing.max_length.min(limit);
    data.writing.prompt = match has_template {
        true => PromptStyle::Chat,
        false => PromptStyle::Plain,
    };
    recipe.stages = vec![StageConfig::transform("experts", Transform::Given)];
}

/// Refuses numbers that the router has no use for.
fn check(request: &AssembleRequest) -> Result<(), TrainError> {
    let choice = request.router;
    let refuse = |problem: String| TrainError::Recipe {
        name: choice.name().into(),
        problems: vec![problem],
    };
    if choice == RouterChoice::Uniform && (request.steps > 0 || request.top_k.is_some()) {
        let text =
            "uniform weights have nothing to select or to train: leave out --top-k and --steps";
        return Err(refuse(text.into()));
    }
    if request.steps > 0 && request.data.is_none() {
        return Err(refuse(
            "--steps needs --data with a task for each expert".into(),
        ));
    }
    Ok(())
}

fn adapter(router: RouterConfig, experts: &Experts<'_>, base: &Backbone) -> AdapterSpec {
    let all: Vec<String> = base.linears().into_iter().map(|(path, _)| path).collect();
    AdapterSpec {
        targets: shortest_names(&experts.banks.paths(), &all),
        experts: ExpertCount::PerTask,
        bank: experts.banks.bank(),
        router: Some(router),
        ..AdapterSpec::default()
    }
}
