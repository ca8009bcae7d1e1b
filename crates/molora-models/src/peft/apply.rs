//! Merging an adapter into a model's weights, or attaching it beside them.

use std::collections::BTreeSet;

use burn::module::Param;
use burn::tensor::Tensor;
use molora_adapters::ExpertBank;

use super::resolve::{FullValue, ModuleLora, ResolvedAdapter};
use crate::layers::frozen;
use crate::modules::{BaseModel, PartMut};
use crate::{Adapter, BaseWeight, MoLoraLinear, ModelError};

/// Adds an adapter to the weights of a model: `W + s A B`, and with magnitudes `m` (DoRA,
/// arXiv:2402.09353, eq. 5) `m (W + s A B) / |W + s A B|` with the norm of each output's weights.
///
/// Parameters that the adapter holds whole come first. A head that is the table of embeddings gets a
/// table of its own where the adapter changes one of the two.
pub fn merge_into<M: BaseModel>(model: &mut M, adapter: &ResolvedAdapter) {
    replace_full(model, adapter);
    for module in model.modules_mut() {
        if let Some(lora) = adapter.lora(&module.path) {
            merge_part(module.part, lora);
        }
    }
}

/// Attaches an adapter as a bank of one expert for each linear layer, with the rank that it has
/// there, and returns the paths of the modules. What it changes outside of linear layers (the head,
/// embeddings, parameters that it holds whole) is merged.
///
/// Adapters and routers that the model had are removed. The factors and magnitudes train.
pub fn attach<M: BaseModel>(model: &mut M, adapter: &ResolvedAdapter) -> Vec<String> {
    replace_full(model, adapter);
    attach_banks(model, &[adapter])
}

/// Attaches adapters as the experts of one bank for each linear layer that any of them changes, in
/// their order, and returns the paths of the modules.
///
/// Ranks may differ: experts are filled up with zeros to the largest rank of the layer, and one that
/// does not change a layer is all zeros there. Without a router every expert has weight 1.
///
/// # Errors
/// [`ModelError::Inconsistent`] for an adapter with magnitudes or parameters that it holds whole, or
/// one that changes embeddings or the head: those cannot be mixed.
pub fn attach_experts<M: BaseModel>(
    model: &mut M,
    adapters: &[&ResolvedAdapter],
) -> Result<Vec<String>, ModelError> {
    let mut linears = Vec::new();
    for module in model.modules_mut() {
        if matches!(module.part, PartMut::Linear(..)) {
            linears.push(module.path);
        }
    }
    for (index, adapter) in adapters.iter().enumerate() {
        let mixes = |lora: &ModuleLora| lora.magnitude.is_none() && linears.contains(&lora.path);
        let odd = adapter
            .loras
            .iter()
            .find(|lora| !mixes(lora))
            .map(|lora| &lora.path);
        if let Some(path) = odd.or(adapter.full.first().map(|full| &full.path)) {
            return Err(ModelError::Inconsistent(format!(
                "adapter {index} changes {path} in a way that cannot be one of several experts: only \
                 low-rank deltas of linear layers can"
            )));
        }
    }
    Ok(attach_banks(model, adapters))
}

impl ResolvedAdapter {
    /// Number of modules that it changes.
    pub fn num_modules(&self) -> usize {
        let loras = self.loras.iter().map(|lora| &lora.path);
        let full = self.full.iter().map(|full| &full.path);
        loras.chain(full).collect::<BTreeSet<_>>().len()
    }

    /// What is added to the weight of a module.
    pub fn lora(&self, path: &str) -> Option<&ModuleLora> {
        self.loras.iter().find(|lora| lora.path == path)
    }
}

impl ModuleLora {
    /// `s A B`, `[D, O]`.
    pub fn delta(&self) -> Tensor<2> {
        self.a.clone().matmul(self.b.clone()).mul_scalar(self.scale)
    }

    /// A weight `[D, O]` with the delta.
    fn merged(&self, weight: Tensor<2>) -> Tensor<2> {
        let sum = weight + self.delta();
        match &self.magnitude {
            None => sum,
            Some(magnitude) => {
                let norm = column_norms(sum.clone());
                sum * (magnitude.clone() / norm).unsqueeze()
            }
        }
    }

    /// The part of the outputs from `start` on.
    fn outputs(&self, start: usize, count: usize) -> Self {
        Self {
            path: self.path.clone(),
            a: self.a.clone(),
            b: self.b.clone().narrow(1, start, count),
            scale: self.scale,
            magnitude: self.magnitude.clone().map(|m| m.narrow(0, start, count)),
        }
    }
}

/// Norms of the columns of `[D, O]`, `[O]`.
pub(crate) fn column_norms(weight: Tensor<2>) -> Tensor<1> {
    weight.powi_scalar(2).sum_dim(0).sqrt().squeeze_dim(0)
}

fn replace_full<M: BaseModel>(model: &mut M, adapter: &ResolvedAdapter) {
    if adapter.unties {
        model.untie();
    }
    for mut module in model.modules_mut() {
        let own = adapter.full.iter().filter(|full| full.path == module.path);
        for full in own {
            replace(&mut module.part, full.value.clone());
        }
    }
}

fn replace(part: &mut PartMut<'_>, value: FullValue) {
    match (part, value) {
        (PartMut::Linear(parts, _), FullValue::Matrix(weight)) => {
            each_output(parts, |part, start, count| {
                let own = weight.clone().narrow(1, start, count);
                part.weight = BaseWeight::of(leaf(own));
            });
        }
        (PartMut::Linear(parts, _), FullValue::Bias(bias)) => {
            each_output(parts, |part, start, count| {
                part.bias = Some(frozen(leaf(bias.clone().narrow(0, start, count))));
            });
        }
        (PartMut::Table(table) | PartMut::Head(table), FullValue::Matrix(weight)) => {
            table.set(frozen(weight));
        }
        (PartMut::Norm(scale, _), FullValue::Scale(value)) => **scale = frozen(value),
        (PartMut::Norm(_, Some(shift)), FullValue::Bias(value)) => **shift = frozen(value),
        (part, value) => unreachable!("{value:?} was read for {part:?}"),
    }
}

/// Visits the layers of a module with where their outputs start and how many they are.
pub(super) fn each_output(
    parts: &mut [&mut MoLoraLinear],
    mut visit: impl FnMut(&mut MoLoraLinear, usize, usize),
) {
    let mut start = 0;
    for part in parts {
        let count = part.dims().d_output;
        visit(part, start, count);
        start += count;
    }
}

/// The same values in memory of their own, in the order of the axes.
fn leaf<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    let device = tensor.device();
    Tensor::from_data(tensor.into_data(), &device)
}

fn merge_part(part: PartMut<'_>, lora: &ModuleLora) {
    match part {
        PartMut::Linear(mut parts, _) => each_output(&mut parts, |part, start, count| {
            let lora = lora.outputs(start, count);
            part.weight = BaseWeight::of(leaf(lora.merged(part.weight.wide())));
        }),
        PartMut::Table(mut table) => table.set(frozen(leaf(lora.merged(table.wide())))),
        PartMut::Head(mut table) => {
            let weight = lora.merged(table.wide().transpose());
            table.set(frozen(leaf(weight.transpose())));
        }
        PartMut::Norm(..) => unreachable!("a normalisation has no low-rank delta"),
    }
}

fn attach_banks<M: BaseModel>(model: &mut M, adapters: &[&ResolvedAdapter]) -> Vec<String> {
    model.clear_routers();
    let (mut site, mut paths) = (0, Vec::new());
    for module in model.modules_mut() {
        let loras: Vec<_> = adapters.iter().map(|a| a.lora(&module.path)).collect();
        match module.part {
            PartMut::Linear(mut parts, _) => {
                parts.iter_mut().for_each(|part| part.detach());
                if loras.iter().all(Option::is_none) {
                    continue;
                }
                each_output(&mut parts, |part, start, count| {
                    let own = |lora: &Option<&ModuleLora>| lora.map(|l| l.outputs(start, count));
                    let own: Vec<_> = loras.iter().map(own).collect();
                    let mut bank = bank(&own, part);
                    bank = bank.with_dropout(adapters[0].dropout);
                    let magnitude = own[0].as_ref().and_then(|lora| lora.magnitude.clone());
                    part.adapter = Some(Adapter {
                        magnitude: magnitude.map(|m| Param::from_tensor(leaf(m))),
                        ..Adapter::of_bank(bank, site)
                    });
                    site += 1;
                });
                paths.push(module.path);
            }
            part => {
                if let Some(lora) = loras.first().copied().flatten() {
                    merge_part(part, lora);
                }
            }
        }
    }
    paths
}

/// A bank of the given experts. The factor is that of the first one, so that a single LoRA keeps its
/// factors as they are in its file.
fn bank(loras: &[Option<ModuleLora>], linear: &MoLoraLinear) -> ExpertBank {
    let ranks = loras.iter().flatten().map(|lora| lora.a.dims()[1]);
    let rank = ranks.max().unwrap_or(1);
    let first = loras.iter().flatten().map(|lora| lora.scale).next();
    let factor = first.unwrap_or(1.0);
    let (dims, device) = (linear.dims(), linear.weight.device());
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for lora in loras {
        let own = lora.as_ref().map_or(0, |lora| lora.a.dims()[1]);
        if let Some(lora) = lora {
            a.push(lora.a.clone());
            b.push(lora.b.clone().mul_scalar(lora.scale / factor));
        }
        if own < rank {
            a.push(Tensor::zeros([dims.d_input, rank - own], &device));
            b.push(Tensor::zeros([rank - own, dims.d_output], &device));
        }
    }
    let (a, b) = (leaf(Tensor::cat(a, 1)), leaf(Tensor::cat(b, 0)));
    ExpertBank::of_matrices(a, b, loras.len(), factor)
}
