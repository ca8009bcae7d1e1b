//! T5: Raffel et al., arXiv:1910.10683, in the layout of Hugging Face's files.

use std::ops::ControlFlow;

use burn::module::{Module, Param};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use molora_kernels::AttentionOptions;

use crate::decoder::{
    Attention, FeedForward, GenerateError, GenerateOptions, Generated, KvCache, Pass, Watcher,
    check_prompts, embedded, one_token_rows, scores, with_mask, write_on,
};
use crate::layers::RmsNorm;
use crate::observe::Observation;
use crate::relative_bias::RelativeBias;
use crate::{
    DecoderInput, DecoderOutput, EmbeddingNoise, ForwardContext, LayerRouter, ModelPart,
    RouteTrace, SavedTables,
};

/// A layer: each part reads its normalised input and is added to it.
#[derive(Module, Debug)]
pub(super) struct Block {
    pub(super) attention_norm: RmsNorm,
    pub(super) attention: Attention,
    /// Attention to the encoder, in the decoder.
    pub(super) cross: Option<(RmsNorm, Attention)>,
    pub(super) feed_forward_norm: RmsNorm,
    pub(super) feed_forward: FeedForward,
    /// Weighs the experts of the feed-forward part, where that has a router of its own.
    pub(super) router: Option<LayerRouter>,
}

/// Encoder or decoder.
#[derive(Module, Debug)]
pub(super) struct Stack {
    pub(super) blocks: Vec<Block>,
    /// Read by all layers.
    pub(super) bias: RelativeBias,
    pub(super) final_norm: RmsNorm,
}

/// A T5 model with sites at every linear layer but the head.
#[derive(Module, Debug)]
pub struct T5 {
    /// `[V, D]`.
    pub(super) tokens: Param<Tensor<2>>,
    pub(super) encoder: Stack,
    pub(super) decoder: Stack,
    /// `[V, D]`; the table of tokens where absent.
    pub(super) head: Option<Param<Tensor<2>>>,
    pub(super) head_scale: f64,
    pub(super) num_heads: usize,
    pub(super) start_token: usize,
    /// What the sites share.
    pub(super) part: Option<ModelPart>,
    /// What trains in the place of tables.
    pub(crate) saved: SavedTables,
}

/// A text that was read.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Normalised hidden states, `[B, S, D]`; arbitrary at padded positions.
    pub hidden: Tensor<3>,
    /// Routing decisions of the encoder's sites, and of the decoder's that read the encoder.
    pub routes: Vec<RouteTrace>,
    /// Keys and values of each layer of the decoder, `[B, S, H * W]`.
    memory: Vec<(Tensor<3>, Tensor<3>)>,
    mask: Tensor<2, Bool>,
}

impl T5 {
    /// Reads a text. The mask of `context` is replaced by the input's.
    ///
    /// # Panics
    /// If a token is not in the vocabulary, or the input is packed.
    pub fn encode(&self, source: &DecoderInput, context: &ForwardContext) -> Encoded {
        self.read(source, context, None).0
    }

    /// What every site reads and adds while a text is read and another is written.
    ///
    /// # Panics
    /// As [`encode`](Self::encode) and [`decode`](Self::decode).
    pub fn observe(
        &self,
        source: &DecoderInput,
        target: &DecoderInput,
        context: &ForwardContext,
    ) -> Vec<Observation> {
        let (encoded, read) = self.read(source, context, Some(Vec::new()));
        let (_, written) = self.write(target, &encoded, &mut self.cache(), context, read);
        written.unwrap_or_default()
    }

    /// [`encode`](Self::encode), which adds observations to those that are given.
    fn read(
        &self,
        source: &DecoderInput,
        context: &ForwardContext,
        observed: Option<Vec<Observation>>,
    ) -> (Encoded, Option<Vec<Observation>>) {
        let tokens = source.ids.dims()[1];
        let attention = self.options(&self.encoder, tokens, 0, tokens);
        let attention = attention.with_mask(Some(source.mask.clone()));
        let mut context = with_mask(context, &source.mask);
        context.guidance.prompt = None;
        context.pool = self.part.as_ref().and_then(ModelPart::pool).cloned();
        let mut pass = Pass::new(context, attention);
        pass.observed = observed;
        let tokens = self.saved.embeddings(&self.tokens);
        let mut hidden = embedded(tokens, source, pass.context.embedding_noise);
        for block in &self.encoder.blocks {
            hidden = block.read(hidden, &mut pass);
            hidden = block.think(hidden, self.part.as_ref(), &mut pass);
        }
        let hidden = self.encoder.final_norm.forward(hidden);
        let cross = self
            .decoder
            .blocks
            .iter()
            .filter_map(|block| block.cross.as_ref());
        let memory = cross.map(|(_, attention)| attention.keys_values(hidden.clone(), &mut pass));
        let encoded = Encoded {
            memory: memory.collect(),
            hidden,
            routes: pass.routes,
            mask: source.mask.clone(),
        };
        (encoded, pass.observed)
    }

    /// Hidden states of a text that is written after one that was read, each from the tokens up to
    /// it. The mask of `context` is replaced by the input's.
    ///
    /// # Shapes
    /// `target` `[B, T]`; returns hidden `[B, T, D]`.
    ///
    /// # Panics
    /// If a token is not in the vocabulary, or the input is packed.
    pub fn decode(
        &self,
        target: &DecoderInput,
        encoded: &Encoded,
        context: &ForwardContext,
    ) -> DecoderOutput {
        self.decode_cached(target, encoded, &mut self.cache(), context)
    }

    /// As [`decode`](Self::decode) for tokens that follow those of the cache.
    ///
    /// # Panics
    /// As `decode`, or if the cache is of another model or batch.
    pub fn decode_cached(
        &self,
        target: &DecoderInput,
        encoded: &Encoded,
        cache: &mut KvCache,
        context: &ForwardContext,
    ) -> DecoderOutput {
        self.write(target, encoded, cache, context, None).0
    }

    /// [`decode_cached`](Self::decode_cached), which adds observations to those that are given.
    fn write(
        &self,
        target: &DecoderInput,
        encoded: &Encoded,
        cache: &mut KvCache,
        context: &ForwardContext,
        observed: Option<Vec<Observation>>,
    ) -> (DecoderOutput, Option<Vec<Observation>>) {
        let offset = cache.num_tokens();
        let mask = cache.extend_mask(target.mask.clone());
        let (queries, keys) = (target.ids.dims()[1], mask.dims()[1]);
        let attention = self.options(&self.decoder, queries, offset, keys);
        let attention = attention.with_causal(offset).with_mask(Some(mask));
        let to_source = AttentionOptions::new(self.num_heads)
            .with_scale(1.0)
            .with_mask(Some(encoded.mask.clone()));
        let mut context = with_mask(context, &target.mask);
        // All that is there when the writing begins.
        context.guidance.prompt = Some(first_column(&target.mask));
        context.pool = self.part.as_ref().and_then(ModelPart::pool).cloned();
        let mut pass = Pass::new(context, attention);
        pass.observed = observed;
        pass.kept = Some(&mut cache.decisions);
        let noise = pass.context.embedding_noise.map(|noise| EmbeddingNoise {
            seed: noise.seed.child("target"),
            ..noise
        });
        let mut hidden = embedded(self.saved.embeddings(&self.tokens), target, noise);
        let layers = self.decoder.blocks.iter().zip(&mut cache.layers);
        for ((block, cache), memory) in layers.zip(&encoded.memory) {
            let normed = block.attention_norm.forward(hidden.clone());
            hidden = hidden + block.attention.forward(normed, Some(cache), &mut pass);
            if let Some((norm, attention)) = &block.cross {
                let normed = norm.forward(hidden.clone());
                hidden = hidden + attention.look(normed, memory.clone(), &to_source, &mut pass);
            }
            hidden = block.think(hidden, self.part.as_ref(), &mut pass);
        }
        let output = DecoderOutput {
            hidden: self.decoder.final_norm.forward(hidden),
            routes: pass.routes,
        };
        (output, pass.observed)
    }

    /// An empty cache of the decoder.
    pub fn cache(&self) -> KvCache {
        KvCache::new(self.decoder.blocks.len())
    }

    /// Scores of every token of the vocabulary as the next one, before softmax: `[B, T, D]` to
    /// `[B, T, V]`.
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let frozen = self.head.as_ref().unwrap_or(&self.tokens);
        scores(hidden.mul_scalar(self.head_scale), self.saved.head(frozen))
    }

    /// Writes a text for each of a padded batch of sources, with a cache.
    ///
    /// # Errors
    /// As [`Decoder::generate`](crate::Decoder::generate).
    pub fn generate(
        &self,
        sources: &DecoderInput,
        options: &GenerateOptions,
        context: &ForwardContext,
    ) -> Result<Vec<Generated>, GenerateError> {
        let watch = &mut |_: usize, _: &[usize]| ControlFlow::Continue(());
        self.generate_watched(sources, options, context, watch)
    }

    /// As [`generate`](Self::generate), with a callback that gets each token and can end a row.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_watched(
        &self,
        sources: &DecoderInput,
        options: &GenerateOptions,
        context: &ForwardContext,
        watch: Watcher<'_>,
    ) -> Result<Vec<Generated>, GenerateError> {
        let rows = check_prompts(sources, self.vocab_size(), usize::MAX)?.len();
        let encoded = self.encode(&sources.with_plain_padding(), context);
        let start = TensorData::new(vec![self.start_token as i64; rows], [rows, 1]);
        let device = sources.ids.device();
        let target = DecoderInput {
            ids: Tensor::<2, Int>::from_data(start, &device),
            mask: Tensor::full([rows, 1], true, &device),
            segments: None,
        };
        let mut cache = self.cache();
        let step = |input: &DecoderInput| {
            let output = self.decode_cached(input, &encoded, &mut cache, context);
            self.logits(output.hidden)
        };
        let rows = one_token_rows(rows);
        write_on(rows, target, options, usize::MAX, step, watch)
    }

    /// Width D of the hidden states.
    pub fn width(&self) -> usize {
        self.tokens.dims()[1]
    }

    /// Size V of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.tokens.dims()[0]
    }

    /// The token that every written text starts with.
    pub fn start_token(&self) -> usize {
        self.start_token
    }

    /// T5 does not divide scores by the width of a head: its initial values account for it.
    fn options(
        &self,
        stack: &Stack,
        queries: usize,
        offset: usize,
        keys: usize,
    ) -> AttentionOptions {
        AttentionOptions::new(self.num_heads)
            .with_scale(1.0)
            .with_bias(Some(stack.bias.forward(queries, offset, keys)))
    }
}

/// 1 in the first column of a mask, 0 behind it.
fn first_column(mask: &Tensor<2, Bool>) -> Tensor<2> {
    let [batch, tokens] = mask.dims();
    let first = Tensor::ones([batch, 1], &mask.device());
    match tokens {
        1 => first,
        _ => Tensor::cat(
            vec![first, Tensor::zeros([batch, tokens - 1], &mask.device())],
            1,
        ),
    }
}

impl Block {
    fn read(&self, x: Tensor<3>, pass: &mut Pass) -> Tensor<3> {
        let normed = self.attention_norm.forward(x.clone());
        x + self.attention.forward(normed, None, pass)
    }

    fn think(&self, x: Tensor<3>, part: Option<&ModelPart>, pass: &mut Pass) -> Tensor<3> {
        let router = self.router.as_ref().or(part.and_then(ModelPart::router));
        pass.feed_forward = router.cloned();
        let normed = self.feed_forward_norm.forward(x.clone());
        x + self.feed_forward.forward(normed, pass)
    }
}
