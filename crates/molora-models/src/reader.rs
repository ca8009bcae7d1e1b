//! Building layers from the tensors of a model folder.

use std::collections::HashSet;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

use crate::base_dtype::{BaseDtype, transposed};
use crate::checkpoint::{ModelWeights, old_name};
use crate::layers::{Norm, frozen};
use crate::{LayerNorm, MoLoraLinear, ModelError, RmsNorm, TokenTable};

/// How the matrix of a linear layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in]`, PyTorch's `Linear`.
    OutIn,
    /// `[in, out]`, transformers' `Conv1D`.
    InOut,
}

/// Reads layers by their paths, and remembers which tensors were read.
pub(crate) struct Reader<'a> {
    pub(crate) weights: ModelWeights,
    /// In front of all paths in the file.
    pub(crate) prefix: &'static str,
    /// Left out of paths, where the file does.
    pub(crate) absent_prefix: &'static str,
    pub(crate) layout: Layout,
    pub(crate) epsilon: f64,
    /// Of the matrices of linear layers, embeddings and heads.
    pub(crate) dtype: BaseDtype,
    pub(crate) device: &'a Device,
    pub(crate) read: HashSet<String>,
}

impl Reader<'_> {
    /// The values of a tensor by the path of its layer.
    pub(crate) fn values(
        &mut self,
        path: &str,
        part: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, ModelError> {
        let path = path.strip_prefix(self.absent_prefix).unwrap_or(path);
        let mut name = format!("{}{path}.{part}", self.prefix);
        if !self.weights.has(&name)
            && let Some(old) = old_name(&name).filter(|old| self.weights.has(old))
        {
            name = old;
        }
        let values = self.weights.values(&name, shape)?;
        self.read.insert(name);
        Ok(values)
    }

    pub(crate) fn tensor<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), self.device)
    }

    /// A large table whose rows are looked up, as it is stored.
    pub(crate) fn large_table(
        &mut self,
        path: &str,
        shape: [usize; 2],
    ) -> Result<Param<Tensor<2>>, ModelError> {
        let values = self.values(path, "weight", &shape)?;
        let data = TensorData::new(values, shape);
        Ok(frozen(self.dtype.table(data, self.device)))
    }

    /// The table of a vocabulary: embeddings of tokens, or a head that scores them.
    pub(crate) fn token_table(
        &mut self,
        path: &str,
        shape: [usize; 2],
    ) -> Result<TokenTable, ModelError> {
        let values = self.values(path, "weight", &shape)?;
        let data = TensorData::new(values, shape);
        Ok(self.dtype.token_table(data, self.device))
    }

    /// A table of rows in f32, as it is stored.
    pub(crate) fn table(
        &mut self,
        path: &str,
        shape: [usize; 2],
    ) -> Result<Param<Tensor<2>>, ModelError> {
        let values = self.values(path, "weight", &shape)?;
        Ok(frozen(self.tensor(values, shape)))
    }

    /// The numbers of a weight in the file's layout.
    fn weight(
        &mut self,
        path: &str,
        [inputs, outputs]: [usize; 2],
    ) -> Result<Vec<f32>, ModelError> {
        let shape = match self.layout {
            Layout::InOut => [inputs, outputs],
            Layout::OutIn => [outputs, inputs],
        };
        self.values(path, "weight", &shape)
    }

    /// A linear layer of so many inputs and outputs.
    pub(crate) fn linear(
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
        let weight = self.dtype.weight(weight, dims, self.layout, self.device);
        Ok(MoLoraLinear::new(weight, bias))
    }

    /// Linear layers that the file holds side by side.
    pub(crate) fn split<const N: usize>(
        &mut self,
        path: &str,
        inputs: usize,
        outputs: [usize; N],
        has_bias: bool,
    ) -> Result<[MoLoraLinear; N], ModelError> {
        let all = outputs.iter().sum();
        let mut fused = self.weight(path, [inputs, all])?;
        if self.layout == Layout::InOut {
            fused = transposed(&fused, [inputs, all]);
        }
        let bias = match has_bias {
            true => Some(self.values(path, "bias", &[all])?),
            false => None,
        };
        let mut start = 0;
        Ok(outputs.map(|width| {
            let rows = start..start + width;
            let weight = fused[rows.start * inputs..rows.end * inputs].to_vec();
            let dims = [inputs, width];
            let weight = self.dtype.weight(weight, dims, Layout::OutIn, self.device);
            let bias = bias
                .as_ref()
                .map(|bias| self.tensor(bias[rows].to_vec(), [width]));
            start += width;
            MoLoraLinear::new(weight, bias)
        }))
    }

    /// Layer normalisation.
    pub(crate) fn layer_norm(&mut self, path: &str, width: usize) -> Result<Norm, ModelError> {
        Ok(Norm::Layer(self.shifted_norm(path, width, true)?))
    }

    /// Layer normalisation, which may have no shift.
    pub(crate) fn shifted_norm(
        &mut self,
        path: &str,
        width: usize,
        has_shift: bool,
    ) -> Result<LayerNorm, ModelError> {
        let gamma = self.values(path, "weight", &[width])?;
        let gamma = self.tensor(gamma, [width]);
        if !has_shift {
            return Ok(LayerNorm::without_shift(gamma, self.epsilon));
        }
        let beta = self.values(path, "bias", &[width])?;
        Ok(LayerNorm::new(
            gamma,
            self.tensor(beta, [width]),
            self.epsilon,
        ))
    }

    /// Root-mean-square normalisation.
    pub(crate) fn rms_norm(&mut self, path: &str, width: usize) -> Result<RmsNorm, ModelError> {
        let weight = self.values(path, "weight", &[width])?;
        Ok(RmsNorm::new(self.tensor(weight, [width]), self.epsilon))
    }

    /// Refuses a tensor under one of `prefixes` that was not read: it means that the configuration is
    /// of another model. Others may be heads of other uses, and are named in a warning; those that
    /// end in one of `unused` carry no parameter.
    pub(crate) fn refuse_unread(
        &self,
        prefixes: &[&str],
        unused: &[&str],
    ) -> Result<(), ModelError> {
        let path = self.weights.path();
        for name in self.weights.names() {
            if self.read.contains(name) || unused.iter().any(|end| name.ends_with(end)) {
                continue;
            }
            if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                let problem =
                    format!("tensor `{name}` has no place in the model that config.json describes");
                return Err(ModelError::file(path, problem));
            }
            tracing::warn!("{}: tensor `{name}` is not used", path.display());
        }
        Ok(())
    }
}
