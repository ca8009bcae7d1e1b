//! The decoder.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Int, Tensor};
use molora_kernels::AttentionOptions;
use molora_routing::LayerRule;

use super::cache::{KvCache, LayerCache};
use super::input::{DecoderInput, positions};
use super::layer::Layer;
use super::names::Names;
use super::pass::Pass;
use super::rope::{self, Rope};
use super::scaling::Scaling;
use crate::layers::Norm;
use crate::scope::vote;
use crate::{
    EmbeddingNoise, ForwardContext, LayerRouter, ModelPart, Observation, RouteTrace, SavedTables,
    TokenTable,
};

/// What a decoder returns.
#[derive(Debug, Clone)]
pub struct DecoderOutput {
    /// Normalised hidden states, which [`Decoder::logits`] reads, `[B, T, D]`; arbitrary at padded
    /// positions.
    pub hidden: Tensor<3>,
    /// Routing decisions of every site that has a router, in the order of the sites.
    pub routes: Vec<RouteTrace>,
}

/// A decoder with sites at every linear layer but the head.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[V, D]`.
    pub(super) tokens: TokenTable,
    /// `[positions, D]`, where positions are learned.
    pub(super) positions: Option<Param<Tensor<2>>>,
    /// Rows of that table in front of the first position.
    pub(super) first_position: usize,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Option<Norm>,
    /// `[V, D]`; the table of tokens where absent.
    pub(super) head: Option<TokenTable>,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) max_tokens: usize,
    #[module(skip)]
    pub(super) ropes: Vec<Rope>,
    #[module(skip)]
    pub(super) scaling: Scaling,
    #[module(skip)]
    pub(super) names: &'static Names,
    #[module(skip)]
    pub(super) layer_rule: LayerRule,
    /// What the sites share.
    pub(super) part: Option<ModelPart>,
    /// What trains in the place of tables.
    pub(crate) saved: SavedTables,
}

impl Decoder {
    /// Hidden states of every token, each from the tokens up to it.
    ///
    /// Rotary positions that depend on the length of a text (`dynamic` and `longrope`) are those of the
    /// longest one of the batch, as in transformers.
    ///
    /// # Shapes
    /// - `input`: `[B, T]` with at most [`max_tokens`](Self::max_tokens) real tokens in a sequence
    /// - returns hidden `[B, T, D]`
    ///
    /// # Panics
    /// If a token is not in the vocabulary, or there are more tokens than learned positions.
    pub fn forward(&self, input: &DecoderInput, context: &ForwardContext) -> DecoderOutput {
        let positions = positions(&input.mask, input);
        let mut pass = self.pass(input, input.mask.clone(), &positions, context);
        let hidden = self.run(
            self.embed(input, positions, context.embedding_noise),
            None,
            &mut pass,
        );
        DecoderOutput {
            hidden,
            routes: pass.routes,
        }
    }

    /// What every site reads and adds in a forward pass.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn observe(&self, input: &DecoderInput, context: &ForwardContext) -> Vec<Observation> {
        let positions = positions(&input.mask, input);
        let mut pass = self.pass(input, input.mask.clone(), &positions, context);
        pass.observed = Some(Vec::new());
        self.run(
            self.embed(input, positions, context.embedding_noise),
            None,
            &mut pass,
        );
        pass.observed.unwrap_or_default()
    }

    /// As [`forward`](Self::forward) for tokens that follow those of the cache, which then holds
    /// them too. Input and context are about the new tokens only.
    ///
    /// Where a longer text changes the rotary positions of all of its tokens, the tokens of the cache are
    /// computed again, so that the result is that of a pass without a cache; the decisions that are
    /// returned are then those of all tokens.
    ///
    /// # Panics
    /// As `forward`, or if the cache is of another model or batch, or the input is packed.
    pub fn forward_cached(
        &self,
        input: &DecoderInput,
        cache: &mut KvCache,
        context: &ForwardContext,
    ) -> DecoderOutput {
        let [_, tokens] = input.ids.dims();
        one_token(tokens, &input.ids.device(), || {
            self.follow(input, cache, context)
        })
    }

    /// See [`forward_cached`](Self::forward_cached).
    fn follow(
        &self,
        input: &DecoderInput,
        cache: &mut KvCache,
        context: &ForwardContext,
    ) -> DecoderOutput {
        assert!(input.segments.is_none(), "a cache takes one sequence a row");
        assert_eq!(cache.layers.len(), self.layers.len(), "layers of the cache");
        let mask = cache.extend_mask(input.mask.clone());
        let positions = positions(&mask, input);
        if !self.depends_on_length() {
            return self.extend(input, mask, positions, cache, context);
        }
        let length = rope::length(&positions);
        let stages = self.ropes.iter().filter_map(|rope| rope.stage(length));
        let Some(ids) = cache.outdated(stages.collect(), &input.ids) else {
            return self.extend(input, mask, positions, cache, context);
        };
        let tokens = input.ids.dims()[1];
        let all = DecoderInput {
            ids,
            mask: mask.clone(),
            segments: None,
        };
        let context = ForwardContext {
            mask: mask.clone().float(),
            ..context.clone()
        };
        let positions = self::positions(&mask, &all);
        let output = self.extend(&all, mask, positions, cache, &context);
        let [_, whole, _] = output.hidden.dims();
        DecoderOutput {
            hidden: output.hidden.narrow(1, whole - tokens, tokens),
            ..output
        }
    }

    /// A pass with a cache; `mask` `[B, S]` is that of all tokens.
    fn extend(
        &self,
        input: &DecoderInput,
        mask: Tensor<2, Bool>,
        positions: Tensor<2, Int>,
        cache: &mut KvCache,
        context: &ForwardContext,
    ) -> DecoderOutput {
        let mut pass = self.pass(input, mask, &positions, context);
        pass.kept = Some(&mut cache.decisions);
        let caches = Some((&mut cache.layers, &mut cache.first_pass));
        let hidden = self.run(
            self.embed(input, positions, context.embedding_noise),
            caches,
            &mut pass,
        );
        DecoderOutput {
            hidden,
            routes: pass.routes,
        }
    }

    /// An empty cache.
    pub fn cache(&self) -> KvCache {
        KvCache::new(self.layers.len())
    }

    /// Scores of every token of the vocabulary as the next one, before softmax.
    ///
    /// # Shapes
    /// `[B, T, D]` to `[B, T, V]`
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let frozen = self.head.as_ref().unwrap_or(&self.tokens);
        let [_, tokens, _] = hidden.dims();
        one_token(tokens, &hidden.device(), || {
            self.scaling.logits(self.saved.scores(frozen, hidden))
        })
    }

    /// As [`logits`](Self::logits) by the frozen head, whatever trained beside it.
    pub(super) fn frozen_logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let frozen = self.head.as_ref().unwrap_or(&self.tokens);
        self.scaling.logits(frozen.scores(hidden))
    }

    /// What the layers share; `mask` `[B, S]` is that of all tokens, of which the input is the end.
    pub(super) fn pass<'a>(
        &self,
        input: &DecoderInput,
        mask: Tensor<2, Bool>,
        positions: &Tensor<2, Int>,
        context: &ForwardContext,
    ) -> Pass<'a> {
        let offset = mask.dims()[1] - input.ids.dims()[1];
        let attention = AttentionOptions::new(self.num_heads)
            .with_num_kv_heads(self.num_kv_heads)
            .with_causal(offset)
            .with_mask(Some(mask))
            .with_segments(input.segments.clone())
            .with_soft_cap(self.scaling.attention_cap);
        let attention = AttentionOptions {
            scale: self.scaling.attention,
            ..attention
        };
        let mut pass = Pass::new(context.clone(), attention);
        let length = match self.depends_on_length() {
            true => rope::length(positions),
            false => 1,
        };
        let ropes = self.ropes.iter();
        pass.rotations = ropes
            .map(|rope| rope.rotation(positions.clone(), length))
            .collect();
        pass
    }

    /// Whether what a token gets depends on the length of the longest text beside it, by its rotary
    /// positions.
    pub fn depends_on_length(&self) -> bool {
        self.ropes.iter().any(|rope| rope.stage(1).is_some())
    }

    pub(super) fn embed(
        &self,
        input: &DecoderInput,
        positions: Tensor<2, Int>,
        noise: Option<EmbeddingNoise>,
    ) -> Tensor<3> {
        let hidden = embedded(&self.saved, &self.tokens, input, noise);
        let hidden = self.scaling.embeddings(hidden);
        match &self.positions {
            Some(table) => hidden + rows(table, &self.row_of(positions)),
            None => hidden,
        }
    }

    /// The rows of the table of positions.
    fn row_of(&self, positions: Tensor<2, Int>) -> Tensor<2, Int> {
        match self.first_position {
            0 => positions,
            first => positions.add_scalar(first as i64),
        }
    }

    /// All layers, with the caches of this pass and of the first one, if there are caches.
    fn run(
        &self,
        mut hidden: Tensor<3>,
        caches: Option<(&mut Vec<LayerCache>, &mut Vec<LayerCache>)>,
        pass: &mut Pass,
    ) -> Tensor<3> {
        let (mut caches, first) = caches.unzip();
        self.first_pass(&hidden, first, pass);
        self.vote(&hidden, pass);
        for index in 0..self.layers.len() {
            let cache = caches.as_mut().map(|caches| &mut caches[index]);
            hidden = self.layer(index, hidden, cache, pass);
        }
        self.end(hidden)
    }

    /// Runs the pass that decides for all sites, where there is one.
    pub(super) fn first_pass(
        &self,
        hidden: &Tensor<3>,
        mut caches: Option<&mut Vec<LayerCache>>,
        pass: &mut Pass,
    ) {
        let Some(part) = self.part.as_ref().and_then(ModelPart::first_pass) else {
            return;
        };
        let mut first = pass.fork();
        first.fixed = Some(part.scaling_pass_value());
        let mut hidden = hidden.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let cache = caches.as_mut().map(|caches| &mut caches[index]);
            hidden = layer.forward(hidden, cache, &mut first);
        }
        pass.context.first_pass = Some(part.states(self.end(hidden)));
    }

    /// Lets the layers vote, where that is how they agree.
    pub(super) fn vote(&self, hidden: &Tensor<3>, pass: &mut Pass) {
        if self.layer_rule == LayerRule::Vote && !pass.has_decided() {
            let logits = self.votes(hidden.clone(), pass);
            let labels = pass.context.guidance.labels.take();
            pass.context.guidance.labels = Some(vote(logits, labels));
        }
    }

    /// The input of the first layer, and the pass through all of them.
    pub(crate) fn begin(
        &self,
        input: &DecoderInput,
        context: &ForwardContext,
    ) -> (Tensor<3>, Pass<'static>) {
        let positions = positions(&input.mask, input);
        let mut pass = self.pass(input, input.mask.clone(), &positions, context);
        let hidden = self.embed(input, positions, context.embedding_noise);
        self.first_pass(&hidden, None, &mut pass);
        self.vote(&hidden, &mut pass);
        (hidden, pass)
    }

    /// The output of a layer.
    pub(crate) fn layer(
        &self,
        index: usize,
        hidden: Tensor<3>,
        cache: Option<&mut LayerCache>,
        pass: &mut Pass,
    ) -> Tensor<3> {
        self.enter(index, &hidden, pass);
        self.layers[index].forward(hidden, cache, pass)
    }

    /// Takes the decisions for a layer by its input.
    pub(super) fn enter(&self, index: usize, hidden: &Tensor<3>, pass: &mut Pass) {
        pass.enter(self.layers[index].router.as_ref(), hidden, self.layer_rule);
        pass.feed_forward = self.feed_forward_router(index);
        pass.context.pool = self.part.as_ref().and_then(ModelPart::pool).cloned();
        if let Some(first) = self.part.as_ref().and_then(ModelPart::first_pass) {
            pass.enter_after(first, index == 0);
        }
    }

    /// The output of the feed-forward part of a layer for its input `x` `[B, T, D]`, which is normalised
    /// in a whole pass, and the routing decisions behind it.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn feed_forward(
        &self,
        index: usize,
        x: Tensor<3>,
        context: &ForwardContext,
    ) -> (Tensor<3>, Vec<RouteTrace>) {
        let attention = AttentionOptions::new(self.num_heads);
        let mut pass = Pass::new(context.clone(), attention);
        pass.feed_forward = self.feed_forward_router(index);
        let y = self.layers[index].feed_forward.forward(x, &mut pass);
        (y, pass.routes)
    }

    /// The router of a layer's feed-forward part: its own, or that of all.
    fn feed_forward_router(&self, index: usize) -> Option<LayerRouter> {
        let shared = self.part.as_ref().and_then(ModelPart::router);
        let router = self.layers[index].router.as_ref().or(shared);
        router.and_then(LayerRouter::of_feed_forward).cloned()
    }

    /// What the head reads, from the output of the last layer.
    pub(crate) fn end(&self, hidden: Tensor<3>) -> Tensor<3> {
        match &self.final_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        }
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The logits of every layer's router `[B, 1, E]` in a pass of the base without adapters.
    fn votes(&self, embedded: Tensor<3>, pass: &mut Pass) -> Vec<Tensor<3>> {
        let (mut hidden, mut logits) = (embedded, Vec::new());
        pass.fixed = Some(0.0);
        for layer in &self.layers {
            let router = layer.router.as_ref();
            logits.extend(router.map(|r| r.route(hidden.clone(), &pass.context).logits));
            hidden = layer.forward(hidden, None, pass);
        }
        pass.fixed = None;
        logits
    }

    /// The tables of the vocabulary: embeddings, and the head where it is another one.
    pub fn token_tables(&self) -> Vec<&TokenTable> {
        [&self.tokens].into_iter().chain(&self.head).collect()
    }

    /// Width D of the hidden states.
    pub fn width(&self) -> usize {
        self.tokens.dims()[1]
    }

    /// Size V of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.tokens.dims()[0]
    }

    /// Longest sequence in tokens; [`usize::MAX`] where there is no limit.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

/// Runs a pass or a part of one. With one token of each row its operations are small and many.
pub(super) fn one_token<T>(tokens: usize, device: &Device, run: impl FnOnce() -> T) -> T {
    match tokens {
        1 => molora_kernels::together(device, run),
        _ => run(),
    }
}

/// Rows of a table, `[B, T, D]`.
fn rows(table: &Param<Tensor<2>>, ids: &Tensor<2, Int>) -> Tensor<3> {
    let ([batch, tokens], width) = (ids.dims(), table.dims()[1]);
    let ids = ids.clone().reshape([batch * tokens]);
    table.val().select(0, ids).reshape([batch, tokens, width])
}

/// The rows of a table for the tokens of an input, with the noise of training, `[B, T, D]`.
pub(crate) fn embedded(
    saved: &SavedTables,
    table: &TokenTable,
    input: &DecoderInput,
    noise: Option<EmbeddingNoise>,
) -> Tensor<3> {
    let ([batch, tokens], width) = (input.ids.dims(), table.dims()[1]);
    let hidden = saved.rows(table, input.ids.clone().reshape([batch * tokens]));
    let hidden = hidden.reshape([batch, tokens, width]);
    match noise {
        Some(noise) => noise.add(hidden, &input.mask, input.segments.as_ref()),
        None => hidden,
    }
}
