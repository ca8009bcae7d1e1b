//! The parts of a decoder by the names of its files.

use molora_routing::LayerRule;

use super::config::Names;
use super::model::{Decoder, Layer};
use crate::layers::RmsNorm;
use crate::modules::{BaseModel, ModuleMut, PartMut};
use crate::{MoLoraLinear, SavedTables};

impl BaseModel for Decoder {
    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let names = self.names;
        let path = |part: &str| format!("{}{part}", names.prefix);
        let module = |path, part| ModuleMut { path, part };
        let tokens = PartMut::Table((&mut self.tokens).into());
        let mut modules = vec![module(path(names.tokens), tokens)];
        let positions = self.positions.as_mut();
        let positions = positions.map(|table| PartMut::Table(table.into()));
        modules.extend(positions.map(|table| module(path(names.positions), table)));
        for (index, layer) in self.layers.iter_mut().enumerate() {
            modules.extend(layer_modules(names, index, layer));
        }
        let final_norm = PartMut::norm(&mut self.final_norm);
        modules.push(module(path(names.final_norm), final_norm));
        let head = self.head.as_mut().map(|head| PartMut::Head(head.into()));
        modules.extend(head.map(|head| module(names.head.into(), head)));
        modules
    }

    fn clear_routers(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.router = None);
        self.layer_rule = LayerRule::default();
        self.part = None;
        self.saved = SavedTables::default();
    }

    fn copies_table(&self, path: &str) -> bool {
        self.head.is_none() && path == self.names.head
    }

    fn untie(&mut self) {
        let table = &self.tokens;
        self.head.get_or_insert_with(|| table.clone());
    }
}

fn layer_modules<'a>(names: &Names, index: usize, layer: &'a mut Layer) -> Vec<ModuleMut<'a>> {
    let path = |part: &str| names.layer(index, part);
    let module = |part: &str, value| ModuleMut {
        path: path(part),
        part: value,
    };
    let linear = |part, linear: &'a mut MoLoraLinear| {
        module(part, PartMut::Linear(vec![linear], names.layout))
    };
    let norm = |part, norm: &'a mut RmsNorm| module(part, PartMut::Norm(&mut norm.weight, None));
    let attention = &mut layer.attention;
    let mut modules = vec![module(
        names.attention_norm,
        PartMut::norm(&mut layer.attention_norm),
    )];
    match names.fused_qkv {
        Some(fused) => {
            let parts = attention.qkv.iter_mut().collect();
            modules.push(module(fused, PartMut::Linear(parts, names.layout)));
        }
        None => {
            let parts = names.qkv.into_iter().zip(&mut attention.qkv);
            modules.extend(parts.map(|(part, value)| linear(part, value)));
        }
    }
    let norms = attention.qk_norm.iter_mut().flatten();
    modules.extend(
        names
            .qk_norm
            .into_iter()
            .zip(norms)
            .map(|(part, value)| norm(part, value)),
    );
    modules.push(linear(names.output, &mut attention.output));
    modules.push(module(
        names.feed_forward_norm,
        PartMut::norm(&mut layer.feed_forward_norm),
    ));
    let parts = &mut layer.feed_forward;
    modules.extend(parts.gate.as_mut().map(|gate| linear(names.gate, gate)));
    modules.push(linear(names.up, &mut parts.up));
    modules.push(linear(names.down, &mut parts.down));
    modules
}
