//! Experts that the layers of a model share. Lily, arXiv:2407.09946.
//!
//! ```text
//! h_l = x A[l div stride]                     [B, T, R]   one A for `stride` neighbouring layers
//! p   = softmax(h_l R_l^T)                    [B, T, E]   a router in each layer
//! y   = x W0 + b + s * sum_e p_e h_l B_e      [B, T, O]   one pool of B for all layers
//! ```
//!
//! A pool belongs to one kind of linear layer: those that have the same name in every layer, and the same
//! widths.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation::softmax};
use molora_adapters::{BankConfig, ExpertBank, Mixing, SiteDims};
use molora_kernels::random::Seed;
use molora_parts::{Axis, ParameterKind, PartTensor};
use molora_routing::{RouteInput, Router, RouterOutput};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::same_shares;
use crate::{ForwardContext, RouteTrace};

/// How the decisions of tokens become those that experts are mixed by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolWeights {
    /// Every token by its own.
    #[default]
    PerToken,
    /// One mixture for the whole batch: the mean over all real tokens. What PEFT and the authors' code
    /// compute; a row's output then depends on the rows beside it.
    Released,
    /// One mixture for each sequence: the softmax of the sum of its tokens' logits. The paper's formula,
    /// read in a published summary.
    SummedLogits,
}

/// Numbers of the experts that layers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// So many neighbouring layers share one `A`.
    pub stride: usize,
    /// What experts are mixed by.
    pub weights: PoolWeights,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            stride: 1,
            weights: PoolWeights::default(),
        }
    }
}

/// The experts that the sites of a model share.
#[derive(Module, Debug)]
pub struct Pool {
    pub(crate) kinds: Vec<PooledBank>,
}

/// The experts of one kind of linear layer.
#[derive(Module, Debug)]
pub struct PooledBank {
    /// The `A` of the first layers, and the `B` of all.
    pub bank: ExpertBank,
    /// The `A` of the other groups of layers, `[D, R]`.
    pub a: Vec<Param<Tensor<2>>>,
    #[module(skip)]
    name: String,
}

/// A site whose experts are in the pool.
#[derive(Module, Debug)]
pub struct PooledSite {
    /// How its layer weighs the experts; without one every expert has weight 1.
    pub router: Option<Router>,
    pub(crate) site: usize,
    kind: usize,
    group: usize,
    #[module(skip)]
    from_low_rank: bool,
    #[module(skip)]
    weights: PoolWeights,
}

/// Which sites a pool is made for, while they are gone through.
#[derive(Debug, Default)]
pub(crate) struct PoolPlan(Vec<(String, SiteDims, usize)>);

impl PoolPlan {
    /// Kind of a site, and its number among those of its kind.
    pub(crate) fn place(&mut self, path: &str, dims: SiteDims) -> (usize, usize) {
        let is_name = |part: &&str| part.parse::<usize>().is_err();
        let name = path
            .split('.')
            .filter(is_name)
            .collect::<Vec<_>>()
            .join(".");
        let known = self
            .0
            .iter()
            .position(|kind| kind.0 == name && kind.1 == dims);
        let kind = known.unwrap_or_else(|| {
            self.0.push((name, dims, 0));
            self.0.len() - 1
        });
        self.0[kind].2 += 1;
        (kind, self.0[kind].2 - 1)
    }

    /// The pool for all sites that were placed.
    pub(crate) fn pool(
        self,
        config: PoolConfig,
        bank: &BankConfig,
        seed: Seed,
        device: &Device,
    ) -> Pool {
        let kind = |(name, dims, count): (String, SiteDims, usize)| {
            let seed = seed
                .child(&name)
                .child(&format!("{} {}", dims.d_input, dims.d_output));
            let group = |group: usize| bank.init(dims, seed.index(group as u64), device);
            let groups = count.div_ceil(config.stride);
            PooledBank {
                bank: group(0),
                a: (1..groups).map(|index| group(index).a).collect(),
                name,
            }
        };
        Pool {
            kinds: self.0.into_iter().map(kind).collect(),
        }
    }
}

impl Pool {
    /// Every tensor, by where it is in files below that of the model's part.
    pub(crate) fn tensors(&mut self) -> Vec<(String, Vec<PartTensor<'_>>)> {
        self.kinds
            .iter_mut()
            .enumerate()
            .flat_map(|(kind, bank)| bank.tensors(kind))
            .collect()
    }

    /// The experts of a site.
    fn bank(&self, site: &PooledSite) -> ExpertBank {
        let PooledBank { bank, a, .. } = &self.kinds[site.kind];
        let mut bank = bank.clone();
        if let Some(group) = site.group.checked_sub(1) {
            bank.a = a[group].clone();
        }
        bank
    }
}

impl PooledBank {
    /// Every tensor, by where it is below the pool: the bank's own, then the other groups' `A`.
    pub(crate) fn tensors(&mut self, kind: usize) -> Vec<(String, Vec<PartTensor<'_>>)> {
        let name = format!("{kind}.{}", self.name);
        let mut tensors = vec![(name.clone(), self.bank.tensors())];
        for (group, a) in self.a.iter_mut().enumerate() {
            let [inputs, rank] = a.dims();
            let (rows, columns) = (
                [Axis::Input.of(inputs)],
                [Axis::Slice.of(1), Axis::Rank.of(rank)],
            );
            // As a bank lists its own.
            let kind = ParameterKind::Adapters;
            let a = PartTensor::matrix("experts.lora_A", kind, a, &rows, &columns);
            tensors.push((format!("{name}.{}", group + 1), vec![a.stored(&[1, 2, 0])]));
        }
        tensors
    }
}

impl PooledSite {
    /// A site that was given its place; `number` counts it among those of its kind.
    pub(crate) fn new(
        router: Option<Router>,
        site: usize,
        (kind, number): (usize, usize),
        config: PoolConfig,
        from_low_rank: bool,
    ) -> Self {
        Self {
            router,
            site,
            kind,
            group: number / config.stride,
            from_low_rank,
            weights: config.weights,
        }
    }

    /// Its kind, and its group of neighbours that share an `A`.
    pub(crate) fn place(&self) -> (usize, usize) {
        (self.kind, self.group)
    }

    /// How decisions become what experts are mixed by.
    pub(crate) fn weights(&self) -> PoolWeights {
        self.weights
    }

    /// Number of the site among the model's sites.
    pub fn site(&self) -> usize {
        self.site
    }

    /// The frozen layer's output `base` `[B, T, O]` plus the delta of the mixture for inputs
    /// `[B, T, D]`, and the router's decisions, if there is one.
    ///
    /// # Panics
    /// If the context has no pool, which the model puts there.
    pub(crate) fn add_delta(
        &self,
        base: Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
    ) -> (Tensor<3>, Option<RouteTrace>) {
        let pool = context.pool.as_ref().expect("put there by the model");
        let bank = pool.bank(self);
        let dropout = context.dropout.map(|seed| seed.index(self.site as u64));
        let low = bank.down(x.clone(), dropout);
        let Some(router) = &self.router else {
            return (bank.mix(Some(base), low, Mixing::default()), None);
        };
        let input = RouteInput {
            features: if self.from_low_rank { low.clone() } else { x },
            mask: context.mask.clone(),
            tasks: context.tasks.clone(),
            columns: None,
        };
        let mut routed = router.route_in_training(&input, &context.guidance, dropout);
        let weights = self.weights.of(&routed, context.guidance.labels.as_ref());
        let mixing = Mixing {
            is_selection: self.weights == PoolWeights::PerToken && routed.is_selection(),
            weights: Some(weights.clone()),
            tasks: context.tasks.as_ref(),
        };
        let y = bank.mix(Some(base), low, mixing);
        routed.weights = weights.expand(routed.probs.dims());
        let trace = RouteTrace::new(self.site, routed);
        (y, Some(trace))
    }

    /// As [`add_delta`](Self::add_delta) for rows that no decision is for: where a router weighs the
    /// experts, all weigh the same.
    pub(crate) fn add_undecided(
        &self,
        base: Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
        is_routed: bool,
    ) -> Tensor<3> {
        let pool = context.pool.as_ref().expect("put there by the model");
        let bank = pool.bank(self);
        let dropout = context.dropout.map(|seed| seed.index(self.site as u64));
        let low = bank.down(x, dropout);
        let is_routed = is_routed || self.router.is_some();
        let mixing = Mixing {
            weights: is_routed.then(|| same_shares(bank.choices(), &low)),
            is_selection: false,
            tasks: context.tasks.as_ref(),
        };
        bank.mix(Some(base), low, mixing)
    }
}

impl PoolWeights {
    /// `[B, T, E]`, or with size 1 in the axes that share a mixture. `labels` `[B, E]` are those that
    /// replace decisions, see [`Guidance`](molora_routing::Guidance).
    fn of(self, routed: &RouterOutput, labels: Option<&Tensor<2>>) -> Tensor<3> {
        let experts = routed.num_experts();
        match self {
            Self::PerToken => routed.weights.clone(),
            Self::Released => {
                let mean = routed.sum_counted(routed.weights.clone()) / routed.num_decisions();
                mean.reshape([1, 1, experts])
            }
            Self::SummedLogits => {
                let shape = routed.logits.dims();
                let padding = routed.counted.clone().equal_elem(0.0);
                let padding = padding.unsqueeze_dim::<3>(2).expand(shape);
                let logits = routed.logits.clone().mask_fill(padding, 0.0);
                let weights = softmax(logits.sum_dim(1), 2);
                let Some(labels) = labels else {
                    return weights;
                };
                let labels = labels.clone().unsqueeze_dim::<3>(1);
                let is_decided = labels.clone().sum_dim(2).greater_elem(0.5);
                weights.mask_where(is_decided.expand(labels.dims()), labels)
            }
        }
    }
}
