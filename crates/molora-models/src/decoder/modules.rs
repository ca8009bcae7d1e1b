//! The parts of a decoder by the names of its files.

use molora_routing::LayerRule;

use super::experts::FeedForwardPart;
use super::layer::{Layer, PartNorms};
use super::model::Decoder;
use super::names::Names;
use super::sites::part_linears_mut;
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
        let final_norm = self.final_norm.as_mut().map(PartMut::norm);
        modules.extend(final_norm.map(|norm| module(path(names.final_norm), norm)));
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

    /// Gate and up of all experts of a layer, and down of all.
    fn held_as_one(&self) -> Vec<Vec<String>> {
        let names = self.names;
        let layers = self.layers.iter().enumerate();
        let experts = layers.filter_map(|(index, layer)| match &layer.feed_forward {
            FeedForwardPart::Experts(part) => Some((index, part.experts.len())),
            FeedForwardPart::Dense(_) => None,
        });
        let groups = experts.flat_map(|(index, count)| {
            [&[0, 1][..], &[2]].map(|parts| {
                let path = |expert, part| names.layer(index, &names.of_expert(expert, part));
                let each =
                    (0..count).flat_map(|expert| parts.iter().map(move |&part| (expert, part)));
                each.map(|(expert, part)| path(expert, part)).collect()
            })
        });
        groups.collect()
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
    let linear = |part: &str, linear: &'a mut MoLoraLinear| {
        module(part, PartMut::Linear(vec![linear], names.layout))
    };
    let norm = |part, norm: &'a mut RmsNorm| module(part, PartMut::Norm(&mut norm.weight, None));
    let [attention_input, attention_output] = norms(&mut layer.attention_norms);
    let [feed_forward_input, feed_forward_output] = norms(&mut layer.feed_forward_norms);
    let attention = &mut layer.attention;
    let mut modules = Vec::new();
    modules.extend(attention_input.map(|part| module(names.attention_norm, part)));
    let qkv = attention.qkv.linears_mut();
    match names.fused_qkv {
        Some(fused) => {
            let parts = qkv.into_iter().flatten().collect();
            modules.push(module(fused, PartMut::Linear(parts, names.layout)));
        }
        None => {
            let parts = names.qkv.into_iter().zip(qkv);
            modules.extend(parts.filter_map(|(part, value)| Some(linear(part, value?))));
        }
    }
    let qk_norms = names
        .qk_norm
        .into_iter()
        .zip(attention.qk_norm.iter_mut().flatten());
    modules.extend(qk_norms.map(|(part, value)| norm(part, value)));
    modules.push(linear(names.output, &mut attention.output));
    modules.extend(attention_output.map(|part| module(names.attention_output_norm, part)));
    modules.extend(feed_forward_input.map(|part| module(names.feed_forward_norm, part)));
    let parts = part_linears_mut(names, &mut layer.feed_forward).into_iter();
    modules.extend(parts.map(|(part, value)| linear(&part, value)));
    modules.extend(feed_forward_output.map(|part| module(names.feed_forward_output_norm, part)));
    modules
}

/// The normalisation that the files name for what a part reads or for the sum behind it, and that of what
/// it gives.
fn norms(norms: &mut PartNorms) -> [Option<PartMut<'_>>; 2] {
    let first = norms.input.as_mut().or(norms.sum.as_mut());
    [first, norms.output.as_mut()].map(|norm| norm.map(PartMut::norm))
}
