//! The linear layers of T5, and what is attached to them.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;

use super::model::{Block, T5};
use crate::attach::{Attachment, Place, attach_sites, layer_routers, model_part};
use crate::decoder::{Attention, FeedForward};
use crate::{
    Adaptable, AdapterSpec, LayerRouter, MoLoraLinear, ModelError, ModelPart, RouterScope,
    SavedTables,
};

/// The encoder's layers come first; layers of the decoder count after those of the encoder.
impl Adaptable for T5 {
    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        let blocks = self.blocks().into_iter();
        blocks
            .flat_map(|(path, block)| {
                linears(block)
                    .into_iter()
                    .map(move |(part, linear)| (format!("{path}.{part}"), linear))
            })
            .collect()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
        let places = self.places().into_iter();
        places.map(|place| (place.path, place.linear)).collect()
    }

    fn task_type(&self) -> &'static str {
        "SEQ_2_SEQ_LM"
    }

    fn saved_mut(&mut self) -> Vec<(String, &mut Param<Tensor<2>>)> {
        self.saved.listed("shared", "lm_head")
    }

    fn is_shared_table(&self, path: &str) -> bool {
        path == "shared"
    }

    fn layer_routers(&self) -> Vec<(String, &LayerRouter)> {
        let blocks = self.blocks().into_iter();
        blocks
            .filter_map(|(path, block)| Some((path, block.router.as_ref()?)))
            .collect()
    }

    fn layer_routers_mut(&mut self) -> Vec<(String, &mut LayerRouter)> {
        let blocks = self.blocks_mut().into_iter();
        blocks
            .filter_map(|(path, block)| Some((path, block.router.as_mut()?)))
            .collect()
    }

    fn part(&self) -> Option<&ModelPart> {
        self.part.as_ref()
    }

    fn part_mut(&mut self) -> Option<&mut ModelPart> {
        self.part.as_mut()
    }

    fn attach(
        &mut self,
        spec: &AdapterSpec,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Result<Vec<String>, ModelError> {
        let refused = matches!(
            spec.router_scope,
            RouterScope::Layer | RouterScope::FirstPass(_)
        );
        if spec.router.is_some() && refused {
            let text = "adapter.router_scope is layer or first_pass, expected site: a layer of an \
                        encoder-decoder reads two texts";
            return Err(ModelError::Inconsistent(text.into()));
        }
        let head = self.head.as_ref().unwrap_or(&self.tokens);
        let saved = SavedTables::of(spec, || self.tokens.wide(), Some(&|| head.wide()), device)?;
        let to = Attachment {
            num_layers: self.encoder.blocks.len() + self.decoder.blocks.len(),
            num_tasks,
            seed,
            device,
        };
        let width = self.width();
        let (sites, plan) = attach_sites(self.places(), spec, width, &to)?;
        let mut blocks = self.blocks_mut();
        let name = |index: usize| blocks[index].0.clone();
        let routers = layer_routers(spec, &to, &sites, width, name);
        for ((_, block), router) in blocks.iter_mut().zip(routers) {
            block.router = router;
        }
        self.part = model_part(spec, &to, width, plan);
        self.saved = saved;
        Ok(sites.into_iter().map(|site| site.path).collect())
    }
}

impl T5 {
    /// Every linear layer but the head, in the order of [`linears`](Adaptable::linears).
    fn places(&mut self) -> Vec<Place<'_>> {
        let mut places = Vec::new();
        for (layer, (path, block)) in self.blocks_mut().into_iter().enumerate() {
            let cross = block.cross.as_mut().map(|(_, attention)| attention);
            let linears = linears_mut(&mut block.attention, cross, &mut block.feed_forward);
            for (part, linear) in linears {
                places.push(Place {
                    path: format!("{path}.{part}"),
                    layer,
                    in_feed_forward: part.contains(FEED_FORWARD),
                    ends_feed_forward: part.ends_with(".wo"),
                    linear,
                });
            }
        }
        places
    }

    /// The layers of both halves with their paths, those of the encoder first.
    fn blocks(&self) -> Vec<(String, &Block)> {
        let path = |stack| move |(index, block)| (format!("{stack}.block.{index}"), block);
        let encoder = self.encoder.blocks.iter().enumerate().map(path("encoder"));
        let decoder = self.decoder.blocks.iter().enumerate();
        encoder.chain(decoder.map(path("decoder"))).collect()
    }

    /// The same, to be changed.
    fn blocks_mut(&mut self) -> Vec<(String, &mut Block)> {
        let path = |stack| move |(index, block)| (format!("{stack}.block.{index}"), block);
        let encoder = self.encoder.blocks.iter_mut().enumerate();
        let decoder = self.decoder.blocks.iter_mut().enumerate();
        let decoder = decoder.map(path("decoder"));
        encoder.map(path("encoder")).chain(decoder).collect()
    }
}

/// The feed-forward part of a block in the files.
const FEED_FORWARD: &str = "DenseReluDense";

/// Paths of the parts of a block.
struct Parts {
    cross: String,
    feed_forward: String,
    up: &'static str,
}

impl Parts {
    fn of(has_cross: bool, feed_forward: &FeedForward) -> Self {
        let last = 1 + usize::from(has_cross);
        Self {
            cross: "layer.1.EncDecAttention".into(),
            feed_forward: format!("layer.{last}.{FEED_FORWARD}"),
            up: match feed_forward.gate {
                Some(_) => "wi_1",
                None => "wi",
            },
        }
    }
}

fn linears(block: &Block) -> Vec<(String, &MoLoraLinear)> {
    let parts = Parts::of(block.cross.is_some(), &block.feed_forward);
    let attention = |path: &str, attention| {
        let Attention { qkv, output, .. }: &Attention = attention;
        let names = ["q", "k", "v", "o"];
        let named = names
            .into_iter()
            .zip(qkv.linears().into_iter().flatten().chain([output]));
        let named = named.map(|(name, linear)| (format!("{path}.{name}"), linear));
        named.collect::<Vec<_>>()
    };
    let mut linears = attention("layer.0.SelfAttention", &block.attention);
    linears.extend(
        block
            .cross
            .iter()
            .flat_map(|(_, cross)| attention(&parts.cross, cross)),
    );
    let FeedForward { gate, up, down, .. } = &block.feed_forward;
    let gate = gate.as_ref().map(|gate| ("wi_0", gate));
    let named = gate.into_iter().chain([(parts.up, up), ("wo", down)]);
    let path = |name| format!("{}.{name}", parts.feed_forward);
    linears.extend(named.map(|(name, linear)| (path(name), linear)));
    linears
}

/// In the order of [`linears`].
pub(super) fn linears_mut<'a>(
    attention: &'a mut Attention,
    cross: Option<&'a mut Attention>,
    feed_forward: &'a mut FeedForward,
) -> Vec<(String, &'a mut MoLoraLinear)> {
    let parts = Parts::of(cross.is_some(), feed_forward);
    fn named<'a>(path: &str, part: &'a mut Attention) -> Vec<(String, &'a mut MoLoraLinear)> {
        let qkv = part.qkv.linears_mut().into_iter().flatten();
        let named = ["q", "k", "v", "o"]
            .into_iter()
            .zip(qkv.chain([&mut part.output]));
        let named = named.map(|(name, linear)| (format!("{path}.{name}"), linear));
        named.collect()
    }
    let mut linears = named("layer.0.SelfAttention", attention);
    linears.extend(
        cross
            .into_iter()
            .flat_map(|cross| named(&parts.cross, cross)),
    );
    let FeedForward { gate, up, down, .. } = feed_forward;
    let gate = gate.as_mut().map(|gate| ("wi_0", gate));
    let named = gate.into_iter().chain([(parts.up, up), ("wo", down)]);
    let path = |name| format!("{}.{name}", parts.feed_forward);
    linears.extend(named.map(|(name, linear)| (path(name), linear)));
    linears
}
