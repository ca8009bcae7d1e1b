//! Reading T5 from a folder in Hugging Face layout.

use std::collections::HashSet;
use std::path::Path;

use burn::tensor::Device;

use super::config::T5Config;
use super::model::{Block, Stack, T5};
use crate::checkpoint::ModelWeights;
use crate::decoder::{Attention, FeedForward};
use crate::layers::RmsNorm;
use crate::reader::{Layout, Reader};
use crate::relative_bias::RelativeBias;
use crate::{BaseDtype, ModelError, SavedTables};

/// Copies of the embeddings, and a bias of early files that no model reads.
const UNUSED: [&str; 2] = [
    "embed_tokens.weight",
    "EncDecAttention.relative_attention_bias.weight",
];

impl T5 {
    /// Reads `config.json` and `model.safetensors`, or the files of its index (f32, f16 or bf16;
    /// computed in f32).
    ///
    /// # Errors
    /// As [`Decoder::from_folder`](crate::Decoder::from_folder).
    pub fn from_folder(folder: &Path, device: &Device) -> Result<Self, ModelError> {
        Self::from_folder_as(folder, BaseDtype::F32, device)
    }

    /// As [`from_folder`](Self::from_folder), with the matrices of linear layers, embeddings and head
    /// kept in another type.
    ///
    /// # Errors
    /// As `from_folder`, and [`ModelError::Inconsistent`] if the device has no such type.
    pub fn from_folder_as(
        folder: &Path,
        dtype: BaseDtype,
        device: &Device,
    ) -> Result<Self, ModelError> {
        dtype.check(device)?;
        let config = T5Config::from_file(&folder.join("config.json"))?;
        let reader = Reader {
            weights: ModelWeights::open(folder)?,
            prefix: "",
            absent_prefix: "",
            layout: Layout::OutIn,
            epsilon: config.epsilon,
            dtype,
            device,
            read: HashSet::new(),
        };
        let mut builder = Builder {
            config: &config,
            reader,
        };
        let model = builder.model()?;
        builder
            .reader
            .refuse_unread(&["encoder.", "decoder.", "shared."], &UNUSED)?;
        Ok(model)
    }
}

struct Builder<'a> {
    config: &'a T5Config,
    reader: Reader<'a>,
}

impl Builder<'_> {
    fn model(&mut self) -> Result<T5, ModelError> {
        let config = self.config;
        let table = [config.vocab_size, config.width];
        let has_head = self.reader.weights.has("lm_head.weight") || !config.may_tie_head;
        Ok(T5 {
            tokens: self.reader.large_table("shared", table)?,
            encoder: self.stack("encoder", config.num_encoder_layers)?,
            decoder: self.stack("decoder", config.num_decoder_layers)?,
            head: match has_head {
                true => Some(self.reader.large_table("lm_head", table)?),
                false => None,
            },
            head_scale: config.head_scale,
            num_heads: config.num_heads,
            start_token: config.start_token,
            part: None,
            saved: SavedTables::default(),
        })
    }

    fn stack(&mut self, stack: &str, num_layers: usize) -> Result<Stack, ModelError> {
        let config = self.config;
        let is_decoder = stack == "decoder";
        let blocks =
            (0..num_layers).map(|index| self.block(&format!("{stack}.block.{index}"), is_decoder));
        let blocks = blocks.collect::<Result<_, _>>()?;
        let path = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias");
        let table = self
            .reader
            .table(&path, [config.num_buckets, config.num_heads])?;
        Ok(Stack {
            blocks,
            bias: RelativeBias {
                table,
                classes: config.num_buckets,
                max_distance: config.max_distance,
                is_two_way: !is_decoder,
            },
            final_norm: self.norm(&format!("{stack}.final_layer_norm"))?,
        })
    }

    fn block(&mut self, path: &str, is_decoder: bool) -> Result<Block, ModelError> {
        let last = if is_decoder { 2 } else { 1 };
        let cross = match is_decoder {
            true => Some((
                self.norm(&format!("{path}.layer.1.layer_norm"))?,
                self.attention(&format!("{path}.layer.1.EncDecAttention"))?,
            )),
            false => None,
        };
        Ok(Block {
            router: None,
            attention_norm: self.norm(&format!("{path}.layer.0.layer_norm"))?,
            attention: self.attention(&format!("{path}.layer.0.SelfAttention"))?,
            cross,
            feed_forward_norm: self.norm(&format!("{path}.layer.{last}.layer_norm"))?,
            feed_forward: self.feed_forward(&format!("{path}.layer.{last}.DenseReluDense"))?,
        })
    }

    fn attention(&mut self, path: &str) -> Result<Attention, ModelError> {
        let (width, head_dim) = (self.config.width, self.config.head_dim);
        let inner = self.config.num_heads * head_dim;
        let mut part = |name, dims| self.reader.linear(&format!("{path}.{name}"), dims, false);
        Ok(Attention {
            qkv: [
                part("q", [width, inner])?,
                part("k", [width, inner])?,
                part("v", [width, inner])?,
            ],
            qk_norm: None,
            output: part("o", [inner, width])?,
            head_dim,
        })
    }

    fn feed_forward(&mut self, path: &str) -> Result<FeedForward, ModelError> {
        let (width, inner) = (self.config.width, self.config.inner_width);
        let is_gated = self.config.is_gated;
        let mut part = |name, dims| self.reader.linear(&format!("{path}.{name}"), dims, false);
        let gate = match is_gated {
            true => Some(part("wi_0", [width, inner])?),
            false => None,
        };
        let up = if is_gated { "wi_1" } else { "wi" };
        Ok(FeedForward {
            gate,
            up: part(up, [width, inner])?,
            down: part("wo", [inner, width])?,
            activation: self.config.activation,
        })
    }

    fn norm(&mut self, path: &str) -> Result<RmsNorm, ModelError> {
        self.reader.rms_norm(path, self.config.width)
    }
}
