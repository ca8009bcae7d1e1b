//! Training that reaches nothing but new values of a model: those of an expert that joins others.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, Device, Tensor, TensorData};
use molora_models::{ParameterKind, TaskModel};
use molora_parts::PartTensor;

/// Which values of a model's parameters are new, where nothing else trains.
///
/// Experts lie in common tensors. Their gradient is 0 at values that are not new, so that AdamW without
/// weight decay leaves these as they are, bit for bit.
#[derive(Debug)]
pub struct NewValues {
    /// Which values are old, by parameter; none where none is.
    old: BTreeMap<ParamId, Option<Tensor<1, Bool>>>,
    kinds: BTreeSet<ParameterKind>,
    device: Device,
}

impl NewValues {
    /// None yet, for a model on a device.
    pub(crate) fn none(device: &Device) -> Self {
        Self {
            old: BTreeMap::new(),
            kinds: BTreeSet::new(),
            // Gradients have none themselves.
            device: device.clone().inner(),
        }
    }

    /// Adds those of a tensor, with a flag for each of its values in the order of memory.
    pub(crate) fn add(&mut self, tensor: &PartTensor<'_>, is_new: &[bool]) {
        if !is_new.contains(&true) {
            return;
        }
        let old: Vec<bool> = is_new.iter().map(|is_new| !is_new).collect();
        let mask = old.contains(&true).then(|| {
            let values = TensorData::new(old, [is_new.len()]);
            Tensor::from_data(values, &self.device)
        });
        self.old.insert(tensor.id(), mask);
        self.kinds.insert(tensor.kind());
    }

    /// Whether there is any of these kinds.
    pub(crate) fn has_any(&self, kinds: &[ParameterKind]) -> bool {
        kinds.iter().any(|kind| self.kinds.contains(kind))
    }

    /// The model where no parameter without new values trains.
    pub(crate) fn freeze_others(&self, model: TaskModel) -> TaskModel {
        model.map(&mut FreezeOthers(self))
    }

    /// Sets the gradients of all values that are not new to 0.
    pub(crate) fn keep_others(&self, gradients: &mut GradientsParams, model: &TaskModel) {
        let mut visitor = KeepOthers {
            new: self,
            gradients,
        };
        model.visit(&mut visitor);
    }
}

struct FreezeOthers<'a>(&'a NewValues);

impl ModuleMapper for FreezeOthers<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trains = param.is_require_grad() && self.0.old.contains_key(&param.id);
        param.set_require_grad(trains)
    }
}

struct KeepOthers<'a> {
    new: &'a NewValues,
    gradients: &'a mut GradientsParams,
}

impl ModuleVisitor for KeepOthers<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(Some(old)) = self.new.old.get(&param.id) else {
            return;
        };
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let old = old.clone().reshape(gradient.dims());
            self.gradients
                .register(param.id, gradient.mask_fill(old, 0.0));
        }
    }
}
