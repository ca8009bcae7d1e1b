//! The decoder.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use molora_kernels::AttentionOptions;
use molora_routing::LayerRule;

use super::attention::Attention;
use super::cache::{KvCache, LayerCache};
use super::config::Names;
use super::feed_forward::FeedForward;
use super::pass::Pass;
use super::rope::Rope;
use crate::base_dtype::wide;
use crate::layers::Norm;
use crate::scope::vote;
use crate::{ForwardContext, LayerRouter, Observation, RouteTrace};

/// A padded batch of token sequences.
#[derive(Debug, Clone)]
pub struct DecoderInput {
    /// Token numbers, `[B, T]`.
    pub ids: Tensor<2, Int>,
    /// True for real tokens, `[B, T]`; padding may stand anywhere. Positions count real tokens.
    pub mask: Tensor<2, Bool>,
    /// The number of the sequence that each token belongs to, `[B, T]`, where several sequences are
    /// packed into one row one after the other: a token sees its own sequence only, and positions
    /// start again with each. `None` = one sequence per row.
    pub segments: Option<Tensor<2, Int>>,
}

impl DecoderInput {
    /// Sequences padded on the left to the longest, with token 0.
    ///
    /// # Panics
    /// If there is no sequence, or none has a token.
    pub fn from_sequences(sequences: &[Vec<usize>], device: &Device) -> Self {
        let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
        assert!(longest > 0, "no token in {} sequences", sequences.len());
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for sequence in sequences {
            let padding = longest - sequence.len();
            ids.extend(std::iter::repeat_n(0, padding));
            ids.extend(sequence.iter().map(|&token| token as i64));
            mask.extend((0..longest).map(|index| index >= padding));
        }
        let shape = [sequences.len(), longest];
        Self {
            ids: Tensor::from_data(TensorData::new(ids, shape), device),
            mask: Tensor::from_data(TensorData::new(mask, shape), device),
            segments: None,
        }
    }

    /// The same with token 0 for padding, which may be numbered as no token is and is looked up too.
    pub(crate) fn with_plain_padding(&self) -> Self {
        let padding = self.mask.clone().bool_not();
        Self {
            ids: self.ids.clone().mask_fill(padding, 0),
            ..self.clone()
        }
    }
}

/// What a decoder returns.
#[derive(Debug, Clone)]
pub struct DecoderOutput {
    /// Normalised hidden states, which [`Decoder::logits`] reads, `[B, T, D]`; arbitrary at padded
    /// positions.
    pub hidden: Tensor<3>,
    /// Routing decisions of every site that has a router, in the order of the sites.
    pub routes: Vec<RouteTrace>,
}

/// A layer: `h = x + attention(norm(x))`, `y = h + feed_forward(norm(h))`.
#[derive(Module, Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Norm,
    pub(super) attention: Attention,
    pub(super) feed_forward_norm: Norm,
    pub(super) feed_forward: FeedForward,
    /// Weighs the experts of all sites of the layer, where routers belong to layers.
    pub(super) router: Option<LayerRouter>,
}

/// A decoder with sites at every linear layer but the head.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[V, D]`.
    pub(super) tokens: Param<Tensor<2>>,
    /// `[positions, D]`, where positions are learned.
    pub(super) positions: Option<Param<Tensor<2>>>,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Norm,
    /// `[V, D]`; the table of tokens where absent.
    pub(super) head: Option<Param<Tensor<2>>>,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) max_tokens: usize,
    #[module(skip)]
    pub(super) rope: Option<Rope>,
    #[module(skip)]
    pub(super) names: &'static Names,
    #[module(skip)]
    pub(super) layer_rule: LayerRule,
}

impl Decoder {
    /// Hidden states of every token, each from the tokens up to it.
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
        let caches = self.layers.iter().map(|_| None);
        let hidden = self.run(self.embed(input, positions), caches, &mut pass);
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
        let caches = self.layers.iter().map(|_| None);
        self.run(self.embed(input, positions), caches, &mut pass);
        pass.observed.unwrap_or_default()
    }

    /// As [`forward`](Self::forward) for tokens that follow those of the cache, which then holds
    /// them too. Input and context are about the new tokens only.
    ///
    /// # Panics
    /// As `forward`, or if the cache is of another model or batch, or the input is packed.
    pub fn forward_cached(
        &self,
        input: &DecoderInput,
        cache: &mut KvCache,
        context: &ForwardContext,
    ) -> DecoderOutput {
        assert!(input.segments.is_none(), "a cache takes one sequence a row");
        assert_eq!(cache.layers.len(), self.layers.len(), "layers of the cache");
        let mask = cache.extend_mask(input.mask.clone());
        let positions = positions(&mask, input);
        let mut pass = self.pass(input, mask, &positions, context);
        pass.kept = Some(&mut cache.decisions);
        let caches = cache.layers.iter_mut().map(Some);
        let hidden = self.run(self.embed(input, positions), caches, &mut pass);
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
        scores(hidden, self.head.as_ref().unwrap_or(&self.tokens))
    }

    /// What the layers share; `mask` `[B, S]` is that of all tokens, of which the input is the end.
    fn pass<'a>(
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
            .with_segments(input.segments.clone());
        let mut pass = Pass::new(context.clone(), attention);
        pass.rotation = self.rope.map(|rope| {
            let head_dim = self.layers[0].attention.head_dim;
            rope.rotation(positions.clone(), head_dim)
        });
        pass
    }

    fn embed(&self, input: &DecoderInput, positions: Tensor<2, Int>) -> Tensor<3> {
        let hidden = rows(&self.tokens, &input.ids);
        match &self.positions {
            Some(table) => hidden + rows(table, &positions),
            None => hidden,
        }
    }

    fn run<'c>(
        &self,
        mut hidden: Tensor<3>,
        caches: impl Iterator<Item = Option<&'c mut LayerCache>>,
        pass: &mut Pass,
    ) -> Tensor<3> {
        self.vote(&hidden, pass);
        for (index, cache) in (0..self.layers.len()).zip(caches) {
            hidden = self.layer(index, hidden, cache, pass);
        }
        self.end(hidden)
    }

    /// Lets the layers vote, where that is how they agree.
    fn vote(&self, hidden: &Tensor<3>, pass: &mut Pass) {
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
        let hidden = self.embed(input, positions);
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
        let layer = &self.layers[index];
        pass.enter(layer.router.as_ref(), &hidden, self.layer_rule);
        layer.forward(hidden, cache, pass)
    }

    /// What the head reads, from the output of the last layer.
    pub(crate) fn end(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.final_norm.forward(hidden)
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The logits of every layer's router `[B, 1, E]` in a pass of the base without adapters.
    fn votes(&self, embedded: Tensor<3>, pass: &mut Pass) -> Vec<Tensor<3>> {
        let (mut hidden, mut logits) = (embedded, Vec::new());
        pass.has_adapters = false;
        for layer in &self.layers {
            let router = layer.router.as_ref();
            logits.extend(router.map(|r| r.route(hidden.clone(), &pass.context).logits));
            hidden = layer.forward(hidden, None, pass);
        }
        pass.has_adapters = true;
        logits
    }

    /// Width D of the hidden states.
    pub fn width(&self) -> usize {
        self.tokens.dims()[1]
    }

    /// Size V of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.tokens.dims()[0]
    }

    /// Longest sequence in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

impl Layer {
    fn forward(&self, x: Tensor<3>, cache: Option<&mut LayerCache>, pass: &mut Pass) -> Tensor<3> {
        let normed = self.attention_norm.forward(x.clone());
        let x = x + self.attention.forward(normed, cache, pass);
        let normed = self.feed_forward_norm.forward(x.clone());
        x + self.feed_forward.forward(normed, pass)
    }
}

/// Products of hidden states `[B, T, D]` with every row of a table `[V, D]`: `[B, T, V]`.
pub(crate) fn scores(hidden: Tensor<3>, table: &Param<Tensor<2>>) -> Tensor<3> {
    molora_kernels::linear_transposed(hidden, table.val())
}

/// Rows of a table, `[B, T, D]`.
pub(crate) fn rows(table: &Param<Tensor<2>>, ids: &Tensor<2, Int>) -> Tensor<3> {
    let ([batch, tokens], width) = (ids.dims(), table.dims()[1]);
    let ids = ids.clone().reshape([batch * tokens]);
    wide(table.val().select(0, ids)).reshape([batch, tokens, width])
}

/// Positions `[B, T]` of the tokens of the input: how many real tokens are in front of each, in its
/// row or, with segments, in its segment. `mask` `[B, S]` is that of all tokens.
fn positions(mask: &Tensor<2, Bool>, input: &DecoderInput) -> Tensor<2, Int> {
    let (all, new) = (mask.dims()[1], input.ids.dims()[1]);
    let counted = mask.clone().int().cumsum(1).sub_scalar(1).clamp_min(0);
    let counted = counted.narrow(1, all - new, new);
    let Some(segments) = &input.segments else {
        return counted;
    };
    // The count at the start of a segment, carried on to its end.
    let previous = segments.clone().roll_dim(1, 1);
    let goes_on = segments.clone().equal(previous);
    let starts = counted.clone().mask_fill(goes_on, 0).cummax(1);
    counted - starts
}
