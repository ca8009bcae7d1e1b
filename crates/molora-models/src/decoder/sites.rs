//! The linear layers of a decoder, and what is attached to them.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_routing::Granularity;

use super::experts::FeedForwardPart;
use super::feed_forward::FeedForward;
use super::layer::Layer;
use super::model::Decoder;
use super::names::Names;
use crate::attach::{Attachment, Place, attach_sites, layer_routers, model_part};
use crate::site::SitePattern;
use crate::{
    Adaptable, AdapterSpec, LayerRouter, MoLoraLinear, ModelError, ModelPart, RouterScope,
    SavedTables,
};

/// Paths are those of the files. GPT-2 files hold queries, keys and values as one layer `attn.c_attn`;
/// here they are the three layers `attn.c_attn.q`, `attn.c_attn.k` and `attn.c_attn.v`.
///
/// The experts of a mixture of experts are sites of their own, `mlp.experts.N.gate_proj` and so on. Its
/// router, `mlp.gate`, is a site where a target names it: `all-linear` and its like do not.
impl Adaptable for Decoder {
    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        let layers = self.layers.iter().enumerate();
        layers
            .flat_map(|(index, layer)| {
                let linears = linears(self.names, layer).into_iter();
                linears.map(move |(part, linear)| (self.names.layer(index, &part), linear))
            })
            .collect()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
        let places = self.places().into_iter();
        places.map(|place| (place.path, place.linear)).collect()
    }

    fn layer_routers(&self) -> Vec<(String, &LayerRouter)> {
        let layers = self.layers.iter().enumerate();
        let path = |index| self.names.layer_name(index);
        layers
            .filter_map(|(index, layer)| Some((path(index), layer.router.as_ref()?)))
            .collect()
    }

    fn layer_routers_mut(&mut self) -> Vec<(String, &mut LayerRouter)> {
        let (names, layers) = (self.names, self.layers.iter_mut().enumerate());
        layers
            .filter_map(|(index, layer)| Some((names.layer_name(index), layer.router.as_mut()?)))
            .collect()
    }

    fn part(&self) -> Option<&ModelPart> {
        self.part.as_ref()
    }

    fn part_mut(&mut self) -> Option<&mut ModelPart> {
        self.part.as_mut()
    }

    fn saved_mut(&mut self) -> Vec<(String, &mut Param<Tensor<2>>)> {
        let names = self.names;
        let embeddings = format!("{}{}", names.prefix, names.tokens);
        self.saved.listed(&embeddings, names.head)
    }

    fn task_type(&self) -> &'static str {
        "CAUSAL_LM"
    }

    fn is_part(&self, path: &str) -> bool {
        let mut parts = self.names.qkv.iter();
        self.names.fused_qkv.is_some() && parts.any(|part| path.ends_with(part))
    }

    fn attach(
        &mut self,
        spec: &AdapterSpec,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Result<Vec<String>, ModelError> {
        let to = Attachment {
            num_layers: self.layers.len(),
            num_tasks,
            seed,
            device,
        };
        let (names, width) = (self.names, self.width());
        let head = self.head.as_ref().unwrap_or(&self.tokens);
        let saved = SavedTables::of(spec, || self.tokens.wide(), Some(&|| head.wide()), device)?;
        let mut places = self.places();
        places.retain_mut(|place| {
            let is_asked_for = !names.is_router(&place.path) || names_router(spec, &place.path);
            if !is_asked_for {
                place.linear.detach();
            }
            is_asked_for
        });
        check_experts(names, spec, &places)?;
        let (sites, plan) = attach_sites(places, spec, width, &to)?;
        let name = |index| names.layer_name(index);
        let routers = layer_routers(spec, &to, &sites, width, name);
        for (layer, router) in self.layers.iter_mut().zip(routers) {
            layer.router = router;
        }
        self.layer_rule = spec.layer_rule;
        self.part = model_part(spec, &to, width, plan);
        self.saved = saved;
        Ok(sites.into_iter().map(|site| site.path).collect())
    }
}

impl Decoder {
    /// Every linear layer but the head, by its number.
    pub(super) fn numbered(&self) -> Vec<&MoLoraLinear> {
        let layers = self.layers.iter();
        let mut linears: Vec<_> = layers.flat_map(layer_linears).collect();
        linears.sort_by_key(|linear| linear.number);
        linears
    }

    /// Every linear layer but the head, in the order of the forward pass.
    fn places(&mut self) -> Vec<Place<'_>> {
        let names = self.names;
        let mut places = Vec::new();
        for (layer, parts) in self.layers.iter_mut().enumerate() {
            let place = |part: &str, in_feed_forward, linear| Place {
                path: names.layer(layer, part),
                layer,
                in_feed_forward,
                ends_feed_forward: part == names.down,
                linear,
            };
            let attention = &mut parts.attention;
            let qkv = names.qkv.into_iter().zip(attention.qkv.linears_mut());
            let qkv = qkv.filter_map(|(part, linear)| Some((part, linear?)));
            let attention = qkv.chain([(names.output, &mut attention.output)]);
            places.extend(attention.map(|(part, linear)| place(part, false, linear)));
            let parts = part_linears_mut(names, &mut parts.feed_forward).into_iter();
            places.extend(parts.map(|(part, linear)| place(&part, true, linear)));
        }
        places
    }
}

/// Whether a target names the router of a mixture of experts, beyond all linear layers of a kind.
fn names_router(spec: &AdapterSpec, path: &str) -> bool {
    let mut targets = spec.targets.iter();
    targets.any(|target| {
        !target.starts_with("all-")
            && SitePattern::new(target).is_ok_and(|pattern| pattern.matches(path))
    })
}

/// Refuses choices that tokens which go to experts of the base by themselves have no place for.
fn check_experts(
    names: &Names,
    spec: &AdapterSpec,
    places: &[Place<'_>],
) -> Result<(), ModelError> {
    let is_target = |place: &Place<'_>| {
        let mut targets = spec.targets.iter();
        names.is_expert(&place.path)
            && targets.any(|target| {
                SitePattern::new(target).is_ok_and(|pattern| pattern.matches(&place.path))
            })
    };
    if !places.iter().any(is_target) {
        return Ok(());
    }
    let refuse = |field, found, expected| {
        Err(ModelError::NoPlace {
            field,
            found,
            expected,
        })
    };
    if !spec.composition.is_site() {
        let expected = "site for targets in experts of the base";
        return refuse("adapter.composition", spec.composition.name(), expected);
    }
    let Some(router) = &spec.router else {
        return Ok(());
    };
    match spec.router_scope {
        RouterScope::Site if router.granularity == Granularity::Sequence => {
            let expected =
                "token or task for targets in experts of the base, which see single tokens";
            refuse("adapter.router.granularity", "sequence", expected)
        }
        RouterScope::Site | RouterScope::Layer => Ok(()),
        _ => {
            let expected = "site or layer for targets in experts of the base";
            refuse("adapter.router_scope", spec.router_scope.name(), expected)
        }
    }
}

/// The linear layers of a layer.
fn layer_linears(layer: &Layer) -> Vec<&MoLoraLinear> {
    let qkv = layer.attention.qkv.linears().into_iter().flatten();
    let mut linears: Vec<_> = qkv.chain([&layer.attention.output]).collect();
    match &layer.feed_forward {
        FeedForwardPart::Dense(part) => linears.extend(part.linears()),
        FeedForwardPart::Experts(part) => {
            linears.push(&part.router);
            linears.extend(part.experts.iter().flat_map(FeedForward::linears));
        }
    }
    linears
}

/// The linear layers of a layer with their names in it.
fn linears<'a>(names: &Names, layer: &'a Layer) -> Vec<(String, &'a MoLoraLinear)> {
    let qkv = names.qkv.into_iter().zip(layer.attention.qkv.linears());
    let qkv = qkv.filter_map(|(part, linear)| Some((part.to_owned(), linear?)));
    let output = (names.output.to_owned(), &layer.attention.output);
    let mut linears: Vec<_> = qkv.chain([output]).collect();
    match &layer.feed_forward {
        FeedForwardPart::Dense(part) => {
            let parts = [names.gate, names.up, names.down].map(str::to_owned);
            linears.extend(named(parts, part));
        }
        FeedForwardPart::Experts(part) => {
            linears.push((names.router.into(), &part.router));
            for (index, expert) in part.experts.iter().enumerate() {
                let parts = [0, 1, 2].map(|part| names.of_expert(index, part));
                linears.extend(named(parts, expert));
            }
        }
    }
    linears
}

fn named(names: [String; 3], part: &FeedForward) -> impl Iterator<Item = (String, &MoLoraLinear)> {
    let linears = [part.gate.as_ref(), Some(&part.up), Some(&part.down)];
    let linears = names.into_iter().zip(linears);
    linears.filter_map(|(name, linear)| Some((name, linear?)))
}

/// The linear layers of a feed-forward part with their names in the layer, in the order of [`linears`].
pub(super) fn part_linears_mut<'a>(
    names: &Names,
    part: &'a mut FeedForwardPart,
) -> Vec<(String, &'a mut MoLoraLinear)> {
    match part {
        FeedForwardPart::Dense(part) => {
            let parts = [names.gate, names.up, names.down].map(str::to_owned);
            named_mut(parts, part).collect()
        }
        FeedForwardPart::Experts(part) => {
            let mut linears = vec![(names.router.to_owned(), &mut part.router)];
            for (index, expert) in part.experts.iter_mut().enumerate() {
                let parts = [0, 1, 2].map(|part| names.of_expert(index, part));
                linears.extend(named_mut(parts, expert));
            }
            linears
        }
    }
}

fn named_mut(
    names: [String; 3],
    part: &mut FeedForward,
) -> impl Iterator<Item = (String, &mut MoLoraLinear)> {
    let FeedForward { gate, up, down, .. } = part;
    let linears = names.into_iter().zip([gate.as_mut(), Some(up), Some(down)]);
    linears.filter_map(|(name, linear)| Some((name, linear?)))
}
