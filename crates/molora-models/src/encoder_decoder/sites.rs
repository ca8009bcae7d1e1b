//! The linear layers of T5, and what is attached to them.

use burn::tensor::Device;
use molora_kernels::random::Seed;

use super::model::{Block, T5};
use crate::attach::{Attachment, Place, attach_sites};
use crate::decoder::{Attention, FeedForward};
use crate::{Adaptable, Adapter, AdapterSpec, LayerRouter, MoLoraLinear, ModelError, RouterScope};

/// The encoder's layers come first; layers of the decoder count after those of the encoder.
impl Adaptable for T5 {
    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        let stacks = [("encoder", &self.encoder), ("decoder", &self.decoder)];
        let blocks = stacks.into_iter().flat_map(|(stack, layers)| {
            let blocks = layers.blocks.iter().enumerate();
            blocks.map(move |(index, block)| (format!("{stack}.block.{index}"), block))
        });
        blocks
            .flat_map(|(path, block)| {
                linears(block)
                    .into_iter()
                    .map(move |(part, linear)| (format!("{path}.{part}"), linear))
            })
            .collect()
    }

    fn sites_mut(&mut self) -> Vec<(String, &mut Adapter)> {
        self.places()
            .into_iter()
            .filter_map(|place| Some((place.path, place.linear.adapter.as_mut()?)))
            .collect()
    }

    fn task_type(&self) -> &'static str {
        "SEQ_2_SEQ_LM"
    }

    fn layer_routers(&self) -> Vec<(String, &LayerRouter)> {
        Vec::new()
    }

    fn layer_routers_mut(&mut self) -> Vec<(String, &mut LayerRouter)> {
        Vec::new()
    }

    fn attach(
        &mut self,
        spec: &AdapterSpec,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Result<Vec<String>, ModelError> {
        if spec.router.is_some() && spec.router_scope == RouterScope::Layer {
            let text = "adapter.router_scope is layer, expected site: a layer of an \
                        encoder-decoder reads two texts";
            return Err(ModelError::Inconsistent(text.into()));
        }
        let to = Attachment {
            num_layers: self.encoder.blocks.len() + self.decoder.blocks.len(),
            num_tasks,
            seed,
            device,
        };
        let sites = attach_sites(self.places(), spec, &to)?;
        Ok(sites.into_iter().map(|(path, _)| path).collect())
    }
}

impl T5 {
    /// Every linear layer but the head, in the order of [`linears`](Adaptable::linears).
    fn places(&mut self) -> Vec<Place<'_>> {
        let mut places = Vec::new();
        let mut layer = 0;
        let stacks = [
            ("encoder", &mut self.encoder),
            ("decoder", &mut self.decoder),
        ];
        for (stack, layers) in stacks {
            for (index, block) in layers.blocks.iter_mut().enumerate() {
                let cross = block.cross.as_mut().map(|(_, attention)| attention);
                let linears = linears_mut(&mut block.attention, cross, &mut block.feed_forward);
                for (part, linear) in linears {
                    let path = format!("{stack}.block.{index}.{part}");
                    places.push(Place {
                        path,
                        layer,
                        linear,
                    });
                }
                layer += 1;
            }
        }
        places
    }
}

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
            feed_forward: format!("layer.{last}.DenseReluDense"),
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
        let [query, key, value] = qkv;
        let named = [("q", query), ("k", key), ("v", value), ("o", output)];
        named.map(|(name, linear)| (format!("{path}.{name}"), linear))
    };
    let mut linears = attention("layer.0.SelfAttention", &block.attention).to_vec();
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
    fn named<'a>(path: &str, part: &'a mut Attention) -> [(String, &'a mut MoLoraLinear); 4] {
        let [query, key, value] = &mut part.qkv;
        let named = [
            ("q", query),
            ("k", key),
            ("v", value),
            ("o", &mut part.output),
        ];
        named.map(|(name, linear)| (format!("{path}.{name}"), linear))
    }
    let mut linears = Vec::from(named("layer.0.SelfAttention", attention));
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
