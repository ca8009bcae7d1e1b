//! Walking over a model's parameters by path and kind.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use molora_kernels::random::Seed;
use molora_models::{ParameterKind, TaskModel};

use crate::report::ParameterCounts;

/// Path and number of every parameter of one kind.
pub fn ids_by_kind(model: &TaskModel) -> BTreeMap<ParameterKind, Vec<ParamId>> {
    let mut visitor = Collect::default();
    model.visit(&mut visitor);
    visitor.ids
}

/// Counts of scalars by kind.
pub fn count(model: &TaskModel) -> ParameterCounts {
    let mut visitor = Collect::default();
    model.visit(&mut visitor);
    let of = |kind| visitor.scalars.get(&kind).copied().unwrap_or(0);
    ParameterCounts {
        base: of(ParameterKind::Base),
        adapters: of(ParameterKind::Adapters),
        routers: of(ParameterKind::Routers),
        gates: of(ParameterKind::Gates),
        heads: of(ParameterKind::Heads),
    }
}

/// Path of a trainable parameter that holds NaN or an infinity, and that value.
pub fn find_not_finite(model: &TaskModel) -> Option<(String, f64)> {
    let mut visitor = FindNotFinite::default();
    model.visit(&mut visitor);
    visitor.found
}

/// Makes exactly the parameters of the given kinds trainable.
pub fn set_trainable(model: TaskModel, kinds: &[ParameterKind]) -> TaskModel {
    let mut mapper = ByPath {
        path: Vec::new(),
        change: SetTrainable(kinds),
    };
    model.map(&mut mapper)
}

/// Numbers every parameter by a hash of its path, so that the optimizer state in a checkpoint finds
/// its parameters in another process.
pub fn with_stable_ids(model: TaskModel) -> TaskModel {
    model.map(&mut ByPath {
        path: Vec::new(),
        change: SetId,
    })
}

#[derive(Default)]
struct Collect {
    path: Vec<String>,
    ids: BTreeMap<ParameterKind, Vec<ParamId>>,
    scalars: BTreeMap<ParameterKind, usize>,
}

impl ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let kind = ParameterKind::of(&self.path.join("."));
        self.ids.entry(kind).or_default().push(param.id);
        *self.scalars.entry(kind).or_default() += param.val().shape().num_elements();
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
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

/// A change of a parameter that depends on its path alone.
trait Change {
    fn change<const D: usize>(&self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

struct SetTrainable<'a>(&'a [ParameterKind]);

impl Change for SetTrainable<'_> {
    fn change<const D: usize>(&self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.set_require_grad(self.0.contains(&ParameterKind::of(path)))
    }
}

struct SetId;

impl Change for SetId {
    fn change<const D: usize>(&self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let id = ParamId::from(Seed::new(0).child(path).value());
        let trains = param.is_require_grad();
        Param::initialized(id, param.into_value()).set_require_grad(trains)
    }
}

struct ByPath<C> {
    path: Vec<String>,
    change: C,
}

impl<C: Change> ModuleMapper for ByPath<C> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.change.change(&self.path.join("."), param)
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
}
