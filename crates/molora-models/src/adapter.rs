//! What is attached to a site: experts, a router and a task gate.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use molora_adapters::{BankConfig, ExpertBank, GateConfig, Sharing, SiteDims, TaskGate};
use molora_kernels::random::Seed;
use molora_routing::{
    Granularity, RouteFrom, RouteInput, Router, RouterConfig, RouterOutput, ScorerConfig,
};
use serde::{Deserialize, Serialize};

use crate::{ForwardContext, ModelError};

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
    /// The experts of each site.
    pub bank: BankConfig,
    /// How experts are weighed; without one every expert has weight 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterConfig>,
    /// How strongly the adapter acts for each task; without one always by 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateConfig>,
}

impl Default for AdapterSpec {
    /// A plain LoRA on `query` and `value`.
    fn default() -> Self {
        Self {
            targets: vec!["query".into(), "value".into()],
            experts_per_layer: Vec::new(),
            bank: BankConfig::default(),
            router: None,
            gate: None,
        }
    }
}

impl AdapterSpec {
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
        [experts, bank]
            .into_iter()
            .chain(router)
            .chain(gate)
            .filter_map(Result::err)
            .collect()
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
        let router = self.router.as_ref().map(|router| {
            let (width, experts) = (features(router), self.bank.num_experts);
            router.init(width, experts, num_tasks, seed.child("router"), device)
        });
        let gate = self.gate.as_ref();
        Adapter {
            bank: self.bank.init(dims, seed.child("bank"), device),
            router,
            gate: gate.map(|gate| gate.init(num_tasks, seed.child("gate"), device)),
            from_low_rank: self
                .router
                .as_ref()
                .is_some_and(|r| r.route_from == RouteFrom::LowRank),
            site,
        }
    }
}

/// The trainable part of one site.
#[derive(Module, Debug)]
pub struct Adapter {
    /// The experts.
    pub bank: ExpertBank,
    /// How they are weighed.
    pub router: Option<Router>,
    /// How strongly the mixture acts for each task.
    pub gate: Option<TaskGate>,
    from_low_rank: bool,
    site: usize,
}

impl Adapter {
    /// Number of the site among the model's sites.
    pub fn site(&self) -> usize {
        self.site
    }

    /// The delta of the mixture `[B, T, O]` for inputs `[B, T, D]`, and the decisions behind it.
    ///
    /// # Panics
    /// If the adapter reads tasks and the context has none.
    pub fn delta(
        &self,
        x: Tensor<3>,
        context: &ForwardContext,
    ) -> (Tensor<3>, Option<RouterOutput>) {
        let dropout = context.dropout.map(|seed| seed.index(self.site as u64));
        let low = self.bank.down(x.clone(), dropout);
        self.mix(low, x, context)
    }

    /// The delta for inputs `[B, T, D]` whose low-rank code `[B, T, A*R]` is given, for example one
    /// with an explicit mask from [`ExpertBank::down_masked`], and the decisions behind it.
    ///
    /// # Panics
    /// If the adapter reads tasks and the context has none.
    pub fn mix(
        &self,
        low: Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
    ) -> (Tensor<3>, Option<RouterOutput>) {
        let routed = self.router.as_ref().map(|router| {
            router.route(&RouteInput {
                features: if self.from_low_rank { low.clone() } else { x },
                mask: context.mask.clone(),
                tasks: context.tasks.clone(),
            })
        });
        let weights = routed.as_ref().map(|routed| routed.weights.clone());
        (self.bank.up(low, self.gated(weights, context)), routed)
    }

    /// The gate multiplies the experts' weights, which are smaller than the output.
    fn gated(&self, weights: Option<Tensor<3>>, context: &ForwardContext) -> Option<Tensor<3>> {
        let Some(gate) = &self.gate else {
            return weights;
        };
        let tasks = context
            .tasks
            .clone()
            .expect("a gated adapter is given tasks");
        let gate_b11 = gate.forward(tasks);
        Some(match weights {
            Some(weights) => weights * gate_b11,
            None => {
                let rows = gate_b11.dims()[0];
                gate_b11.expand([rows, 1, self.bank.num_experts()])
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_routing::{GroupedConfig, Selection, WithinGroup};

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
