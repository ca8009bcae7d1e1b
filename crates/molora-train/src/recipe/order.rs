//! What a recipe's stages need of the stages before them.

use molora_adapters::Slices;
use molora_models::{AdapterSpec, RouterScope};
use molora_routing::scorer::RowsFrom;

use super::stage::{Scope, StageConfig, StageRouting, Transform};

/// What is wrong with the order of stages, each with the path of its field below `field`.
///
/// Experts that train alone come first, then they are assembled, then the mixture is changed. With
/// `assembled` the stages continue with a mixture and new experts that have been assembled.
pub(super) fn order_problems(
    field: &str,
    stages: &[StageConfig],
    spec: &AdapterSpec,
) -> Vec<String> {
    let mut order = Order {
        spec,
        experts: false,
        gates: false,
        general: false,
        assembled: false,
        embedded: false,
        directed: false,
        clustered: false,
    };
    let mut problems = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let earlier = &stages[..index];
        if stage.name.is_empty() || earlier.iter().any(|other| other.name == stage.name) {
            let name = &stage.name;
            problems.push(format!(
                "{field}.{index}.name is \"{name}\", expected a name of its own"
            ));
        }
        let found = order.visit(stage);
        problems.extend(found.map(|problem| format!("{field}.{index}: {problem}")));
    }
    if let Some(problem) = order.at_the_end() {
        problems.push(format!("{field}: {problem}"));
    }
    problems
}

/// What the stages so far have made.
struct Order<'a> {
    spec: &'a AdapterSpec,
    experts: bool,
    gates: bool,
    general: bool,
    assembled: bool,
    embedded: bool,
    directed: bool,
    clustered: bool,
}

impl Order<'_> {
    /// Notes what a stage makes; what is wrong with its place.
    fn visit(&mut self, stage: &StageConfig) -> Option<&'static str> {
        match &stage.transform {
            Some(transform) => self.transformed(transform),
            None => self.trained(stage),
        }
    }

    fn trained(&mut self, stage: &StageConfig) -> Option<&'static str> {
        let alone = stage.trains_alone();
        if alone && !self.spec.has_expert_per_task() {
            return Some("an expert that trains alone needs adapter.experts = \"per_task\"");
        }
        if alone && self.spec.bank.slices != Slices::Independent {
            return Some("experts that train alone need adapter.bank.slices = \"independent\"");
        }
        let bank = &self.spec.bank;
        if alone && (bank.down.is_shared() || !bank.combine.is_sum() || bank.start.reads_weight()) {
            return Some(
                "experts that train alone need a plain adapter.bank: down = \"dense\", combine = \"sum\" \
                 and a start that does not read the frozen weight",
            );
        }
        if alone && self.spec.bank.core.reads_tasks() {
            return Some("experts that train alone know one task: their core cannot depend on it");
        }
        if alone && self.spec.dora {
            return Some(
                "experts that train alone are mixed later, which adapter.dora = true rules out",
            );
        }
        if alone && !self.spec.modules_to_save.is_empty() {
            return Some(
                "experts that train alone stand on one base model, which adapter.modules_to_save would make \
                 another one for each",
            );
        }
        if alone && self.assembled {
            return Some("experts train alone before they are assembled, not afterwards");
        }
        match stage.scope {
            Scope::EachGate if !self.experts => {
                return Some("gates train on experts of an earlier stage, and there is none");
            }
            Scope::EachGate => self.gates = true,
            Scope::EachTask if self.experts => {
                return Some("the experts are trained by an earlier stage already");
            }
            Scope::EachTask => self.experts = true,
            Scope::General if self.spec.general.is_none() => {
                return Some("a general expert needs adapter.general");
            }
            Scope::General => self.general = true,
            Scope::Mixture if (self.experts || self.general) && !self.assembled => {
                return Some("the mixture trains after a stage with transform = \"assemble\"");
            }
            Scope::Mixture => {}
        }
        let by_cluster = self.spec.num_clusters().is_some();
        if stage.scope == Scope::Mixture && by_cluster && !self.clustered {
            return Some(
                "routers that read clusters (adapter.router.scorer = \"cluster\", normaliser = \"cells\") need \
                 an earlier stage with transform = \"cluster\"",
            );
        }
        let labelled = stage.routing == StageRouting::Label;
        if labelled && !(self.spec.has_expert_per_task() && self.spec.router.is_some()) {
            return Some("routing = \"label\" needs a router and adapter.experts = \"per_task\"");
        }
        if stage.routing == StageRouting::Random && self.spec.router.is_none() {
            return Some("routing = \"random\" needs a router");
        }
        None
    }

    fn transformed(&mut self, transform: &Transform) -> Option<&'static str> {
        match transform {
            Transform::Given => {
                self.experts = true;
                self.assembled = true;
                // Given experts come with their directions.
                self.directed = true;
            }
            Transform::Assemble if !self.experts => {
                return Some("there are no experts of an earlier stage to assemble");
            }
            Transform::Assemble if self.spec.general.is_some() && !self.general => {
                return Some("adapter.general needs a general expert of an earlier stage");
            }
            Transform::Assemble => self.assembled = true,
            Transform::CollectPrototypes if !(self.gates && self.assembled) => {
                return Some(
                    "prototypes are collected from gates, after the experts are assembled",
                );
            }
            Transform::CollectPrototypes if !self.has_rows_from(RowsFrom::Gates) => {
                return Some(
                    "prototypes need adapter.router.scorer = \"prototype\" and router_scope = \
                     \"site\"",
                );
            }
            Transform::CollectPrototypes => {}
            Transform::CollectDirections if !self.assembled => {
                return Some("directions are those of experts that have been assembled");
            }
            Transform::CollectDirections if !self.has_rows_from(RowsFrom::Experts) => {
                return Some(
                    "directions need adapter.router.scorer = \"arrow\" and router_scope = \"site\"",
                );
            }
            Transform::CollectDirections => self.directed = true,
            Transform::Cluster(_) if self.spec.num_clusters().is_none() => {
                return Some(
                    "clusters need adapter.router.scorer = \"cluster\" or normaliser = \"cells\"",
                );
            }
            // Routers are guided by one of the two.
            Transform::Cluster(_) if self.embedded => {
                return Some("clusters and instructions exclude each other");
            }
            Transform::EmbedInstructions(_) if self.clustered => {
                return Some("instructions and clusters exclude each other");
            }
            Transform::Cluster(_) => self.clustered = true,
            Transform::EmbedInstructions(_) if !self.spec.has_expert_per_task() => {
                return Some("instructions need adapter.experts = \"per_task\"");
            }
            Transform::EmbedInstructions(_) => self.embedded = true,
            Transform::TuneGlobalWeight { .. } if !(self.embedded && self.assembled) => {
                return Some("the global weight is tuned after instructions are embedded");
            }
            Transform::TuneGlobalWeight { .. } => {}
        }
        None
    }

    /// Whether every site has a router of its own whose rows come from there.
    fn has_rows_from(&self, from: RowsFrom) -> bool {
        let at_sites = self.spec.router_scope == RouterScope::Site;
        at_sites && self.spec.rows_from() == Some(from)
    }

    fn at_the_end(&self) -> Option<&'static str> {
        if (self.experts || self.general) && !self.assembled {
            return Some("experts are trained alone, but no stage has transform = \"assemble\"");
        }
        if self.spec.rows_from() == Some(RowsFrom::Experts) && !self.directed {
            return Some(
                "adapter.router.scorer = \"arrow\" is not trained: its directions need a stage with \
                 transform = \"collect_directions\" after the experts are assembled",
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use molora_models::ParameterKind;

    use super::*;
    use molora_adapters::core::TaskConfig;
    use molora_models::ExpertCount;

    fn alone(name: &str, scope: Scope) -> StageConfig {
        StageConfig {
            scope,
            ..StageConfig::new(name, 1, &[ParameterKind::Adapters])
        }
    }

    fn problems(stages: &[StageConfig]) -> Vec<String> {
        let spec = AdapterSpec {
            experts: ExpertCount::PerTask,
            router: Some(Default::default()),
            ..AdapterSpec::default()
        };
        order_problems("stages", stages, &spec)
    }

    #[test]
    fn experts_are_assembled_before_the_mixture_trains() {
        let experts = alone("experts", Scope::EachTask);
        let assemble = StageConfig::transform("assemble", Transform::Assemble);
        let joint = StageConfig::joint(1);
        assert!(problems(&[experts.clone(), assemble.clone(), joint.clone()]).is_empty());
        for (stages, expected) in [
            (vec![assemble.clone()], "stages.0: there are no experts"),
            (vec![experts.clone()], "stages: experts are trained alone"),
            (
                vec![experts.clone(), joint.clone()],
                "stages.1: the mixture trains after",
            ),
            (
                vec![
                    experts.clone(),
                    assemble.clone(),
                    alone("late", Scope::EachTask),
                ],
                "stages.2: experts train alone before",
            ),
            (
                vec![alone("gates", Scope::EachGate)],
                "stages.0: gates train on experts",
            ),
            (
                vec![alone("general", Scope::General)],
                "stages.0: a general expert needs",
            ),
            (
                vec![joint.clone(), joint.clone()],
                "stages.1.name is \"joint\"",
            ),
        ] {
            let found = problems(&stages);
            assert!(
                found.iter().any(|text| text.starts_with(expected)),
                "{expected}: {found:?}"
            );
        }
    }

    #[test]
    fn an_expert_alone_has_no_core_by_task() {
        let mut spec = AdapterSpec {
            experts: ExpertCount::PerTask,
            router: Some(Default::default()),
            ..AdapterSpec::default()
        };
        spec.bank.core = TaskConfig::default().into();
        let stages = [
            alone("experts", Scope::EachTask),
            StageConfig::transform("assemble", Transform::Assemble),
        ];
        let found = order_problems("stages", &stages, &spec);
        let expected = "stages.0: experts that train alone know one task";
        assert!(
            found.iter().any(|text| text.starts_with(expected)),
            "{found:?}"
        );
    }
}
