//! The declarative choice of a method: which layers get which experts, router and gate.

use std::collections::BTreeMap;

use burn::tensor::Device;
use molora_adapters::{BankConfig, GateConfig, Sharing, SiteDims};
use molora_kernels::random::Seed;
use molora_routing::{
    Granularity, LayerRule, RouteFrom, Router, RouterConfig, ScorerConfig, Selection,
};
use serde::{Deserialize, Serialize};

use crate::{Adapter, ModelError};

/// Which part of a model has a router of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterScope {
    /// Every site, which reads its own input.
    #[default]
    Site,
    /// Every layer with a site: one decision on the layer's input serves all its sites (AT-MoE,
    /// Mixture-of-LoRAs).
    Layer,
}

/// The declarative choice of a method: which layers, which experts, which router and gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSpec {
    /// Which linear layers are adapted: names, globs or `regex:...`; see
    /// [`SitePattern`](crate::SitePattern).
    pub targets: Vec<String>,
    /// Number of experts by layer, which then replaces `bank.num_experts`; empty for the same number
    /// everywhere. The model's layers are divided into as many consecutive groups as there are
    /// entries; see [`at_layer`](Self::at_layer).
    #[serde(default)]
    pub experts_per_layer: Vec<usize>,
    /// Whether there is one expert for each task, which then replaces `bank.num_experts`; see
    /// [`for_tasks`](Self::for_tasks).
    #[serde(default)]
    pub expert_per_task: bool,
    /// Share lambda of the routed experts, in `[0, 1]`. A general expert, which is not routed, then
    /// stands beside them with the share 1 - lambda (AT-MoE); it is the last one of the bank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blend: Option<f64>,
    /// Which part of the model has a router of its own.
    #[serde(default)]
    pub router_scope: RouterScope,
    /// How layers whose routers disagree are reconciled; read by one hard decision per sequence.
    #[serde(default)]
    pub layer_rule: LayerRule,
    /// The experts of each site.
    pub bank: BankConfig,
    /// How experts are weighed; without one every expert has weight 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterConfig>,
    /// How strongly the adapter acts for each task; without one always by 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateConfig>,
    /// Tasks whose experts form a group, by the group's name, where the router has a grouped scorer
    /// and there is one expert for each task.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Vec<String>>,
}

impl Default for AdapterSpec {
    /// A plain LoRA on `query` and `value`.
    fn default() -> Self {
        Self {
            targets: vec!["query".into(), "value".into()],
            experts_per_layer: Vec::new(),
            expert_per_task: false,
            blend: None,
            router_scope: RouterScope::Site,
            layer_rule: LayerRule::PerLayer,
            bank: BankConfig::default(),
            router: None,
            gate: None,
            groups: BTreeMap::new(),
        }
    }
}

impl AdapterSpec {
    /// The specification for given tasks: with one expert for each, in their order, and groups of
    /// experts in place of groups of tasks. Itself where experts do not belong to tasks.
    ///
    /// # Errors
    /// [`ModelError::Inconsistent`] for a group without tasks or with one that does not exist, a
    /// task in two groups or in none, or a number of experts by layer beside one for each task.
    pub fn for_tasks(&self, tasks: &[String]) -> Result<Self, ModelError> {
        let refuse = |text| Err(inconsistent(text));
        let mut spec = self.clone();
        if !self.expert_per_task {
            return match self.groups.is_empty() {
                true => Ok(spec),
                false => refuse("adapter.groups needs adapter.expert_per_task = true"),
            };
        }
        if !self.experts_per_layer.is_empty() {
            let text = "adapter.experts_per_layer contradicts adapter.expert_per_task = true";
            return refuse(text);
        }
        spec.bank.num_experts = tasks.len();
        match spec.router.as_mut().map(|router| &mut router.scorer) {
            Some(ScorerConfig::Grouped(grouped)) => grouped.groups = self.group_numbers(tasks)?,
            _ if !self.groups.is_empty() => {
                return refuse("adapter.groups needs adapter.router.scorer.grouped");
            }
            _ => {}
        }
        Ok(spec)
    }

    /// The experts of each group, in the order of the groups' names.
    fn group_numbers(&self, tasks: &[String]) -> Result<Vec<Vec<usize>>, ModelError> {
        let refuse = |text: String| Err(ModelError::Inconsistent(text));
        let mut group_of: BTreeMap<&str, &str> = BTreeMap::new();
        for (group, members) in &self.groups {
            if members.is_empty() {
                let text = format!("adapter.groups.{group} is empty, expected at least one task");
                return refuse(text);
            }
            for task in members {
                if !tasks.contains(task) {
                    return refuse(format!(
                        "adapter.groups.{group} names {task}, which is no task of this run: {}",
                        tasks.join(", ")
                    ));
                }
                if let Some(first) = group_of.insert(task, group) {
                    return refuse(format!(
                        "task {task} is in adapter.groups.{first} and adapter.groups.{group}, \
                         expected one group"
                    ));
                }
            }
        }
        if let Some(task) = tasks.iter().find(|task| !group_of.contains_key(&task[..])) {
            return refuse(format!(
                "task {task} is in none of adapter.groups, expected one"
            ));
        }
        let number = |task: &String| tasks.iter().position(|other| other == task);
        let numbers = |members: &Vec<String>| members.iter().filter_map(number).collect();
        Ok(self.groups.values().map(numbers).collect())
    }

    /// The bank's numbers, with the general expert if there is one.
    fn bank_config(&self) -> BankConfig {
        BankConfig {
            num_experts: self.bank.num_experts + usize::from(self.blend.is_some()),
            ..self.bank.clone()
        }
    }

    /// The specification of one expert alone, as it is trained before it joins the others: a plain
    /// LoRA, or with `gated` one behind the sigmoid of a linear gate (PHATGOOSE's second stage).
    pub fn one_expert(&self, gated: bool) -> Self {
        let router = RouterConfig {
            scorer: ScorerConfig::Linear { bias: false },
            selection: Selection::Sigmoid,
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
        let experts = self.experts_exist();
        let bank = self.bank.validate().map_err(|e| part("adapter.bank", e));
        let gate = self
            .gate
            .iter()
            .map(|gate| gate.validate().map_err(|e| part("adapter.gate", e)));
        // Top-k may exceed the experts of some sites, where it selects all, but not of every site.
        let most = self.experts_per_layer.iter().max();
        let most = *most.unwrap_or(&self.bank.num_experts);
        let router = self.router.iter().flat_map(|router| {
            let numbers = router.validate(most).map_err(ModelError::from);
            // Groups, unlike a top-k, have to fit every site.
            let fits = |&experts: &usize| router.scorer.validate(experts);
            let fits = self
                .experts_per_layer
                .iter()
                .filter(|&&n| n != most)
                .try_for_each(fits);
            [
                numbers,
                fits.map_err(ModelError::from),
                self.features_exist(router),
            ]
        });
        [experts, bank, self.blend_exists(), self.scope_exists()]
            .into_iter()
            .chain(router)
            .chain(gate)
            .filter_map(Result::err)
            .collect()
    }

    fn blend_exists(&self) -> Result<(), ModelError> {
        match self.blend {
            Some(share) if !(0.0..=1.0).contains(&share) => Err(ModelError::Inconsistent(format!(
                "adapter.blend is {share}, expected a number from 0 to 1"
            ))),
            Some(_) if self.router.is_none() => {
                Err(inconsistent("adapter.blend needs an adapter.router"))
            }
            Some(_) if self.bank.sharing != Sharing::Independent => Err(inconsistent(
                "adapter.blend needs adapter.bank.sharing = \"independent\"",
            )),
            _ => Ok(()),
        }
    }

    fn scope_exists(&self) -> Result<(), ModelError> {
        let Some(router) = &self.router else {
            return Ok(());
        };
        let by_layer = self.router_scope == RouterScope::Layer;
        if by_layer && router.route_from == RouteFrom::LowRank {
            return Err(inconsistent(
                "adapter.router.route_from is low_rank, which needs adapter.router_scope = \"site\"",
            ));
        }
        if by_layer && !self.experts_per_layer.is_empty() && self.layer_rule != LayerRule::PerLayer
        {
            return Err(inconsistent(
                "adapter.layer_rule other than per_layer needs the same experts in every layer",
            ));
        }
        let one_per_sequence = router.granularity == Granularity::Sequence
            && router.selection == Selection::Argmax
            && by_layer;
        if self.layer_rule != LayerRule::PerLayer && !one_per_sequence {
            return Err(inconsistent(
                "adapter.layer_rule other than per_layer needs adapter.router_scope = \"layer\", \
                 adapter.router.granularity = \"sequence\" and adapter.router.selection = \"argmax\"",
            ));
        }
        Ok(())
    }

    fn experts_exist(&self) -> Result<(), ModelError> {
        match self.experts_per_layer.iter().position(|&n| n == 0) {
            Some(index) => Err(ModelError::Inconsistent(format!(
                "adapter.experts_per_layer.{index} is 0, expected at least 1"
            ))),
            None => Ok(()),
        }
    }

    /// Checks that a model has at least one layer for every entry of `experts_per_layer`.
    pub(crate) fn fits_layers(&self, num_layers: usize) -> Result<(), ModelError> {
        let entries = self.experts_per_layer.len();
        if entries > num_layers {
            return Err(ModelError::Inconsistent(format!(
                "adapter.experts_per_layer has {entries} entries, expected at most {num_layers}, \
                 the model's layers"
            )));
        }
        Ok(())
    }

    /// The specification of the sites of one layer: `bank.num_experts` is the layer's own and
    /// `experts_per_layer` is empty.
    ///
    /// The layers are divided as evenly as possible, and earlier groups get the larger share: 2-4-6-8
    /// gives six layers 2, 2, 4, 4, 6 and 8 experts.
    ///
    /// # Panics
    /// If `layer` is not below `num_layers`, or there are more entries than layers.
    pub fn at_layer(&self, layer: usize, num_layers: usize) -> Self {
        let groups = self.experts_per_layer.len();
        assert!(
            layer < num_layers && groups <= num_layers,
            "layer {layer} and {groups} entries for {num_layers} layers"
        );
        let mut spec = self.clone();
        if let Some(share) = num_layers.checked_div(groups) {
            // The first `larger` groups have `share + 1` layers, the others `share`.
            let larger = num_layers % groups;
            let in_larger = larger * (share + 1);
            let group = match layer < in_larger {
                true => layer / (share + 1),
                false => larger + (layer - in_larger) / share,
            };
            spec.bank.num_experts = self.experts_per_layer[group];
            spec.experts_per_layer.clear();
        }
        spec
    }

    fn features_exist(&self, router: &RouterConfig) -> Result<(), ModelError> {
        let low_rank = router.route_from == RouteFrom::LowRank;
        if low_rank && self.bank.sharing != Sharing::SharedA {
            let text = "adapter.router.route_from is low_rank, which needs adapter.bank.sharing = \
                        \"shared_a\"";
            return Err(ModelError::Inconsistent(text.into()));
        }
        Ok(())
    }

    /// Whether the router's keys live in the rank space of the bank.
    pub fn has_rank_keys(&self) -> bool {
        self.router.as_ref().is_some_and(|router| {
            router.scorer == ScorerConfig::Cosine
                && router.route_from == RouteFrom::LowRank
                && router.granularity != Granularity::Task
        })
    }

    /// Whether a forward pass reads which task a row belongs to.
    pub fn reads_tasks(&self) -> bool {
        let by_task = |router: &RouterConfig| router.granularity == Granularity::Task;
        self.gate.is_some() || self.router.as_ref().is_some_and(by_task)
    }

    /// Whether PEFT can express the adapter: one expert, no router, no gate, no learned scale.
    pub fn is_plain_lora(&self) -> bool {
        let experts = match &self.experts_per_layer[..] {
            [] => &[self.bank.num_experts],
            list => list,
        };
        experts.iter().all(|&n| n == 1)
            && !self.bank.rank_scale
            && self.router.is_none()
            && self.gate.is_none()
    }

    /// The router of a layer with sites whose hidden states have the given width, if routers belong
    /// to layers.
    pub(crate) fn layer_router(
        &self,
        width: usize,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Option<Router> {
        let router = self.router.as_ref();
        let router = router.filter(|_| self.router_scope == RouterScope::Layer)?;
        let experts = self.bank.num_experts;
        Some(router.init(width, experts, num_tasks, seed.child("router"), device))
    }

    /// A fresh adapter for one site of a layer whose specification this is; `site` numbers it among
    /// the model's sites.
    pub(crate) fn init(
        &self,
        dims: SiteDims,
        site: usize,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Adapter {
        let features = |router: &RouterConfig| match router.route_from {
            RouteFrom::Hidden => dims.d_input,
            RouteFrom::LowRank => self.bank.rank,
        };
        let router = self.router.as_ref();
        let from_low_rank = router.is_some_and(|r| r.route_from == RouteFrom::LowRank);
        let router = router.filter(|_| self.router_scope == RouterScope::Site);
        let router = router.map(|router| {
            let (width, experts) = (features(router), self.bank.num_experts);
            router.init(width, experts, num_tasks, seed.child("router"), device)
        });
        let gate = self.gate.as_ref();
        Adapter {
            bank: self.bank_config().init(dims, seed.child("bank"), device),
            router,
            gate: gate.map(|gate| gate.init(num_tasks, seed.child("gate"), device)),
            from_low_rank,
            blend: self.blend,
            site,
        }
    }
}

fn inconsistent(text: &str) -> ModelError {
    ModelError::Inconsistent(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_routing::{GroupedConfig, WithinGroup};

    fn spec(experts_per_layer: &[usize]) -> AdapterSpec {
        AdapterSpec {
            experts_per_layer: experts_per_layer.to_vec(),
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
            ["adapter.experts_per_layer.1 is 0, expected at least 1"]
        );
        let none = text(spec(&[1, 1]).problems());
        assert!(none[0].contains("top_k 2 exceeds"), "{none:?}");
        let error = spec(&[2, 4, 6, 8]).fits_layers(3).expect_err("4 entries");
        assert_eq!(
            error.to_string(),
            "adapter.experts_per_layer has 4 entries, expected at most 3, the model's layers"
        );
    }

    #[test]
    fn groups_have_to_fit_every_layer() {
        let mut spec = spec(&[2, 4]);
        let groups = GroupedConfig {
            groups: vec![vec![0, 1], vec![2, 3]],
            within: WithinGroup::Token,
            group_temperature: 1.0,
            within_temperature: 1.0,
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
        spec.experts_per_layer = vec![4, 4];
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

    #[test]
    fn a_specification_without_the_list_still_reads() {
        let text = r#"{"targets": ["query"], "bank": {"num_experts": 3}}"#;
        let spec: AdapterSpec = serde_json::from_str(text).expect("an older file");
        assert!(spec.experts_per_layer.is_empty());
    }
}
