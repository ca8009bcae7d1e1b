//! The parts of BERT by the names of its files.

use molora_routing::LayerRule;

use super::Bert;
use super::bert::{Embeddings, Layer, layer_path};
use crate::modules::{BaseModel, Layout, ModuleMut, PartMut, TableMut};
use crate::{LayerNorm, SavedTables};

impl BaseModel for Bert {
    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let layers = self.layers.iter_mut().enumerate();
        let layers = layers.flat_map(|(index, layer)| layer_modules(index, layer));
        let embeddings = embedding_modules(&mut self.embeddings);
        embeddings.into_iter().chain(layers).collect()
    }

    fn clear_routers(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.router = None);
        self.layer_rule = LayerRule::default();
        self.part = None;
        self.saved = SavedTables::default();
    }

    fn leaves_out(&self, path: &str) -> bool {
        ["pooler.", "bert.pooler."]
            .iter()
            .any(|front| path.starts_with(front))
    }
}

fn embedding_modules(embeddings: &mut Embeddings) -> [ModuleMut<'_>; 4] {
    let path = |part: &str| format!("embeddings.{part}");
    let table = |part, table| ModuleMut {
        path: path(part),
        part: PartMut::Table(TableMut::Numbers(table)),
    };
    [
        table("word_embeddings", &mut embeddings.word),
        table("position_embeddings", &mut embeddings.position),
        table("token_type_embeddings", &mut embeddings.token_type),
        norm(path("LayerNorm"), &mut embeddings.norm),
    ]
}

fn layer_modules(index: usize, layer: &mut Layer) -> [ModuleMut<'_>; 8] {
    let path = |part: &str| layer_path(index, part);
    let linear = |part, linear| ModuleMut {
        path: path(part),
        part: PartMut::Linear(vec![linear], Layout::OutIn),
    };
    [
        linear("attention.self.query", &mut layer.query),
        linear("attention.self.key", &mut layer.key),
        linear("attention.self.value", &mut layer.value),
        linear("attention.output.dense", &mut layer.attention_output),
        norm(
            path("attention.output.LayerNorm"),
            &mut layer.attention_norm,
        ),
        linear("intermediate.dense", &mut layer.intermediate),
        linear("output.dense", &mut layer.output),
        norm(path("output.LayerNorm"), &mut layer.output_norm),
    ]
}

fn norm(path: String, norm: &mut LayerNorm) -> ModuleMut<'_> {
    ModuleMut {
        path,
        part: PartMut::Norm(&mut norm.gamma, Some(&mut norm.beta)),
    }
}
