//! Reading a decoder from a folder in Hugging Face layout.

use std::collections::HashSet;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use molora_routing::LayerRule;

use super::attention::Attention;
use super::config::{DecoderConfig, Layout, NormKind};
use super::feed_forward::FeedForward;
use super::model::{Decoder, Layer};
use crate::checkpoint::ModelWeights;
use crate::layers::{Norm, frozen};
use crate::{LayerNorm, MoLoraLinear, ModelError, RmsNorm};

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
        let config = DecoderConfig::from_file(&folder.join("config.json"))?;
        let weights = ModelWeights::open(folder)?;
        // Files of a model without its head leave the prefix out.
        let tokens = format!("{}.weight", config.names.tokens);
        let mut reader = Reader {
            is_bare: weights.has(&tokens),
            config: &config,
            weights,
            device,
            read: HashSet::new(),
        };
        let model = reader.decoder()?;
        reader.refuse_unread()?;
        Ok(model)
    }
}

struct Reader<'a> {
    config: &'a DecoderConfig,
    weights: ModelWeights,
    /// Whether names have no prefix.
    is_bare: bool,
    device: &'a Device,
    read: HashSet<String>,
}

impl Reader<'_> {
    fn decoder(&mut self) -> Result<Decoder, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let (width, vocab_size) = (config.width, config.vocab_size);
        let path = |part: &str| format!("{}{part}", names.prefix);
        let tokens = self.table(&path(names.tokens), vocab_size)?;
        let positions = match config.rope {
            Some(_) => None,
            None => Some(self.table(&path(names.positions), config.max_tokens)?),
        };
        let head = match config.has_tied_head {
            true => None,
            false => Some(self.table(names.head, vocab_size)?),
        };
        let layers = (0..config.num_layers).map(|index| self.layer(index));
        Ok(Decoder {
            tokens,
            positions,
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: self.norm(&path(names.final_norm), width)?,
            head,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            max_tokens: config.max_tokens,
            rope: config.rope,
            names,
            layer_rule: LayerRule::default(),
        })
    }

    fn layer(&mut self, index: usize) -> Result<Layer, ModelError> {
        let (config, names) = (self.config, self.config.names);
        let path = |part| names.layer(index, part);
        Ok(Layer {
            attention_norm: self.norm(&path(names.attention_norm), config.width)?,
            attention: self.attention(index)?,
            feed_forward_norm: self.norm(&path(names.feed_forward_norm), config.width)?,
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
                    self.rms_norm(&path(query), head)?,
                    self.rms_norm(&path(key), head)?,
                ])
            }
        };
        let has_bias = config.qkv_bias;
        let qkv = match names.fused_qkv {
            Some(fused) => self.split(&path(fused), width, [queries, keys, keys], has_bias)?,
            None => {
                let [query, key, value] = names.qkv;
                [
                    self.linear(&path(query), [width, queries], has_bias)?,
                    self.linear(&path(key), [width, keys], has_bias)?,
                    self.linear(&path(value), [width, keys], has_bias)?,
                ]
            }
        };
        let output = self.linear(&path(names.output), [queries, width], config.output_bias)?;
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
            true => Some(self.linear(&path(names.gate), [width, inner], has_bias)?),
            false => None,
        };
        Ok(FeedForward {
            gate,
            up: self.linear(&path(names.up), [width, inner], has_bias)?,
            down: self.linear(&path(names.down), [inner, width], has_bias)?,
            activation: config.activation,
        })
    }

    /// The values of a tensor by the path of its layer.
    fn values(&mut self, path: &str, part: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let path = match path.strip_prefix(self.config.names.prefix) {
            Some(bare) if self.is_bare => bare,
            _ => path,
        };
        let name = format!("{path}.{part}");
        let values = self.weights.values(&name, shape)?;
        self.read.insert(name);
        Ok(values)
    }

    fn tensor<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), self.device)
    }

    fn table(&mut self, path: &str, num_rows: usize) -> Result<Param<Tensor<2>>, ModelError> {
        let shape = [num_rows, self.config.width];
        let values = self.values(path, "weight", &shape)?;
        Ok(frozen(self.tensor(values, shape)))
    }

    /// A weight in rows of inputs, whatever the file's layout.
    fn weight(
        &mut self,
        path: &str,
        [inputs, outputs]: [usize; 2],
    ) -> Result<Vec<f32>, ModelError> {
        match self.config.names.layout {
            Layout::InOut => self.values(path, "weight", &[inputs, outputs]),
            Layout::OutIn => {
                let values = self.values(path, "weight", &[outputs, inputs])?;
                Ok(transposed(&values, outputs, inputs))
            }
        }
    }

    fn linear(
        &mut self,
        path: &str,
        dims: [usize; 2],
        has_bias: bool,
    ) -> Result<MoLoraLinear, ModelError> {
        let weight = self.weight(path, dims)?;
        let bias = match has_bias {
            true => Some(self.values(path, "bias", &dims[1..])?),
            false => None,
        };
        let bias = bias.map(|bias| self.tensor(bias, [dims[1]]));
        Ok(MoLoraLinear::new(self.tensor(weight, dims), bias))
    }

    /// Linear layers that the file holds side by side.
    fn split<const N: usize>(
        &mut self,
        path: &str,
        inputs: usize,
        outputs: [usize; N],
        has_bias: bool,
    ) -> Result<[MoLoraLinear; N], ModelError> {
        let all = outputs.iter().sum();
        let fused = self.linear(path, [inputs, all], has_bias)?;
        let mut start = 0;
        Ok(outputs.map(|width| {
            // A copy of its own, so that the fused matrix is not kept.
            let weight = fused.weight.val().narrow(1, start, width).into_data();
            let bias = fused.bias.as_ref().map(|bias| {
                let bias = bias.val().narrow(0, start, width).into_data();
                Tensor::from_data(bias, self.device)
            });
            start += width;
            MoLoraLinear::new(Tensor::from_data(weight, self.device), bias)
        }))
    }

    fn norm(&mut self, path: &str, width: usize) -> Result<Norm, ModelError> {
        if self.config.norm == NormKind::Rms {
            return Ok(Norm::Rms(self.rms_norm(path, width)?));
        }
        let gamma = self.values(path, "weight", &[width])?;
        let beta = self.values(path, "bias", &[width])?;
        let (gamma, beta) = (self.tensor(gamma, [width]), self.tensor(beta, [width]));
        Ok(Norm::Layer(LayerNorm::new(
            gamma,
            beta,
            self.config.epsilon,
        )))
    }

    fn rms_norm(&mut self, path: &str, width: usize) -> Result<RmsNorm, ModelError> {
        let weight = self.values(path, "weight", &[width])?;
        Ok(RmsNorm::new(
            self.tensor(weight, [width]),
            self.config.epsilon,
        ))
    }

    /// A tensor of the decoder that nobody reads means that the configuration is of another model;
    /// beside the decoder there may be heads of other uses.
    fn refuse_unread(&self) -> Result<(), ModelError> {
        let names = self.config.names;
        let tied = format!("{}.weight", names.head);
        let is_unused = |name: &str| {
            let has_end = names.unused.iter().any(|end| name.ends_with(end));
            has_end || (self.config.has_tied_head && name == tied)
        };
        let path = self.weights.path();
        for name in self.weights.names() {
            if self.read.contains(name) || is_unused(name) {
                continue;
            }
            if self.is_bare || name.starts_with(names.prefix) {
                let problem =
                    format!("tensor `{name}` has no place in the model that config.json describes");
                return Err(ModelError::file(path, problem));
            }
            tracing::warn!("{}: tensor `{name}` is not used", path.display());
        }
        Ok(())
    }
}

/// A matrix of `rows` rows, column by column.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    // Squares that fit the fastest cache: whole columns would touch a line of memory per number.
    const SIDE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for top in (0..rows).step_by(SIDE) {
        for left in (0..columns).step_by(SIDE) {
            for column in left..columns.min(left + SIDE) {
                for row in top..rows.min(top + SIDE) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_transposed_at_any_size() {
        for (rows, columns) in [(1, 1), (3, 50), (64, 32), (33, 65)] {
            let values: Vec<f32> = (0..rows * columns).map(|value| value as f32).collect();
            let out = transposed(&values, rows, columns);
            let is_moved = |(index, value): (usize, &f32)| {
                let (column, row) = (index / rows, index % rows);
                *value == (row * columns + column) as f32
            };
            assert!(out.iter().enumerate().all(is_moved));
        }
    }
}
