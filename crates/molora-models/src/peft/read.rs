//! Reading the tensors of one module.

use burn::tensor::{Device, Tensor, TensorData};

use super::PeftAdapter;
use super::key::{Key, ModuleTensor};
use super::resolve::{FullTensor, FullValue, Kind, Module, ModuleLora, is_lora};
use crate::ModelError;
use crate::modules::Layout;

/// Reads the tensors of one module.
pub(super) struct Reader<'a> {
    pub(super) adapter: &'a PeftAdapter,
    pub(super) module: &'a Module,
    pub(super) keys: &'a [(String, Key)],
    pub(super) device: &'a Device,
}

impl Reader<'_> {
    pub(super) fn lora(&self) -> Result<Option<ModuleLora>, ModelError> {
        let Some((_, key)) = self.keys.iter().find(|(_, key)| is_lora(&key.part)) else {
            return Ok(None);
        };
        let config = self.adapter.config();
        let rank = config.rank_of(&key.module);
        let [first, second] = self.module.dims;
        let (a, b, [inputs, outputs]) = match self.module.kind {
            Kind::Linear(_) => (ModuleTensor::A, ModuleTensor::B, [first, second]),
            Kind::Head => (ModuleTensor::A, ModuleTensor::B, [second, first]),
            Kind::Table => (
                ModuleTensor::EmbeddingA,
                ModuleTensor::EmbeddingB,
                [first, second],
            ),
            Kind::Norm => return Err(self.misplaced(key)),
        };
        self.only(&[&a, &b, &ModuleTensor::Magnitude])?;
        let of = |part: ModuleTensor| Key {
            part,
            ..key.clone()
        };
        Ok(Some(ModuleLora {
            path: self.module.path.clone(),
            a: self.matrix(&of(a), [rank, inputs])?.transpose(),
            b: self.matrix(&of(b), [outputs, rank])?.transpose(),
            scale: config.scale_of(&key.module),
            magnitude: self.magnitude(&of(ModuleTensor::Magnitude), outputs)?,
        }))
    }

    fn magnitude(&self, key: &Key, outputs: usize) -> Result<Option<Tensor<1>>, ModelError> {
        let name = self.name(&key.part);
        match (self.adapter.config().has_magnitudes, name) {
            (false, None) => Ok(None),
            (false, Some(name)) => {
                let problem = format!("use_dora is false, but the adapter has `{name}`");
                Err(ModelError::file(&self.adapter.config().path, problem))
            }
            (true, Some(name)) if self.module.kind == Kind::Table => {
                let problem = format!("tensor `{name}`: DoRA on an embedding is not supported");
                Err(ModelError::file(self.adapter.weights.path(), problem))
            }
            (true, _) => {
                let values = self.values(key, &[outputs])?;
                let data = TensorData::new(values, [outputs]);
                Ok(Some(Tensor::from_data(data, self.device)))
            }
        }
    }

    pub(super) fn full(&self) -> Result<Vec<FullTensor>, ModelError> {
        let mut full = Vec::new();
        for (_, key) in self.keys {
            let (ModuleTensor::Base(field) | ModuleTensor::Full(field)) = &key.part else {
                continue;
            };
            let [first, second] = self.module.dims;
            let value = match (field.as_str(), self.module.kind) {
                ("weight", Kind::Norm) => FullValue::Scale(self.vector(key)?),
                ("weight", Kind::Linear(Layout::OutIn)) => {
                    FullValue::Matrix(self.matrix(key, [second, first])?.transpose())
                }
                ("weight", _) => FullValue::Matrix(self.matrix(key, [first, second])?),
                ("bias", _) if self.module.has_bias => FullValue::Bias(self.vector(key)?),
                _ => return Err(self.misplaced(key)),
            };
            full.push(FullTensor {
                path: self.module.path.clone(),
                value,
            });
        }
        Ok(full)
    }

    /// Whether a tied head would change with what this module alone changes. The table of the base
    /// itself is shared, whoever saved it.
    pub(super) fn unties(&self) -> bool {
        let changes = |(_, key): &(String, Key)| !matches!(key.part, ModuleTensor::Base(_));
        let changes = self.keys.iter().any(changes);
        match self.module.kind {
            Kind::Head => changes,
            Kind::Table => changes && !self.adapter.config().keeps_tied,
            Kind::Linear(_) | Kind::Norm => false,
        }
    }

    fn only(&self, parts: &[&ModuleTensor]) -> Result<(), ModelError> {
        let foreign = |(_, key): &&(String, Key)| is_lora(&key.part) && !parts.contains(&&key.part);
        match self.keys.iter().find(foreign) {
            Some((_, key)) => Err(self.misplaced(key)),
            None => Ok(()),
        }
    }

    fn name(&self, part: &ModuleTensor) -> Option<&str> {
        let mut named = self.keys.iter().filter(|(_, key)| key.part == *part);
        named.next().map(|(name, _)| name.as_str())
    }

    fn values(&self, key: &Key, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let missing = || self.adapter.missing(key);
        let name = self.name(&key.part).ok_or_else(missing)?;
        self.adapter.weights.values(name, shape)
    }

    fn matrix(&self, key: &Key, shape: [usize; 2]) -> Result<Tensor<2>, ModelError> {
        let values = self.values(key, &shape)?;
        Ok(Tensor::from_data(
            TensorData::new(values, shape),
            self.device,
        ))
    }

    fn vector(&self, key: &Key) -> Result<Tensor<1>, ModelError> {
        let shape = [self.module.dims[1]];
        let values = self.values(key, &shape)?;
        Ok(Tensor::from_data(
            TensorData::new(values, shape),
            self.device,
        ))
    }

    fn misplaced(&self, key: &Key) -> ModelError {
        let path = &self.module.path;
        let name = self.name(&key.part).unwrap_or_default();
        let problem = format!("tensor `{name}` has no place in the module {path}");
        ModelError::file(self.adapter.weights.path(), problem)
    }
}
