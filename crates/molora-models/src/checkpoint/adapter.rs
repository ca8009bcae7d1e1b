//! Adapter and head files.
//!
//! `adapter_model.safetensors` holds matrices in mathematical layout: `A` is `[R, D]`, `B` is
//! `[O, R]`, banks are stacked in front. A plain LoRA has PEFT's names
//! (`base_model.model.<path>.lora_A.weight`); what PEFT cannot express keeps the prefix and has
//! names of its own (`<path>.experts.lora_A`, `.router.keys`, `.gate.weight`, ...).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use molora_routing::Scorer;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use crate::{Adapter, AdapterSpec, Bert, ModelError, SitePattern, TaskHead, Weights};

const PREFIX: &str = "base_model.model.";

/// Where the two files of an adapter are.
#[derive(Debug, Clone)]
pub struct AdapterFiles {
    /// `adapter_config.json`.
    pub config: PathBuf,
    /// `adapter_model.safetensors`.
    pub tensors: PathBuf,
}

impl AdapterFiles {
    /// The files in a folder, by PEFT's names.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            config: folder.join("adapter_config.json"),
            tensors: folder.join("adapter_model.safetensors"),
        }
    }
}

/// How a parameter of ours is laid out in the file.
#[derive(Clone, Copy)]
enum Layout {
    /// As it is.
    Same,
    /// `[columns, rows]`.
    Transposed,
    /// `[D, count * R]` as `[count, R, D]`.
    StackedColumns(usize),
    /// `[count * R, O]` as `[count, O, R]`.
    StackedRows(usize),
}

/// A parameter to be written or read.
enum Field<'a> {
    Vector(&'a mut Param<Tensor<1>>),
    Matrix(&'a mut Param<Tensor<2>>, Layout),
}

/// Every parameter of a site with its name behind the site's path.
fn fields<'a>(adapter: &'a mut Adapter, spec: &AdapterSpec) -> Vec<(&'static str, Field<'a>)> {
    let (experts, num_a) = (adapter.bank.num_experts(), adapter.bank.num_a());
    let bank = &mut adapter.bank;
    let mut fields = if spec.is_plain_lora() {
        vec![
            (
                "lora_A.weight",
                Field::Matrix(&mut bank.a, Layout::Transposed),
            ),
            (
                "lora_B.weight",
                Field::Matrix(&mut bank.b, Layout::Transposed),
            ),
        ]
    } else {
        vec![
            (
                "experts.lora_A",
                Field::Matrix(&mut bank.a, Layout::StackedColumns(num_a)),
            ),
            (
                "experts.lora_B",
                Field::Matrix(&mut bank.b, Layout::StackedRows(experts)),
            ),
        ]
    };
    fields.extend(
        bank.rank_scale
            .iter_mut()
            .map(|p| ("experts.rank_scale", Field::Vector(p))),
    );
    if let Some(router) = &mut adapter.router {
        match &mut router.scorer {
            Scorer::Linear(scorer) => {
                fields.push((
                    "router.weight",
                    Field::Matrix(&mut scorer.weight, Layout::Same),
                ));
                fields.extend(
                    scorer
                        .bias
                        .iter_mut()
                        .map(|p| ("router.bias", Field::Vector(p))),
                );
            }
            Scorer::Cosine(scorer) => {
                fields.push(("router.keys", Field::Matrix(&mut scorer.keys, Layout::Same)));
            }
            _ => unreachable!("every scorer of this version is listed"),
        }
        let table = router.task_embedding.iter_mut();
        fields.extend(table.map(|p| ("router.task_embedding", Field::Matrix(p, Layout::Same))));
    }
    if let Some(gate) = &mut adapter.gate {
        fields.push((
            "gate.task_embedding",
            Field::Matrix(&mut gate.embedding, Layout::Same),
        ));
        fields.push(("gate.weight", Field::Matrix(&mut gate.weight, Layout::Same)));
        fields.extend(
            gate.bias
                .iter_mut()
                .map(|p| ("gate.bias", Field::Vector(p))),
        );
    }
    fields
}

impl Field<'_> {
    /// Shape in the file.
    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Vector(param) => param.dims().to_vec(),
            Self::Matrix(param, layout) => {
                let [rows, columns] = param.dims();
                match *layout {
                    Layout::Same => vec![rows, columns],
                    Layout::Transposed => vec![columns, rows],
                    Layout::StackedColumns(count) => vec![count, columns / count, rows],
                    Layout::StackedRows(count) => vec![count, columns, rows / count],
                }
            }
        }
    }

    /// Values in the file's order.
    fn values(&self) -> Vec<f32> {
        let data = match self {
            Self::Vector(param) => param.val().into_data(),
            Self::Matrix(param, layout) => {
                let [rows, columns] = param.dims();
                let value = param.val();
                match *layout {
                    Layout::Same => value.into_data(),
                    Layout::Transposed | Layout::StackedColumns(_) => value.transpose().into_data(),
                    Layout::StackedRows(count) => value
                        .reshape([count, rows / count, columns])
                        .swap_dims(1, 2)
                        .into_data(),
                }
            }
        };
        data.try_into_vec::<f32>().expect("parameters are f32")
    }

    /// Replaces the parameter's value by one in the file's order; its number and whether it trains
    /// stay.
    fn set(self, values: Vec<f32>) {
        let shape = self.shape();
        match self {
            Self::Vector(param) => {
                replace(param, |device| {
                    Tensor::from_data(TensorData::new(values, shape), device)
                });
            }
            Self::Matrix(param, layout) => {
                let dims = param.dims();
                replace(param, |device| {
                    let data = TensorData::new(values, shape);
                    match layout {
                        Layout::Same => Tensor::from_data(data, device),
                        Layout::Transposed => Tensor::<2>::from_data(data, device).transpose(),
                        Layout::StackedColumns(_) => Tensor::<3>::from_data(data, device)
                            .permute([2, 0, 1])
                            .reshape(dims),
                        Layout::StackedRows(_) => Tensor::<3>::from_data(data, device)
                            .swap_dims(1, 2)
                            .reshape(dims),
                    }
                });
            }
        }
    }
}

fn replace<const D: usize>(
    param: &mut Param<Tensor<D>>,
    value: impl FnOnce(&burn::tensor::Device) -> Tensor<D>,
) {
    let (old, trains) = (param.val(), param.is_require_grad());
    // A fresh leaf without history, with the old parameter's number.
    let value = Tensor::from_data(value(&old.device()).into_data(), &old.device());
    *param = Param::initialized(param.id, value).set_require_grad(trains);
}

/// Writes the adapters of a model as PEFT's two files into an existing folder.
///
/// `base_model` is named in the configuration so that readers know what the adapter belongs to.
///
/// # Errors
/// [`ModelError::Io`] if a file cannot be written.
pub fn save_adapter(
    folder: &Path,
    model: &Bert,
    spec: &AdapterSpec,
    base_model: &str,
) -> Result<(), ModelError> {
    let files = AdapterFiles::in_folder(folder);
    let mut model = model.clone();
    let mut tensors = BTreeMap::new();
    for (path, adapter) in model.sites_mut() {
        for (name, field) in fields(adapter, spec) {
            tensors.insert(
                format!("{PREFIX}{path}.{name}"),
                (field.shape(), field.values()),
            );
        }
    }
    write_tensors(&files.tensors, &tensors)?;
    let paths: Vec<String> = model.sites().into_iter().map(|(path, _)| path).collect();
    let config = adapter_config(spec, &paths, base_model);
    let text = serde_json::to_string_pretty(&config).expect("plain JSON values");
    std::fs::write(&files.config, text + "\n").map_err(|source| ModelError::Io {
        path: files.config,
        source,
    })
}

/// Reads the adapters that [`save_adapter`] wrote into a model to which the same specification has
/// been attached.
///
/// # Errors
/// A missing or broken file, a missing tensor, one of another shape, or one that the adapter does
/// not have.
pub fn load_adapter(folder: &Path, model: &mut Bert, spec: &AdapterSpec) -> Result<(), ModelError> {
    let weights = Weights::open(&AdapterFiles::in_folder(folder).tensors)?;
    let mut read = Vec::new();
    for (path, adapter) in model.sites_mut() {
        for (name, field) in fields(adapter, spec) {
            let name = format!("{PREFIX}{path}.{name}");
            let values = weights.values(&name, &field.shape())?;
            field.set(values);
            read.push(name);
        }
    }
    refuse_unknown(&weights, &read)
}

fn refuse_unknown(weights: &Weights, read: &[String]) -> Result<(), ModelError> {
    let unknown: Vec<String> = weights
        .names()
        .iter()
        .filter(|name| !read.contains(name))
        .cloned()
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(ModelError::UnknownTensors {
        path: weights.path().into(),
        names: unknown,
    })
}

/// Writes the heads, by task name, in PyTorch's layout: `<task>.weight` `[classes, D]`,
/// `<task>.bias` `[classes]`.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written.
pub fn save_heads(path: &Path, tasks: &[String], heads: &[TaskHead]) -> Result<(), ModelError> {
    let mut tensors = BTreeMap::new();
    for (task, head) in tasks.iter().zip(heads) {
        let mut head = head.clone();
        for (name, field) in head_fields(&mut head) {
            tensors.insert(format!("{task}.{name}"), (field.shape(), field.values()));
        }
    }
    write_tensors(path, &tensors)
}

/// Reads heads that [`save_heads`] wrote.
///
/// # Errors
/// As [`load_adapter`].
pub fn load_heads(path: &Path, tasks: &[String], heads: &mut [TaskHead]) -> Result<(), ModelError> {
    let weights = Weights::open(path)?;
    let mut read = Vec::new();
    for (task, head) in tasks.iter().zip(heads) {
        for (name, field) in head_fields(head) {
            let name = format!("{task}.{name}");
            let values = weights.values(&name, &field.shape())?;
            field.set(values);
            read.push(name);
        }
    }
    refuse_unknown(&weights, &read)
}

fn head_fields(head: &mut TaskHead) -> [(&'static str, Field<'_>); 2] {
    [
        (
            "weight",
            Field::Matrix(&mut head.weight, Layout::Transposed),
        ),
        ("bias", Field::Vector(&mut head.bias)),
    ]
}

fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
) -> Result<(), ModelError> {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name]);
        (name, view.expect("as many values as the shape says"))
    });
    let metadata = [("format".to_owned(), "pt".to_owned())]
        .into_iter()
        .collect();
    let file = serialize(views, Some(metadata)).expect("valid views");
    std::fs::write(path, file).map_err(|source| ModelError::Io {
        path: path.into(),
        source,
    })
}

/// `adapter_config.json`: PEFT's own for a plain LoRA, and one that PEFT refuses by its type for
/// what it cannot express.
fn adapter_config(spec: &AdapterSpec, paths: &[String], base_model: &str) -> serde_json::Value {
    let is_plain =
        |target: &String| SitePattern::new(target).is_ok_and(|pattern| pattern.is_plain_name());
    // PEFT reads plain names as we do; globs are spelled out as the paths that they matched.
    let targets = if spec.targets.iter().all(is_plain) {
        &spec.targets
    } else {
        paths
    };
    if !spec.is_plain_lora() {
        return serde_json::json!({
            "peft_type": "MOLORA",
            "molora_version": env!("CARGO_PKG_VERSION"),
            "base_model_name_or_path": base_model,
            "target_modules": targets,
            "sites": paths,
            "adapter": spec,
        });
    }
    let (alpha, use_rslora) = match spec.bank.scaling {
        molora_adapters::Scaling::AlphaOverRank(alpha) => (alpha, false),
        molora_adapters::Scaling::RankStabilized(alpha) => (alpha, true),
        molora_adapters::Scaling::Unit => (spec.bank.rank as f64, false),
    };
    serde_json::json!({
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base_model,
        "r": spec.bank.rank,
        "lora_alpha": alpha,
        "lora_dropout": spec.bank.dropout,
        "use_rslora": use_rslora,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    })
}
