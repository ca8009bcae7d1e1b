//! Reading a decoder from a folder in Hugging Face layout.

use std::collections::HashSet;
use std::path::Path;

use burn::tensor::Device;
use molora_routing::LayerRule;

use super::attention::{Attention, Qkv};
use super::config::{DecoderConfig, NormKind, NormPlace, QkNorm, QkvForm};
use super::experts::{Experts, FeedForwardPart};
use super::feed_forward::FeedForward;
use super::layer::{Layer, PartNorms};
use super::model::Decoder;
use super::names::Names;
use super::scaling::Scaling;
use crate::checkpoint::ModelWeights;
use crate::layers::Norm;
use crate::reader::Reader;
use crate::{Adaptable, BaseDtype, ModelError, RmsNorm, SavedTables};

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
        let config = DecoderConfig::from_file(config)?;
        let weights = weights?;
        let absent_prefix = absent_prefix(&weights, config.names);
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
        let mut model = builder.decoder()?;
        for (number, (_, linear)) in model.linears_mut().into_iter().enumerate() {
            linear.number = number;
        }
        builder.refuse_unread()?;
        Ok(model)
    }
}

/// What files of a model without its head leave out: the first word of the prefix, or all of it.
fn absent_prefix(weights: &ModelWeights, names: &Names) -> &'static str {
    let prefix = names.prefix;
    let word = prefix.find('.').map_or("", |dot| &prefix[..=dot]);
    let has_tokens = |absent: &&str| {
        let rest = prefix.strip_prefix(*absent).unwrap_or(prefix);
        weights.has(&format!("{rest}{}.weight", names.tokens))
    };
    ["", word, prefix]
        .into_iter()
        .find(has_tokens)
        .unwrap_or("")
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
            .token_table(&path(names.tokens), [vocab_size, width])?;
        let positions = match config.learned_positions {
            None => None,
            Some(first) => {
                let shape = [first + config.max_tokens, width];
                Some(self.reader.table(&path(names.positions), shape)?)
            }
        };
        let head = match config.has_tied_head && !self.has_other_head()? {
            true => None,
            false => Some(self.reader.token_table(names.head, [vocab_size, width])?),
        };
        let layers = (0..config.num_layers).map(|index| self.layer(index));
        Ok(Decoder {
            tokens,
            positions,
            first_position: config.learned_positions.unwrap_or(0),
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: match config.has_final_norm {
                true => Some(self.norm(&path(names.final_norm))?),
                false => None,
            },
            head,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            max_tokens: config.max_tokens,
            ropes: config.ropes.clone(),
            scaling: Scaling {
                embeddings: config.embedding_scale,
                attention: config.attention_scale,
                attention_cap: config.attention_cap,
                logits: config.logit_scale,
                logit_cap: config.logit_cap,
            },
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
        let absent = self.reader.absent_prefix;
        let prefix = names.prefix.strip_prefix(absent).unwrap_or(names.prefix);
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
        let (config, names) = (self.config, self.config.names);
        let attention_norms = [names.attention_norm, names.attention_output_norm];
        let feed_forward_norms = [names.feed_forward_norm, names.feed_forward_output_norm];
        Ok(Layer {
            attention_norms: self.norms(index, attention_norms)?,
            attention: self.attention(index)?,
            feed_forward_norms: self.norms(index, feed_forward_norms)?,
            feed_forward: self.feed_forward_part(index)?,
            is_parallel: config.is_parallel,
            residual_scale: config.residual_scale,
            own: config.layers[index],
            router: None,
        })
    }

    fn norms(&mut self, index: usize, [input, output]: [&str; 2]) -> Result<PartNorms, ModelError> {
        let path = |part| self.config.names.layer(index, part);
        let (input, output) = (path(input), path(output));
        let place = self.config.norm_place;
        let mut norm = |path, is_there: bool| is_there.then(|| self.norm(path)).transpose();
        Ok(PartNorms {
            input: norm(&input, matches!(place, NormPlace::Input | NormPlace::Both))?,
            output: norm(
                &output,
                matches!(place, NormPlace::Output | NormPlace::Both),
            )?,
            sum: norm(&input, place == NormPlace::Sum)?,
        })
    }

    fn attention(&mut self, index: usize) -> Result<Attention, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let path = |part| names.layer(index, part);
        let (width, head) = (config.width, config.head_dim);
        let (queries, keys) = (config.num_heads * head, config.num_kv_heads * head);
        let qk_norm = match config.qk_norm {
            None => None,
            Some(over) => {
                let widths = match over {
                    QkNorm::Heads => [head, head],
                    QkNorm::Whole => [queries, keys],
                };
                let [query, key] = names.qk_norm.map(path);
                Some([
                    self.rms_norm(&query, widths[0])?,
                    self.rms_norm(&key, widths[1])?,
                ])
            }
        };
        let output =
            self.reader
                .linear(&path(names.output), [queries, width], config.output_bias)?;
        Ok(Attention {
            qkv: self.qkv(index, [queries, keys, keys])?,
            qk_norm,
            output,
            head_dim: head,
        })
    }

    fn qkv(&mut self, index: usize, outputs: [usize; 3]) -> Result<Qkv, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let path = |part| names.layer(index, part);
        let (width, has_bias) = (config.width, config.qkv_bias);
        let [query, key, value] = names.qkv.map(path);
        let [queries, keys, values] = outputs;
        let mut linear = |path, outputs| self.reader.linear(path, [width, outputs], has_bias);
        match config.qkv {
            QkvForm::Apart => Ok(Qkv::Apart([
                linear(&query, queries)?,
                linear(&key, keys)?,
                linear(&value, values)?,
            ])),
            QkvForm::Fused => Ok(Qkv::Fused(linear(&query, queries + keys + values)?)),
            QkvForm::FusedByHead => Ok(Qkv::FusedByHead(linear(&query, queries + keys + values)?)),
            QkvForm::Split => {
                let fused = path(names.fused_qkv.unwrap_or_default());
                let parts = self.reader.split(&fused, width, outputs, has_bias)?;
                Ok(Qkv::Apart(parts))
            }
        }
    }

    fn feed_forward_part(&mut self, index: usize) -> Result<FeedForwardPart, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let experts = config.experts.filter(|_| config.layers[index].has_experts);
        let Some(experts) = experts else {
            let paths = [names.gate, names.up, names.down].map(|part| names.layer(index, part));
            let part = self.feed_forward(&paths, config.inner_width)?;
            return Ok(FeedForwardPart::Dense(part));
        };
        let router = names.layer(index, names.router);
        let dims = [config.width, experts.count];
        let router = self.reader.linear(&router, dims, false)?;
        let each = (0..experts.count).map(|expert| {
            let paths = [0, 1, 2].map(|part| names.layer(index, &names.of_expert(expert, part)));
            self.feed_forward(&paths, experts.inner_width)
        });
        Ok(FeedForwardPart::Experts(Experts {
            router,
            experts: each.collect::<Result<_, _>>()?,
            top_k: experts.top_k,
            shares_out: experts.shares_out,
        }))
    }

    /// The feed-forward part with a gate, an up- and a down-projection at these paths.
    fn feed_forward(
        &mut self,
        [gate, up, down]: &[String; 3],
        inner: usize,
    ) -> Result<FeedForward, ModelError> {
        let config = self.config;
        let (width, has_bias) = (config.width, config.feed_forward_bias);
        let outputs = match config.has_fused_gate {
            true => 2 * inner,
            false => inner,
        };
        let gate = match config.is_gated && !config.has_fused_gate {
            true => Some(self.reader.linear(gate, [width, inner], has_bias)?),
            false => None,
        };
        Ok(FeedForward {
            gate,
            up: self.reader.linear(up, [width, outputs], has_bias)?,
            down: self.reader.linear(down, [inner, width], has_bias)?,
            activation: config.activation,
        })
    }

    fn norm(&mut self, path: &str) -> Result<Norm, ModelError> {
        let width = self.config.width;
        match self.config.norm {
            NormKind::Layer => self.reader.layer_norm(path, width),
            NormKind::Rms | NormKind::RmsAddsOne => Ok(Norm::Rms(self.rms_norm(path, width)?)),
        }
    }

    fn rms_norm(&mut self, path: &str, width: usize) -> Result<RmsNorm, ModelError> {
        let norm = self.reader.rms_norm(path, width)?;
        Ok(match self.config.norm {
            NormKind::RmsAddsOne => norm.with_one(),
            NormKind::Layer | NormKind::Rms => norm,
        })
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
