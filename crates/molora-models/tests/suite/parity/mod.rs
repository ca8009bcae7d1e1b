//! Files of PEFT's own methods, both ways. `cargo xtask parity` gives two folders: `MOLORA_PARITY_PEFT`
//! with what PEFT wrote and computes, which is read here, and `MOLORA_PARITY`, into which what molora
//! writes and computes goes. Without them what PEFT wrote is bundled, and what molora writes goes away
//! after molora itself has read it again.

mod made;
mod written;

use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use molora_adapters::task_selector;
use molora_models::{Decoder, DecoderInput, ForwardContext};
use molora_testkit::device;
use molora_testkit::golden::Tensors;

use crate::peft::world::bundled;

/// Relative to the largest value.
const TOLERANCE: f32 = 1e-4;

/// Two texts of the same length, for vocabularies of at least 32; as in `xtask/parity/make.py`.
const IDS: [[i64; 6]; 2] = [[3, 17, 5, 30, 21, 8], [11, 2, 30, 4, 9, 1]];

/// The folder with what PEFT wrote.
fn peft_folder() -> PathBuf {
    match std::env::var_os("MOLORA_PARITY_PEFT") {
        Some(folder) => folder.into(),
        None => bundled("golden_peft_methods"),
    }
}

/// The model that all of it belongs to.
fn base() -> Decoder {
    Decoder::from_folder(&peft_folder().join("base"), &device()).expect("a whole model")
}

/// What PEFT computed in a case, by name.
fn expected(case: &str) -> Tensors {
    Tensors::read(&peft_folder().join(case).join("expected.safetensors"))
}

/// Folders of what PEFT wrote whose names begin so.
fn cases(start: &str) -> Vec<String> {
    let entries = std::fs::read_dir(peft_folder()).expect("a folder of cases");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(start)).collect();
    names.sort();
    assert!(!names.is_empty(), "no case of {start}");
    names
}

/// Scores of both texts; for a task, of so many, if one is given.
fn logits(model: &Decoder, task: Option<(usize, usize)>) -> Tensor<3> {
    let ids = Tensor::from_data(TensorData::from(IDS), &device());
    let input = DecoderInput {
        mask: Tensor::full([2, 6], true, &device()),
        ids,
        segments: None,
    };
    let mut context = ForwardContext::new(input.mask.clone().float());
    context.tasks = task.map(|(task, count)| {
        task_selector(&[Some(task); 2], count, &device()).expect("a task that exists")
    });
    model.logits(model.forward(&input, &context).hidden)
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy_folder(&path, &name),
            false => std::fs::copy(&path, name).map(drop).expect("writable"),
        }
    }
}
