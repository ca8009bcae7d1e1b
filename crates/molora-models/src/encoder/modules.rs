//! The parts of an encoder by the names of its files.

use molora_routing::LayerRule;

use super::Encoder;
use super::attention::Places;
use super::config::Names;
use super::embeddings::Embeddings;
use super::layer::Layer;
use crate::modules::{BaseModel, Layout, ModuleMut, PartMut, TableMut};
use crate::{LayerNorm, MoLoraLinear, SavedTables};

/// A convolution is the one part that is not listed: it is no linear layer of tokens.
impl BaseModel for Encoder {
    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let names = self.names;
        let mut modules = embedding_modules(names, &mut self.embeddings);
        for (index, layer) in self.layers.iter_mut().enumerate() {
            modules.extend(layer_modules(names, index, layer));
        }
        modules.extend(place_modules(names, &mut self.places));
        let final_norm = self.final_norm.as_mut();
        modules.extend(final_norm.map(|part| norm(names.final_norm.into(), part)));
        modules
    }

    fn clear_routers(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.router = None);
        self.layer_rule = LayerRule::default();
        self.part = None;
        self.saved = SavedTables::default();
    }

    fn leaves_out(&self, path: &str) -> bool {
        let path = path.strip_prefix(self.names.prefix).unwrap_or(path);
        path.starts_with("pooler.")
    }
}

fn embedding_modules<'a>(names: &Names, embeddings: &'a mut Embeddings) -> Vec<ModuleMut<'a>> {
    let table = |path: &str, table| ModuleMut {
        path: path.into(),
        part: PartMut::Table(TableMut::Numbers(table)),
    };
    let mut modules = vec![table(names.words, &mut embeddings.word)];
    let position = embeddings.position.as_mut();
    modules.extend(position.map(|part| table(names.positions, part)));
    let token_type = embeddings.token_type.as_mut();
    modules.extend(token_type.map(|part| table(names.token_types, part)));
    modules.push(norm(names.embedding_norm.into(), &mut embeddings.norm));
    let projection = embeddings.projection.as_mut();
    modules.extend(projection.map(|part| linears(names.projection.into(), vec![part])));
    modules
}

fn layer_modules<'a>(names: &Names, index: usize, layer: &'a mut Layer) -> Vec<ModuleMut<'a>> {
    let path = |part: &str| names.layer(index, part);
    let linear = |part: &str, value| linears(path(part), vec![value]);
    let attention = &mut layer.attention;
    let mut modules = match names.fused_qkv {
        Some(fused) => vec![linears(path(fused), attention.qkv.iter_mut().collect())],
        None => {
            let parts = names.qkv.into_iter().zip(&mut attention.qkv);
            parts.map(|(part, value)| linear(part, value)).collect()
        }
    };
    let key = attention.position_key.as_mut();
    modules.extend(key.map(|part| linear(names.position_key, part)));
    let query = attention.position_query.as_mut();
    modules.extend(query.map(|part| linear(names.position_query, part)));
    modules.push(linear(names.output, &mut attention.output));
    let attention_norm = layer.attention_norm.as_mut();
    modules.extend(attention_norm.map(|part| norm(path(names.attention_norm), part)));
    match (names.fused_gate, layer.gate.as_mut()) {
        (Some(fused), Some(gate)) => modules.push(linears(path(fused), vec![gate, &mut layer.up])),
        (_, gate) => {
            modules.extend(gate.map(|gate| linear(names.gate, gate)));
            modules.push(linear(names.up, &mut layer.up));
        }
    }
    modules.push(linear(names.down, &mut layer.down));
    modules.push(norm(
        path(names.feed_forward_norm),
        &mut layer.feed_forward_norm,
    ));
    let convolution = layer.convolution.as_mut();
    modules.extend(convolution.map(|part| norm(names.convolution_norm.into(), &mut part.norm)));
    modules
}

fn place_modules<'a>(names: &Names, places: &'a mut Places) -> Vec<ModuleMut<'a>> {
    let table = |table| ModuleMut {
        path: names.relative.into(),
        part: PartMut::Table(TableMut::Numbers(table)),
    };
    let mut modules = Vec::new();
    modules.extend(places.bias.as_mut().map(|bias| table(&mut bias.table)));
    if let Some(relative) = &mut places.relative {
        modules.push(table(&mut relative.table));
        let part = relative.norm.as_mut();
        modules.extend(part.map(|part| norm(names.relative_norm.into(), part)));
    }
    modules
}

/// Linear layers that the files hold as one.
fn linears(path: String, parts: Vec<&mut MoLoraLinear>) -> ModuleMut<'_> {
    ModuleMut {
        path,
        part: PartMut::Linear(parts, Layout::OutIn),
    }
}

fn norm(path: String, norm: &mut LayerNorm) -> ModuleMut<'_> {
    ModuleMut {
        path,
        part: PartMut::layer_norm(norm),
    }
}
