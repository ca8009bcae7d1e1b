//! Reading an encoder from a folder in Hugging Face layout.

use std::collections::HashSet;
use std::path::Path;

use burn::tensor::Device;

use super::Encoder;
use super::attention::{Attention, Places};
use super::config::EncoderConfig;
use super::convolution::{Convolution, unfolded};
use super::embeddings::Embeddings;
use super::layer::Layer;
use super::relative::RelativePositions;
use crate::checkpoint::ModelWeights;
use crate::layers::frozen;
use crate::reader::{Layout, Reader};
use crate::relative_bias::RelativeBias;
use crate::{BaseDtype, LayerNorm, MoLoraLinear, ModelError};

impl Encoder {
    /// Reads `config.json` and `model.safetensors`, or the files of `model.safetensors.index.json`
    /// (f32, f16 or bf16; computed in f32). Normalisations may have their old names, `gamma` and
    /// `beta`, and everything may stand behind the family's prefix, as in models with a head.
    ///
    /// # Errors
    /// A missing or broken file, a missing tensor, one of another shape than the configuration says
    /// or one that it has no place for, or a configuration that is not supported; each names file
    /// and field or tensor.
    pub fn from_folder(folder: &Path, device: &Device) -> Result<Self, ModelError> {
        Self::from_folder_as(folder, BaseDtype::F32, device)
    }

    /// As [`from_folder`](Self::from_folder), with the matrices of linear layers and the embeddings of
    /// words kept in another type.
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
        let config = EncoderConfig::from_file(config)?;
        let names = config.names;
        let weights = weights?;
        let is_wrapped = weights.has(&format!("{}{}.weight", names.prefix, names.words));
        let prefix = if is_wrapped { names.prefix } else { "" };
        let reader = Reader {
            weights,
            prefix,
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
        let model = builder.encoder()?;
        let roots = names.roots.iter().map(|root| format!("{prefix}{root}"));
        let roots: Vec<String> = roots.collect();
        let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
        builder.reader.refuse_unread(&roots, names.unused)?;
        Ok(model)
    }
}

struct Builder<'a> {
    config: &'a EncoderConfig,
    reader: Reader<'a>,
}

impl Builder<'_> {
    fn encoder(&mut self) -> Result<Encoder, ModelError> {
        let config = self.config;
        let embeddings = self.embeddings()?;
        let layers = (0..config.num_layers).map(|index| self.layer(index));
        let layers = layers.collect::<Result<_, _>>()?;
        let final_norm = match config.norm_first {
            true => Some(self.norm(config.names.final_norm, config.width)?),
            false => None,
        };
        let places = self.places()?;
        Ok(Encoder::of_parts(
            config, embeddings, layers, final_norm, places,
        ))
    }

    fn embeddings(&mut self) -> Result<Embeddings, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let (width, reader) = (config.embedding_width, &mut self.reader);
        let word = reader.large_table(names.words, [config.vocab_size, width])?;
        let position = match config.positions {
            Some(positions) => Some(reader.table(names.positions, [positions.rows, width])?),
            None => None,
        };
        let token_type = match config.token_types {
            0 => None,
            types => Some(reader.table(names.token_types, [types, width])?),
        };
        let is_behind = config.projection == super::config::Projection::BehindNorm;
        let projection = match width == config.width {
            true => None,
            false => Some(reader.linear(names.projection, [width, config.width], is_behind)?),
        };
        let normed = if is_behind { width } else { config.width };
        Ok(Embeddings {
            word,
            position,
            padding: config.positions.and_then(|positions| positions.padding),
            token_type,
            reads_types: config.reads_token_types,
            norm: self.norm(names.embedding_norm, normed)?,
            projection,
            order: config.projection,
        })
    }

    fn layer(&mut self, index: usize) -> Result<Layer, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let (width, inner) = (config.width, config.inner_width);
        let path = |part| names.layer(index, part);
        let has_bias = config.feed_forward_bias;
        let attention = self.attention(index)?;
        // What enters the first layer is normalised.
        let attention_norm = match config.norm_first && index == 0 {
            true => None,
            false => Some(self.norm(&path(names.attention_norm), width)?),
        };
        let (gate, up) = match names.fused_gate.filter(|_| config.is_gated) {
            Some(fused) => {
                let parts = [inner, inner];
                let [gate, up] = self.reader.split(&path(fused), width, parts, has_bias)?;
                (Some(gate), up)
            }
            None => (
                None,
                self.linear(&path(names.up), [width, inner], has_bias)?,
            ),
        };
        let convolution = match index {
            0 => self.convolution()?,
            _ => None,
        };
        Ok(Layer {
            router: None,
            attention,
            attention_norm,
            gate,
            up,
            down: self.linear(&path(names.down), [inner, width], has_bias)?,
            feed_forward_norm: self.norm(&path(names.feed_forward_norm), width)?,
            convolution,
            norm_first: config.norm_first,
            activation: config.activation,
        })
    }

    fn attention(&mut self, index: usize) -> Result<Attention, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let (width, has_bias) = (config.width, config.attention_bias);
        let path = |part| names.layer(index, part);
        let dims = [width, width];
        let qkv = match names.fused_qkv {
            Some(fused) => self
                .reader
                .split(&path(fused), width, [width; 3], has_bias)?,
            None => {
                let [query, key, value] = names.qkv;
                [
                    self.linear(&path(query), dims, has_bias)?,
                    self.linear(&path(key), dims, has_bias)?,
                    self.linear(&path(value), dims, has_bias)?,
                ]
            }
        };
        let own = config.disentangled;
        let own = own.filter(|scores| scores.has_positions && !scores.shares_projections);
        let mut part = |name, is_there: bool| match is_there {
            true => self.linear(&path(name), dims, true).map(Some),
            false => Ok(None),
        };
        let position_key = part(names.position_key, own.is_some_and(|own| own.from_content))?;
        let position_query = part(
            names.position_query,
            own.is_some_and(|own| own.from_position),
        )?;
        let local = config.local.as_ref();
        Ok(Attention {
            qkv,
            position_key,
            position_query,
            output: self.linear(&path(names.output), dims, has_bias)?,
            is_local: local.is_some_and(|local| local.layers[index]),
        })
    }

    /// How positions act on attention.
    fn places(&mut self) -> Result<Places, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let bias = match config.relative_bias {
            None => None,
            Some(classes) => Some(RelativeBias {
                table: self
                    .reader
                    .table(names.relative, [classes.rows, config.num_heads])?,
                classes: classes.classes,
                max_distance: classes.max_distance,
                is_two_way: true,
            }),
        };
        let scores = config.disentangled;
        let relative = match scores.filter(|scores| scores.has_positions) {
            None => None,
            Some(scores) => {
                let shape = [2 * scores.span(), config.width];
                Some(RelativePositions {
                    table: self.reader.table(names.relative, shape)?,
                    norm: match scores.has_norm {
                        true => Some(self.norm(names.relative_norm, config.width)?),
                        false => None,
                    },
                    config: scores,
                })
            }
        };
        let head_dim = config.width / config.num_heads;
        Ok(Places {
            bias,
            relative,
            scale: scores.map(|scores| scores.scale(head_dim)),
            rope: config.rope.clone(),
            local: config.local.clone(),
        })
    }

    fn convolution(&mut self) -> Result<Option<Convolution>, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let Some(own) = config.convolution else {
            return Ok(None);
        };
        let (width, kernel, path) = (config.width, own.kernel, names.convolution);
        let shape = [width, width / own.groups, kernel];
        let values = self.reader.values(path, "weight", &shape)?;
        let weight = unfolded(&values, width, own.groups, kernel);
        let bias = self.reader.values(path, "bias", &[width])?;
        Ok(Some(Convolution {
            weight: frozen(self.reader.tensor(weight, [kernel * width, width])),
            bias: frozen(self.reader.tensor(bias, [width])),
            norm: self.norm(names.convolution_norm, width)?,
            activation: own.activation,
        }))
    }

    fn linear(
        &mut self,
        path: &str,
        dims: [usize; 2],
        has_bias: bool,
    ) -> Result<MoLoraLinear, ModelError> {
        self.reader.linear(path, dims, has_bias)
    }

    fn norm(&mut self, path: &str, width: usize) -> Result<LayerNorm, ModelError> {
        self.reader.shifted_norm(path, width, self.config.norm_bias)
    }
}
