//! The declarative choice of a method: which layers get which experts, router and gate.

mod composition;
mod count;
mod file;
mod growth;
mod init;
mod routing;

use molora_adapters::{AdapterError, BankConfig, GateConfig, GeneralExpert, Slices};
use molora_routing::normaliser::SigmoidConfig;
use molora_routing::scorer::{LinearConfig, RowsFrom, TaskGroups};
use molora_routing::{Granularity, LayerRule, RouteFrom, RouterConfig, RoutingError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::saved::list_schema;
use crate::{ModelError, SavedModule};
pub use composition::{Composition, RouterScope};
pub use count::ExpertCount;
use file::AdapterFile;
pub use growth::Growth;
pub(crate) use init::PoolPlace;

/// The declarative choice of a method: which layers, which experts, which router and gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "AdapterFile")]
#[schemars(!try_from, deny_unknown_fields)]
pub struct AdapterSpec {
    /// Which linear layers are adapted: names, globs or `regex:...`; see
    /// [`SitePattern`](crate::SitePattern).
    pub targets: Vec<String>,
    /// Where in the model the mixture acts.
    #[serde(skip_serializing_if = "Composition::is_site")]
    #[schemars(default)]
    pub composition: Composition,
    /// How many experts there are, where that is not `bank.num_experts` everywhere.
    #[schemars(default)]
    pub experts: ExpertCount,
    /// A general expert beside those that are routed; it is the last one of the bank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub general: Option<GeneralExpert>,
    /// Which part of the model has a router of its own.
    #[schemars(default)]
    pub router_scope: RouterScope,
    /// How layers whose routers disagree are reconciled; read by one hard decision per sequence.
    #[schemars(default)]
    pub layer_rule: LayerRule,
    /// The experts of each site.
    pub bank: BankConfig,
    /// How experts are weighed; without one every expert has weight 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterConfig>,
    /// How strongly the adapter acts for each task; without one always by 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateConfig>,
    /// Whether the norm of each output's weight is learned apart (DoRA, Liu et al., arXiv:2402.09353).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub dora: bool,
    /// Tables of the model that train whole beside the adapters, as PEFT's `modules_to_save`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    #[schemars(schema_with = "list_schema")]
    pub modules_to_save: Vec<SavedModule>,
}

impl Default for AdapterSpec {
    /// A plain LoRA on `query` and `value`.
    fn default() -> Self {
        Self {
            targets: vec!["query".into(), "value".into()],
            composition: Composition::Site,
            experts: ExpertCount::Same,
            general: None,
            router_scope: RouterScope::Site,
            layer_rule: LayerRule::PerLayer,
            bank: BankConfig::default(),
            router: None,
            gate: None,
            dora: false,
            modules_to_save: Vec::new(),
        }
    }
}

impl AdapterSpec {
    /// The specification for given tasks: with one expert for each, in their order, and groups of
    /// experts in place of groups of tasks. Itself where experts do not belong to tasks.
    ///
    /// # Errors
    /// [`ModelError::Routing`] for a group without tasks or with one that does not exist, or a task in
    /// two groups or in none; [`ModelError::Inconsistent`] for groups of tasks without an expert for
    /// each.
    pub fn for_tasks(&self, tasks: &[String]) -> Result<Self, ModelError> {
        let mut spec = self.clone();
        let scorer = spec.router.as_mut().map(|router| &mut router.scorer);
        if self.has_expert_per_task() {
            spec.bank.num_experts = tasks.len();
            if let Some(scorer) = scorer {
                scorer.for_tasks(tasks)?;
            }
            return Ok(spec);
        }
        let groups = scorer.and_then(|scorer| scorer.task_groups());
        match groups.is_none_or(|groups| groups.is_empty()) {
            true => Ok(spec),
            false => Err(inconsistent(
                "adapter.router.scorer.grouped.tasks needs adapter.experts = \"per_task\"",
            )),
        }
    }

    /// The same specification for adapters whose values are read from a file once they are attached:
    /// nothing is computed from the frozen weights.
    pub fn to_be_filled(&self) -> Self {
        let mut spec = self.clone();
        spec.bank.is_blank = true;
        spec
    }

    /// Whether each task has an expert of its own.
    pub fn has_expert_per_task(&self) -> bool {
        self.experts == ExpertCount::PerTask
    }

    /// The tasks whose experts form a group, by the group's name, where the router has groups.
    pub fn task_groups(&self) -> Option<TaskGroups> {
        self.clone().task_groups_mut().cloned()
    }

    /// The same, to be changed.
    pub fn task_groups_mut(&mut self) -> Option<&mut TaskGroups> {
        self.router.as_mut()?.scorer.task_groups()
    }

    /// Where the routers' rows for experts come from, if there are routers.
    pub fn rows_from(&self) -> Option<RowsFrom> {
        self.router.as_ref().map(|router| router.scorer.rows_from())
    }

    /// The bank's numbers, with the general expert if there is one.
    fn bank_config(&self) -> BankConfig {
        BankConfig {
            num_experts: self.bank.num_experts + usize::from(self.general.is_some()),
            ..self.bank.clone()
        }
    }

    /// The specification of one expert alone, as it is trained before it joins the others: a plain
    /// LoRA, or with `gated` one behind the sigmoid of a linear gate (PHATGOOSE's second stage).
    pub fn one_expert(&self, gated: bool) -> Self {
        let router = RouterConfig {
            scorer: LinearConfig { bias: false }.into(),
            normaliser: SigmoidConfig.into(),
            ..RouterConfig::default()
        };
        Self {
            targets: self.targets.clone(),
            bank: BankConfig {
                num_experts: 1,
                ..self.bank.clone()
            },
            router: gated.then_some(router),
            ..Self::default()
        }
    }

    /// Checks everything that does not depend on a model; all problems, in the order of the fields.
    pub fn problems(&self) -> Vec<ModelError> {
        let part = |field, source| ModelError::Adapter { field, source };
        let of_part = |field, found: Result<(), AdapterError>| found.map_err(|e| part(field, e));
        let by_layer = self.experts.by_layer();
        // Top-k may exceed the experts of some sites, where it selects all, but not of every site.
        let choices = self.bank.choices();
        let most = *by_layer.iter().max().unwrap_or(&choices);
        let router = self.router.iter().flat_map(|router| {
            // Groups, unlike a top-k, have to fit every site.
            let others = by_layer.iter().filter(|&&experts| experts != most);
            let fits = others.copied().try_for_each(|n| router.scorer.validate(n));
            [
                router.validate(most).map_err(ModelError::from),
                fits.map_err(|error: RoutingError| error.into()),
                self.features_exist(router),
                self.selects_what_takes_part(router),
            ]
        });
        let gate = self.gate.iter();
        [
            self.experts_exist(),
            of_part("adapter.bank", self.bank.validate()),
            self.general_exists(),
            self.magnitudes_exist(),
            self.scope_exists(),
            self.composition_exists(),
            self.choices_exist(),
            self.saved_once(),
        ]
        .into_iter()
        .chain(router)
        .chain(gate.map(|gate| of_part("adapter.gate", gate.validate())))
        .filter_map(Result::err)
        .collect()
    }

    fn general_exists(&self) -> Result<(), ModelError> {
        let Some(general) = self.general else {
            return Ok(());
        };
        if self.router.is_none() {
            return Err(inconsistent("adapter.general needs an adapter.router"));
        }
        if self.bank.slices != Slices::Independent {
            return Err(inconsistent(
                "adapter.general needs adapter.bank.slices = \"independent\"",
            ));
        }
        if !self.bank.is_plain() {
            let text = "adapter.general needs experts of the plain form: no other down, combine, core \
                        or start";
            return Err(inconsistent(text));
        }
        general.validate().map_err(|source| ModelError::Adapter {
            field: "adapter.general",
            source,
        })
    }

    fn magnitudes_exist(&self) -> Result<(), ModelError> {
        match self.dora && !self.bank.is_linear() {
            true => Err(ModelError::Inconsistent(format!(
                "adapter.dora rescales a weight with its delta, and experts with adapter.bank.combine = \"{}\", \
                 core = \"{}\" have none",
                self.bank.combine.name(),
                self.bank.core.name()
            ))),
            false => Ok(()),
        }
    }

    fn saved_once(&self) -> Result<(), ModelError> {
        let modules = self.modules_to_save.iter().enumerate();
        let mut again = modules.filter(|(at, module)| self.modules_to_save[..*at].contains(module));
        match again.next() {
            Some((_, module)) => {
                let name = format!("{module:?}").to_lowercase();
                let text = format!("adapter.modules_to_save names {name} twice");
                Err(ModelError::Inconsistent(text))
            }
            None => Ok(()),
        }
    }

    fn scope_exists(&self) -> Result<(), ModelError> {
        let Some(router) = &self.router else {
            return Ok(());
        };
        let by_layer = self.router_scope == RouterScope::Layer;
        if by_layer && router.route_from != RouteFrom::Hidden {
            return Err(inconsistent(
                "adapter.router.route_from other than hidden needs adapter.router_scope = \"site\"",
            ));
        }
        if by_layer && !self.experts.by_layer().is_empty() && self.layer_rule != LayerRule::PerLayer
        {
            return Err(inconsistent(
                "adapter.layer_rule other than per_layer needs the same experts in every layer",
            ));
        }
        let one_per_sequence =
            router.granularity == Granularity::Sequence && router.selection.is_one() && by_layer;
        if self.layer_rule != LayerRule::PerLayer && !one_per_sequence {
            return Err(inconsistent(
                "adapter.layer_rule other than per_layer needs adapter.router_scope = \"layer\", \
                 adapter.router.granularity = \"sequence\" and adapter.router.selection = \"argmax\"",
            ));
        }
        Ok(())
    }

    fn experts_exist(&self) -> Result<(), ModelError> {
        match self.experts.by_layer().iter().position(|&n| n == 0) {
            Some(index) => Err(ModelError::Inconsistent(format!(
                "adapter.experts.by_layer.{index} is 0, expected at least 1"
            ))),
            None => Ok(()),
        }
    }

    /// Checks that a model has at least one layer for every entry of `experts.by_layer`.
    pub(crate) fn fits_layers(&self, num_layers: usize) -> Result<(), ModelError> {
        let entries = self.experts.by_layer().len();
        if entries > num_layers {
            return Err(ModelError::Inconsistent(format!(
                "adapter.experts.by_layer has {entries} entries, expected at most {num_layers}, \
                 the model's layers"
            )));
        }
        Ok(())
    }

    /// The specification of the sites of one layer: `bank.num_experts` is the layer's own.
    ///
    /// 2-4-6-8 gives six layers 2, 2, 4, 4, 6 and 8 experts.
    ///
    /// # Panics
    /// If `layer` is not below `num_layers`, or there are more entries than layers.
    pub fn at_layer(&self, layer: usize, num_layers: usize) -> Self {
        let mut spec = self.clone();
        if let Some(own) = self.experts.at_layer(layer, num_layers) {
            spec.bank.num_experts = own;
            spec.experts = ExpertCount::Same;
        }
        if let Some(router) = &mut spec.router {
            router.scorer.at_layer(layer, num_layers);
        }
        spec
    }

    /// Whether the router's keys are in the rank space of the bank.
    pub fn has_rank_keys(&self) -> bool {
        self.router.as_ref().is_some_and(|router| {
            router.scorer.has_keys()
                && router.route_from == RouteFrom::LowRank
                && router.granularity != Granularity::Task
        })
    }

    /// Whether a forward pass reads which task a row belongs to.
    pub fn reads_tasks(&self) -> bool {
        self.gate.is_some()
            || self.bank.core.reads_tasks()
            || self.router.as_ref().is_some_and(RouterConfig::reads_tasks)
    }

    /// The number of clusters, where routers read which one a sequence belongs to.
    pub fn num_clusters(&self) -> Option<usize> {
        let router = self.router.as_ref()?;
        // One for each cell of a grid.
        let cells = self.bank.groups() * self.bank.num_experts;
        let by_cell = router.normaliser.is_joint().then_some(cells);
        router.scorer.num_clusters().or(by_cell)
    }

    /// Whether PEFT's files can express the adapter as it is: one expert of the plain form, no router and
    /// no gate.
    pub fn is_plain_lora(&self) -> bool {
        let experts = match self.experts.by_layer() {
            [] => &[self.bank.num_experts],
            list => list,
        };
        experts.iter().all(|&n| n == 1)
            && self.bank.is_plain()
            && self.router.is_none()
            && self.gate.is_none()
            && self.composition != Composition::Block
    }
}

fn inconsistent(text: &str) -> ModelError {
    ModelError::Inconsistent(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_routing::scorer::{GroupedConfig, WithinGroup};
    use molora_routing::{ScorerConfig, Selection};

    fn spec(experts_per_layer: &[usize]) -> AdapterSpec {
        AdapterSpec {
            experts: match experts_per_layer {
                [] => ExpertCount::Same,
                list => ExpertCount::ByLayer(list.to_vec()),
            },
            router: Some(RouterConfig {
                selection: Selection::TopK(2),
                ..Default::default()
            }),
            bank: BankConfig {
                num_experts: 5,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn layers_are_divided_evenly_and_earlier_groups_are_larger() {
        let experts = |list: &[usize], layers| -> Vec<usize> {
            let at = |layer| spec(list).at_layer(layer, layers).bank.num_experts;
            (0..layers).map(at).collect()
        };
        assert_eq!(experts(&[2, 4, 6, 8], 4), [2, 4, 6, 8]);
        assert_eq!(experts(&[2, 4, 6, 8], 6), [2, 2, 4, 4, 6, 8]);
        assert_eq!(experts(&[8, 6, 4, 2], 7), [8, 8, 6, 6, 4, 4, 2]);
        assert_eq!(experts(&[3], 3), [3, 3, 3]);
        assert_eq!(experts(&[], 3), [5, 5, 5]);
        // 32 layers of the paper: eight of each.
        let paper = experts(&[8, 6, 4, 2], 32);
        assert_eq!((paper[7], paper[8], paper[23], paper[24]), (8, 6, 4, 2));
    }

    #[test]
    fn lists_that_fit_no_model_are_refused() {
        let text = |problems: Vec<ModelError>| -> Vec<String> {
            problems.iter().map(ToString::to_string).collect()
        };
        assert!(text(spec(&[1, 2]).problems()).is_empty(), "top-2 of one");
        assert_eq!(
            text(spec(&[2, 0]).problems()),
            ["adapter.experts.by_layer.1 is 0, expected at least 1"]
        );
        let none = text(spec(&[1, 1]).problems());
        assert!(none[0].contains("top_k 2 exceeds"), "{none:?}");
        let error = spec(&[2, 4, 6, 8]).fits_layers(3).expect_err("4 entries");
        assert_eq!(
            error.to_string(),
            "adapter.experts.by_layer has 4 entries, expected at most 3, the model's layers"
        );
    }

    #[test]
    fn groups_have_to_fit_every_layer() {
        let mut spec = spec(&[2, 4]);
        let groups = GroupedConfig {
            groups: vec![vec![0, 1], vec![2, 3]],
            within: WithinGroup::Token,
            ..GroupedConfig::default()
        };
        let scorer = ScorerConfig::Grouped(groups);
        spec.router = Some(RouterConfig {
            scorer,
            ..Default::default()
        });
        let problems: Vec<String> = spec.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            problems.len(),
            1,
            "the layers with two experts: {problems:?}"
        );
        spec.experts = ExpertCount::ByLayer(vec![4, 4]);
        assert!(spec.problems().is_empty());
    }

    #[test]
    fn one_expert_per_layer_without_a_router_is_a_plain_lora() {
        let plain = |list: &[usize]| {
            let spec = AdapterSpec {
                router: None,
                ..spec(list)
            };
            spec.is_plain_lora()
        };
        assert!(plain(&[1, 1]) && !plain(&[1, 2]) && !plain(&[]));
    }
}
