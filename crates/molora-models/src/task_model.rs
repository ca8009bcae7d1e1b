//! A base model with one linear head for each task that needs one.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use burn::module::ParamId;
use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Int, Tensor};
use molora_kernels::random::{Seed, uniform};
use molora_parts::{Axis, ParameterKind, PartTensor};

use crate::{
    Adaptable, Backbone, DecoderInput, EncoderInput, ForwardContext, Observation, RouteTrace,
    last_real, masked_mean,
};

/// A linear map of a pooled hidden state: to logits of classes, or to one number.
#[derive(Module, Debug)]
pub struct TaskHead {
    /// Weight, `[D, classes]`.
    pub weight: Param<Tensor<2>>,
    /// Bias, `[classes]`.
    pub bias: Param<Tensor<1>>,
}

impl TaskHead {
    /// A head with weights and biases from U(-1/sqrt(D), 1/sqrt(D)), PyTorch's default.
    pub fn new(width: usize, classes: usize, seed: Seed, device: &Device) -> Self {
        let bound = 1.0 / (width as f64).sqrt();
        let weight = uniform([width, classes], bound, seed.child("weight"), device);
        let bias = uniform([classes], bound, seed.child("bias"), device);
        Self {
            weight: Param::from_tensor(weight),
            bias: Param::from_tensor(bias),
        }
    }

    /// `[B, D]` to logits `[B, classes]`.
    pub fn forward(&self, pooled: Tensor<2>) -> Tensor<2> {
        molora_kernels::linear(pooled, self.weight.val(), Some(self.bias.val()))
    }

    /// Every tensor, in PyTorch's layout in files.
    pub fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Heads;
        let [width, classes] = self.weight.dims();
        let (inputs, classes) = ([Axis::Input.of(width)], [Axis::Output.of(classes)]);
        let weight = PartTensor::matrix("weight", kind, &mut self.weight, &inputs, &classes);
        let bias = PartTensor::vector("bias", kind, &mut self.bias, &classes);
        vec![weight.stored(&[1, 0]), bias]
    }

    /// Number of classes.
    pub fn num_classes(&self) -> usize {
        self.bias.dims()[0]
    }
}

/// A padded batch of texts for a model of any family.
#[derive(Debug, Clone)]
pub struct TextInput {
    /// Token numbers, `[B, T]`.
    pub ids: Tensor<2, Int>,
    /// Token types, `[B, T]`, for models that have them.
    pub type_ids: Tensor<2, Int>,
    /// True for real tokens, `[B, T]`.
    pub mask: Tensor<2, Bool>,
    /// The number of the sequence that each token belongs to, `[B, T]`, where several are packed
    /// into a row; a decoder's only.
    pub segments: Option<Tensor<2, Int>>,
    /// The texts that an encoder-decoder writes, each behind its start token, `[B, S]`.
    pub target: Option<DecoderInput>,
}

/// What a model of any family returns.
#[derive(Debug, Clone)]
pub struct TextOutput {
    /// Hidden states of the text that was read, `[B, T, D]`.
    pub hidden: Tensor<3>,
    /// Hidden states that [`TaskModel::logits`] reads: those of the target of an encoder-decoder,
    /// `[B, S, D]`, of a decoder the same as `hidden`.
    pub written: Option<Tensor<3>>,
    /// Routing decisions of every site that has a router, in the order of the sites.
    pub routes: Vec<RouteTrace>,
}

/// A base model and one head for each task that needs one, in the order of the tasks.
#[derive(Module, Debug)]
pub struct TaskModel {
    /// The base model with its adapters.
    pub backbone: Backbone,
    /// The heads; tasks whose answers are written have none.
    pub heads: Vec<Option<TaskHead>>,
}

impl TaskModel {
    /// What each parameter of the adapters and heads is for, by its number, as the parts say that
    /// have them; every other parameter is the base model's.
    pub fn kinds(&self) -> BTreeMap<ParamId, ParameterKind> {
        let mut model = self.clone();
        let mut kinds = BTreeMap::new();
        let visited = model.backbone.visit_tensors(|_, tensor| {
            kinds.insert(tensor.id(), tensor.kind());
            Ok::<_, Infallible>(())
        });
        let Ok(()) = visited;
        let heads = model.heads.iter_mut().flatten().flat_map(TaskHead::tensors);
        kinds.extend(heads.map(|tensor| (tensor.id(), tensor.kind())));
        kinds
    }

    /// The up-projections of the experts, by their numbers.
    pub fn up_projections(&self) -> BTreeSet<ParamId> {
        let mut backbone = self.backbone.clone();
        let mut found = BTreeSet::new();
        let visited = backbone.visit_tensors(|_, tensor| {
            if tensor.is_up_projection() {
                found.insert(tensor.id());
            }
            Ok::<_, Infallible>(())
        });
        let Ok(()) = visited;
        found
    }

    /// Hidden states of a batch, and the routing decisions behind them. What is kept for a backward is in bf16 where the
    /// base is narrower than f32, see [`saving_in_bf16`](molora_kernels::saving_in_bf16).
    ///
    /// # Panics
    /// As the model's own forward pass, or if the input is packed for a model that is no decoder.
    pub fn forward(&self, input: &TextInput, context: &ForwardContext) -> TextOutput {
        self.saving(|| self.whole(input, context))
    }

    /// Runs a part of a pass that keeps for its backward what is as narrow as the base.
    pub(crate) fn saving<T>(&self, pass: impl FnOnce() -> T) -> T {
        match self.backbone.is_narrow() {
            true => molora_kernels::saving_in_bf16(pass),
            false => pass(),
        }
    }

    /// See [`forward`](Self::forward).
    fn whole(&self, input: &TextInput, context: &ForwardContext) -> TextOutput {
        let text = || DecoderInput {
            ids: input.ids.clone(),
            mask: input.mask.clone(),
            segments: input.segments.clone(),
        };
        match &self.backbone {
            Backbone::Encoder(model) => {
                assert!(input.segments.is_none(), "only a decoder reads packed rows");
                let input = EncoderInput {
                    ids: input.ids.clone(),
                    type_ids: input.type_ids.clone(),
                    mask: input.mask.clone(),
                };
                let output = model.forward(&input, context);
                TextOutput {
                    hidden: output.hidden,
                    written: None,
                    routes: output.routes,
                }
            }
            Backbone::Decoder(model) => {
                let output = model.forward(&text(), context);
                TextOutput {
                    hidden: output.hidden.clone(),
                    written: Some(output.hidden),
                    routes: output.routes,
                }
            }
            Backbone::EncoderDecoder(model) => {
                let encoded = model.encode(&text(), context);
                let mut routes = encoded.routes.clone();
                let written = input.target.as_ref().map(|target| {
                    let output = model.decode(target, &encoded, context);
                    routes.extend(output.routes);
                    output.hidden
                });
                TextOutput {
                    hidden: encoded.hidden,
                    written,
                    routes,
                }
            }
        }
    }

    /// What every site reads and adds in the forward pass of a batch, in the order of the pass.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), or if an encoder-decoder gets no target.
    pub fn observe(&self, input: &TextInput, context: &ForwardContext) -> Vec<Observation> {
        let text = DecoderInput {
            ids: input.ids.clone(),
            mask: input.mask.clone(),
            segments: input.segments.clone(),
        };
        match &self.backbone {
            Backbone::Encoder(model) => {
                let input = EncoderInput {
                    ids: input.ids.clone(),
                    type_ids: input.type_ids.clone(),
                    mask: input.mask.clone(),
                };
                model.observe(&input, context)
            }
            Backbone::Decoder(model) => model.observe(&text, context),
            Backbone::EncoderDecoder(model) => {
                let target = input.target.as_ref();
                let target = target.expect("an encoder-decoder reads one text and writes another");
                model.observe(&text, target, context)
            }
        }
    }

    /// One pooled state per row `[B, D]`, which heads read: the mean over the tokens of an encoder,
    /// the state of a decoder's last token, which alone has seen all others.
    pub fn pool(&self, hidden: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<2> {
        let [batch, _, width] = hidden.dims();
        match &self.backbone {
            Backbone::Decoder(_) => last_real(hidden, mask).reshape([batch, width]),
            _ => masked_mean(hidden, mask),
        }
    }

    /// One pooled state per row `[B, D]`, and the routing decisions behind it.
    pub fn encode(
        &self,
        input: &TextInput,
        context: &ForwardContext,
    ) -> (Tensor<2>, Vec<RouteTrace>) {
        let output = self.forward(input, context);
        (self.pool(output.hidden, &input.mask), output.routes)
    }

    /// Whether the head that scores the vocabulary trains, beside the adapters.
    pub fn trains_head(&self) -> bool {
        self.backbone.trains_head()
    }

    /// Scores of every token of the vocabulary as the next one: `[N, D]` to `[N, V]`; none for an
    /// encoder.
    pub fn logits(&self, hidden: Tensor<2>) -> Option<Tensor<2>> {
        let [rows, width] = hidden.dims();
        let hidden = hidden.reshape([1, rows, width]);
        let logits = match &self.backbone {
            Backbone::Encoder(_) => return None,
            Backbone::Decoder(model) => model.logits(hidden),
            Backbone::EncoderDecoder(model) => model.logits(hidden),
        };
        let vocab_size = logits.dims()[2];
        Some(logits.reshape([rows, vocab_size]))
    }
}
