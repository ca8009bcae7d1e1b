//! Reading a decoder from a folder in Hugging Face layout.

use std::collections::HashSet;
use std::path::Path;

use burn::tensor::Device;
use molora_routing::LayerRule;

use super::attention::Attention;
use super::config::{DecoderConfig, NormKind};
use super::feed_forward::FeedForward;
use super::model::{Decoder, Layer};
use crate::checkpoint::ModelWeights;
use crate::layers::Norm;
use crate::reader::Reader;
use crate::{BaseDtype, ModelError, SavedTables};

impl Decoder {
    /// Reads `config.json` and `model.safetensors`, or the files of `model.safetensors.index.json`
    /// (f32, f16 or bf16; computed in f32).
    ///
    /// Beside the model itself, memory holds one tensor of a layer at a time.
    ///
    /// # Errors
    /// A missing or broken file, a missing tensor, one of another shape than the configuration says
    /// or one that it has no place for, or a configuration that is not supported; each names file
    /// and field or tensor.
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
        let config = DecoderConfig::from_file(&folder.join("config.json"))?;
        let weights = ModelWeights::open(folder)?;
        // Files of a model without its head leave the prefix out.
        let tokens = format!("{}.weight", config.names.tokens);
        let absent_prefix = match weights.has(&tokens) {
            true => config.names.prefix,
            false => "",
        };
        let reader = Reader {
            weights,
            prefix: "",
            absent_prefix,
            layout: config.names.layout,
            epsilon: config.epsilon,
            dtype,
            device,
            read: HashSet::new(),
        };
        let mut builder = Builder {
            config: &config,
            reader,
        };
        let model = builder.decoder()?;
        builder.refuse_unread()?;
        Ok(model)
    }
}

struct Builder<'a> {
    config: &'a DecoderConfig,
    reader: Reader<'a>,
}

impl Builder<'_> {
    fn decoder(&mut self) -> Result<Decoder, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let (width, vocab_size) = (config.width, config.vocab_size);
        let path = |part: &str| format!("{}{part}", names.prefix);
        let tokens = self
            .reader
            .large_table(&path(names.tokens), [vocab_size, width])?;
        let positions = match config.rope {
            Some(_) => None,
            None => Some(
                self.reader
                    .table(&path(names.positions), [config.max_tokens, width])?,
            ),
        };
        let head = match config.has_tied_head && !self.has_other_head()? {
            true => None,
            false => Some(self.reader.large_table(names.head, [vocab_size, width])?),
        };
        let layers = (0..config.num_layers).map(|index| self.layer(index));
        Ok(Decoder {
            tokens,
            positions,
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: self.norm(&path(names.final_norm))?,
            head,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            max_tokens: config.max_tokens,
            rope: config.rope,
            names,
            layer_rule: LayerRule::default(),
            part: None,
            saved: SavedTables::default(),
        })
    }

    /// Whether a file whose configuration says that the head is the table of embeddings holds another
    /// one: what is left of an adapter of both that was merged, or of a head that was trained apart.
    fn has_other_head(&self) -> Result<bool, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let (weights, head) = (&self.reader.weights, format!("{}.weight", names.head));
        if !weights.has(&head) {
            return Ok(false);
        }
        let prefix = match self.reader.absent_prefix {
            "" => names.prefix,
            _ => "",
        };
        let table = format!("{prefix}{}.weight", names.tokens);
        let shape = [config.vocab_size, config.width];
        let [values, table_values] = [&head, &table].map(|name| weights.values(name, &shape));
        let (values, table_values) = (values?, table_values?);
        let mut pairs = values.iter().zip(&table_values);
        if pairs.all(|(a, b)| a.to_bits() == b.to_bits()) {
            return Ok(false);
        }
        tracing::warn!(
            "{}: `{head}` differs from `{table}`, though tie_word_embeddings of config.json says that \
             they are one: the head is taken from the file, as transformers does",
            weights.path().display()
        );
        Ok(true)
    }

    fn layer(&mut self, index: usize) -> Result<Layer, ModelError> {
        let names = self.config.names;
        let path = |part| names.layer(index, part);
        Ok(Layer {
            attention_norm: self.norm(&path(names.attention_norm))?,
            attention: self.attention(index)?,
            feed_forward_norm: self.norm(&path(names.feed_forward_norm))?,
            feed_forward: self.feed_forward(index)?,
            router: None,
        })
    }

    fn attention(&mut self, index: usize) -> Result<Attention, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let path = |part| names.layer(index, part);
        let (width, head) = (config.width, config.head_dim);
        let (queries, keys) = (config.num_heads * head, config.num_kv_heads * head);
        let qk_norm = match config.has_qk_norm {
            false => None,
            true => {
                let [query, key] = names.qk_norm;
                Some([
                    self.reader.rms_norm(&path(query), head)?,
                    self.reader.rms_norm(&path(key), head)?,
                ])
            }
        };
        let has_bias = config.qkv_bias;
        let qkv = match names.fused_qkv {
            Some(fused) => {
                self.reader
                    .split(&path(fused), width, [queries, keys, keys], has_bias)?
            }
            None => {
                let [query, key, value] = names.qkv;
                [
                    self.reader
                        .linear(&path(query), [width, queries], has_bias)?,
                    self.reader.linear(&path(key), [width, keys], has_bias)?,
                    self.reader.linear(&path(value), [width, keys], has_bias)?,
                ]
            }
        };
        let output =
            self.reader
                .linear(&path(names.output), [queries, width], config.output_bias)?;
        Ok(Attention {
            qkv,
            qk_norm,
            output,
            head_dim: head,
        })
    }

    fn feed_forward(&mut self, index: usize) -> Result<FeedForward, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let path = |part| names.layer(index, part);
        let (width, inner, has_bias) = (config.width, config.inner_width, config.feed_forward_bias);
        let gate = match config.is_gated {
            true => Some(
                self.reader
                    .linear(&path(names.gate), [width, inner], has_bias)?,
            ),
            false => None,
        };
        Ok(FeedForward {
            gate,
            up: self
                .reader
                .linear(&path(names.up), [width, inner], has_bias)?,
            down: self
                .reader
                .linear(&path(names.down), [inner, width], has_bias)?,
            activation: config.activation,
        })
    }

    fn norm(&mut self, path: &str) -> Result<Norm, ModelError> {
        let width = self.config.width;
        match self.config.norm {
            NormKind::Rms => Ok(Norm::Rms(self.reader.rms_norm(path, width)?)),
            NormKind::Layer => self.reader.layer_norm(path, width),
        }
    }

    fn refuse_unread(&self) -> Result<(), ModelError> {
        let names = self.config.names;
        let tied = format!("{}.weight", names.head);
        let mut unused = names.unused.to_vec();
        if self.config.has_tied_head {
            unused.push(&tied);
        }
        // Without a prefix, everything is the decoder's.
        let prefix = match self.reader.absent_prefix {
            "" => names.prefix,
            _ => "",
        };
        self.reader.refuse_unread(&[prefix], &unused)
    }
}
