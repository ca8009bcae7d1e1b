//! What the Python computes, and what it leaves to molora.

use molora_adapters::{GeneralExpert, Scaling, Start};
use molora_routing::{Granularity, LayerRule, Pooling, RouteFrom, RouterConfig, Selection};

use crate::{AdapterSpec, Composition, RouterScope};

/// Choices that `python/mixture_molora.py` computes, by the field that they stand in. A new choice is refused until
/// it is there too.
const COMPUTED: [(&str, &[&str]); 5] = [
    ("bank.down", &["dense", "factored", "frozen_sparse"]),
    (
        "bank.combine",
        &[
            "sum",
            "rank_groups",
            "output_groups",
            "grid",
            "factors",
            "sizes",
            "orthogonal",
        ],
    ),
    (
        "bank.core",
        &["none", "scale", "relu", "task", "output_gate"],
    ),
    (
        "router.scorer",
        &[
            "linear",
            "cosine",
            "prototype",
            "arrow",
            "uniform",
            "grouped",
            "table",
            "magnitude",
            "per_task",
            "cluster",
            "blend",
            "task_prompt",
            "perceptron",
            "conditional",
        ],
    ),
    (
        "router.normaliser",
        &[
            "softmax",
            "sigmoid",
            "sigmoid_share",
            "none",
            "cells",
            "sparsegen",
            "probability",
            "threshold",
            "softmax_twice",
            "identity",
        ],
    ),
];

/// Choices without numbers of their own, all of which it computes: with a new one this does not compile.
fn are_computed(spec: &AdapterSpec) {
    match spec.bank.scaling {
        Scaling::Unit
        | Scaling::AlphaOverRank(_)
        | Scaling::RankStabilized(_)
        | Scaling::Aligned(_) => {}
    }
    match spec.bank.start {
        Start::Kaiming | Start::Gaussian | Start::Pissa | Start::Olora | Start::Segments(_) => {}
    }
    match spec.general {
        None
        | Some(
            GeneralExpert::RoutedShare(_) | GeneralExpert::Rest | GeneralExpert::RestOfSquared,
        ) => {}
    }
    match spec.layer_rule {
        LayerRule::PerLayer | LayerRule::First | LayerRule::Vote => {}
    }
    if let Some(router) = &spec.router {
        routes_are_computed(router);
    }
}

fn routes_are_computed(router: &RouterConfig) {
    match router.selection {
        Selection::Dense
        | Selection::TopK(_)
        | Selection::TopP(_)
        | Selection::Argmax
        | Selection::StraightThrough
        | Selection::StraightThroughDense => {}
    }
    match (router.granularity, router.pooling, router.route_from) {
        (
            Granularity::Token | Granularity::Sequence | Granularity::Task,
            Pooling::Mean | Pooling::Last | Pooling::Scores,
            RouteFrom::Hidden | RouteFrom::LowRank | RouteFrom::Dropped,
        ) => {}
    }
}

/// Why the Python beside an export does not compute a mixture, in words; `None` if it does.
pub fn why_not_computed(spec: &AdapterSpec) -> Option<String> {
    are_computed(spec);
    if !spec.modules_to_save.is_empty() {
        return Some("its embeddings or head train whole (adapter.modules_to_save)".into());
    }
    let place = match spec.composition {
        Composition::Site => None,
        Composition::FeedForward => Some("its experts are whole feed-forward parts"),
        Composition::FeedForwardSites => Some("its routers read the inputs of feed-forward parts"),
        Composition::Block => Some("its experts stand beside whole feed-forward parts"),
        Composition::Pool(_) => Some("its layers share their experts"),
    };
    if let Some(why) = place {
        let name = spec.composition.name();
        return Some(format!("{why} (adapter.composition is {name})"));
    }
    if !matches!(spec.router_scope, RouterScope::Site | RouterScope::Layer) {
        let name = spec.router_scope.name();
        let why = match spec.router_scope.first_pass() {
            Some(_) => "a first pass decides for all layers",
            None => "one router decides for all feed-forward parts",
        };
        return Some(format!("{why} (adapter.router_scope is {name})"));
    }
    let router = spec.router.as_ref();
    let found = [
        ("bank.down", Some(spec.bank.down.name())),
        ("bank.combine", Some(spec.bank.combine.name())),
        ("bank.core", Some(spec.bank.core.name())),
        ("router.scorer", router.map(|router| router.scorer.name())),
        (
            "router.normaliser",
            router.map(|router| router.normaliser.name()),
        ),
    ];
    let is_computed = |field: &str, name: &str| {
        let mut fields = COMPUTED.iter().filter(|(of, _)| *of == field);
        fields.any(|(_, names)| names.contains(&name))
    };
    let found = found
        .into_iter()
        .filter_map(|(field, name)| Some((field, name?)));
    let mut unknown = found.filter(|(field, name)| !is_computed(field, name));
    let (field, name) = unknown.next()?;
    Some(format!("adapter.{field} is {name}"))
}

#[cfg(test)]
mod tests {
    use molora_adapters::combine::Combine;
    use molora_adapters::core::CoreConfig;
    use molora_adapters::down::DownConfig;
    use molora_routing::{NormaliserConfig, ScorerConfig};

    use super::*;
    use crate::transformers::PYTHON;

    /// Every choice of the axes is one that the Python names.
    #[test]
    fn the_python_names_what_is_said_to_be_computed() {
        let (_, mixture) = PYTHON[2];
        for (field, all) in [
            ("bank.down", DownConfig::NAMES),
            ("bank.combine", Combine::NAMES),
            ("bank.core", CoreConfig::NAMES),
            ("router.scorer", ScorerConfig::NAMES),
            ("router.normaliser", NormaliserConfig::NAMES),
        ] {
            let (_, computed) = COMPUTED.iter().find(|(of, _)| *of == field).expect(field);
            assert!(all.iter().all(|name| computed.contains(name)), "{field}");
            // What changes nothing has no branch of its own.
            let plain = ["dense", "frozen_sparse", "none"];
            for name in computed.iter().filter(|name| !plain.contains(name)) {
                assert!(mixture.contains(&format!("\"{name}\"")), "{field}: {name}");
            }
        }
    }

    #[test]
    fn tables_that_train_whole_are_refused() {
        let spec = AdapterSpec {
            modules_to_save: vec![crate::SavedModule::Embeddings],
            ..AdapterSpec::default()
        };
        assert_eq!(why_not_computed(&AdapterSpec::default()), None);
        let why = why_not_computed(&spec).expect("no table in the Python");
        assert!(why.contains("adapter.modules_to_save"), "{why}");
    }

    #[test]
    fn the_python_is_short() {
        let lines: usize = PYTHON.iter().map(|(_, text)| text.lines().count()).sum();
        assert!(lines <= 1000, "{lines} lines");
    }
}
