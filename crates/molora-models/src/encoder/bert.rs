//! BERT: Devlin et al., arXiv:1810.04805, in the layout of Hugging Face's `BertModel`.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Int, Tensor};
use molora_kernels::random::Seed;
use molora_routing::{LayerRule, RouterOutput};

use crate::attach::{Attachment, Place, attach_sites, layer_routers, model_part};
use crate::base_dtype::wide;
use crate::feed_forward::FeedForwardParts;
use crate::layers::Activation;
use crate::observe::{Observation, observation};
use crate::scope::{Decides, decide, decide_feed_forward, vote};
use crate::{
    Adaptable, AdapterSpec, EmbeddingNoise, ForwardContext, LayerNorm, LayerRouter, MoLoraLinear,
    ModelError, ModelPart, RouteTrace, SavedTables,
};

/// A padded batch of token sequences.
#[derive(Debug, Clone)]
pub struct EncoderInput {
    /// Token numbers, `[B, T]`.
    pub ids: Tensor<2, Int>,
    /// Token types, `[B, T]`: 0 for the first text, 1 for the second.
    pub type_ids: Tensor<2, Int>,
    /// True for real tokens, `[B, T]`.
    pub mask: Tensor<2, Bool>,
}

/// Linear layers of one encoder layer.
const LINEARS: usize = 6;
/// Those of its attention, which come first.
const ATTENTION_LINEARS: usize = 4;

/// What an encoder returns.
#[derive(Debug, Clone)]
pub struct EncoderOutput {
    /// Hidden states of the last layer, `[B, T, D]`; arbitrary at padded positions.
    pub hidden: Tensor<3>,
    /// Routing decisions of every site that has a router, in the order of the sites.
    pub routes: Vec<RouteTrace>,
}

#[derive(Module, Debug)]
pub(super) struct Embeddings {
    pub(super) word: Param<Tensor<2>>,
    pub(super) position: Param<Tensor<2>>,
    pub(super) token_type: Param<Tensor<2>>,
    pub(super) norm: LayerNorm,
}

#[derive(Module, Debug)]
pub(super) struct Layer {
    pub(super) router: Option<LayerRouter>,
    pub(super) query: MoLoraLinear,
    pub(super) key: MoLoraLinear,
    pub(super) value: MoLoraLinear,
    pub(super) attention_output: MoLoraLinear,
    pub(super) attention_norm: LayerNorm,
    pub(super) intermediate: MoLoraLinear,
    pub(super) output: MoLoraLinear,
    pub(super) output_norm: LayerNorm,
    pub(super) num_heads: usize,
    #[module(skip)]
    pub(super) activation: Activation,
}

/// A BERT encoder with sites at every linear layer.
#[derive(Module, Debug)]
pub struct Bert {
    pub(super) embeddings: Embeddings,
    pub(super) layers: Vec<Layer>,
    #[module(skip)]
    pub(super) layer_rule: LayerRule,
    /// What the sites share.
    pub(super) part: Option<ModelPart>,
    /// What trains in the place of tables.
    pub(crate) saved: SavedTables,
}

impl Bert {
    /// Hidden states of every token.
    ///
    /// # Shapes
    /// - `input`: `[B, T]` with T at most [`max_tokens`](Self::max_tokens)
    /// - returns hidden `[B, T, D]`
    pub fn forward(&self, input: &EncoderInput, context: &ForwardContext) -> EncoderOutput {
        let (mut hidden, mut context) = self.begin(input, context);
        let mut routes = Vec::new();
        for index in 0..self.layers.len() {
            hidden = self.layer(index, hidden, &input.mask, &mut context, &mut routes);
        }
        EncoderOutput { hidden, routes }
    }

    /// What every site reads and adds in a forward pass.
    pub fn observe(&self, input: &EncoderInput, context: &ForwardContext) -> Vec<Observation> {
        let (mut hidden, mut context) = self.begin(input, context);
        let (mut routes, mut found) = (Vec::new(), Vec::new());
        let see = &mut |linear: &MoLoraLinear, x: &Tensor<3>, pass: &Pass<'_>| {
            found.extend(observation(linear, x, pass.context, pass.shared));
        };
        for index in 0..self.layers.len() {
            hidden = self.seen_layer(index, hidden, &input.mask, &mut context, &mut routes, see);
        }
        found
    }

    /// The input of the first layer, and the context of the layers.
    pub(crate) fn begin(
        &self,
        input: &EncoderInput,
        context: &ForwardContext,
    ) -> (Tensor<3>, ForwardContext) {
        let words = self.saved.embeddings(&self.embeddings.word);
        let hidden = self
            .embeddings
            .forward(words, input, context.embedding_noise);
        let mut context = context.clone();
        if let Some(first) = self.part.as_ref().and_then(ModelPart::first_pass) {
            let weight = first.scaling_pass_value();
            let apply = |linear: &MoLoraLinear, x| linear.with_weight(x, weight);
            let layers = self.layers.iter();
            let last = layers.fold(hidden.clone(), |x, layer| {
                layer.compute(x, &input.mask, &apply)
            });
            context.first_pass = Some(first.states(last));
        }
        if self.layer_rule == LayerRule::Vote {
            let logits = self.votes(hidden.clone(), &input.mask, &context);
            context.guidance.labels = Some(vote(logits, context.guidance.labels.take()));
        }
        (hidden, context)
    }

    /// The output of a layer; the context is that of the layers in front of it, and then of those
    /// behind it.
    pub(crate) fn layer(
        &self,
        index: usize,
        hidden: Tensor<3>,
        mask: &Tensor<2, Bool>,
        context: &mut ForwardContext,
        routes: &mut Vec<RouteTrace>,
    ) -> Tensor<3> {
        self.seen_layer(index, hidden, mask, context, routes, &mut |_, _, _| {})
    }

    /// [`layer`](Self::layer), which shows every linear layer and its input to `see`.
    fn seen_layer(
        &self,
        index: usize,
        hidden: Tensor<3>,
        mask: &Tensor<2, Bool>,
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
            routes.push(RouteTrace {
                site: 0,
                routed: routed.clone(),
                code: None,
            });
        }
        let of_model = self.part.as_ref().and_then(ModelPart::router);
        let feed_forward = router.or(of_model);
        let pass = Pass {
            mask,
            context,
            shared: shared.as_ref(),
            feed_forward: feed_forward.and_then(LayerRouter::of_feed_forward),
        };
        layer.forward(hidden, &pass, routes, see)
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The logits of every layer's router `[B, 1, E]` in a pass of the base without adapters.
    fn votes(
        &self,
        embedded: Tensor<3>,
        mask: &Tensor<2, Bool>,
        context: &ForwardContext,
    ) -> Vec<Tensor<3>> {
        let mut hidden = embedded;
        let mut logits = Vec::new();
        for layer in &self.layers {
            let router = layer.router.as_ref();
            logits.extend(router.map(|router| router.route(hidden.clone(), context).logits));
            hidden = layer.compute(hidden, mask, &MoLoraLinear::base);
        }
        logits
    }

    /// Width D of the hidden states.
    pub fn width(&self) -> usize {
        self.embeddings.word.dims()[1]
    }

    /// Size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.embeddings.word.dims()[0]
    }

    /// Number of token types.
    pub fn num_token_types(&self) -> usize {
        self.embeddings.token_type.dims()[0]
    }

    /// Longest sequence in tokens.
    pub fn max_tokens(&self) -> usize {
        self.embeddings.position.dims()[0]
    }
}

impl Adaptable for Bert {
    fn task_type(&self) -> &'static str {
        "FEATURE_EXTRACTION"
    }

    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        let layers = self.layers.iter().enumerate();
        layers
            .flat_map(|(index, layer)| layer.linears(index))
            .collect()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
        let layers = self.layers.iter_mut().enumerate();
        layers
            .flat_map(|(index, layer)| layer.linears_mut(index))
            .collect()
    }

    fn saved_mut(&mut self) -> Vec<(String, &mut Param<Tensor<2>>)> {
        // An encoder has no head over its vocabulary.
        self.saved.listed("embeddings.word_embeddings", "")
    }

    fn layer_routers(&self) -> Vec<(String, &LayerRouter)> {
        let layers = self.layers.iter().enumerate();
        layers
            .filter_map(|(index, layer)| Some((layer_name(index), layer.router.as_ref()?)))
            .collect()
    }

    fn layer_routers_mut(&mut self) -> Vec<(String, &mut LayerRouter)> {
        let layers = self.layers.iter_mut().enumerate();
        layers
            .filter_map(|(index, layer)| Some((layer_name(index), layer.router.as_mut()?)))
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
        let to = Attachment {
            num_layers: self.layers.len(),
            num_tasks,
            seed,
            device,
        };
        let width = self.width();
        let saved = SavedTables::of(spec, || wide(self.embeddings.word.val()), None, device)?;
        let places = self.linears_mut().into_iter().enumerate();
        let place = |(index, (path, linear))| Place {
            path,
            layer: index / LINEARS,
            in_feed_forward: index % LINEARS >= ATTENTION_LINEARS,
            ends_feed_forward: index % LINEARS == LINEARS - 1,
            linear,
        };
        let (sites, plan) = attach_sites(places.map(place).collect(), spec, width, &to)?;
        let routers = layer_routers(spec, &to, &sites, width, layer_name);
        for (layer, router) in self.layers.iter_mut().zip(routers) {
            layer.router = router;
        }
        self.layer_rule = spec.layer_rule;
        self.part = model_part(spec, &to, width, plan);
        self.saved = saved;
        Ok(sites.into_iter().map(|site| site.path).collect())
    }
}

impl Embeddings {
    fn forward(
        &self,
        words: &Param<Tensor<2>>,
        input: &EncoderInput,
        noise: Option<EmbeddingNoise>,
    ) -> Tensor<3> {
        let [batch, tokens] = input.ids.dims();
        let width = self.word.dims()[1];
        let rows = |table: &Param<Tensor<2>>, ids: &Tensor<2, Int>| {
            let ids = ids.clone().reshape([batch * tokens]);
            wide(table.val().select(0, ids)).reshape([batch, tokens, width])
        };
        let position = self
            .position
            .val()
            .slice([0..tokens, 0..width])
            .unsqueeze::<3>();
        let mut words = rows(words, &input.ids);
        if let Some(noise) = noise {
            words = noise.add(words, &input.mask, None);
        }
        let sum = words + rows(&self.token_type, &input.type_ids) + position;
        self.norm.forward(sum)
    }
}

/// What all sites of a layer read beside their input.
#[derive(Clone, Copy)]
struct Pass<'a> {
    mask: &'a Tensor<2, Bool>,
    context: &'a ForwardContext,
    shared: Option<&'a RouterOutput>,
    /// The router of the feed-forward part.
    feed_forward: Option<&'a LayerRouter>,
}

/// Looks at a linear layer, its input and what the layer's sites share.
type See<'a> = dyn FnMut(&MoLoraLinear, &Tensor<3>, &Pass<'_>) + 'a;

impl Layer {
    fn forward(
        &self,
        x: Tensor<3>,
        pass: &Pass<'_>,
        routes: &mut Vec<RouteTrace>,
        see: &mut See<'_>,
    ) -> Tensor<3> {
        let mut apply = |linear: &MoLoraLinear, x, shared: Option<&RouterOutput>| {
            see(linear, &x, &Pass { shared, ..*pass });
            linear.forward(x, pass.context, shared)
        };
        let x = self.attend(x, pass.mask, |linear, x| {
            let (y, route) = apply(linear, x, pass.shared);
            routes.extend(route);
            y
        });
        let parts = self.feed_forward();
        let decided = pass.feed_forward.zip(parts.first_site());
        let decided = decided.map(|(router, site)| {
            let route = decide_feed_forward(router, site, &x, pass.context, None);
            routes.push(route.clone());
            (router, route.routed)
        });
        let y = match decided {
            Some((router, routed)) if router.decides == Decides::FeedForward => {
                let slots = router.router.most_selected(routed.num_experts());
                parts.mixed(x.clone(), &routed, slots, pass.context)
            }
            decided => {
                let routed = decided.map(|(_, routed)| routed);
                let shared = routed.as_ref().or(pass.shared);
                let y = parts.compute(x.clone(), |linear, x| {
                    let (y, route) = apply(linear, x, shared);
                    routes.extend(route);
                    y
                });
                let (y, route) = parts.down.beside(y, x.clone(), pass.context);
                routes.extend(route);
                y
            }
        };
        self.output_norm.forward(y + x)
    }

    /// The layer with its linear layers computed by `apply`.
    fn compute(
        &self,
        x: Tensor<3>,
        mask: &Tensor<2, Bool>,
        apply: &dyn Fn(&MoLoraLinear, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let x = self.attend(x, mask, apply);
        let y = self.feed_forward().compute(x.clone(), apply);
        self.output_norm.forward(y + x)
    }

    /// Attention with what it is added to, normalised.
    fn attend(
        &self,
        x: Tensor<3>,
        mask: &Tensor<2, Bool>,
        mut apply: impl FnMut(&MoLoraLinear, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let query = apply(&self.query, x.clone());
        let key = apply(&self.key, x.clone());
        let value = apply(&self.value, x.clone());
        let mixed =
            molora_kernels::attention(query, key, value, Some(mask.clone()), self.num_heads);
        self.attention_norm
            .forward(apply(&self.attention_output, mixed) + x)
    }

    fn feed_forward(&self) -> FeedForwardParts<'_> {
        FeedForwardParts {
            gate: None,
            up: &self.intermediate,
            down: &self.output,
            activation: self.activation,
        }
    }

    fn linears(&self, index: usize) -> [(String, &MoLoraLinear); LINEARS] {
        let name = |part| layer_path(index, part);
        [
            (name("attention.self.query"), &self.query),
            (name("attention.self.key"), &self.key),
            (name("attention.self.value"), &self.value),
            (name("attention.output.dense"), &self.attention_output),
            (name("intermediate.dense"), &self.intermediate),
            (name("output.dense"), &self.output),
        ]
    }

    fn linears_mut(&mut self, index: usize) -> [(String, &mut MoLoraLinear); LINEARS] {
        let name = |part| layer_path(index, part);
        [
            (name("attention.self.query"), &mut self.query),
            (name("attention.self.key"), &mut self.key),
            (name("attention.self.value"), &mut self.value),
            (name("attention.output.dense"), &mut self.attention_output),
            (name("intermediate.dense"), &mut self.intermediate),
            (name("output.dense"), &mut self.output),
        ]
    }
}

/// Hugging Face's path of a layer.
fn layer_name(index: usize) -> String {
    format!("encoder.layer.{index}")
}

/// Hugging Face's path of a part of a layer.
pub(super) fn layer_path(index: usize, part: &str) -> String {
    format!("{}.{part}", layer_name(index))
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
