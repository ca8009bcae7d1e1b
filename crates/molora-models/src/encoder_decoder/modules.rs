//! The parts of T5 by the names of its files.

use super::model::{Block, Stack, T5};
use super::sites::linears_mut;
use crate::SavedTables;
use crate::layers::RmsNorm;
use crate::modules::{BaseModel, Layout, ModuleMut, PartMut};

impl BaseModel for T5 {
    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let mut modules = vec![ModuleMut {
            path: "shared".into(),
            part: PartMut::Table((&mut self.tokens).into()),
        }];
        modules.extend(stack_modules("encoder", &mut self.encoder));
        modules.extend(stack_modules("decoder", &mut self.decoder));
        let head = self.head.as_mut().map(|head| PartMut::Head(head.into()));
        modules.extend(head.map(|part| ModuleMut {
            path: "lm_head".into(),
            part,
        }));
        modules
    }

    fn clear_routers(&mut self) {
        let blocks = self.encoder.blocks.iter_mut();
        let blocks = blocks.chain(&mut self.decoder.blocks);
        blocks.for_each(|block| block.router = None);
        self.part = None;
        self.saved = SavedTables::default();
    }

    fn copies_table(&self, path: &str) -> bool {
        path.ends_with("embed_tokens") || (self.head.is_none() && path == "lm_head")
    }

    fn head_scale(&self) -> f64 {
        self.head_scale
    }

    fn untie(&mut self) {
        let table = &self.tokens;
        self.head.get_or_insert_with(|| table.clone());
    }
}

fn stack_modules<'a>(name: &str, stack: &'a mut Stack) -> Vec<ModuleMut<'a>> {
    let mut modules = vec![ModuleMut {
        path: format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias"),
        part: PartMut::Table((&mut stack.bias.table).into()),
    }];
    for (index, block) in stack.blocks.iter_mut().enumerate() {
        modules.extend(block_modules(&format!("{name}.block.{index}"), block));
    }
    let path = format!("{name}.final_layer_norm");
    modules.push(norm(path, &mut stack.final_norm));
    modules
}

fn block_modules<'a>(path: &str, block: &'a mut Block) -> Vec<ModuleMut<'a>> {
    let last = 1 + usize::from(block.cross.is_some());
    let norm_path = |part: usize| format!("{path}.layer.{part}.layer_norm");
    // Linear layers and normalisations are apart: both borrow the block.
    let Block {
        attention_norm,
        cross,
        feed_forward_norm,
        attention,
        feed_forward,
        router: _,
    } = block;
    let (cross_norm, cross) = match cross {
        Some((norm, attention)) => (Some(norm), Some(attention)),
        None => (None, None),
    };
    let mut modules = vec![norm(norm_path(0), attention_norm)];
    modules.extend(cross_norm.map(|part| norm(norm_path(1), part)));
    modules.push(norm(norm_path(last), feed_forward_norm));
    let linears = linears_mut(attention, cross, feed_forward);
    modules.extend(linears.into_iter().map(|(part, linear)| ModuleMut {
        path: format!("{path}.{part}"),
        part: PartMut::Linear(vec![linear], Layout::OutIn),
    }));
    modules
}

fn norm(path: String, norm: &mut RmsNorm) -> ModuleMut<'_> {
    ModuleMut {
        path,
        part: PartMut::Norm(&mut norm.weight, None),
    }
}
