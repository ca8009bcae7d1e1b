//! Several adapters as one.

use std::collections::BTreeSet;

use molora_adapters::merge::{LowRank, MergeMethod, merge};

use super::resolve::{ModuleLora, ResolvedAdapter};
use crate::ModelError;

/// One adapter from several, each with a weight, by a method of PEFT's `add_weighted_adapter`.
///
/// A module that only some of them change is merged from those.
///
/// # Errors
/// [`ModelError::Adapter`] for a number out of range or ranks that do not fit the method;
/// [`ModelError::Inconsistent`] for an adapter with magnitudes (DoRA) or parameters that it holds
/// whole, which have no weighted sum.
pub fn combine(
    adapters: &[(&ResolvedAdapter, f64)],
    method: MergeMethod,
) -> Result<ResolvedAdapter, ModelError> {
    refuse_unweighable(adapters)?;
    let mut seen = BTreeSet::new();
    let all = adapters.iter().flat_map(|(adapter, _)| &adapter.loras);
    let mut loras = Vec::new();
    for lora in all.filter(|lora| seen.insert(&lora.path)) {
        let parts: Vec<(LowRank, f64)> = adapters
            .iter()
            .filter_map(|(adapter, weight)| Some((adapter.lora(&lora.path)?.low_rank(), *weight)))
            .collect();
        let field = "merge";
        let merged = merge(&lora.path, &parts, method)
            .map_err(|source| ModelError::Adapter { field, source })?;
        loras.push(ModuleLora {
            path: lora.path.clone(),
            a: merged.a,
            b: merged.b,
            scale: merged.scale,
            magnitude: None,
        });
    }
    Ok(ResolvedAdapter {
        loras,
        full: Vec::new(),
        unties: adapters.iter().any(|(adapter, _)| adapter.unties),
        dropout: 0.0,
    })
}

/// Refuses adapters that have no weighted sum.
pub(super) fn refuse_unweighable(adapters: &[(&ResolvedAdapter, f64)]) -> Result<(), ModelError> {
    for (index, (adapter, _)) in adapters.iter().enumerate() {
        let odd = adapter.loras.iter().find(|lora| lora.magnitude.is_some());
        let odd = odd.map(|lora| &lora.path);
        if let Some(path) = odd.or(adapter.full.first().map(|full| &full.path)) {
            return Err(ModelError::Inconsistent(format!(
                "adapter {index} changes {path} in a way that has no weighted sum: only plain \
                 low-rank deltas have"
            )));
        }
    }
    Ok(())
}

impl ModuleLora {
    fn low_rank(&self) -> LowRank {
        LowRank {
            a: self.a.clone(),
            b: self.b.clone(),
            scale: self.scale,
        }
    }
}
