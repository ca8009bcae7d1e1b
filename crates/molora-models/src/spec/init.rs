//! Fresh adapters and routers by a specification.

use burn::tensor::Device;
use molora_adapters::{Site, SiteDims};
use molora_kernels::random::Seed;
use molora_routing::{RouteFrom, Router};

use super::{AdapterSpec, RouterScope};
use crate::adapter::Reads;
use crate::{Adapter, Composition, PoolConfig, PooledSite};

/// Where a site whose experts are in a pool is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolPlace {
    /// Its number among the model's sites.
    pub(crate) site: usize,
    /// Its kind, and its number among those.
    pub(crate) number: (usize, usize),
    /// Its widths.
    pub(crate) dims: SiteDims,
}

impl AdapterSpec {
    /// The router of a layer with sites whose hidden states have the given width, if routers belong
    /// to layers or to their feed-forward parts.
    pub(crate) fn layer_router(
        &self,
        width: usize,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Option<Router> {
        let scope = match self.composition.is_feed_forward() {
            true => RouterScope::Site,
            false => RouterScope::Layer,
        };
        let has_own = self.router_scope == scope;
        has_own.then(|| self.router_for(width, num_tasks, seed, device))?
    }

    /// A router for inputs of a width, if there are routers.
    pub(crate) fn router_for(
        &self,
        width: usize,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Option<Router> {
        let router = self.router.as_ref()?;
        let (experts, groups) = (self.bank.choices(), self.bank.groups());
        let seed = seed.child("router");
        Some(router.init_groups(groups, width, experts, num_tasks, seed, device))
    }

    /// A fresh router for one site whose experts are in a pool.
    pub(crate) fn pooled(
        &self,
        pool: PoolConfig,
        at: PoolPlace,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> PooledSite {
        let router = self.router.as_ref();
        let from_low_rank = router.is_some_and(|r| r.route_from == RouteFrom::LowRank);
        let width = match from_low_rank {
            true => self.bank.rank,
            false => at.dims.d_input,
        };
        let router = self.router_for(width, num_tasks, seed, device);
        PooledSite::new(router, at.site, at.number, pool, from_low_rank)
    }

    /// A fresh adapter for one site of a layer whose specification this is; `number` is that of the
    /// site among the model's sites, and the model's hidden states have the given width.
    pub(crate) fn init(
        &self,
        site: Site<'_>,
        width: usize,
        number: usize,
        seed: Seed,
        device: &Device,
    ) -> Adapter {
        let is_own = self.composition.is_by_site() && self.router_scope.is_by_site();
        let router = self.router.as_ref().filter(|_| is_own);
        let reads = match (self.router_scope.first_pass(), router) {
            (Some(first), _) => Reads::FirstPass(first.features(width)),
            (None, Some(router)) => match router.route_from {
                RouteFrom::Hidden => Reads::Input,
                RouteFrom::LowRank => Reads::LowRank,
                RouteFrom::Dropped => Reads::Dropped,
            },
            (None, None) => Reads::Input,
        };
        let features = match reads {
            Reads::Input | Reads::Dropped => site.dims.d_input,
            Reads::LowRank => self.bank.slices.count(self.bank.num_experts).size * self.bank.rank,
            Reads::FirstPass(width) => width,
        };
        let router = router.and_then(|_| self.router_for(features, site.tasks, seed, device));
        let gate = self.gate.as_ref();
        Adapter {
            bank: self.bank_config().init_at(site, seed.child("bank"), device),
            router,
            gate: gate.map(|gate| gate.init(site.tasks, seed.child("gate"), device)),
            magnitude: None,
            reads,
            general: self.general,
            is_beside: self.composition == Composition::Block,
            site: number,
        }
    }
}
