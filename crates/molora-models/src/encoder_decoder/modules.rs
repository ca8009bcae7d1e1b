//! The parts of an encoder-decoder by the names of its files.

use super::EncoderDecoder;
use super::config::{HEAD, Half, LINEARS, Names};
use super::layer::{Block, Stack};
use crate::layers::Norm;
use crate::modules::{BaseModel, Layout, ModuleMut, PartMut};
use crate::{MoLoraLinear, SavedTables};

/// The bias of the head is the one part that is not listed: in files it is no parameter.
impl BaseModel for EncoderDecoder {
    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let names = self.names;
        let mut modules = vec![ModuleMut {
            path: names.tokens(),
            part: PartMut::Table((&mut self.tokens).into()),
        }];
        modules.extend(stack_modules(names, Half::Encoder, &mut self.encoder));
        modules.extend(stack_modules(names, Half::Decoder, &mut self.decoder));
        let head = self.head.as_mut().map(|head| PartMut::Head(head.into()));
        modules.extend(head.map(|part| ModuleMut {
            path: HEAD.into(),
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
        path.ends_with("embed_tokens") || (self.head.is_none() && path == HEAD)
    }

    fn head_scale(&self) -> f64 {
        self.head_scale
    }

    fn untie(&mut self) {
        let table = &self.tokens;
        self.head.get_or_insert_with(|| table.clone());
    }
}

fn stack_modules<'a>(names: &Names, half: Half, stack: &'a mut Stack) -> Vec<ModuleMut<'a>> {
    let mut modules = Vec::new();
    modules.extend(stack.positions.as_mut().map(|positions| ModuleMut {
        path: names.part(half, names.positions),
        part: PartMut::Table((&mut positions.table).into()),
    }));
    let embedding_norm = stack.embedding_norm.as_mut();
    modules.extend(embedding_norm.map(|part| norm(names.part(half, names.embedding_norm), part)));
    for (index, block) in stack.blocks.iter_mut().enumerate() {
        modules.extend(block_modules(names, half, index, block));
    }
    let final_norm = stack.final_norm.as_mut();
    modules.extend(final_norm.map(|part| norm(names.part(half, names.final_norm), part)));
    modules
}

fn block_modules<'a>(
    names: &Names,
    half: Half,
    index: usize,
    block: &'a mut Block,
) -> Vec<ModuleMut<'a>> {
    let front = names.layer_name(half, index);
    let path = |part: &str| format!("{front}.{part}");
    // All parts at once: each borrows its own of the block.
    let Block {
        bias,
        attention_norm,
        attention,
        cross,
        feed_forward_norm,
        feed_forward,
        norm_first: _,
        router: _,
    } = block;
    let (cross_norm, cross) = match cross {
        Some((norm, attention)) => (Some(norm), Some(attention)),
        None => (None, None),
    };
    let mut modules = Vec::new();
    modules.extend(bias.as_mut().map(|bias| ModuleMut {
        path: path(names.relative),
        part: PartMut::Table((&mut bias.table).into()),
    }));
    modules.push(norm(path(names.attention_norm), attention_norm));
    modules.extend(cross_norm.map(|part| norm(path(names.cross_norm), part)));
    let behind = names.feed_forward_norm[half as usize];
    modules.push(norm(path(behind), feed_forward_norm));
    let linears: [Option<&mut MoLoraLinear>; LINEARS] =
        super::sites::linears_of(attention, cross, feed_forward);
    let linears = linears.into_iter().zip(names.linears(half));
    modules.extend(linears.filter_map(|(linear, part)| {
        Some(ModuleMut {
            path: path(part),
            part: PartMut::Linear(vec![linear?], Layout::OutIn),
        })
    }));
    modules
}

fn norm(path: String, norm: &mut Norm) -> ModuleMut<'_> {
    ModuleMut {
        path,
        part: PartMut::norm(norm),
    }
}
