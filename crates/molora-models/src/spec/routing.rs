//! Whether routers find what they read, and select what the bank has.

use molora_adapters::Slices;
use molora_routing::scorer::Reads;
use molora_routing::{Granularity, LayerRule, RouteFrom, RouterConfig, Selection};

use super::{AdapterSpec, Composition, ExpertCount, RouterScope};
use crate::ModelError;

impl AdapterSpec {
    /// Checks that experts of different ranks are the same in every layer, and a mixture of sites.
    pub(super) fn choices_exist(&self) -> Result<(), ModelError> {
        let is_everywhere = self.router.is_some()
            && self.experts == ExpertCount::Same
            && self.general.is_none()
            && matches!(
                self.composition,
                Composition::Site | Composition::FeedForwardSites
            );
        match self.bank.costs().is_none() || is_everywhere {
            true => Ok(()),
            false => Err(ModelError::Inconsistent(format!(
                "adapter.bank.combine is {}, which needs an adapter.router, adapter.experts = \"same\", \
                 adapter.composition = \"site\" or \"feed_forward_sites\", and no adapter.general",
                self.bank.combine.name()
            ))),
        }
    }

    pub(super) fn features_exist(&self, router: &RouterConfig) -> Result<(), ModelError> {
        let low_rank = router.route_from == RouteFrom::LowRank;
        let combine = &self.bank.combine;
        if router.scorer.reads() == Reads::Codes {
            let has_codes = low_rank && self.bank.slices == Slices::Independent;
            return match has_codes && !combine.reads_inputs() {
                true => Ok(()),
                false => Err(ModelError::Inconsistent(format!(
                    "adapter.router.scorer is {}, which needs adapter.router.route_from = \"low_rank\" and \
                     adapter.bank.slices = \"independent\"",
                    router.scorer.name()
                ))),
            };
        }
        if low_rank && self.bank.slices != Slices::Shared {
            let text = "adapter.router.route_from is low_rank, which needs adapter.bank.slices = \
                        \"shared\"";
            return Err(ModelError::Inconsistent(text.into()));
        }
        if router.scorer.reads() == Reads::FeaturesAndColumns {
            let has_columns = combine.weighs_vectors()
                && self.bank.down.is_dense()
                && self.bank.core.is_none()
                && self.composition == Composition::Site
                && self.router_scope == RouterScope::Site
                && self.experts == ExpertCount::Same
                && router.route_from == RouteFrom::Hidden
                && router.granularity != Granularity::Task;
            if !has_columns {
                return Err(ModelError::Inconsistent(format!(
                    "adapter.router.scorer is {}, which needs adapter.bank.combine = \"grid\", a dense down, no \
                     core, the same experts in every layer and a router at every site that reads hidden \
                     states by token or by sequence",
                    router.scorer.name()
                )));
            }
            router.scorer.validate_columns(self.bank.rank)?;
        }
        let by_token = router.granularity == Granularity::Token;
        if combine.reads_inputs() && by_token {
            return Err(ModelError::Inconsistent(format!(
                "adapter.bank.combine is {}, which mixes matrices for whole rows: it needs \
                 adapter.router.granularity = \"task\" or \"sequence\"",
                combine.name()
            )));
        }
        if self.bank.groups() > 1 && self.layer_rule != LayerRule::PerLayer {
            return Err(ModelError::Inconsistent(format!(
                "adapter.layer_rule other than per_layer makes one choice, and adapter.bank.combine is {}",
                combine.name()
            )));
        }
        Ok(())
    }

    /// Checks that no more experts are selected than take part in the bank.
    pub(super) fn selects_what_takes_part(&self, router: &RouterConfig) -> Result<(), ModelError> {
        match (self.bank.combine.most_selected(), router.selection) {
            (Some(most), Selection::TopK(top_k)) if top_k > most => {
                Err(ModelError::Inconsistent(format!(
                    "adapter.router.selection.top_k is {top_k}, but of a token's experts {most} take part \
                     in adapter.bank.combine = \"{}\"",
                    self.bank.combine.name()
                )))
            }
            _ => Ok(()),
        }
    }
}
