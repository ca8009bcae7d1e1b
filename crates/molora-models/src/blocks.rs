//! A forward pass layer by layer, so that the backward pass can compute each layer again instead of
//! keeping what is inside it (Chen et al., arXiv:1604.06174).

use burn::tensor::Tensor;

use crate::decoder::Pass;
use crate::encoder::Surroundings;
use crate::{
    Backbone, DecoderInput, EncoderInput, ForwardContext, RouteTrace, TaskModel, TextInput,
    TextOutput,
};

/// What the layers of a pass share, as it is in front of one of them.
pub struct BlockState(State);

enum State {
    Encoder(Box<(Surroundings, ForwardContext)>),
    Decoder(Box<Pass<'static>>),
}

impl std::fmt::Debug for BlockState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockState").finish_non_exhaustive()
    }
}

impl BlockState {
    /// Makes the routers of the next layers give each sequence one expert alone, by one-hot rows
    /// `[B, E]`; `None` lets them decide.
    pub fn label(&mut self, experts: Option<Tensor<2>>) {
        let context = match &mut self.0 {
            State::Encoder(shared) => &mut shared.1,
            State::Decoder(pass) => &mut pass.context,
        };
        context.guidance.labels = experts;
    }
}

impl Clone for BlockState {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            State::Encoder(shared) => State::Encoder(shared.clone()),
            State::Decoder(pass) => State::Decoder(Box::new(pass.fork())),
        })
    }
}

impl TaskModel {
    /// Number of layers that can be computed one at a time; `None` for an encoder-decoder, whose
    /// layers read two texts.
    pub fn num_blocks(&self) -> Option<usize> {
        match &self.backbone {
            Backbone::Encoder(model) => Some(model.num_layers()),
            Backbone::Decoder(model) => Some(model.num_layers()),
            Backbone::EncoderDecoder(_) => None,
        }
    }

    /// Whether a gradient of the input of the first layer leads to parameters that train.
    pub fn trains_embeddings(&self) -> bool {
        self.backbone.trains_embeddings()
    }

    /// The input of the first layer `[B, T, D]`.
    ///
    /// # Panics
    /// For an encoder-decoder; see [`num_blocks`](Self::num_blocks).
    pub fn begin(&self, input: &TextInput, context: &ForwardContext) -> (Tensor<3>, BlockState) {
        match &self.backbone {
            Backbone::Encoder(model) => {
                let input = EncoderInput {
                    ids: input.ids.clone(),
                    type_ids: input.type_ids.clone(),
                    mask: input.mask.clone(),
                };
                let (hidden, context, around) = model.begin(&input, context);
                let shared = Box::new((around, context));
                (hidden, BlockState(State::Encoder(shared)))
            }
            Backbone::Decoder(model) => {
                let input = DecoderInput {
                    ids: input.ids.clone(),
                    mask: input.mask.clone(),
                    segments: input.segments.clone(),
                };
                let (hidden, pass) = model.begin(&input, context);
                (hidden, BlockState(State::Decoder(Box::new(pass))))
            }
            Backbone::EncoderDecoder(_) => panic!("an encoder-decoder has no single layers"),
        }
    }

    /// The output of a layer `[B, T, D]`, and its routing decisions. The state becomes that of the
    /// next layer.
    ///
    /// # Panics
    /// If the state is of a model of another kind.
    pub fn block(
        &self,
        index: usize,
        hidden: Tensor<3>,
        state: &mut BlockState,
    ) -> (Tensor<3>, Vec<RouteTrace>) {
        self.saving(|| match (&self.backbone, &mut state.0) {
            (Backbone::Encoder(model), State::Encoder(shared)) => {
                let (around, context) = &mut **shared;
                let mut routes = Vec::new();
                let hidden = model.layer(index, hidden, around, context, &mut routes);
                (hidden, routes)
            }
            (Backbone::Decoder(model), State::Decoder(pass)) => {
                let hidden = model.layer(index, hidden, None, pass);
                (hidden, std::mem::take(&mut pass.routes))
            }
            _ => panic!("the state is of another model"),
        })
    }

    /// What [`forward`](Self::forward) returns, from the output of the last layer; without routes.
    pub fn end(&self, hidden: Tensor<3>) -> TextOutput {
        let routes = Vec::new();
        match &self.backbone {
            Backbone::Decoder(model) => {
                let hidden = model.end(hidden);
                TextOutput {
                    hidden: hidden.clone(),
                    written: Some(hidden),
                    routes,
                }
            }
            Backbone::Encoder(model) => TextOutput {
                hidden: model.end(hidden),
                written: None,
                routes,
            },
            Backbone::EncoderDecoder(_) => TextOutput {
                hidden,
                written: None,
                routes,
            },
        }
    }
}
