//! The order of the parts: T5 (Raffel et al., arXiv:1910.10683) with normalisation first, BART (Lewis et
//! al., arXiv:1910.13461) with normalisation last.

use std::ops::ControlFlow;

use burn::module::{Module, Param};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use molora_kernels::AttentionOptions;

use super::config::{ForcedTokens, Names};
use super::layer::Stack;
use crate::decoder::{
    GenerateError, GenerateOptions, Generated, KvCache, Pass, Watcher, check_prompts, embedded,
    one_token_rows, with_mask, write_on,
};
use crate::observe::Observation;
use crate::{
    DecoderInput, DecoderOutput, EmbeddingNoise, ForwardContext, ModelPart, RouteTrace,
    SavedTables, TokenTable,
};

/// An encoder-decoder of any family with sites at every linear layer but the head.
#[derive(Module, Debug)]
pub struct EncoderDecoder {
    /// `[V, D]`.
    pub(super) tokens: TokenTable,
    pub(super) encoder: Stack,
    pub(super) decoder: Stack,
    /// `[V, D]`; the table of tokens where absent.
    pub(super) head: Option<TokenTable>,
    /// Added to the scores, `[V]`.
    pub(super) head_bias: Option<Param<Tensor<1>>>,
    pub(super) head_scale: f64,
    pub(super) embedding_scale: f64,
    /// Factor on scores of attention, where it is not the usual one.
    #[module(skip)]
    pub(super) scale: Option<f64>,
    pub(super) start_token: usize,
    #[module(skip)]
    pub(super) forced: ForcedTokens,
    #[module(skip)]
    pub(super) max_tokens: Option<usize>,
    #[module(skip)]
    pub(super) names: &'static Names,
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

impl EncoderDecoder {
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
        let attention = self.options(&self.encoder);
        let attention = attention.with_mask(Some(source.mask.clone()));
        let mut context = with_mask(context, &source.mask);
        context.guidance.prompt = None;
        context.pool = self.part.as_ref().and_then(ModelPart::pool).cloned();
        let mut pass = Pass::new(context, attention);
        pass.observed = observed;
        let noise = pass.context.embedding_noise;
        let mut hidden = self.begin(&self.encoder, source, &source.mask, noise);
        let tokens = source.ids.dims()[1];
        for block in &self.encoder.blocks {
            block.place(&mut pass, tokens, 0, tokens);
            hidden = block.read(hidden, None, &mut pass);
            hidden = block.think(hidden, self.part.as_ref(), &mut pass);
        }
        let hidden = self.encoder.end(hidden);
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
        let attention = self.options(&self.decoder).with_causal(offset);
        let attention = attention.with_mask(Some(mask.clone()));
        let to_source = self.options(&self.decoder);
        let to_source = to_source.with_mask(Some(encoded.mask.clone()));
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
        let mut hidden = self.begin(&self.decoder, target, &mask, noise);
        let layers = self.decoder.blocks.iter().zip(&mut cache.layers);
        for ((block, cache), memory) in layers.zip(&encoded.memory) {
            block.place(&mut pass, queries, offset, keys);
            hidden = block.read(hidden, Some(cache), &mut pass);
            if let Some((norm, attention)) = &block.cross {
                hidden = block.added(norm, hidden, |x| {
                    attention.look(x, memory.clone(), &to_source, &mut pass)
                });
            }
            hidden = block.think(hidden, self.part.as_ref(), &mut pass);
        }
        let output = DecoderOutput {
            hidden: self.decoder.end(hidden),
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
        let scores = self
            .saved
            .scores(frozen, hidden.mul_scalar(self.head_scale));
        match &self.head_bias {
            Some(bias) => scores + bias.val().unsqueeze(),
            None => scores,
        }
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
        let max_tokens = self.max_tokens.unwrap_or(usize::MAX);
        let rows = check_prompts(sources, self.vocab_size(), max_tokens)?.len();
        let encoded = self.encode(&sources.with_plain_padding(), context);
        let start = TensorData::new(vec![self.start_token as i64; rows], [rows, 1]);
        let device = sources.ids.device();
        let target = DecoderInput {
            ids: Tensor::<2, Int>::from_data(start, &device),
            mask: Tensor::full([rows, 1], true, &device),
            segments: None,
        };
        let mut cache = self.cache();
        let (longest, suppressed) = (options.max_new_tokens, &options.suppressed_tokens);
        let step = |input: &DecoderInput| {
            let forced = self.forced_token(cache.num_tokens(), longest);
            let forced = forced.filter(|token| !suppressed.contains(token));
            let output = self.decode_cached(input, &encoded, &mut cache, context);
            self.next_scores(output, forced)
        };
        let rows = one_token_rows(rows);
        write_on(rows, target, options, max_tokens, step, watch)
    }

    /// The token that is written behind so many others in a text of at most `longest` tokens, if the
    /// scores do not decide.
    pub(crate) fn forced_token(&self, written: usize, longest: usize) -> Option<usize> {
        let first = self.forced.first.filter(|_| written == 0);
        let is_last = written + 1 == longest;
        first.or(self.forced.last.filter(|_| is_last))
    }

    /// Scores `[B, 1, V]` of what is written next, of which a forced token leaves itself alone.
    pub(crate) fn next_scores(&self, output: DecoderOutput, forced: Option<usize>) -> Tensor<3> {
        let scores = self.logits(output.hidden);
        match forced {
            Some(token) => only(token, scores),
            None => scores,
        }
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

    /// The token that every written text starts with.
    pub fn start_token(&self) -> usize {
        self.start_token
    }

    /// Longest text in tokens, read or written, if there is a limit.
    pub fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    /// Attention of half of the model, without positions.
    fn options(&self, stack: &Stack) -> AttentionOptions {
        AttentionOptions {
            scale: self.scale,
            ..AttentionOptions::new(stack.num_heads)
        }
    }

    /// The input of the first layer of a stack. `mask` is that of all tokens so far.
    fn begin(
        &self,
        stack: &Stack,
        input: &DecoderInput,
        mask: &Tensor<2, Bool>,
        noise: Option<EmbeddingNoise>,
    ) -> Tensor<3> {
        let mut hidden = embedded(&self.saved, &self.tokens, input, noise);
        if self.embedding_scale != 1.0 {
            hidden = hidden.mul_scalar(self.embedding_scale);
        }
        if let Some(positions) = &stack.positions {
            hidden = hidden + positions.rows(mask, input.ids.dims()[1]);
        }
        match &stack.embedding_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        }
    }
}

/// Scores `[B, 1, V]` that leave one token alone.
fn only(token: usize, scores: Tensor<3>) -> Tensor<3> {
    let ([batch, _, size], device) = (scores.dims(), scores.device());
    let values = (0..size).map(|index| if index == token { 0.0f32 } else { -1e30 });
    let row = Tensor::<3>::from_data(TensorData::new(values.collect(), [1, 1, size]), &device);
    row.expand([batch, 1, size])
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
