//! Changes of whole weights, which no low-rank factors hold.

use std::collections::BTreeSet;

use burn::module::{Param, ParamId};
use burn::tensor::Tensor;
use molora_adapters::merge::{Rule, TaskVector};

use super::apply::each_output;
use super::combine::refuse_unweighable;
use super::resolve::ResolvedAdapter;
use crate::modules::{BaseModel, PartMut};
use crate::{BaseWeight, ModelError};

/// What is added to the weights of a model, by the module's path: `[D, O]` for a linear layer and for
/// the head, `[V, D]` for a table of embeddings.
#[derive(Debug, Clone, Default)]
pub struct WeightDeltas {
    /// The changes.
    pub changes: TaskVector,
    /// Whether a head that is the table of embeddings needs a table of its own.
    pub unties: bool,
}

impl WeightDeltas {
    /// What one adapter adds to each weight.
    ///
    /// # Errors
    /// As [`merged_deltas`].
    pub fn of(adapter: &ResolvedAdapter) -> Result<Self, ModelError> {
        merged_deltas(&[(adapter, 1.0)], Rule::default())
    }
}

/// The change of each weight from those of several adapters, each with a weight, by a rule on the
/// deltas `s A B` themselves. A module that only some of them change is merged from those.
///
/// # Errors
/// [`ModelError::Adapter`] for a number out of range; [`ModelError::Inconsistent`] for an adapter with
/// magnitudes (DoRA) or parameters that it holds whole.
pub fn merged_deltas(
    adapters: &[(&ResolvedAdapter, f64)],
    rule: Rule,
) -> Result<WeightDeltas, ModelError> {
    refuse_unweighable(adapters)?;
    let field = "merge";
    rule.validate()
        .map_err(|source| ModelError::Adapter { field, source })?;
    let all = adapters.iter().flat_map(|(adapter, _)| &adapter.loras);
    let paths: BTreeSet<&str> = all.map(|lora| &lora.path[..]).collect();
    let change = |path: &str| {
        // One module at a time: a model's deltas take as much memory as its weights.
        let own = adapters
            .iter()
            .filter_map(|(adapter, weight)| Some((adapter.lora(path)?.delta(), *weight)));
        (path.to_owned(), rule.apply(path, &own.collect::<Vec<_>>()))
    };
    Ok(WeightDeltas {
        changes: TaskVector::new(paths.into_iter().map(change).collect()),
        unties: adapters.iter().any(|(adapter, _)| adapter.unties),
    })
}

/// Adds changes to the weights of a model. Where a change has a gradient the weight has it too, so
/// that coefficients of changes can be learned.
///
/// # Panics
/// If a change has another shape than its weight.
pub fn add_deltas<M: BaseModel>(model: &mut M, deltas: &WeightDeltas) {
    if deltas.unties {
        model.untie();
    }
    for module in model.modules_mut() {
        let Some(delta) = deltas.changes.get(&module.path) else {
            continue;
        };
        match module.part {
            PartMut::Linear(mut parts, _) => each_output(&mut parts, |part, start, count| {
                let own = delta.clone().narrow(1, start, count);
                part.weight = BaseWeight::Numbers(kept(part.weight.wide() + own));
            }),
            PartMut::Table(mut table) => table.set(kept(table.wide() + delta.clone())),
            PartMut::Head(mut table) => {
                let changed = table.wide() + delta.clone().transpose();
                table.set(kept(changed));
            }
            PartMut::Norm(..) => unreachable!("a normalisation has no low-rank delta"),
        }
    }
}

/// Paths of a model's tables of embeddings.
pub fn tables<M: BaseModel>(model: &M) -> Vec<String> {
    let mut model = model.clone();
    let modules = model.modules_mut().into_iter();
    let tables = modules.filter(|module| matches!(module.part, PartMut::Table(_)));
    tables.map(|module| module.path).collect()
}

/// A parameter that stays part of what it was computed from.
fn kept(tensor: Tensor<2>) -> Param<Tensor<2>> {
    Param::initialized(ParamId::new(), tensor)
}
