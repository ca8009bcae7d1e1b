//! Duo-LoRA: for every token and layer a small expert, a large one, or none, within a budget. Alizadeh et al.,
//! Duo-LLM, arXiv:2410.10846. Notes: docs/methods/duo-lora.md
use molora_adapters::combine::SizesConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, ParameterKind, RouterScope};
use molora_regularize::{Budget, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe, StageConfig, StageRouting};

const CITATION: &str = "Alizadeh et al., Duo-LLM: A Framework for Studying Adaptive Computation in Large Language \
                        Models, arXiv:2410.10846";

pub(super) const ABOUT: About = About {
    special: "a small expert, a large one or none, within a budget",
    parameters: "R (D + O), routers by layer",
    step_time: Some(1.01),
};

pub(super) fn recipe() -> Recipe {
    use ParameterKind::{Adapters, Heads, Routers, Saved};
    let bank = BankConfig {
        slices: Slices::Independent,
        combine: SizesConfig {
            shares: vec![1, 4],
            skip: true,
        }
        .into(),
        // 2 and 8.
        rank: 10,
        scaling: Scaling::AlphaOverRank(20.0),
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: true }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        // One choice in the forward pass, and all of them in the router's gradient.
        selection: Selection::StraightThroughDense,
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        router_scope: RouterScope::Layer,
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    let budget = TermConfig {
        term: Budget { target: 0.5 }.into(),
        weight: 1.0,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    };
    let experts = StageConfig {
        routing: StageRouting::Random,
        // Routers do not train yet.
        objective: Some(ObjectiveConfig::default()),
        ..StageConfig::new("experts", 400, &[Adapters, Heads, Saved])
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![budget],
        },
        stages: vec![experts, StageConfig::new("routers", 200, &[Routers, Heads])],
        ..Recipe::new("duo-lora", CITATION, adapter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_about_the_mean_of_all_layers() {
        let mut recipe = recipe();
        recipe.check().expect("valid");
        recipe.objective.terms[0].over_sites = Reduction::Sum;
        let error = recipe.check().expect_err("a sum is no mean").to_string();
        assert!(
            error.contains("over_sites is sum, expected mean"),
            "{error}"
        );
    }
}
