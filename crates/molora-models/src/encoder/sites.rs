//! The linear layers of an encoder, and what is attached to them.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;

use super::Encoder;
use super::config::{LINEARS, Names};
use super::layer::Layer;
use crate::attach::{Attachment, Place, attach_sites, layer_routers, model_part};
use crate::base_dtype::wide;
use crate::{
    Adaptable, AdapterSpec, LayerRouter, MoLoraLinear, ModelError, ModelPart, SavedTables,
    SitePattern,
};

/// A linear map of the embeddings comes first. It and projections of relative positions are sites of
/// adapters without routers alone: they stand in front of all layers, or read no tokens.
impl Adaptable for Encoder {
    fn task_type(&self) -> &'static str {
        "FEATURE_EXTRACTION"
    }

    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        let names = self.names;
        let front = self.embeddings.projection.iter();
        let front = front.map(|linear| (names.projection.to_owned(), linear));
        let layers = self.layers.iter().enumerate();
        let layers = layers.flat_map(|(index, layer)| {
            let linears = linears(layer).into_iter().zip(names.linears());
            linears.filter_map(move |(linear, part)| Some((names.layer(index, part), linear?)))
        });
        front.chain(layers).collect()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
        let places = self.places(true).into_iter();
        places.map(|place| (place.path, place.linear)).collect()
    }

    fn saved_mut(&mut self) -> Vec<(String, &mut Param<Tensor<2>>)> {
        // An encoder has no head over its vocabulary.
        self.saved.listed(self.names.words, "")
    }

    fn layer_routers(&self) -> Vec<(String, &LayerRouter)> {
        let (names, layers) = (self.names, self.layers.iter().enumerate());
        layers
            .filter_map(|(index, layer)| Some((names.layer_name(index), layer.router.as_ref()?)))
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

    fn is_part(&self, path: &str) -> bool {
        let names = self.names;
        let of_attention = names.fused_qkv.map(|_| names.qkv);
        let of_feed_forward = names.fused_gate.map(|_| [names.gate, names.up]);
        let mut parts = of_attention.iter().flatten();
        let mut others = of_feed_forward.iter().flatten();
        parts.any(|part| path.ends_with(part)) || others.any(|part| path.ends_with(part))
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
        let saved = SavedTables::of(spec, || wide(self.embeddings.word.val()), None, device)?;
        let spec = &self.with_parts(spec);
        let places = self.places(spec.router.is_none());
        let (sites, plan) = attach_sites(places, spec, width, &to)?;
        // Those that can have no router may have had an adapter without one.
        for (path, linear) in self.linears_mut() {
            if !sites.iter().any(|site| site.path == path) {
                linear.detach();
            }
        }
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

impl Encoder {
    /// The specification with all parts of a layer that the files hold as one in the place of its name,
    /// which is what PEFT knows.
    fn with_parts(&self, spec: &AdapterSpec) -> AdapterSpec {
        let fused = [self.names.fused_qkv, self.names.fused_gate];
        let paths = (0..self.layers.len()).flat_map(|index| {
            let fused = fused.into_iter().flatten();
            fused.map(move |part| self.names.layer(index, part))
        });
        let paths: Vec<String> = paths.collect();
        let parts_of = |target: &String| {
            let pattern = SitePattern::new(target).ok();
            let pattern = pattern.filter(SitePattern::is_plain_name);
            let is_whole = |path: &String| pattern.as_ref().is_some_and(|name| name.matches(path));
            match paths.iter().any(is_whole) {
                true => format!("{target}.*"),
                false => target.clone(),
            }
        };
        AdapterSpec {
            targets: spec.targets.iter().map(parts_of).collect(),
            ..spec.clone()
        }
    }

    /// The linear layers in the order of the forward pass: all, or those that read the tokens of a
    /// layer.
    fn places(&mut self, all: bool) -> Vec<Place<'_>> {
        let names = self.names;
        let front = self.embeddings.projection.iter_mut().filter(|_| all);
        let mut places: Vec<Place<'_>> = front
            .map(|linear| Place {
                path: names.projection.to_owned(),
                layer: 0,
                in_feed_forward: false,
                ends_feed_forward: false,
                linear,
            })
            .collect();
        for (layer, parts) in self.layers.iter_mut().enumerate() {
            for (linear, part) in linears_mut(parts).into_iter().zip(names.linears()) {
                let reads_positions = part == names.position_key || part == names.position_query;
                let linear = linear.filter(|_| all || !reads_positions);
                places.extend(linear.map(|linear| Place {
                    path: names.layer(layer, part),
                    layer,
                    in_feed_forward: in_feed_forward(names, part),
                    ends_feed_forward: part == names.down,
                    linear,
                }));
            }
        }
        places
    }
}

fn in_feed_forward(names: &Names, part: &str) -> bool {
    [names.gate, names.up, names.down].contains(&part)
}

/// In the order of [`Names::linears`].
fn linears(layer: &Layer) -> [Option<&MoLoraLinear>; LINEARS] {
    let attention = &layer.attention;
    let [query, key, value] = attention.qkv.each_ref().map(Some);
    [
        query,
        key,
        value,
        attention.position_key.as_ref(),
        attention.position_query.as_ref(),
        Some(&attention.output),
        layer.gate.as_ref(),
        Some(&layer.up),
        Some(&layer.down),
    ]
}

/// In the order of [`Names::linears`].
fn linears_mut(layer: &mut Layer) -> [Option<&mut MoLoraLinear>; LINEARS] {
    let attention = &mut layer.attention;
    let [query, key, value] = attention.qkv.each_mut().map(Some);
    [
        query,
        key,
        value,
        attention.position_key.as_mut(),
        attention.position_query.as_mut(),
        Some(&mut attention.output),
        layer.gate.as_mut(),
        Some(&mut layer.up),
        Some(&mut layer.down),
    ]
}
