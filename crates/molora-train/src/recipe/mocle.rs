//! MoCLE: texts are divided into clusters before training, each cluster has one expert at a site, and a
//! universal expert takes the rest. Gou et al., arXiv:2312.12379. Notes: docs/methods/mocle.md
use molora_adapters::{BankConfig, GeneralExpert, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_routing::normaliser::ProbabilityConfig;
use molora_routing::scorer::ClusterConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, ClusterTexts, Recipe, StageConfig, Transform};

const CITATION: &str = "Gou et al., Mixture of Cluster-conditional LoRA Experts for Vision-language \
                        Instruction Tuning, arXiv:2312.12379";

pub(super) const ABOUT: About = About {
    special: "clusters of texts choose an expert beside a universal one",
    parameters: "(E + 1) R (D + O) + table",
    step_time: Some(0.99),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        // Beside the universal one.
        num_experts: 4,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        dropout: 0.05,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: ClusterConfig {
            clusters: 16,
            width: 64,
        }
        .into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Sequence,
        temperature: 0.05,
        noise: 0.1,
        selection: Selection::TopK(1),
        normaliser: ProbabilityConfig::default().into(),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        general: Some(GeneralExpert::Rest),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    let cluster = Transform::Cluster(ClusterTexts::default());
    Recipe {
        stages: vec![
            StageConfig::transform("clusters", cluster),
            StageConfig::joint(600),
        ],
        ..Recipe::new("mocle", CITATION, adapter)
    }
}
