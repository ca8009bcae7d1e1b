//! Several decoders on one base whose rows go through one pass.

use burn::tensor::Tensor;
use molora_kernels::AttentionOptions;
use molora_routing::LayerRule;

use super::cache::KvCache;
use super::group::Group;
use super::input::{DecoderInput, positions};
use super::model::Decoder;
use super::pass::Pass;
use crate::{ForwardContext, ModelPart, RouteTrace};

/// Decoders that were made of the same base: what their linear layers have in common is computed once for the rows
/// of all, and what each has of its own for its own rows.
#[derive(Debug)]
pub struct Decoders<'a>(Vec<&'a Decoder>);

/// Keys and values of rows of several decoders, sorted by decoder.
///
/// A row gets what it would get from its decoder alone, whatever rows are beside it.
#[derive(Debug, Clone)]
pub struct DecodersCache {
    /// Keys and values of all rows; the whole cache where there is one decoder.
    all: KvCache,
    /// What is each decoder's own for its rows: a first pass, and decisions. None where there is one decoder.
    own: Vec<KvCache>,
}

impl<'a> Decoders<'a> {
    /// Several decoders, or one.
    ///
    /// # Panics
    /// If there is none, or they are built differently.
    pub fn new(models: Vec<&'a Decoder>) -> Self {
        let same = |model: &&Decoder| {
            let dims = |of: &Decoder| (of.num_layers(), of.width(), of.vocab_size());
            dims(model) == dims(models[0])
        };
        assert!(models.iter().all(same), "decoders on one base");
        Self(models)
    }

    /// An empty cache.
    pub fn cache(&self) -> DecodersCache {
        let all = self.0[0].cache();
        let own = match self.0.len() {
            1 => Vec::new(),
            count => vec![all.clone(); count],
        };
        DecodersCache { all, own }
    }

    /// Hidden states `[B, T, D]` of tokens that follow those of the cache, as
    /// [`Decoder::forward_cached`], and the decisions of the routers of each group.
    ///
    /// `groups` are the numbers of the decoders whose rows the input has, in ascending order, each with a context
    /// whose mask is that of its rows.
    ///
    /// # Panics
    /// As [`Decoder::forward_cached`], or if the rows are not those of the groups.
    pub fn forward_cached(
        &self,
        input: &DecoderInput,
        cache: &mut DecodersCache,
        groups: &[(usize, ForwardContext)],
    ) -> (Tensor<3>, Vec<Vec<RouteTrace>>) {
        let base = self.0[0];
        if let ([], [(_, context)]) = (&cache.own[..], groups) {
            let output = base.forward_cached(input, &mut cache.all, context);
            return (output.hidden, vec![output.routes]);
        }
        let mask = cache.all.extend_mask(input.mask.clone());
        let positions = positions(&mask, input);
        let context = ForwardContext::new(input.mask.clone().float());
        let mut pass = base.pass(input, mask, &positions, &context);
        let (mut start, mut embedded) = (0, Vec::new());
        let own = cache.own.iter_mut().enumerate();
        let mut contexts = groups.iter().peekable();
        for (number, own) in own {
            let Some((_, context)) = contexts.next_if(|(model, _)| *model == number) else {
                continue;
            };
            let rows = context.mask.dims()[0];
            let of = |start| RowsOf { input, start, rows };
            let (hidden, group) = of(start).begin(self.0[number], own, context);
            embedded.push(hidden);
            pass.groups.push(group);
            start += rows;
        }
        assert!(contexts.next().is_none(), "decoders in ascending order");
        assert_eq!(start, input.ids.dims()[0], "rows of all decoders");
        let mut hidden = Tensor::cat(embedded, 0);
        for (index, layer) in base.layers.iter().enumerate() {
            pass.enter_groups(index, &hidden);
            let cache = &mut cache.all.layers[index];
            hidden = layer.forward(hidden, Some(cache), &mut pass);
        }
        let groups = pass.groups.into_iter();
        let routes = groups.map(|group| group.pass.routes).collect();
        (base.end(hidden), routes)
    }

    /// Scores `[B, T, V]` of every token of the vocabulary as the next one, before softmax, for hidden states
    /// `[B, T, D]`, whose rows are so many of each decoder, by its number and in ascending order.
    pub fn logits(&self, hidden: Tensor<3>, groups: &[(usize, usize)]) -> Tensor<3> {
        let has_head = |(number, _): &(usize, usize)| self.0[*number].saved.has_head();
        if let [(number, _)] = groups {
            return self.0[*number].logits(hidden);
        }
        if !groups.iter().any(has_head) {
            return self.0[0].frozen_logits(hidden);
        }
        // The head of the base scores all rows at once, and what another one scores is left out.
        let frozen = self.0[0].frozen_logits(hidden.clone());
        let mut start = 0;
        let scores = groups.iter().map(|group| {
            let (number, rows) = *group;
            let begin = start;
            start += rows;
            match has_head(group) {
                true => self.0[number].logits(hidden.clone().narrow(0, begin, rows)),
                false => frozen.clone().narrow(0, begin, rows),
            }
        });
        Tensor::cat(scores.collect(), 0)
    }
}

/// Rows of an input.
struct RowsOf<'i> {
    input: &'i DecoderInput,
    start: usize,
    rows: usize,
}

impl RowsOf<'_> {
    /// What the first layer reads of them, and the pass of a decoder for them.
    fn begin<'a>(
        &self,
        model: &'a Decoder,
        own: &'a mut KvCache,
        context: &ForwardContext,
    ) -> (Tensor<3>, Group<'a>) {
        let of = (self.start, self.rows);
        let input = DecoderInput {
            ids: self.input.ids.clone().narrow(0, of.0, of.1),
            mask: self.input.mask.clone().narrow(0, of.0, of.1),
            segments: None,
        };
        let mask = own.extend_mask(input.mask.clone());
        let positions = positions(&mask, &input);
        // What only passes through whole layers need.
        let has_passes = model
            .part
            .as_ref()
            .and_then(ModelPart::first_pass)
            .is_some()
            || model.layer_rule == LayerRule::Vote;
        let mut pass = match has_passes {
            true => model.pass(&input, mask, &positions, context),
            false => Pass::new(context.clone(), AttentionOptions::new(model.num_heads)),
        };
        pass.kept = Some(&mut own.decisions);
        let hidden = model.embed(&input, positions, None);
        model.first_pass(&hidden, Some(&mut own.first_pass), &mut pass);
        model.vote(&hidden, &mut pass);
        (hidden, Group::new(model, of, pass))
    }
}

impl DecodersCache {
    /// Number S of tokens in each row, padding included.
    pub fn num_tokens(&self) -> usize {
        self.all.num_tokens()
    }

    /// Number B of rows.
    pub fn num_rows(&self) -> usize {
        self.all.num_rows()
    }

    /// Puts rows of the decoder of a number, which read them by itself, behind those that it has here.
    ///
    /// # Panics
    /// If there is no such decoder, or the cache is of another model.
    pub fn join(&mut self, number: usize, rows: KvCache) {
        if self.own.is_empty() {
            return self.all.append(rows);
        }
        let (all, own) = rows.apart();
        let before = self.own[..=number].iter().map(KvCache::num_rows);
        self.all.insert(before.sum(), all);
        self.own[number].append(own);
    }

    /// Keeps some rows, by their numbers among all, in ascending order.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&mut self, rows: &[usize]) {
        self.all.select(rows);
        let mut start = 0;
        for own in &mut self.own {
            let end = start + own.num_rows();
            let kept = rows.iter().filter(|row| (start..end).contains(*row));
            let kept: Vec<usize> = kept.map(|row| row - start).collect();
            if kept.len() < end - start {
                own.select(&kept);
            }
            start = end;
        }
    }
}
