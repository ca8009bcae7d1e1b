//! Where in a model a mixture acts, and which part of it has a router.

use molora_adapters::{GateGradient, Slices};
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AdapterSpec, inconsistent};
use crate::{FirstPassConfig, ModelError, PoolConfig, PoolWeights};

/// Where in a model a mixture acts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Composition {
    /// At linear layers, each of which adds the mixture's delta to its output.
    #[default]
    Site,
    /// At feed-forward parts: an expert is a whole feed-forward part over the shared frozen weights,
    /// and the experts' outputs are mixed behind the non-linearity by one decision on the part's input.
    /// Sites elsewhere have a plain LoRA. MixLoRA, arXiv:2404.15159.
    FeedForward,
    /// At the linear layers of feed-forward parts: one decision on the part's input weighs the experts
    /// of all its linear layers. Sites elsewhere have a plain LoRA. Hard-routed MoR-LoRA,
    /// arXiv:2606.31413.
    FeedForwardSites,
    /// Beside whole feed-forward parts: the mixture reads what the part reads, and adds to what it gives. The
    /// site is the part's last linear layer, by which targets choose it. mtLoRA, arXiv:2603.01526.
    Block,
    /// At linear layers whose experts are in a pool that all layers share. Lily, arXiv:2407.09946.
    Pool(PoolConfig),
}

impl Composition {
    /// Whether the mixture acts at linear layers that decide by themselves or with their layer.
    pub(crate) fn is_site(&self) -> bool {
        *self == Self::Site
    }

    /// Its name in files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::FeedForward => "feed_forward",
            Self::FeedForwardSites => "feed_forward_sites",
            Self::Block => "block",
            Self::Pool(_) => "pool",
        }
    }

    /// The numbers of experts that layers share, if they do.
    pub fn pool(self) -> Option<PoolConfig> {
        match self {
            Self::Pool(pool) => Some(pool),
            Self::Site | Self::FeedForward | Self::FeedForwardSites | Self::Block => None,
        }
    }

    /// Whether each place where it acts has a mixture of its own, with a router of its own.
    pub(super) fn is_by_site(self) -> bool {
        matches!(self, Self::Site | Self::Block)
    }

    /// Whether it acts in feed-forward parts alone.
    pub fn is_feed_forward(self) -> bool {
        matches!(self, Self::FeedForward | Self::FeedForwardSites)
    }
}

/// Which part of a model has a router of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RouterScope {
    /// Every place where the mixture acts, which reads its own input.
    #[default]
    Site,
    /// Every layer with a site: one decision on the layer's input serves all its sites (AT-MoE,
    /// Mixture-of-LoRAs).
    Layer,
    /// The whole model: one router decides at every feed-forward part by that part's input
    /// (hard-routed MoR-LoRA).
    Model,
    /// The whole model: the last hidden states of a first pass decide for all sites (X-LoRA,
    /// arXiv:2402.07148).
    FirstPass(FirstPassConfig),
}

impl RouterScope {
    /// Its name in files.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Layer => "layer",
            Self::Model => "model",
            Self::FirstPass(_) => "first_pass",
        }
    }

    /// The numbers of a first pass that decides for all sites.
    pub fn first_pass(&self) -> Option<&FirstPassConfig> {
        match self {
            Self::FirstPass(first) => Some(first),
            Self::Site | Self::Layer | Self::Model => None,
        }
    }

    /// Whether each site has a router of its own.
    pub(super) fn is_by_site(&self) -> bool {
        match self {
            Self::Site => true,
            Self::FirstPass(first) => first.layerwise,
            Self::Layer | Self::Model => false,
        }
    }
}

impl AdapterSpec {
    /// The specification of a site: `bank.num_experts` is its own. Beside mixed feed-forward parts it
    /// is a plain LoRA.
    ///
    /// # Panics
    /// As [`at_layer`](Self::at_layer).
    pub(crate) fn at_site(&self, layer: usize, num_layers: usize, in_feed_forward: bool) -> Self {
        let spec = self.at_layer(layer, num_layers);
        match self.composition.is_feed_forward() && !in_feed_forward {
            true => spec.one_expert(false),
            false => spec,
        }
    }

    /// What is wrong with the place of a mixture in feed-forward parts.
    pub(super) fn composition_exists(&self) -> Result<(), ModelError> {
        if let Some(first) = self.router_scope.first_pass() {
            first.validate()?;
            self.first_pass_exists()?;
        }
        if let Some(pool) = self.composition.pool() {
            return self.pool_exists(pool);
        }
        if self.composition == Composition::Block {
            return self.block_exists();
        }
        if self.composition.is_site() {
            return match self.router_scope {
                RouterScope::Model => Err(inconsistent(
                    "adapter.router_scope is model, which needs adapter.composition = \
                     \"feed_forward\" or \"feed_forward_sites\"",
                )),
                _ => Ok(()),
            };
        }
        if matches!(
            self.router_scope,
            RouterScope::Layer | RouterScope::FirstPass(_)
        ) {
            return Err(inconsistent(
                "adapter.router_scope is layer or first_pass, expected site or model: the mixture acts in \
                 feed-forward parts, which decide by their own input",
            ));
        }
        if self.has_expert_per_task() {
            return Err(inconsistent(
                "adapter.experts is per_task, which needs adapter.composition = \"site\"",
            ));
        }
        if self.router_scope == RouterScope::Model && !self.experts.is_same() {
            return Err(inconsistent(
                "adapter.router_scope is model, which needs adapter.experts = \"same\"",
            ));
        }
        let not_hidden = |router: &RouterConfig| router.route_from != RouteFrom::Hidden;
        if self.router.as_ref().is_some_and(not_hidden) {
            return Err(inconsistent(
                "adapter.router.route_from other than hidden needs adapter.composition = \"site\"",
            ));
        }
        let is_plain = self.bank.combine.is_sum()
            && self.bank.core.is_linear()
            && !self.bank.start.reads_weight();
        if self.composition == Composition::FeedForward && !is_plain {
            return Err(inconsistent(
                "adapter.bank.combine other than sum, a core that is not linear, and an adapter.bank.start \
                 from the frozen weight need adapter.composition = \"site\" or \"feed_forward_sites\"",
            ));
        }
        let is_plain = self.bank.gate_gradient == GateGradient::Plain;
        if self.composition == Composition::FeedForward && !is_plain {
            return Err(inconsistent(
                "adapter.bank.gate_gradient is square_root, which needs adapter.composition = \"site\" \
                 or \"feed_forward_sites\"",
            ));
        }
        if self.composition == Composition::FeedForward && self.dora {
            return Err(inconsistent(
                "adapter.dora needs adapter.composition = \"site\" or \"feed_forward_sites\"",
            ));
        }
        if self.gate.is_some() || self.general.is_some() {
            return Err(inconsistent(
                "adapter.gate and adapter.general need adapter.composition = \"site\"",
            ));
        }
        Ok(())
    }

    /// What is wrong with a mixture beside feed-forward parts.
    fn block_exists(&self) -> Result<(), ModelError> {
        let problem = if self.router_scope != RouterScope::Site {
            "adapter.composition is block, which needs adapter.router_scope = \"site\""
        } else if self.has_expert_per_task() {
            "adapter.experts is per_task, which needs adapter.composition = \"site\""
        } else if self.bank.start.reads_weight() || self.dora {
            "adapter.composition is block, which has no frozen weight of its own: it goes without \
             adapter.dora and an adapter.bank.start that reads the weight"
        } else {
            return Ok(());
        };
        Err(inconsistent(problem))
    }

    /// What is wrong with experts that layers share.
    fn pool_exists(&self, pool: PoolConfig) -> Result<(), ModelError> {
        let by_other = |router: &RouterConfig| router.granularity != Granularity::Token;
        let dropped = |router: &RouterConfig| router.route_from == RouteFrom::Dropped;
        let selects = |router: &RouterConfig| router.selection != Selection::Dense;
        let problem = if pool.weights == PoolWeights::SummedLogits
            && self.router.as_ref().is_some_and(selects)
        {
            "adapter.composition.pool.weights is summed_logits, which needs adapter.router.selection = \
             \"dense\""
        } else if pool.stride == 0 {
            "adapter.composition.pool.stride is 0, expected at least 1"
        } else if self.router.as_ref().is_some_and(by_other) {
            "adapter.composition is pool, which needs adapter.router.granularity = \"token\""
        } else if self.router.as_ref().is_some_and(dropped) {
            "adapter.composition is pool, which goes without adapter.router.route_from = \"dropped\""
        } else if self.router_scope != RouterScope::Site {
            "adapter.composition is pool, which needs adapter.router_scope = \"site\""
        } else if self.bank.slices != Slices::Shared {
            "adapter.composition is pool, which needs adapter.bank.slices = \"shared\""
        } else if !self.experts.is_same() {
            "adapter.composition is pool, which needs adapter.experts = \"same\""
        } else if self.gate.is_some() || self.general.is_some() || self.dora {
            "adapter.composition is pool, which goes without adapter.gate, adapter.general and \
             adapter.dora"
        } else if !self.bank.combine.is_sum()
            || !self.bank.down.is_dense()
            || !self.bank.core.is_linear()
            || self.bank.start.reads_weight()
        {
            "adapter.composition is pool, which needs adapter.bank.combine = \"sum\", down = \"dense\" \
             a core that is linear and a start that does not read the frozen weight"
        } else if self.bank.core.reads_tasks() {
            "adapter.composition is pool, which goes without an adapter.bank.core that reads tasks"
        } else {
            return Ok(());
        };
        Err(inconsistent(problem))
    }

    /// What is wrong with decisions by a first pass.
    fn first_pass_exists(&self) -> Result<(), ModelError> {
        let not_hidden = |router: &RouterConfig| router.route_from != RouteFrom::Hidden;
        match &self.router {
            Some(router) if not_hidden(router) => Err(inconsistent(
                "adapter.router.route_from other than hidden needs adapter.router_scope = \"site\"",
            )),
            _ if self.bank.core.reads_tasks() => Err(inconsistent(
                "adapter.router_scope is first_pass, which goes without an adapter.bank.core that reads \
                 tasks",
            )),
            Some(_) if !self.experts.by_layer().is_empty() => Err(inconsistent(
                "adapter.router_scope is first_pass, which needs the same experts in every layer",
            )),
            _ => Ok(()),
        }
    }

    /// Whether every site has a router of its own that decides by token.
    pub fn routes_tokens(&self) -> bool {
        let by_token = |router: &RouterConfig| router.granularity == Granularity::Token;
        self.composition.is_by_site()
            && self.router_scope == RouterScope::Site
            && self.router.as_ref().is_some_and(by_token)
    }
}
