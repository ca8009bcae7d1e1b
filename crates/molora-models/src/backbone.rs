//! A base model of any family.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::BlockMatrix;
use molora_kernels::random::Seed;

use crate::checkpoint::ConfigFile;
use crate::modules::{BaseModel, ModuleMut};
use crate::{
    Adaptable, AdapterSpec, BaseDtype, BaseWeight, Decoder, Encoder, EncoderDecoder, Family,
    FamilyKind, LayerRouter, MoLoraLinear, ModelError, ModelPart, ModelWeights, TokenTable,
};

/// A base model of any family, with its adapters.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one in a model")]
pub enum Backbone {
    /// Reads a text in both directions.
    Encoder(Encoder),
    /// Writes a text on.
    Decoder(Decoder),
    /// Reads a text and writes another.
    EncoderDecoder(EncoderDecoder),
}

/// Calls the same method of whatever model it is.
macro_rules! each {
    ($backbone:expr, $model:ident => $call:expr) => {
        match $backbone {
            Backbone::Encoder($model) => $call,
            Backbone::Decoder($model) => $call,
            Backbone::EncoderDecoder($model) => $call,
        }
    };
}

impl Backbone {
    /// Reads the model of a folder in Hugging Face layout; `model_type` in its `config.json` says of
    /// which family it is.
    ///
    /// # Errors
    /// A family that is not supported, and what reading a model of that family gives.
    pub fn from_folder(folder: &Path, device: &Device) -> Result<Self, ModelError> {
        Self::from_folder_as(folder, BaseDtype::F32, device)
    }

    /// As [`from_folder`](Self::from_folder), with the large matrices kept in another type.
    ///
    /// # Errors
    /// As `from_folder`, and [`ModelError::Inconsistent`] if the device has no such type.
    pub fn from_folder_as(
        folder: &Path,
        dtype: BaseDtype,
        device: &Device,
    ) -> Result<Self, ModelError> {
        match Family::of(folder)?.kind {
            FamilyKind::Encoder => {
                Encoder::from_folder_as(folder, dtype, device).map(Self::Encoder)
            }
            FamilyKind::EncoderDecoder => {
                EncoderDecoder::from_folder_as(folder, dtype, device).map(Self::EncoderDecoder)
            }
            FamilyKind::Decoder => {
                Decoder::from_folder_as(folder, dtype, device).map(Self::Decoder)
            }
        }
    }

    /// The model of a `config.json` with weights from `seed`, for measurements: its time is that of a model of
    /// these sizes, and what it computes says nothing.
    ///
    /// # Errors
    /// As [`from_folder_as`](Self::from_folder_as) of the configuration.
    pub fn with_random_weights(
        config: &Path,
        seed: Seed,
        dtype: BaseDtype,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let weights = Ok(ModelWeights::random(config, seed));
        match Family::of_file(&ConfigFile::open(config)?)?.kind {
            FamilyKind::Encoder => {
                Encoder::from_weights(config, weights, dtype, device).map(Self::Encoder)
            }
            FamilyKind::EncoderDecoder => {
                EncoderDecoder::from_weights(config, weights, dtype, device)
                    .map(Self::EncoderDecoder)
            }
            FamilyKind::Decoder => {
                Decoder::from_weights(config, weights, dtype, device).map(Self::Decoder)
            }
        }
    }

    /// Whether the model of a folder [`writes`](Self::writes), by its `config.json` alone.
    ///
    /// # Errors
    /// If that cannot be read, or names a family that is not supported.
    pub fn writes_in(folder: &Path) -> Result<bool, ModelError> {
        Ok(Family::of(folder)?.kind != FamilyKind::Encoder)
    }

    /// Whether it writes texts, so that every task can be learned as one.
    pub fn writes(&self) -> bool {
        !matches!(self, Self::Encoder(_))
    }

    /// Width D of the hidden states.
    pub fn width(&self) -> usize {
        each!(self, model => model.width())
    }

    /// Size V of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        each!(self, model => model.vocab_size())
    }

    /// Whether the matrices of its linear layers are kept in fewer bits than f32 has.
    pub(crate) fn is_narrow(&self) -> bool {
        let linears = self.linears();
        let first = linears.first();
        first.is_some_and(|(_, linear)| linear.weight.dtype() != BaseDtype::F32)
    }

    /// Whether its embeddings train, beside the adapters.
    pub(crate) fn trains_embeddings(&self) -> bool {
        match self {
            Self::Encoder(model) => model.trains_embeddings(),
            Self::Decoder(model) => model.saved.trains_embeddings(),
            Self::EncoderDecoder(model) => model.saved.trains_embeddings(),
        }
    }

    /// Whether the head that scores its vocabulary trains, beside the adapters.
    pub(crate) fn trains_head(&self) -> bool {
        match self {
            Self::Encoder(_) => false,
            Self::Decoder(model) => model.saved.has_head(),
            Self::EncoderDecoder(model) => model.saved.has_head(),
        }
    }

    /// Its matrices of 8 or 4 bits a number, tables among them.
    pub fn block_matrices(&self) -> Vec<&BlockMatrix> {
        let tables = match self {
            Self::Encoder(_) => Vec::new(),
            Self::Decoder(model) => model.token_tables(),
            Self::EncoderDecoder(model) => model.token_tables(),
        };
        let tables = tables.into_iter().filter_map(|table| match table {
            TokenTable::Blocks(blocks) => Some(blocks),
            TokenTable::Numbers(_) => None,
        });
        let linears = self.linears().into_iter();
        let linears = linears.filter_map(|(_, linear)| match &linear.weight {
            BaseWeight::Blocks(blocks) => Some(blocks),
            _ => None,
        });
        linears.chain(tables).collect()
    }

    /// Longest sequence in tokens, if there is a limit.
    pub fn max_tokens(&self) -> Option<usize> {
        match self {
            Self::Encoder(model) => Some(model.max_tokens()),
            Self::Decoder(model) => Some(model.max_tokens()).filter(|&tokens| tokens < usize::MAX),
            Self::EncoderDecoder(model) => model.max_tokens(),
        }
    }

    /// Number of token types; `None` where types of tokens are not read.
    pub fn num_token_types(&self) -> Option<usize> {
        match self {
            Self::Encoder(model) => model.num_token_types(),
            _ => None,
        }
    }
}

impl Adaptable for Backbone {
    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        each!(self, model => model.linears())
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
        each!(self, model => model.linears_mut())
    }

    fn layer_routers(&self) -> Vec<(String, &LayerRouter)> {
        each!(self, model => model.layer_routers())
    }

    fn layer_routers_mut(&mut self) -> Vec<(String, &mut LayerRouter)> {
        each!(self, model => model.layer_routers_mut())
    }

    fn part(&self) -> Option<&ModelPart> {
        each!(self, model => model.part())
    }

    fn part_mut(&mut self) -> Option<&mut ModelPart> {
        each!(self, model => model.part_mut())
    }

    fn saved_mut(&mut self) -> Vec<(String, &mut Param<Tensor<2>>)> {
        each!(self, model => model.saved_mut())
    }

    fn is_shared_table(&self, path: &str) -> bool {
        each!(self, model => model.is_shared_table(path))
    }

    fn attach(
        &mut self,
        spec: &AdapterSpec,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Result<Vec<String>, ModelError> {
        each!(self, model => model.attach(spec, num_tasks, seed, device))
    }

    fn task_type(&self) -> &'static str {
        each!(self, model => model.task_type())
    }

    fn is_part(&self, path: &str) -> bool {
        each!(self, model => model.is_part(path))
    }
}

impl BaseModel for Backbone {
    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        each!(self, model => model.modules_mut())
    }

    fn untie(&mut self) {
        each!(self, model => model.untie())
    }

    fn clear_routers(&mut self) {
        each!(self, model => model.clear_routers())
    }

    fn has_layer_routers(&self) -> bool {
        each!(self, model => model.has_layer_routers())
    }

    fn copies_table(&self, path: &str) -> bool {
        each!(self, model => model.copies_table(path))
    }

    fn head_scale(&self) -> f64 {
        each!(self, model => model.head_scale())
    }

    fn held_as_one(&self) -> Vec<Vec<String>> {
        each!(self, model => model.held_as_one())
    }

    fn leaves_out(&self, path: &str) -> bool {
        each!(self, model => model.leaves_out(path))
    }
}
