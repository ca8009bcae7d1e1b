//! An encoder, by Devlin et al., arXiv:1810.04805, with the choices of the families behind it, in the
//! layout of Hugging Face's files.

use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor};
use molora_routing::LayerRule;

use super::attention::{Places, Surroundings};
use super::config::{EncoderConfig, Names};
use super::embeddings::Embeddings;
use super::layer::{Layer, Pass, See};
use crate::observe::{Observation, observation};
use crate::scope::{decide, vote};
use crate::{
    ForwardContext, LayerNorm, LayerRouter, MoLoraLinear, ModelPart, RouteTrace, SavedTables,
};

/// A padded batch of token sequences.
#[derive(Debug, Clone)]
pub struct EncoderInput {
    /// Token numbers, `[B, T]`.
    pub ids: Tensor<2, Int>,
    /// Token types, `[B, T]`: 0 for the first text, 1 for the second. Models without types of tokens
    /// do not read them.
    pub type_ids: Tensor<2, Int>,
    /// True for real tokens, `[B, T]`.
    pub mask: Tensor<2, Bool>,
}

/// What an encoder returns.
#[derive(Debug, Clone)]
pub struct EncoderOutput {
    /// Hidden states of the last layer, `[B, T, D]`; arbitrary at padded positions.
    pub hidden: Tensor<3>,
    /// Routing decisions of every site that has a router, in the order of the sites.
    pub routes: Vec<RouteTrace>,
}

/// An encoder of any family with sites at every linear layer.
#[derive(Module, Debug)]
pub struct Encoder {
    pub(super) embeddings: Embeddings,
    pub(super) layers: Vec<Layer>,
    /// Behind the last layer, where normalisation comes first.
    pub(super) final_norm: Option<LayerNorm>,
    /// How positions act on attention.
    pub(super) places: Places,
    pub(super) num_heads: usize,
    pub(super) max_tokens: usize,
    #[module(skip)]
    pub(super) names: &'static Names,
    #[module(skip)]
    pub(super) layer_rule: LayerRule,
    /// What the sites share.
    pub(super) part: Option<ModelPart>,
    /// What trains in the place of tables.
    pub(crate) saved: SavedTables,
}

impl Encoder {
    /// A model of these parts, without adapters.
    pub(super) fn of_parts(
        config: &EncoderConfig,
        embeddings: Embeddings,
        layers: Vec<Layer>,
        final_norm: Option<LayerNorm>,
        places: Places,
    ) -> Self {
        Self {
            embeddings,
            layers,
            final_norm,
            places,
            num_heads: config.num_heads,
            max_tokens: config.max_tokens,
            names: config.names,
            layer_rule: LayerRule::PerLayer,
            part: None,
            saved: SavedTables::default(),
        }
    }

    /// Hidden states of every token.
    ///
    /// # Shapes
    /// - `input`: `[B, T]` with T at most [`max_tokens`](Self::max_tokens)
    /// - returns hidden `[B, T, D]`
    pub fn forward(&self, input: &EncoderInput, context: &ForwardContext) -> EncoderOutput {
        let (mut hidden, mut context, around) = self.begin(input, context);
        let mut routes = Vec::new();
        for index in 0..self.layers.len() {
            hidden = self.layer(index, hidden, &around, &mut context, &mut routes);
        }
        EncoderOutput {
            hidden: self.end(hidden),
            routes,
        }
    }

    /// What every site reads and adds in a forward pass. Projections of relative positions read no
    /// tokens and are not among them.
    pub fn observe(&self, input: &EncoderInput, context: &ForwardContext) -> Vec<Observation> {
        let mut found = Vec::new();
        let (mut hidden, mut context, around) = self.begin_seen(input, context, &mut found);
        let mut routes = Vec::new();
        let see = &mut |linear: &MoLoraLinear, x: &Tensor<3>, pass: &Pass<'_>| {
            found.extend(observation(linear, x, pass.context, pass.shared));
        };
        for index in 0..self.layers.len() {
            hidden = self.seen_layer(index, hidden, &around, &mut context, &mut routes, see);
        }
        found
    }

    /// The input of the first layer, the context of the layers, and what their attention reads.
    pub(crate) fn begin(
        &self,
        input: &EncoderInput,
        context: &ForwardContext,
    ) -> (Tensor<3>, ForwardContext, Surroundings) {
        self.begin_seen(input, context, &mut Vec::new())
    }

    /// [`begin`](Self::begin), with what the map of the embeddings reads and adds.
    fn begin_seen(
        &self,
        input: &EncoderInput,
        context: &ForwardContext,
        found: &mut Vec<Observation>,
    ) -> (Tensor<3>, ForwardContext, Surroundings) {
        let around = self.places.around(&input.mask, self.num_heads);
        let words = self.saved.embeddings(&self.embeddings.word);
        let mut context = context.clone();
        context.pool = self.part.as_ref().and_then(ModelPart::pool).cloned();
        let project = |linear: &MoLoraLinear, x: Tensor<3>| {
            found.extend(observation(linear, &x, &context, None));
            linear.forward(x, &context, None).0
        };
        let noise = context.embedding_noise;
        let hidden = self.embeddings.forward(words, input, noise, project);
        if let Some(first) = self.part.as_ref().and_then(ModelPart::first_pass) {
            let weight = first.scaling_pass_value();
            let apply = |linear: &MoLoraLinear, x| linear.with_weight(x, weight);
            let layers = self.layers.iter();
            let last = layers.fold(hidden.clone(), |x, layer| layer.compute(x, &around, &apply));
            context.first_pass = Some(first.states(self.end(last)));
        }
        if self.layer_rule == LayerRule::Vote {
            let logits = self.votes(hidden.clone(), &around, &context);
            context.guidance.labels = Some(vote(logits, context.guidance.labels.take()));
        }
        (hidden, context, around)
    }

    /// The output of a layer; the context is that of the layers in front of it, and then of those
    /// behind it.
    pub(crate) fn layer(
        &self,
        index: usize,
        hidden: Tensor<3>,
        around: &Surroundings,
        context: &mut ForwardContext,
        routes: &mut Vec<RouteTrace>,
    ) -> Tensor<3> {
        self.seen_layer(index, hidden, around, context, routes, &mut |_, _, _| {})
    }

    /// [`layer`](Self::layer), which shows every linear layer and its input to `see`.
    fn seen_layer(
        &self,
        index: usize,
        hidden: Tensor<3>,
        around: &Surroundings,
        context: &mut ForwardContext,
        routes: &mut Vec<RouteTrace>,
        see: &mut See<'_>,
    ) -> Tensor<3> {
        let layer = &self.layers[index];
        let router = layer.router.as_ref();
        context.pool = self.part.as_ref().and_then(ModelPart::pool).cloned();
        let shared = match self.part.as_ref().and_then(ModelPart::first_pass) {
            Some(first) => first.decide(context),
            None => decide(router, &hidden, self.layer_rule, context, routes),
        };
        if let Some(routed) = shared.as_ref().filter(|_| router.is_none() && index == 0) {
            routes.push(RouteTrace::new(0, routed.clone()));
        }
        let of_model = self.part.as_ref().and_then(ModelPart::router);
        let feed_forward = router.or(of_model);
        let pass = Pass {
            around,
            context,
            shared: shared.as_ref(),
            feed_forward: feed_forward.and_then(LayerRouter::of_feed_forward),
        };
        layer.forward(hidden, &pass, routes, see)
    }

    /// The hidden states that are returned, from those of the last layer.
    pub(crate) fn end(&self, hidden: Tensor<3>) -> Tensor<3> {
        match &self.final_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        }
    }

    /// The logits of every layer's router `[B, 1, E]` in a pass of the base without adapters.
    fn votes(
        &self,
        embedded: Tensor<3>,
        around: &Surroundings,
        context: &ForwardContext,
    ) -> Vec<Tensor<3>> {
        let mut hidden = embedded;
        let mut logits = Vec::new();
        for layer in &self.layers {
            let router = layer.router.as_ref();
            logits.extend(router.map(|router| router.route(hidden.clone(), context).logits));
            hidden = layer.compute(hidden, around, &MoLoraLinear::base);
        }
        logits
    }

    /// Whether a gradient of the input of the first layer leads to parameters that train.
    pub(crate) fn trains_embeddings(&self) -> bool {
        let projection = self.embeddings.projection.as_ref();
        let has_site = projection.is_some_and(|linear| linear.adapter.is_some());
        self.saved.trains_embeddings() || has_site
    }

    /// Whether linear layers project relative positions too.
    pub(crate) fn projects_positions(&self) -> bool {
        self.places.relative.is_some()
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Width D of the hidden states.
    pub fn width(&self) -> usize {
        self.layers[0].down.dims().d_output
    }

    /// Size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.embeddings.word.dims()[0]
    }

    /// Number of token types; `None` where types of tokens are not read.
    pub fn num_token_types(&self) -> Option<usize> {
        let table = self.embeddings.token_type.as_ref();
        let table = table.filter(|_| self.embeddings.reads_types);
        table.map(|table| table.dims()[0])
    }

    /// Longest sequence in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

/// Mean of the hidden states of real tokens, `[B, T, D]` to `[B, D]`.
///
/// Padded positions may hold anything; a row without a real token gives zeros.
pub fn masked_mean(hidden: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<2> {
    let [batch, _, width] = hidden.dims();
    let padding = mask
        .clone()
        .bool_not()
        .unsqueeze_dim::<3>(2)
        .expand(hidden.dims());
    let count_b1 = mask.clone().float().sum_dim(1).clamp_min(1.0);
    hidden
        .mask_fill(padding, 0.0)
        .sum_dim(1)
        .reshape([batch, width])
        / count_b1
}
