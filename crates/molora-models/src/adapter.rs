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
        let bank = self.bank.validate().map_err(|e| part("adapter.bank", e));
        let gate = self
            .gate
            .iter()
            .map(|gate| gate.validate().map_err(|e| part("adapter.gate", e)));
        let router = self.router.iter().flat_map(|router| {
            let numbers = router
                .validate(self.bank.num_experts)
                .map_err(ModelError::from);
            [numbers, self.features_exist(router)]
        });
        std::iter::once(bank)
            .chain(router)
            .chain(gate)
            .filter_map(Result::err)
            .collect()
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
        self.bank.num_experts == 1
            && !self.bank.rank_scale
            && self.router.is_none()
            && self.gate.is_none()
    }

    /// A fresh adapter for one site; `site` numbers it among the model's sites.
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
