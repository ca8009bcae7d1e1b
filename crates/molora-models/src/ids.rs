//! Numbers of parameters that are the same in every process.

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;
use molora_kernels::random::Seed;

/// Numbers every parameter of a model by a hash of its path in the module tree.
///
/// burn keeps an optimizer's state by these numbers and otherwise draws them anew: without this the state
/// that was saved in one process finds no parameter in another one, and training begins with an empty
/// state.
pub fn with_stable_ids<M: Module>(model: M) -> M {
    model.map(&mut ByPath(Vec::new()))
}

/// Places of parameters that had another path when optimizer states were first written: numbers go
/// by the paths of then.
const MOVED: [(&str, &str); 1] = [(".core.Scale.sigma", ".rank_scale")];

/// The path of where a walk is.
struct ByPath(Vec<String>);

impl ModuleMapper for ByPath {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.0.join(".");
        let moved = MOVED.iter().find(|(now, _)| path.ends_with(now));
        let path = moved.map_or(path.clone(), |(now, then)| path.replace(now, then));
        let id = ParamId::from(Seed::new(0).child(&path).value());
        let trains = param.is_require_grad();
        Param::initialized(id, param.into_value()).set_require_grad(trains)
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.0.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.0.pop();
    }
}
