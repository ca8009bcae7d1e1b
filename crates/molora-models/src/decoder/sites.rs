//! The linear layers of a decoder, and what is attached to them.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;

use super::feed_forward::FeedForward;
use super::layer::Layer;
use super::model::Decoder;
use crate::attach::{Attachment, Place, attach_sites, layer_routers, model_part};
use crate::{
    Adaptable, AdapterSpec, LayerRouter, MoLoraLinear, ModelError, ModelPart, SavedTables,
};

/// GPT-2 files hold queries, keys and values as one layer `attn.c_attn`; here they are the three
/// layers `attn.c_attn.q`, `attn.c_attn.k` and `attn.c_attn.v`.
impl Adaptable for Decoder {
    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        let path = |index, part| self.names.layer(index, part);
        let layers = self.layers.iter().enumerate();
        layers
            .flat_map(|(index, layer)| {
                let linears = linears(layer).into_iter().zip(self.names.linears());
                linears.filter_map(move |(linear, part)| Some((path(index, part), linear?)))
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
        let saved = SavedTables::of(spec, &self.tokens, Some(head), device)?;
        let (sites, plan) = attach_sites(self.places(), spec, width, &to)?;
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
    /// Every linear layer but the head, in the order of the forward pass.
    fn places(&mut self) -> Vec<Place<'_>> {
        let names = self.names;
        let mut places = Vec::new();
        for (layer, parts) in self.layers.iter_mut().enumerate() {
            for (linear, part) in linears_mut(parts).into_iter().zip(names.linears()) {
                let path = names.layer(layer, part);
                let in_feed_forward = [names.gate, names.up, names.down].contains(&part);
                places.extend(linear.map(|linear| Place {
                    path,
                    layer,
                    in_feed_forward,
                    ends_feed_forward: part == names.down,
                    linear,
                }));
            }
        }
        places
    }
}

/// In the order of [`Names::linears`](super::names::Names::linears).
fn linears(layer: &Layer) -> [Option<&MoLoraLinear>; 7] {
    let [query, key, value] = layer.attention.qkv.linears();
    let FeedForward { gate, up, down, .. } = &layer.feed_forward;
    let [output, up, down] = [&layer.attention.output, up, down].map(Some);
    [query, key, value, output, gate.as_ref(), up, down]
}

/// In the order of [`Names::linears`](super::names::Names::linears).
fn linears_mut(layer: &mut Layer) -> [Option<&mut MoLoraLinear>; 7] {
    let [query, key, value] = layer.attention.qkv.linears_mut();
    let FeedForward { gate, up, down, .. } = &mut layer.feed_forward;
    let [output, up, down] = [&mut layer.attention.output, up, down].map(Some);
    [query, key, value, output, gate.as_mut(), up, down]
}
