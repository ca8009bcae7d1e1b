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

/// Parts of paths that were other ones when optimizer states were first written: numbers go by the paths of then.
const MOVED: [(&str, &str); 3] = [
    (".core.Scale.sigma", ".rank_scale"),
    (".qkv.Apart.", ".qkv."),
    (".feed_forward.Dense.", ".feed_forward."),
];

/// In front of the layers of an encoder.
const ENCODER: &str = "Encoder.layers.";

/// The same of how a path in a layer of an encoder begins.
const IN_ENCODER: [(&str, &str); 6] = [
    ("attention.qkv.0.", "query."),
    ("attention.qkv.1.", "key."),
    ("attention.qkv.2.", "value."),
    ("attention.output.", "attention_output."),
    ("up.", "intermediate."),
    ("down.", "output."),
];

/// The path that a parameter had when optimizer states were first written.
fn first_path(path: &str) -> String {
    let mut path = path.to_owned();
    if let Some((front, layer)) = path.split_once(ENCODER)
        && let Some((index, place)) = layer.split_once('.')
    {
        let moved = IN_ENCODER
            .iter()
            .find_map(|(now, then)| Some((place.strip_prefix(now)?, then)));
        if let Some((rest, then)) = moved {
            path = format!("{front}{ENCODER}{index}.{then}{rest}");
        }
    }
    for (now, then) in MOVED {
        path = path.replace(now, then);
    }
    path
}

/// The path of where a walk is.
struct ByPath(Vec<String>);

impl ModuleMapper for ByPath {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = first_path(&self.0.join("."));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_first_states() {
        let encoder = "backbone.Encoder.layers.3.";
        let decoder = "backbone.Decoder.layers.3.";
        let both = "backbone.EncoderDecoder.decoder.blocks.0.";
        for (front, now, then) in [
            (
                encoder,
                "attention.qkv.0.adapter.bank.a",
                "query.adapter.bank.a",
            ),
            (
                encoder,
                "attention.qkv.2.adapter.bank.b",
                "value.adapter.bank.b",
            ),
            (
                encoder,
                "attention.output.adapter.bank.a",
                "attention_output.adapter.bank.a",
            ),
            (
                encoder,
                "up.adapter.router.weight",
                "intermediate.adapter.router.weight",
            ),
            (encoder, "down.adapter.bank.a", "output.adapter.bank.a"),
            (encoder, "router.router.weight", "router.router.weight"),
            (
                decoder,
                "attention.qkv.Apart.1.adapter.bank.a",
                "attention.qkv.1.adapter.bank.a",
            ),
            (
                decoder,
                "attention.output.adapter.bank.a",
                "attention.output.adapter.bank.a",
            ),
            (
                decoder,
                "feed_forward.Dense.up.adapter.bank.a",
                "feed_forward.up.adapter.bank.a",
            ),
            (
                both,
                "cross.1.qkv.Apart.0.adapter.bank.a",
                "cross.1.qkv.0.adapter.bank.a",
            ),
            (
                both,
                "attention.output.adapter.core.Scale.sigma",
                "attention.output.adapter.rank_scale",
            ),
        ] {
            assert_eq!(
                first_path(&format!("{front}{now}")),
                format!("{front}{then}")
            );
        }
    }
}
