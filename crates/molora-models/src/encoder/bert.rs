//! BERT: Devlin et al., arXiv:1810.04805, in the layout of Hugging Face's `BertModel`.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Int, Tensor, activation};
use molora_kernels::random::Seed;

use crate::encoder::config::Activation;
use crate::site::select_sites;
use crate::{AdapterSpec, ForwardContext, LayerNorm, MoLoraLinear, ModelError, RouteTrace};

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
}

impl Bert {
    /// Hidden states of every token.
    ///
    /// # Shapes
    /// - `input`: `[B, T]` with T at most [`max_tokens`](Self::max_tokens)
    /// - returns hidden `[B, T, D]`
    pub fn forward(&self, input: &EncoderInput, context: &ForwardContext) -> EncoderOutput {
        let mut hidden = self.embeddings.forward(input);
        let mut routes = Vec::new();
        for layer in &self.layers {
            hidden = layer.forward(hidden, &input.mask, context, &mut routes);
        }
        EncoderOutput { hidden, routes }
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

    /// Every linear layer with its Hugging Face path, in the order of the forward pass.
    pub fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
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

    /// The adapted layers with their paths, in the order of the forward pass.
    pub fn sites(&self) -> Vec<(String, &crate::Adapter)> {
        self.linears()
            .into_iter()
            .filter_map(|(path, linear)| linear.adapter.as_ref().map(|adapter| (path, adapter)))
            .collect()
    }

    /// The adapted layers with their paths, to be changed.
    pub fn sites_mut(&mut self) -> Vec<(String, &mut crate::Adapter)> {
        self.linears_mut()
            .into_iter()
            .filter_map(|(path, linear)| linear.adapter.as_mut().map(|adapter| (path, adapter)))
            .collect()
    }

    /// Attaches fresh adapters where the specification says, and returns the paths of the sites.
    ///
    /// Initial values depend on `seed` and each site's path alone.
    ///
    /// # Errors
    /// The first problem of the specification, or a target that matches nothing, or a rank that does
    /// not fit a site, or more entries of `experts_per_layer` than layers.
    pub fn attach(
        &mut self,
        spec: &AdapterSpec,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Result<Vec<String>, ModelError> {
        if let Some(problem) = spec.problems().into_iter().next() {
            return Err(problem);
        }
        let num_layers = self.layers.len();
        spec.fits_layers(num_layers)?;
        let mut linears = self.linears_mut();
        let paths: Vec<String> = linears.iter().map(|(path, _)| path.clone()).collect();
        let chosen = select_sites(&spec.targets, &paths)?;
        for &index in &chosen {
            let dims = linears[index].1.dims();
            let fits = spec.bank.validate_for(dims);
            fits.map_err(|source| ModelError::Adapter {
                field: "adapter.bank",
                source,
            })?;
        }
        for (site, &index) in chosen.iter().enumerate() {
            let (path, linear) = &mut linears[index];
            let seed = seed.child(path);
            let spec = spec.at_layer(index / LINEARS, num_layers);
            linear.adapter = Some(spec.init(linear.dims(), site, num_tasks, seed, device));
        }
        Ok(chosen
            .into_iter()
            .map(|index| paths[index].clone())
            .collect())
    }
}

impl Embeddings {
    fn forward(&self, input: &EncoderInput) -> Tensor<3> {
        let [batch, tokens] = input.ids.dims();
        let width = self.word.dims()[1];
        let rows = |table: &Param<Tensor<2>>, ids: &Tensor<2, Int>| {
            let ids = ids.clone().reshape([batch * tokens]);
            table.val().select(0, ids).reshape([batch, tokens, width])
        };
        let position = self
            .position
            .val()
            .slice([0..tokens, 0..width])
            .unsqueeze::<3>();
        let sum = rows(&self.word, &input.ids) + rows(&self.token_type, &input.type_ids) + position;
        self.norm.forward(sum)
    }
}

impl Layer {
    fn forward(
        &self,
        x: Tensor<3>,
        mask: &Tensor<2, Bool>,
        context: &ForwardContext,
        routes: &mut Vec<RouteTrace>,
    ) -> Tensor<3> {
        let mut apply = |linear: &MoLoraLinear, x: Tensor<3>| {
            let (y, route) = linear.forward(x, context);
            routes.extend(route);
            y
        };
        let query = apply(&self.query, x.clone());
        let key = apply(&self.key, x.clone());
        let value = apply(&self.value, x.clone());
        let mixed =
            molora_kernels::attention(query, key, value, Some(mask.clone()), self.num_heads);
        let x = self
            .attention_norm
            .forward(apply(&self.attention_output, mixed) + x);
        let inner = self.activation.apply(apply(&self.intermediate, x.clone()));
        self.output_norm.forward(apply(&self.output, inner) + x)
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

/// Hugging Face's path of a part of a layer.
pub(super) fn layer_path(index: usize, part: &str) -> String {
    format!("encoder.layer.{index}.{part}")
}

impl Activation {
    fn apply(self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Gelu => molora_kernels::gelu(x),
            Self::GeluTanh => activation::gelu_approximate(x),
            Self::Relu => activation::relu(x),
        }
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
