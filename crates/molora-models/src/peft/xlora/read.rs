//! Reading what PEFT wrote of an X-LoRA.

use std::path::{Path, PathBuf};

use molora_routing::normaliser::SoftmaxConfig;
use molora_routing::scorer::LinearConfig;
use molora_routing::{RouterConfig, Selection};
use serde_json::Value;

use super::{CLASSIFIER, Switches, layer_numbers};
use crate::checkpoint::{ConfigFile, ModelWeights};
use crate::{Adaptable, AdapterFiles, FirstPassConfig, ModelError, RouterScope, Weights};

/// Fields that say nothing about what a loaded adapter computes, or repeat what its tensors say.
const NEUTRAL: [&str; 8] = [
    "adapters",
    "auto_mapping",
    "base_model_name_or_path",
    "hidden_size",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
];

/// An X-LoRA in PEFT's files: the LoRAs' folders, what weighs them, and the classifier's tensors.
#[derive(Debug)]
pub struct XLora {
    folder: PathBuf,
    /// Paths, in the order of the classifier's outputs.
    adapters: Vec<String>,
    is_trained: bool,
    first: FirstPassConfig,
    router: RouterConfig,
    weights: ModelWeights,
}

impl XLora {
    /// Opens a folder that PEFT's `save_pretrained` or [`write_xlora`](super::write_xlora) wrote.
    ///
    /// # Errors
    /// A missing or broken file, a configuration of another kind, or one that PEFT itself computes by
    /// chance; each names the field.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let files = AdapterFiles::in_folder(folder);
        let file = ConfigFile::open(&files.config)?;
        if file.text("peft_type")? != Some("XLORA") {
            return Err(file.unsupported("peft_type", "\"XLORA\""));
        }
        let adapters = adapters(&file)?;
        let first = first_pass(&file)?;
        let router = router(&file, &first)?;
        let is_trained = file.flag("use_trainable_adapters", false)?;
        for field in NEUTRAL {
            file.get(field);
        }
        file.finish_by(|value| value.is_null() || *value == false)?;
        Ok(Self {
            folder: folder.into(),
            adapters,
            is_trained,
            first,
            router,
            weights: ModelWeights::open_stem(folder, "adapter_model")?,
        })
    }

    /// Number of LoRAs.
    pub fn num_experts(&self) -> usize {
        self.adapters.len()
    }

    /// The router of the classifier's last layer.
    pub fn router(&self) -> &RouterConfig {
        &self.router
    }

    /// Where its decisions come from.
    pub fn scope(&self) -> RouterScope {
        RouterScope::FirstPass(self.first)
    }

    /// The folders of the LoRAs: where the configuration says, as PEFT reads them, from here or from
    /// the adapter's folder, or else the folder below with the LoRA's number.
    ///
    /// # Errors
    /// [`ModelError::File`] for a LoRA that is in none of these, or was trained with the classifier: PEFT
    /// saves those without some of their layers.
    pub fn expert_folders(&self) -> Result<Vec<PathBuf>, ModelError> {
        if self.is_trained {
            let problem = "use_trainable_adapters is true: the LoRAs where they came from are not those \
                           that were trained, and PEFT saves the trained ones without some of their \
                           layers; name the folders of whole ones";
            return Err(ModelError::file(&self.config(), problem));
        }
        let adapters = self.adapters.iter().enumerate();
        let folder = |(index, path): (usize, &String)| {
            let below = self.folder.join(index.to_string());
            let places = [PathBuf::from(path), self.folder.join(path), below.clone()];
            let has_config = |place: &&PathBuf| AdapterFiles::in_folder(place).config.is_file();
            let Some(place) = places.iter().find(has_config) else {
                let problem = format!(
                    "adapters.{index} is {path}, where no LoRA is, nor is one in {}",
                    below.display()
                );
                return Err(ModelError::file(&self.config(), problem));
            };
            refuse_partial(place)?;
            Ok(place.clone())
        };
        adapters.map(folder).collect()
    }

    /// Puts the classifier into a model to which its router and scope were attached.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape than the model needs, or no place in it.
    pub fn fill<M: Adaptable>(&self, model: &mut M) -> Result<(), ModelError> {
        let sites = if self.first.layerwise {
            model.sites().len()
        } else {
            1
        };
        let mut reader = Reader {
            xlora: self,
            read: Vec::new(),
        };
        let (hidden, last) = layer_numbers(self.first.depth, self.first.dropout > 0.0);
        let mut site = 0;
        model.visit_tensors(|_, mut tensor| {
            let shape = tensor.shape();
            let values = match tensor.name() {
                "router.weight" | "router.bias" => {
                    let is_weight = tensor.name() == "router.weight";
                    let mut all = shape.clone();
                    all[0] *= sites;
                    let part = if is_weight { "weight" } else { "bias" };
                    let values = reader.values(last, part, &all)?;
                    let count = shape.iter().product::<usize>();
                    let own = values[site * count..(site + 1) * count].to_vec();
                    // A router's bias comes behind its weight.
                    site += usize::from(!is_weight);
                    own
                }
                "classifier.weight" => reader.stacked(hidden.iter().take(1), "weight", &shape)?,
                "classifier.bias" => reader.stacked(hidden.iter().take(1), "bias", &shape)?,
                "classifier.more.weight" => {
                    reader.stacked(hidden.iter().skip(1), "weight", &shape[1..])?
                }
                "classifier.more.bias" => {
                    reader.stacked(hidden.iter().skip(1), "bias", &shape[1..])?
                }
                _ => return Ok(()),
            };
            tensor.set(&values);
            Ok::<(), ModelError>(())
        })?;
        let unread = self.weights.names().iter();
        let unread: Vec<String> = unread
            .filter(|name| !reader.read.contains(name))
            .cloned()
            .collect();
        match unread.is_empty() {
            true => Ok(()),
            false => Err(ModelError::UnknownTensors {
                path: self.weights.path().into(),
                names: unread,
            }),
        }
    }

    fn config(&self) -> PathBuf {
        AdapterFiles::in_folder(&self.folder).config
    }
}

/// Reads the classifier's tensors from where PEFT puts them.
struct Reader<'a> {
    xlora: &'a XLora,
    /// Names in the adapter's own file.
    read: Vec<String>,
}

impl Reader<'_> {
    fn values(
        &mut self,
        layer: usize,
        part: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, ModelError> {
        let name = format!("{CLASSIFIER}{layer}.{part}");
        let XLora {
            folder, weights, ..
        } = self.xlora;
        if weights.has(&name) {
            self.read.push(name.clone());
            return weights.values(&name, shape);
        }
        // Where PEFT takes the layer's number for the name of a LoRA.
        let lost = AdapterFiles::in_folder(&folder.join(layer.to_string())).tensors;
        let without_number = format!("{CLASSIFIER}{part}");
        if lost.is_file() {
            let other = Weights::open(&lost)?;
            if other.has(&without_number) {
                return other.values(&without_number, shape);
            }
        }
        Err(ModelError::MissingTensor {
            path: weights.path().into(),
            similar: weights.names().to_vec(),
            name,
        })
    }

    /// The same tensor of several layers, one after another.
    fn stacked<'l>(
        &mut self,
        layers: impl Iterator<Item = &'l usize>,
        part: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, ModelError> {
        let mut all = Vec::new();
        for &layer in layers {
            all.extend(self.values(layer, part, shape)?);
        }
        Ok(all)
    }
}

/// Refuses what PEFT's `save_pretrained` makes of a LoRA of an X-LoRA.
fn refuse_partial(folder: &Path) -> Result<(), ModelError> {
    let path = AdapterFiles::in_folder(folder).tensors;
    if !path.is_file() {
        return Ok(());
    }
    let weights = Weights::open(&path)?;
    let holds_base = |name: &String| name.starts_with("base_model.lora_model.");
    match weights.names().iter().any(holds_base) {
        true => Err(ModelError::file(
            &path,
            "is what PEFT's save_pretrained makes of a LoRA of an X-LoRA: it holds the base model, and \
             lacks layers that are called like the other LoRAs; name the folder that the LoRA came from",
        )),
        false => Ok(()),
    }
}

/// Paths of the LoRAs by their numbers: PEFT writes names in the order of their letters.
fn adapters(file: &ConfigFile) -> Result<Vec<String>, ModelError> {
    let expected =
        "folders of LoRAs called 0, 1, ..: with other names PEFT itself does not compute";
    let refuse = || file.unsupported("adapters", expected);
    let paths = file.get("adapters").and_then(Value::as_object);
    let paths = paths.filter(|paths| !paths.is_empty()).ok_or_else(refuse)?;
    let path = |number: usize| paths.get(&number.to_string())?.as_str().map(str::to_owned);
    let paths: Option<Vec<String>> = (0..paths.len()).map(path).collect();
    paths.ok_or_else(refuse)
}

fn first_pass(file: &ConfigFile) -> Result<FirstPassConfig, ModelError> {
    let number = |field: &str, default: f64| match file.get(field) {
        None => Ok(default),
        Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(number),
            None => Err(file.unsupported(field, "a number")),
        },
    };
    let dropout = number("xlora_dropout_p", 0.2)?;
    if !(0.0..1.0).contains(&dropout) {
        return Err(file.unsupported("xlora_dropout_p", "at least 0 and less than 1"));
    }
    let global_weight = number("global_scaling_weight", 1.0)?;
    Ok(FirstPassConfig {
        layerwise: file.flag("layerwise_scalings", false)?,
        depth: file.optional_size("xlora_depth")?.unwrap_or(1),
        width: file.optional_size("xlora_size")?.unwrap_or(2048),
        dropout,
        // PEFT scales the first pass too.
        scaling_pass_value: number("scaling_pass_value", 0.0)? * global_weight,
        global_weight,
    })
}

fn router(file: &ConfigFile, first: &FirstPassConfig) -> Result<RouterConfig, ModelError> {
    let switches = Switches {
        softmax: file.flag("enable_softmax", true)?,
        again: file.flag("enable_softmax_topk", false)?,
    };
    let temperature = file.optional_number("softmax_temperature")?.unwrap_or(1.0);
    let top_k = file.optional_size("top_k_lora")?;
    if first.scaling_pass_value != 0.0 && (top_k.is_some() || switches.again) {
        let expected = "0 where there is a top_k_lora or enable_softmax_topk, which PEFT applies to the \
                        equal weights of the first pass too";
        return Err(file.unsupported("scaling_pass_value", expected));
    }
    let selection = top_k.map_or(Selection::Dense, Selection::TopK);
    let is_plain = selection == Selection::Dense && switches.softmax && !switches.again;
    Ok(RouterConfig {
        scorer: LinearConfig { bias: true }.into(),
        selection,
        temperature: if switches.softmax { temperature } else { 1.0 },
        normaliser: match is_plain {
            true => SoftmaxConfig.into(),
            false => switches.normaliser(),
        },
        ..RouterConfig::default()
    })
}
