//! What a method has once for a whole model.

use burn::module::Module;
use molora_adapters::ExpertBank;
use molora_parts::PartTensor;

use crate::{FirstPass, LayerRouter, Pool};

/// A part that the sites of a model share.
#[derive(Module, Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "there is one in a model")]
pub enum ModelPart {
    /// The router of all feed-forward parts, each of which decides by its own input.
    Router(LayerRouter),
    /// The classifier of a first pass that decides for all sites.
    FirstPass(FirstPass),
    /// The experts of all sites.
    Pool(Pool),
}

impl ModelPart {
    /// Where the tensors of a model's part are in files.
    pub(crate) const PATH: &'static str = "mixture";

    /// Every tensor, by the path that stands in files in place of that of a site.
    pub fn tensors(&mut self) -> Vec<(String, Vec<PartTensor<'_>>)> {
        let path = Self::PATH.to_owned();
        match self {
            Self::Router(shared) => vec![(path, shared.router.tensors())],
            Self::FirstPass(first) => vec![(path, first.tensors())],
            Self::Pool(pool) => {
                let below = |(name, tensors)| (format!("{path}.{name}"), tensors);
                pool.tensors().into_iter().map(below).collect()
            }
        }
    }

    /// Why the mixture is no delta of each layer by itself, in words.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Self::Router(_) => "its experts are mixed in whole feed-forward parts",
            Self::FirstPass(_) => "a first pass decides how its experts are weighed",
            Self::Pool(_) => "its layers share their experts",
        }
    }

    /// The banks that sites share.
    pub fn banks(&self) -> Vec<&ExpertBank> {
        match self {
            Self::Pool(pool) => pool.kinds.iter().map(|kind| &kind.bank).collect(),
            Self::Router(_) | Self::FirstPass(_) => Vec::new(),
        }
    }

    /// The experts that sites share, if that is what it is.
    pub(crate) fn pool(&self) -> Option<&Pool> {
        match self {
            Self::Pool(pool) => Some(pool),
            Self::Router(_) | Self::FirstPass(_) => None,
        }
    }

    /// The router of all feed-forward parts, if that is what it is.
    pub(crate) fn router(&self) -> Option<&LayerRouter> {
        match self {
            Self::Router(router) => Some(router),
            Self::FirstPass(_) | Self::Pool(_) => None,
        }
    }

    /// The first pass that decides for all sites, if that is what it is.
    pub(crate) fn first_pass(&self) -> Option<&FirstPass> {
        match self {
            Self::FirstPass(first) => Some(first),
            Self::Router(_) | Self::Pool(_) => None,
        }
    }
}
