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

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, activation::sigmoid};
use molora_adapters::combine::FactorsConfig;
use molora_adapters::{BankConfig, Combine, Scaling};
use molora_routing::normaliser::SigmoidShareConfig;
use molora_routing::scorer::{TableConfig, UnknownTask};
use molora_routing::{Granularity, Normaliser, RouterConfig, Scorer};

use super::key::PREFIX;
use super::resolve::{ModuleLora, ResolvedAdapter, linears_of};
use super::write::{PeftAbout, write_files};
use crate::checkpoint::{ConfigFile, ModelWeights};
use crate::modules::BaseModel;
use crate::{Adaptable, Adapter, AdapterFiles, AdapterSpec, ModelError, shortest_names};

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

/// A PolyTropon in PEFT's files: skills, and logits of tasks.
#[derive(Debug)]
pub struct Poly {
    sizes: Sizes,
    weights: ModelWeights,
}

impl Poly {
    /// Opens a folder that PEFT or [`write_poly`] wrote.
    ///
    /// # Errors
    /// A missing or broken file, or a configuration of another kind; each names the field.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Ok(Self {
            sizes: sizes(&ConfigFile::open(&AdapterFiles::in_folder(folder).config)?)?,
            weights: ModelWeights::open_stem(folder, "adapter_model")?,
        })
    }

    /// Number of tasks that have logits.
    pub fn num_tasks(&self) -> usize {
        self.sizes.tasks
    }

    /// The specification under which a model computes what PEFT does; [`fill`](Self::fill) has the
    /// values.
    ///
    /// # Errors
    /// [`ModelError::File`] if no layer of the model has tensors in the file.
    pub fn spec<M: Adaptable>(&self, model: &M) -> Result<AdapterSpec, ModelError> {
        let all: Vec<String> = model.linears().into_iter().map(|(path, _)| path).collect();
        let has_skills = |path: &&String| self.weights.has(&format!("{PREFIX}{path}.{}", PARTS[0]));
        let paths: Vec<String> = all.iter().filter(has_skills).cloned().collect();
        if paths.is_empty() {
            let problem = "has no poly_lora_A of a layer of this model";
            return Err(ModelError::file(self.weights.path(), problem));
        }
        let factors = FactorsConfig {
            splits: self.sizes.splits,
        };
        let table = TableConfig {
            unknown: UnknownTask::Zero,
            bound: Some(1e-3),
        };
        Ok(AdapterSpec {
            targets: shortest_names(&paths, &all),
            bank: BankConfig {
                combine: factors.into(),
                num_experts: self.sizes.skills,
                rank: self.sizes.rank,
                scaling: Scaling::AlphaOverRank(1.0),
                ..BankConfig::default()
            },
            router: Some(RouterConfig {
                scorer: table.into(),
                granularity: Granularity::Task,
                relaxed: true,
                normaliser: SigmoidShareConfig.into(),
                ..RouterConfig::default()
            }),
            ..AdapterSpec::default()
        })
    }

    /// Puts skills and logits into a model to which [`spec`](Self::spec) was attached for as many tasks.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or without a layer.
    pub fn fill<M: Adaptable>(&self, model: &mut M) -> Result<(), ModelError> {
        let Sizes {
            rank,
            tasks,
            skills,
            splits,
        } = self.sizes;
        let mut read = Vec::new();
        for (path, site) in model.sites_mut() {
            let names = PARTS.map(|part| format!("{PREFIX}{path}.{part}"));
            let ([inputs, _], [_, outputs]) = (site.bank.a.dims(), site.bank.b.dims());
            let device = site.bank.a.device();
            let shape = [splits, skills, inputs / splits, rank];
            let a: Tensor<4> = self.weights.tensor(&names[0], shape, &device)?;
            let shape = [splits, skills, rank, outputs / splits];
            let b: Tensor<4> = self.weights.tensor(&names[1], shape, &device)?;
            let logits = self
                .weights
                .tensor(&names[2], [tasks, splits * skills], &device)?;
            let a = a.swap_dims(1, 2).reshape([inputs, skills * rank]);
            let b = b.permute([1, 2, 0, 3]).reshape([skills * rank, outputs]);
            let leaf = |values: Tensor<2>| Param::from_data(values.into_data(), &device);
            (site.bank.a, site.bank.b) = (leaf(a), leaf(b));
            if let Some(Scorer::Table(scorer)) = site.router.as_mut().map(|r| &mut r.scorer) {
                scorer.table = leaf(logits);
            }
            read.extend(names);
        }
        refuse_unread(&self.weights, &read)
    }
}

/// Sizes of a PolyTropon adapter.
#[derive(Debug, Clone, Copy)]
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
    let Poly { sizes, weights } = Poly::open(folder)?;
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

/// Whether a model's adapters are what PEFT's PolyTropon computes, so that [`write_poly`] writes them.
pub fn is_poly<M: Adaptable>(model: &M) -> bool {
    let sites = model.sites();
    !sites.is_empty() && sites.iter().all(|(_, site)| Skills::of(site).is_some())
}

/// Writes the skills and logits of a model as PEFT's PolyTropon, whose factor 1 / R takes the place of the
/// bank's: what is left of that goes into `B`.
///
/// PEFT has a row of logits for each task in the order of the run, and none for an unknown one.
///
/// # Errors
/// [`ModelError::Inconsistent`] for an adapter that is no such, see [`is_poly`], or one whose sites differ
/// or are parts of a fused layer; [`ModelError::Io`] if a file cannot be written.
pub fn write_poly<M: Adaptable>(
    folder: &Path,
    model: &M,
    about: &PeftAbout,
) -> Result<(), ModelError> {
    let inconsistent = |text: String| Err(ModelError::Inconsistent(text));
    let (mut tensors, mut sizes, mut paths) = (BTreeMap::new(), None, Vec::new());
    for (path, site) in model.sites() {
        let Some(skills) = Skills::of(site) else {
            return inconsistent(format!(
                "{path}: its experts are not mixed as PolyTropon's skills"
            ));
        };
        let own = [skills.rank, skills.tasks, skills.skills, skills.splits];
        if model.is_part(&path) || *sizes.get_or_insert(own) != own {
            let text = "PEFT has one number of tasks, skills and splits, and whole layers alone";
            return inconsistent(format!("{path}: {text}"));
        }
        for (part, (shape, tensor)) in PARTS.iter().zip(skills.tensors(site)) {
            let values = tensor.into_data().iter::<f32>().collect::<Vec<f32>>();
            tensors.insert(format!("{PREFIX}{path}.{part}"), (shape, values));
        }
        paths.push(path);
    }
    let Some([rank, tasks, skills, splits]) = sizes else {
        return inconsistent("no adapter is attached, expected at least one".into());
    };
    let all: Vec<String> = model.linears().into_iter().map(|(path, _)| path).collect();
    let config = serde_json::json!({
        "peft_type": "POLY",
        "poly_type": "poly",
        "task_type": about.task_type,
        "base_model_name_or_path": about.base_model,
        "r": rank,
        "n_tasks": tasks,
        "n_skills": skills,
        "n_splits": splits,
        "target_modules": shortest_names(&paths, &all),
        "inference_mode": true,
    });
    write_files(folder, &tensors, &config)
}

/// The sizes of a site whose experts are skills.
struct Skills {
    rank: usize,
    tasks: usize,
    skills: usize,
    splits: usize,
}

impl Skills {
    /// None if the site computes something else.
    fn of(site: &Adapter) -> Option<Self> {
        let Combine::Factors(factors) = site.bank.combine() else {
            return None;
        };
        let router = site.router.as_ref()?;
        let Scorer::Table(scorer) = &router.scorer else {
            return None;
        };
        let is_share = matches!(router.normaliser, Normaliser::SigmoidShare(_));
        let is_plain = site.gate.is_none() && site.magnitude.is_none() && router.is_plain();
        (is_share && is_plain).then(|| Self {
            rank: site.bank.rank(),
            tasks: scorer.table.dims()[0],
            skills: site.bank.num_experts(),
            splits: factors.splits,
        })
    }

    /// Shapes and values in PEFT's layout, in the order of [`PARTS`].
    fn tensors(&self, site: &Adapter) -> [(Vec<usize>, Tensor<1>); 3] {
        let Self {
            rank,
            tasks,
            skills,
            splits,
        } = *self;
        let bank = &site.bank;
        let (a, b) = (bank.a.val().detach(), bank.b.val().detach());
        let (inputs, outputs) = (a.dims()[0] / splits, b.dims()[1] / splits);
        let a = a
            .reshape([splits, inputs, skills, rank])
            .swap_dims(1, 2)
            .flatten(0, 3);
        let b = b.mul_scalar(bank.factor() * rank as f64);
        let b = b
            .reshape([skills, rank, splits, outputs])
            .permute([2, 0, 1, 3])
            .flatten(0, 3);
        let table = match site.router.as_ref().map(|router| &router.scorer) {
            Some(Scorer::Table(scorer)) => scorer.table.val().detach().flatten(0, 1),
            _ => unreachable!("its scorer is a table"),
        };
        [
            (vec![splits, skills, inputs, rank], a),
            (vec![splits, skills, rank, outputs], b),
            (vec![tasks, splits * skills], table),
        ]
    }
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
