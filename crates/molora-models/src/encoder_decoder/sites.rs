//! The linear layers of an encoder-decoder, and what is attached to them.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;

use super::EncoderDecoder;
use super::config::{HEAD, Half, LINEARS};
use super::layer::Block;
use crate::attach::{Attachment, Place, attach_sites, layer_routers, model_part};
use crate::decoder::{Attention, FeedForward};
use crate::{
    Adaptable, AdapterSpec, LayerRouter, MoLoraLinear, ModelError, ModelPart, RouterScope,
    SavedTables,
};

/// The encoder's layers come first; layers of the decoder count after those of the encoder.
impl Adaptable for EncoderDecoder {
    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        let (names, mut all) = (self.names, Vec::new());
        for (half, index, block) in self.blocks() {
            let path = names.layer_name(half, index);
            let linears = linears(block).into_iter().zip(names.linears(half));
            all.extend(
                linears.filter_map(|(linear, part)| Some((format!("{path}.{part}"), linear?))),
            );
        }
        all
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
        let places = self.places().into_iter();
        places.map(|place| (place.path, place.linear)).collect()
    }

    fn task_type(&self) -> &'static str {
        "SEQ_2_SEQ_LM"
    }

    fn saved_mut(&mut self) -> Vec<(String, &mut Param<Tensor<2>>)> {
        self.saved.listed(&self.names.tokens(), HEAD)
    }

    fn is_shared_table(&self, path: &str) -> bool {
        path == self.names.tokens()
    }

    fn layer_routers(&self) -> Vec<(String, &LayerRouter)> {
        let (names, blocks) = (self.names, self.blocks().into_iter());
        blocks
            .filter_map(|(half, index, block)| {
                Some((names.layer_name(half, index), block.router.as_ref()?))
            })
            .collect()
    }

    fn layer_routers_mut(&mut self) -> Vec<(String, &mut LayerRouter)> {
        let (names, blocks) = (self.names, self.blocks_mut().into_iter());
        blocks
            .filter_map(|(half, index, block)| {
                Some((names.layer_name(half, index), block.router.as_mut()?))
            })
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
        let names = self.names;
        let mut blocks = self.blocks_mut();
        let name = |index: usize| names.layer_name(blocks[index].0, blocks[index].1);
        let routers = layer_routers(spec, &to, &sites, width, name);
        for ((_, _, block), router) in blocks.iter_mut().zip(routers) {
            block.router = router;
        }
        self.part = model_part(spec, &to, width, plan);
        self.saved = saved;
        Ok(sites.into_iter().map(|site| site.path).collect())
    }
}

impl EncoderDecoder {
    /// Every linear layer but the head, in the order of [`linears`](Adaptable::linears).
    fn places(&mut self) -> Vec<Place<'_>> {
        let names = self.names;
        let mut places = Vec::new();
        for (layer, (half, index, block)) in self.blocks_mut().into_iter().enumerate() {
            let path = names.layer_name(half, index);
            let feed_forward = names.feed_forward[half as usize];
            for (linear, part) in linears_mut(block).into_iter().zip(names.linears(half)) {
                places.extend(linear.map(|linear| Place {
                    path: format!("{path}.{part}"),
                    layer,
                    in_feed_forward: feed_forward.contains(&part),
                    ends_feed_forward: part == feed_forward[2],
                    linear,
                }));
            }
        }
        places
    }

    /// The layers of both halves with their numbers, those of the encoder first.
    fn blocks(&self) -> Vec<(Half, usize, &Block)> {
        let numbered = |half| move |(index, block)| (half, index, block);
        let encoder = self.encoder.blocks.iter().enumerate();
        let decoder = self.decoder.blocks.iter().enumerate();
        let decoder = decoder.map(numbered(Half::Decoder));
        encoder
            .map(numbered(Half::Encoder))
            .chain(decoder)
            .collect()
    }

    /// The same, to be changed.
    fn blocks_mut(&mut self) -> Vec<(Half, usize, &mut Block)> {
        let numbered = |half| move |(index, block)| (half, index, block);
        let encoder = self.encoder.blocks.iter_mut().enumerate();
        let decoder = self.decoder.blocks.iter_mut().enumerate();
        let decoder = decoder.map(numbered(Half::Decoder));
        encoder
            .map(numbered(Half::Encoder))
            .chain(decoder)
            .collect()
    }
}

/// In the order of [`Names::linears`](super::config::Names::linears).
fn linears(block: &Block) -> [Option<&MoLoraLinear>; LINEARS] {
    fn of_attention(part: &Attention) -> [Option<&MoLoraLinear>; 4] {
        let [query, key, value] = part.qkv.linears();
        [query, key, value, Some(&part.output)]
    }
    let [query, key, value, output] = of_attention(&block.attention);
    let [cross_query, cross_key, cross_value, cross_output] = match &block.cross {
        Some((_, cross)) => of_attention(cross),
        None => [None; 4],
    };
    let FeedForward { gate, up, down, .. } = &block.feed_forward;
    [
        query,
        key,
        value,
        output,
        cross_query,
        cross_key,
        cross_value,
        cross_output,
        gate.as_ref(),
        Some(up),
        Some(down),
    ]
}

/// In the order of [`Names::linears`](super::config::Names::linears).
fn linears_mut(block: &mut Block) -> [Option<&mut MoLoraLinear>; LINEARS] {
    let cross = block.cross.as_mut().map(|(_, cross)| cross);
    linears_of(&mut block.attention, cross, &mut block.feed_forward)
}

/// The same of the parts of a layer.
pub(super) fn linears_of<'a>(
    attention: &'a mut Attention,
    cross: Option<&'a mut Attention>,
    feed_forward: &'a mut FeedForward,
) -> [Option<&'a mut MoLoraLinear>; LINEARS] {
    fn of_attention(part: &mut Attention) -> [Option<&mut MoLoraLinear>; 4] {
        let [query, key, value] = part.qkv.linears_mut();
        [query, key, value, Some(&mut part.output)]
    }
    let [query, key, value, output] = of_attention(attention);
    let [cross_query, cross_key, cross_value, cross_output] = match cross {
        Some(cross) => of_attention(cross),
        None => [None, None, None, None],
    };
    let FeedForward { gate, up, down, .. } = feed_forward;
    [
        query,
        key,
        value,
        output,
        cross_query,
        cross_key,
        cross_value,
        cross_output,
        gate.as_mut(),
        Some(up),
        Some(down),
    ]
}
