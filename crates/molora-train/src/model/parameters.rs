//! Walking over a model's parameters by path and kind.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use molora_models::{ParameterKind, TaskModel};

use crate::report::ParameterCounts;

/// Numbers of the parameters of each kind.
pub(crate) fn ids_by_kind(model: &TaskModel) -> BTreeMap<ParameterKind, Vec<ParamId>> {
    collected(model).ids
}

/// Counts of scalars by kind.
pub fn count(model: &TaskModel) -> ParameterCounts {
    let scalars = collected(model).scalars;
    let of = |kind| scalars.get(&kind).copied().unwrap_or(0);
    let (numbers, scales) = in_blocks(model);
    ParameterCounts {
        base: of(ParameterKind::Base) + of(ParameterKind::Frozen) + numbers - scales,
        adapters: of(ParameterKind::Adapters),
        routers: of(ParameterKind::Routers),
        gates: of(ParameterKind::Gates),
        heads: of(ParameterKind::Heads),
        saved: of(ParameterKind::Saved),
    }
}

/// Numbers of the base model's matrices of 8 or 4 bits, which the walk over parameters does not see, and their scales,
/// which it takes for parameters.
fn in_blocks(model: &TaskModel) -> (usize, usize) {
    let mut sums = (0, 0);
    for blocks in model.backbone.block_matrices() {
        sums.0 += blocks.dims().iter().product::<usize>();
        sums.1 += blocks.num_scales();
    }
    sums
}

fn collected(model: &TaskModel) -> Collect {
    let mut visitor = Collect {
        kinds: model.kinds(),
        ..Collect::default()
    };
    model.visit(&mut visitor);
    visitor
}

/// Path of a trainable parameter that holds NaN or an infinity, and that value.
pub(crate) fn find_not_finite(model: &TaskModel) -> Option<(String, f64)> {
    let mut visitor = FindNotFinite::default();
    model.visit(&mut visitor);
    visitor.found
}

/// Makes exactly the parameters of the given kinds trainable.
pub(crate) fn set_trainable(model: TaskModel, kinds: &[ParameterKind]) -> TaskModel {
    let mut mapper = SetTrainable {
        of: model.kinds(),
        train: kinds,
    };
    model.map(&mut mapper)
}

#[derive(Default)]
struct Collect {
    kinds: BTreeMap<ParamId, ParameterKind>,
    ids: BTreeMap<ParameterKind, Vec<ParamId>>,
    scalars: BTreeMap<ParameterKind, usize>,
}

impl ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let kind = kind_of(&self.kinds, param.id);
        self.ids.entry(kind).or_default().push(param.id);
        *self.scalars.entry(kind).or_default() += param.val().shape().num_elements();
    }
}

/// What no part has is the base model's.
fn kind_of(kinds: &BTreeMap<ParamId, ParameterKind>, id: ParamId) -> ParameterKind {
    kinds.get(&id).copied().unwrap_or(ParameterKind::Base)
}

#[derive(Default)]
struct FindNotFinite {
    path: Vec<String>,
    found: Option<(String, f64)>,
}

impl ModuleVisitor for FindNotFinite {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.found.is_some() || !param.is_require_grad() {
            return;
        }
        let data = param.val().into_data();
        let value = data.iter::<f64>().find(|value| !value.is_finite());
        self.found = value.map(|value| (self.path.join("."), value));
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
}

struct SetTrainable<'a> {
    of: BTreeMap<ParamId, ParameterKind>,
    train: &'a [ParameterKind],
}

impl ModuleMapper for SetTrainable<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trains = self.train.contains(&kind_of(&self.of, param.id));
        param.set_require_grad(trains)
    }
}
