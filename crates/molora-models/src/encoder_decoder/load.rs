//! Reading an encoder-decoder from a folder in Hugging Face layout.

use std::collections::HashSet;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor};

use super::EncoderDecoder;
use super::config::{EncoderDecoderConfig, HEAD, Half, StackConfig, TOKENS, TokenPositions};
use super::layer::{Block, Positions, Stack};
use crate::checkpoint::ModelWeights;
use crate::decoder::{Attention, FeedForward, Qkv};
use crate::layers::{Norm, frozen};
use crate::reader::{Layout, Reader};
use crate::relative_bias::RelativeBias;
use crate::{BaseDtype, ModelError, NormKind, SavedTables};

impl EncoderDecoder {
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
        let weights = ModelWeights::open(folder);
        Self::from_weights(&folder.join("config.json"), weights, dtype, device)
    }

    /// The model of a configuration, with weights that are looked for when that has been read.
    pub(crate) fn from_weights(
        config: &Path,
        weights: Result<ModelWeights, ModelError>,
        dtype: BaseDtype,
        device: &Device,
    ) -> Result<Self, ModelError> {
        dtype.check(device)?;
        let config = EncoderDecoderConfig::from_file(config)?;
        let names = config.names;
        let weights = weights?;
        // Files of a model without its head leave the prefix out.
        let absent_prefix = match weights.has(&format!("{TOKENS}.weight")) {
            true => names.prefix,
            false => "",
        };
        let reader = Reader {
            weights,
            prefix: "",
            absent_prefix,
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
        let prefix = if absent_prefix.is_empty() {
            names.prefix
        } else {
            ""
        };
        let roots = ["encoder.", "decoder.", "shared."].map(|root| format!("{prefix}{root}"));
        let roots = roots.each_ref().map(String::as_str);
        builder.reader.refuse_unread(&roots, names.unused)?;
        Ok(model)
    }
}

struct Builder<'a> {
    config: &'a EncoderDecoderConfig,
    reader: Reader<'a>,
}

impl Builder<'_> {
    fn model(&mut self) -> Result<EncoderDecoder, ModelError> {
        let config = self.config;
        let table = [config.vocab_size, config.width];
        let file_has_head = self.reader.weights.has(&format!("{HEAD}.weight"));
        let has_head = file_has_head || !config.may_tie_head;
        Ok(EncoderDecoder {
            tokens: self.reader.token_table(&config.names.tokens(), table)?,
            encoder: self.stack(Half::Encoder)?,
            decoder: self.stack(Half::Decoder)?,
            head: match has_head {
                true => Some(self.reader.token_table(HEAD, table)?),
                false => None,
            },
            head_bias: self.head_bias()?,
            head_scale: config.head_scale,
            embedding_scale: config.embedding_scale,
            scale: config.scale,
            start_token: config.start_token,
            forced: config.forced,
            max_tokens: match config.positions {
                TokenPositions::Learned { max_tokens, .. } => Some(max_tokens),
                TokenPositions::Relative { .. } => None,
            },
            names: config.names,
            part: None,
            saved: SavedTables::default(),
        })
    }

    /// What is added to the scores, unless the file has none or zeros.
    fn head_bias(&mut self) -> Result<Option<Param<Tensor<1>>>, ModelError> {
        let (name, size) = (self.config.names.head_bias, self.config.vocab_size);
        if name.is_empty() || !self.reader.weights.has(name) {
            return Ok(None);
        }
        let values = self.reader.weights.values(name, &[1, size])?;
        self.reader.read.insert(name.into());
        let has_effect = values.iter().any(|&value| value != 0.0);
        Ok(has_effect.then(|| frozen(self.reader.tensor(values, [size]))))
    }

    fn stack(&mut self, half: Half) -> Result<Stack, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let sizes = config.stack(half);
        let positions = match config.positions {
            TokenPositions::Learned { max_tokens, offset } => {
                let path = names.part(half, names.positions);
                let table = self
                    .reader
                    .table(&path, [max_tokens + offset, config.width])?;
                Some(Positions { table, offset })
            }
            TokenPositions::Relative { .. } => None,
        };
        let embedding_norm = match config.norm_first {
            true => None,
            false => Some(self.norm(&names.part(half, names.embedding_norm))?),
        };
        let num_layers = match half {
            Half::Encoder => config.num_encoder_layers,
            Half::Decoder => config.num_decoder_layers,
        };
        let blocks = (0..num_layers).map(|index| self.block(half, index));
        let blocks = blocks.collect::<Result<_, _>>()?;
        let final_norm = match config.norm_first {
            true => Some(self.norm(&names.part(half, names.final_norm))?),
            false => None,
        };
        Ok(Stack {
            positions,
            embedding_norm,
            blocks,
            final_norm,
            num_heads: sizes.num_heads,
        })
    }

    fn block(&mut self, half: Half, index: usize) -> Result<Block, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let sizes = config.stack(half);
        let path = |part: &str| format!("{}.{part}", names.layer_name(half, index));
        let cross = match half {
            Half::Decoder => Some((
                self.norm(&path(names.cross_norm))?,
                self.attention(names.cross.map(path), sizes)?,
            )),
            Half::Encoder => None,
        };
        Ok(Block {
            router: None,
            bias: self.bias(half, index)?,
            attention_norm: self.norm(&path(names.attention_norm))?,
            attention: self.attention(names.attention.map(path), sizes)?,
            cross,
            feed_forward_norm: self.norm(&path(names.feed_forward_norm[half as usize]))?,
            feed_forward: self.feed_forward(names.feed_forward[half as usize].map(path), sizes)?,
            norm_first: config.norm_first,
        })
    }

    fn bias(&mut self, half: Half, index: usize) -> Result<Option<RelativeBias>, ModelError> {
        let names = self.config.names;
        let TokenPositions::Relative {
            classes,
            max_distance,
            in_every_layer,
        } = self.config.positions
        else {
            return Ok(None);
        };
        if index > 0 && !in_every_layer {
            return Ok(None);
        }
        let path = format!("{}.{}", names.layer_name(half, index), names.relative);
        let shape = [classes, self.config.stack(half).num_heads];
        Ok(Some(RelativeBias {
            table: self.reader.table(&path, shape)?,
            classes,
            max_distance,
            is_two_way: half == Half::Encoder,
        }))
    }

    fn attention(
        &mut self,
        [query, key, value, output]: [String; 4],
        sizes: StackConfig,
    ) -> Result<Attention, ModelError> {
        let (width, head_dim) = (self.config.width, sizes.head_dim);
        let inner = sizes.num_heads * head_dim;
        let has_bias = self.config.has_biases;
        let mut part = |path: &str, dims| self.reader.linear(path, dims, has_bias);
        Ok(Attention {
            qkv: Qkv::Apart([
                part(&query, [width, inner])?,
                part(&key, [width, inner])?,
                part(&value, [width, inner])?,
            ]),
            qk_norm: None,
            output: part(&output, [inner, width])?,
            head_dim,
        })
    }

    fn feed_forward(
        &mut self,
        [gate, up, down]: [String; 3],
        sizes: StackConfig,
    ) -> Result<FeedForward, ModelError> {
        let (width, inner) = (self.config.width, sizes.inner_width);
        let (is_gated, has_bias) = (self.config.is_gated, self.config.has_biases);
        let mut part = |path: &str, dims| self.reader.linear(path, dims, has_bias);
        Ok(FeedForward {
            gate: match is_gated {
                true => Some(part(&gate, [width, inner])?),
                false => None,
            },
            up: part(&up, [width, inner])?,
            down: part(&down, [inner, width])?,
            activation: self.config.activation,
        })
    }

    fn norm(&mut self, path: &str) -> Result<Norm, ModelError> {
        let width = self.config.width;
        match self.config.norm {
            NormKind::Rms => Ok(Norm::Rms(self.reader.rms_norm(path, width)?)),
            NormKind::RmsAddsOne => {
                let norm = self.reader.rms_norm(path, width)?;
                Ok(Norm::Rms(norm.with_one()))
            }
            NormKind::Layer => self.reader.layer_norm(path, width),
        }
    }
}
