//! Reading a BERT encoder from a folder in Hugging Face layout.

use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor};

use super::bert::{Embeddings, Layer, layer_path};
use super::{Bert, BertConfig};
use molora_routing::LayerRule;

use crate::checkpoint::{ModelWeights, old_name};
use crate::layers::frozen;
use crate::reader::Layout;
use crate::{BaseDtype, LayerNorm, MoLoraLinear, ModelError, SavedTables};

/// Names in checkpoints of whole BERT models that the encoder does not need.
const UNUSED: [&str; 3] = ["pooler.", "cls.", "embeddings.position_ids"];

impl Bert {
    /// Reads `config.json` and `model.safetensors`, or the files of `model.safetensors.index.json`
    /// (f32, f16 or bf16; computed in f32). Normalisations may have their old names, `gamma` and
    /// `beta`.
    ///
    /// # Errors
    /// A missing or broken file, a missing tensor, a tensor of another shape than the configuration
    /// says, or a configuration that is not supported; each names file and field or tensor.
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
        dtype.check(device)?;
        let config = BertConfig::from_file(&folder.join("config.json"))?;
        let weights = ModelWeights::open(folder)?;
        // Checkpoints of models with a head keep the encoder under `bert.`.
        let is_wrapped = weights.has("bert.embeddings.word_embeddings.weight");
        let prefix = if is_wrapped { "bert." } else { "" };
        let mut reader = Reader {
            weights,
            prefix,
            dtype,
            device,
            read: Vec::new(),
        };
        let model = reader.bert(&config)?;
        reader.warn_of_unread();
        Ok(model)
    }
}

struct Reader<'a> {
    weights: ModelWeights,
    prefix: &'static str,
    dtype: BaseDtype,
    device: &'a Device,
    read: Vec<String>,
}

impl Reader<'_> {
    fn bert(&mut self, config: &BertConfig) -> Result<Bert, ModelError> {
        let width = config.hidden_size;
        let embeddings = Embeddings {
            word: self.words(config)?,
            position: self.table(
                "embeddings.position_embeddings",
                config.max_position_embeddings,
                width,
            )?,
            token_type: self.table(
                "embeddings.token_type_embeddings",
                config.type_vocab_size,
                width,
            )?,
            norm: self.norm("embeddings.LayerNorm", config)?,
        };
        let layers = (0..config.num_hidden_layers).map(|index| self.layer(index, config));
        Ok(Bert {
            embeddings,
            layers: layers.collect::<Result<_, _>>()?,
            layer_rule: LayerRule::PerLayer,
            part: None,
            saved: SavedTables::default(),
        })
    }

    fn layer(&mut self, index: usize, config: &BertConfig) -> Result<Layer, ModelError> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let path = |part| layer_path(index, part);
        Ok(Layer {
            router: None,
            query: self.linear(&path("attention.self.query"), width, width)?,
            key: self.linear(&path("attention.self.key"), width, width)?,
            value: self.linear(&path("attention.self.value"), width, width)?,
            attention_output: self.linear(&path("attention.output.dense"), width, width)?,
            attention_norm: self.norm(&path("attention.output.LayerNorm"), config)?,
            intermediate: self.linear(&path("intermediate.dense"), width, inner)?,
            output: self.linear(&path("output.dense"), inner, width)?,
            output_norm: self.norm(&path("output.LayerNorm"), config)?,
            num_heads: config.num_attention_heads,
            activation: config.hidden_act,
        })
    }

    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<D>, ModelError> {
        let mut name = format!("{}{name}", self.prefix);
        if let Some(old) = old_name(&name).filter(|old| self.weights.has(old))
            && !self.weights.has(&name)
        {
            name = old;
        }
        let tensor = self.weights.tensor(&name, shape, self.device)?;
        self.read.push(name);
        Ok(tensor)
    }

    fn words(&mut self, config: &BertConfig) -> Result<Param<Tensor<2>>, ModelError> {
        let shape = [config.vocab_size, config.hidden_size];
        let table = self.tensor("embeddings.word_embeddings.weight", shape)?;
        Ok(frozen(self.dtype.table(table.into_data(), self.device)))
    }

    fn table(
        &mut self,
        name: &str,
        rows: usize,
        width: usize,
    ) -> Result<Param<Tensor<2>>, ModelError> {
        let table = self.tensor(&format!("{name}.weight"), [rows, width])?;
        Ok(frozen(table))
    }

    fn linear(
        &mut self,
        path: &str,
        d_input: usize,
        d_output: usize,
    ) -> Result<MoLoraLinear, ModelError> {
        let name = format!("{path}.weight");
        let weight = self.tensor(&name, [d_output, d_input])?.into_data();
        let weight = weight.try_into_vec().expect("read as f32");
        let bias = self.tensor(&format!("{path}.bias"), [d_output])?;
        let dims = [d_input, d_output];
        let weight = self.dtype.weight(weight, dims, Layout::OutIn, self.device);
        Ok(MoLoraLinear::new(weight, Some(bias)))
    }

    fn norm(&mut self, path: &str, config: &BertConfig) -> Result<LayerNorm, ModelError> {
        let width = config.hidden_size;
        let gamma = self.tensor(&format!("{path}.weight"), [width])?;
        let beta = self.tensor(&format!("{path}.bias"), [width])?;
        Ok(LayerNorm::new(gamma, beta, config.layer_norm_eps))
    }

    /// A checkpoint may hold more than an encoder; what is left out is said.
    fn warn_of_unread(&self) {
        let is_known = |name: &str| {
            let name = name.strip_prefix("bert.").unwrap_or(name);
            UNUSED.iter().any(|unused| name.starts_with(unused))
        };
        for name in self.weights.names() {
            if !is_known(name) && !self.read.iter().any(|read| read == name) {
                tracing::warn!(
                    "{}: tensor `{name}` is not used",
                    self.weights.path().display()
                );
            }
        }
    }
}
