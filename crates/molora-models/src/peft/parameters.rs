//! The parameters of a model by their names in files.

use burn::tensor::Tensor;

use crate::base_dtype::wide;
use crate::modules::{BaseModel, Layout, PartMut};
use crate::{BaseWeight, MoLoraLinear, ModelError};

/// A parameter of the model by its name in files.
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    value: Stored,
    pub(crate) is_head: bool,
    pub(crate) scale: f64,
}

/// Tensors side by side that share memory with the model, laid out when they are written.
enum Stored {
    Table(Box<Tensor<2>>),
    Weights(Vec<BaseWeight>, Layout),
    Vectors(Vec<Tensor<1>>),
}

impl Parameter {
    fn new(path: &str, field: &str, value: Stored) -> Self {
        let shape = match &value {
            Stored::Vectors(parts) => vec![parts.iter().map(|part| part.dims()[0]).sum()],
            Stored::Table(table) => table.dims().to_vec(),
            Stored::Weights(parts, layout) => {
                let inputs = parts[0].dims()[0];
                let outputs = parts.iter().map(|part| part.dims()[1]).sum();
                match layout {
                    Layout::OutIn => vec![outputs, inputs],
                    Layout::InOut => vec![inputs, outputs],
                }
            }
        };
        Self {
            name: format!("{path}.{field}"),
            shape,
            value,
            is_head: false,
            scale: 1.0,
        }
    }

    /// Row by row.
    pub(crate) fn values(&self) -> Vec<f32> {
        let data = match &self.value {
            Stored::Vectors(parts) => Tensor::cat(parts.clone(), 0).into_data(),
            Stored::Table(table) => {
                let table = wide((**table).clone());
                let is_scaled = self.scale != 1.0;
                let table = if is_scaled {
                    table.mul_scalar(self.scale)
                } else {
                    table
                };
                table.into_data()
            }
            Stored::Weights(parts, layout) => {
                let all = Tensor::cat(parts.iter().map(BaseWeight::wide).collect(), 1);
                match layout {
                    Layout::OutIn => all.transpose().into_data(),
                    Layout::InOut => all.into_data(),
                }
            }
        };
        data.try_into_vec().expect("parameters are f32")
    }
}

/// All parameters of a model without adapters.
pub(crate) fn parameters<M: BaseModel>(model: &mut M) -> Result<Vec<Parameter>, ModelError> {
    let mut all = Vec::new();
    if let Some((path, _)) = model.saved_mut().into_iter().next() {
        let text = format!("a trained table is in the place of {path}: merge it first");
        return Err(ModelError::Inconsistent(text));
    }
    for module in model.modules_mut() {
        let path = module.path.as_str();
        let put = |field: &str, value| Parameter::new(path, field, value);
        match module.part {
            PartMut::Table(table) => {
                let rows = Stored::Table(Box::new(table.kept()));
                all.push(put("weight", rows));
            }
            PartMut::Head(table) => {
                let rows = Stored::Table(Box::new(table.kept()));
                all.push(Parameter {
                    is_head: true,
                    ..put("weight", rows)
                });
            }
            PartMut::Norm(scale, shift) => {
                all.push(put("weight", Stored::Vectors(vec![scale.val()])));
                let shift = shift.map(|shift| Stored::Vectors(vec![shift.val()]));
                all.extend(shift.map(|shift| put("bias", shift)));
            }
            PartMut::Linear(linears, layout) => {
                if linears.iter().any(|linear| linear.adapter.is_some()) {
                    let text = format!("an adapter is attached to {path}: merge it first");
                    return Err(ModelError::Inconsistent(text));
                }
                let weights = linears.iter().map(|linear| linear.weight.clone()).collect();
                all.push(put("weight", Stored::Weights(weights, layout)));
                let biases = biases(&linears).map(Stored::Vectors);
                all.extend(biases.map(|biases| put("bias", biases)));
            }
        }
    }
    Ok(all)
}

fn biases(linears: &[&mut MoLoraLinear]) -> Option<Vec<Tensor<1>>> {
    let biases = linears
        .iter()
        .map(|linear| Some(linear.bias.as_ref()?.val()));
    biases.collect()
}
