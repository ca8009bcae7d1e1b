//! PolyTropon adapters: skills that tasks mix.
//!
//! Ponti et al., arXiv:2202.13914, and Caccia et al., MHR, arXiv:2211.03831, in PEFT's files. In
//! evaluation the factors of a task are means of the skills' factors,
//!
//! ```text
//! w_s = sigmoid(z_ts) / sum_s sigmoid(z_ts)      A = sum_s w_s A_s      B = sum_s w_s B_s
//! ```
//!
//! with weights of its own for each split, a block of inputs and of outputs. So every task is a LoRA.

use std::path::Path;

use burn::tensor::{Device, Tensor, activation::sigmoid};

use super::key::PREFIX;
use super::resolve::{ModuleLora, ResolvedAdapter, linears_of};
use crate::checkpoint::{ConfigFile, ModelWeights};
use crate::modules::BaseModel;
use crate::{AdapterFiles, ModelError};

/// Fields that say nothing about what a loaded adapter computes, or repeat what its tensors say.
const NEUTRAL: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "init_weights",
    "modules_to_save",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
    "poly_type",
];

/// Sizes of a PolyTropon adapter.
struct Sizes {
    rank: usize,
    tasks: usize,
    skills: usize,
    splits: usize,
}

/// Reads a PolyTropon adapter for a model as one adapter for each task.
///
/// # Errors
/// A missing or broken file, a configuration of another kind, an adapter whose keys match nothing,
/// a missing tensor, one of another shape or one without a module.
pub fn open_poly<M: BaseModel>(
    folder: &Path,
    model: &M,
) -> Result<Vec<ResolvedAdapter>, ModelError> {
    let sizes = sizes(&ConfigFile::open(&AdapterFiles::in_folder(folder).config)?)?;
    let weights = ModelWeights::open_stem(folder, "adapter_model")?;
    let mut model = model.clone();
    let (linears, device) = linears_of(&mut model);
    let mut tasks: Vec<Vec<ModuleLora>> = vec![Vec::new(); sizes.tasks];
    let mut read = Vec::new();
    for (path, dims) in &linears {
        let names = PARTS.map(|part| format!("{PREFIX}{path}.{part}"));
        if weights.has(&names[0]) {
            let module = Module {
                path,
                dims: *dims,
                names: &names,
            };
            let loras = module.loras(&weights, &sizes, &device)?;
            for (task, lora) in tasks.iter_mut().zip(loras) {
                task.push(lora);
            }
            read.extend(names);
        }
    }
    refuse_unread(&weights, &read)?;
    let adapter = |loras| ResolvedAdapter {
        loras,
        full: Vec::new(),
        unties: false,
        dropout: 0.0,
    };
    Ok(tasks.into_iter().map(adapter).collect())
}

/// Tensors of a module.
const PARTS: [&str; 3] = ["poly_lora_A", "poly_lora_B", "poly_router.module_logits"];

struct Module<'a> {
    path: &'a str,
    dims: [usize; 2],
    names: &'a [String; 3],
}

impl Module<'_> {
    /// The module's LoRA for each task.
    fn loras(
        &self,
        weights: &ModelWeights,
        sizes: &Sizes,
        device: &Device,
    ) -> Result<Vec<ModuleLora>, ModelError> {
        let Sizes {
            rank,
            tasks,
            skills,
            splits,
        } = *sizes;
        let [inputs, outputs] = self.dims;
        let [a, b, logits] = self.names;
        let a: Tensor<4> = weights.tensor(a, [splits, skills, inputs / splits, rank], device)?;
        let b: Tensor<4> = weights.tensor(b, [splits, skills, rank, outputs / splits], device)?;
        let logits: Tensor<2> = weights.tensor(logits, [tasks, splits * skills], device)?;
        let mixing = mixing(logits.reshape([tasks, splits, skills]));
        let lora = |task: usize| {
            let weights = mixing.clone().narrow(0, task, 1);
            let weights = weights.reshape([splits, skills, 1, 1]);
            let mean = |factors: &Tensor<4>| (factors.clone() * weights.clone()).sum_dim(1);
            ModuleLora {
                path: self.path.to_owned(),
                a: mean(&a).reshape([inputs, rank]),
                b: mean(&b).permute([2, 0, 1, 3]).reshape([rank, outputs]),
                scale: 1.0 / rank as f64,
                magnitude: None,
            }
        };
        Ok((0..tasks).map(lora).collect())
    }
}

fn sizes(file: &ConfigFile) -> Result<Sizes, ModelError> {
    for (field, needed) in [("peft_type", "POLY"), ("poly_type", "poly")] {
        if file.text(field)? != Some(needed) {
            return Err(file.unsupported(field, &format!("\"{needed}\"")));
        }
    }
    let sizes = Sizes {
        rank: file.size("r")?,
        tasks: file.size("n_tasks")?,
        skills: file.size("n_skills")?,
        splits: file.size("n_splits")?,
    };
    for field in NEUTRAL {
        file.get(field);
    }
    file.finish_by(|value| value.is_null() || *value == false)?;
    Ok(sizes)
}

/// Weights of the skills from logits `[tasks, splits, skills]`.
fn mixing(logits: Tensor<3>) -> Tensor<3> {
    let gates = sigmoid(logits);
    gates.clone() / gates.sum_dim(2).add_scalar(1e-12)
}

fn refuse_unread(weights: &ModelWeights, read: &[String]) -> Result<(), ModelError> {
    let names = weights.names().iter();
    let names: Vec<String> = names.filter(|name| !read.contains(name)).cloned().collect();
    match names.is_empty() && !read.is_empty() {
        true => Ok(()),
        false => Err(ModelError::UnknownTensors {
            path: weights.path().into(),
            names,
        }),
    }
}
