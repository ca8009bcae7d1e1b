//! Whole models with their mixtures, for transformers: Python of our own computes them.
//!
//! The folder is one that `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)` and the like load:
//!
//! | file | content |
//! |---|---|
//! | `config.json` | the base's configuration, and the mixture in the field `molora` |
//! | `model-*.safetensors` | the base's files as they are, and one with the mixture and the heads |
//! | `model.safetensors.index.json` | which tensor is in which of them |
//! | `configuration_molora.py`, `modeling_molora.py`, `mixture_molora.py` | [`PYTHON`] |
//! | tokenizer and other small files | those of the base |
//!
//! A site's tensors have their names in adapter files behind the path of the linear layer and `molora`:
//! `model.layers.0.self_attn.q_proj.molora.experts.lora_A` beside `model.layers.0.self_attn.q_proj.weight`.

mod computed;

use std::collections::BTreeMap;
use std::path::Path;

use molora_parts::PartTensor;
use serde_json::{Map, Value, json};

use crate::checkpoint::{ConfigFile, ModelWeights, write_tensors};
use crate::decoder::any_of;
use crate::peft::{copy_small_files, ends_with};
use crate::{Adaptable, AdapterSpec, Backbone, Family, ModelError, TaskHead};
pub use computed::why_not_computed;

/// The Python that computes a mixture, by the names of its files.
pub const PYTHON: [(&str, &str); 3] = [
    (
        "configuration_molora.py",
        include_str!("../../python/configuration_molora.py"),
    ),
    (
        "modeling_molora.py",
        include_str!("../../python/modeling_molora.py"),
    ),
    (
        "mixture_molora.py",
        include_str!("../../python/mixture_molora.py"),
    ),
];

/// What is written beside the base model.
#[derive(Debug)]
pub struct WholeMixture<'a> {
    /// The base model with its mixture.
    pub backbone: &'a Backbone,
    /// The specification, for the run's tasks.
    pub spec: &'a AdapterSpec,
    /// Name and labels of each task, in their order.
    pub tasks: &'a [(String, Vec<String>)],
    /// Their heads.
    pub heads: &'a [Option<TaskHead>],
    /// Further fields of `molora` in the configuration.
    pub more: Map<String, Value>,
}

/// Why the Python has no place for a mixture on a base model, in words; `None` if it has. `has_heads` says
/// whether tasks have heads.
pub fn why_not_on(backbone: &Backbone, has_heads: bool) -> Option<&'static str> {
    match backbone {
        Backbone::Encoder(model) if model.projects_positions() => {
            Some("linear layers of the base (DeBERTa) project relative positions beside tokens")
        }
        // Transformers finds the reading half of T5 alone.
        Backbone::EncoderDecoder(model) if has_heads && model.max_tokens().is_some() => {
            Some("transformers has no text encoder of the base (BART) for the heads of tasks")
        }
        _ => None,
    }
}

/// Tensors as they stand in a file, by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes a model that was read from `source`, with its mixture, into the folder `out`, which is there.
///
/// # Errors
/// A source that cannot be read or is of another model; a family of which it has not been checked
/// that transformers computes the same; a file that cannot be written.
///
/// # Panics
/// If [`why_not_computed`] has a reason against the specification.
pub fn write_whole_mixture(
    whole: &WholeMixture<'_>,
    source: &Path,
    out: &Path,
) -> Result<(), ModelError> {
    if let Some(why) = why_not_computed(whole.spec) {
        panic!("the mixture is not computed by transformers: {why}");
    }
    check_family(source)?;
    let weights = ModelWeights::open(source)?;
    let names = Names::of(whole.backbone, &weights)?;
    copy_small_files(source, out)?;
    for (name, text) in PYTHON {
        write(&out.join(name), text.as_bytes())?;
    }
    let tensors = whole.tensors(&names);
    write_weights(&weights, &tensors, out)?;
    let config = whole.config(source)?;
    write(&out.join("config.json"), format!("{config:#}\n").as_bytes())
}

/// Refuses families of which it has not been checked that transformers computes the same with a mixture.
fn check_family(source: &Path) -> Result<(), ModelError> {
    let file = ConfigFile::open(&source.join("config.json"))?;
    let family = Family::of_file(&file)?;
    if family.about.transformers {
        return Ok(());
    }
    let others =
        Family::all().filter(|other| other.about.transformers && other.kind == family.kind);
    let names: Vec<&str> = others.map(|other| other.about.model_type).collect();
    let expected = format!(
        "{}, the {}s that are written with a mixture for transformers",
        any_of(&names),
        family.kind.name()
    );
    Err(file.unsupported("model_type", &expected))
}

fn write(path: &Path, content: &[u8]) -> Result<(), ModelError> {
    std::fs::write(path, content).map_err(io(path))
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> ModelError {
    let path = path.to_owned();
    move |source| ModelError::Io {
        path: path.clone(),
        source,
    }
}

/// Names of modules in the source's files, which may have a word more or less in front than their paths.
struct Names {
    added: String,
    removed: String,
}

impl Names {
    fn of(backbone: &Backbone, weights: &ModelWeights) -> Result<Self, ModelError> {
        let paths = backbone.site_paths();
        let first = paths.first().map_or("", String::as_str);
        let whole = match backbone.is_part(first) {
            true => first.rsplit_once('.').map_or(first, |(whole, _)| whole),
            false => first,
        };
        let stems = weights.names().iter();
        let mut stems = stems.filter_map(|name| name.strip_suffix(".weight"));
        let found = stems.find(|stem| ends_with(stem, whole) || ends_with(whole, stem));
        let Some(found) = found else {
            let problem = format!("has no tensor for the model's `{whole}`");
            return Err(ModelError::file(weights.path(), problem));
        };
        let front = |long: &str, short: &str| long.strip_suffix(short).unwrap_or("").to_owned();
        Ok(Self {
            added: front(found, whole),
            removed: front(whole, found),
        })
    }

    fn module(&self, path: &str) -> String {
        let path = path.strip_prefix(&self.removed).unwrap_or(path);
        format!("{}{path}", self.added)
    }

    /// The name of a tensor of a site or, with `is_layer`, of a layer's router.
    fn tensor(
        &self,
        path: &str,
        tensor: &PartTensor<'_>,
        [is_layer, is_part]: [bool; 2],
    ) -> String {
        let (module, name) = (self.module(path), tensor.name());
        match (is_layer, module.rsplit_once('.')) {
            (true, _) => {
                let name = name.strip_prefix("router.").unwrap_or(name);
                format!("{module}.molora_router.{name}")
            }
            // Queries, keys or values of a layer that the files hold as a whole.
            (false, Some((whole, part))) if is_part => format!("{whole}.molora_{part}.{name}"),
            _ => format!("{module}.molora.{name}"),
        }
    }
}

impl WholeMixture<'_> {
    /// Everything beside the base.
    fn tensors(&self, names: &Names) -> Tensors {
        let mut tensors = Tensors::new();
        let mut backbone = self.backbone.clone();
        let layers: Vec<String> = self.layers().into_iter().map(|(path, _)| path).collect();
        let visited = backbone.visit_tensors(|path, tensor| {
            let is_layer = layers.iter().any(|layer| layer == path);
            let is_part = self.backbone.is_part(path);
            let name = names.tensor(path, &tensor, [is_layer, is_part]);
            tensors.insert(name, (tensor.shape(), tensor.values()));
            Ok::<_, std::convert::Infallible>(())
        });
        visited.unwrap_or_else(|never| match never {});
        for (number, head) in self.heads.iter().enumerate() {
            let mut head = head.clone();
            for tensor in head.iter_mut().flat_map(TaskHead::tensors) {
                let name = format!("heads.{number}.{}", tensor.name());
                tensors.insert(name, (tensor.shape(), tensor.values()));
            }
        }
        tensors
    }

    /// The layers with a router, and how many experts each of their sites has.
    fn layers(&self) -> Vec<(String, usize)> {
        let sites = self.sites();
        let layers = self.backbone.layer_routers().into_iter();
        layers
            .map(|(path, layer)| (path, sites[layer.site()].1))
            .collect()
    }

    /// The sites with the number of their experts beside a general one.
    fn sites(&self) -> Vec<(String, usize)> {
        let general = usize::from(self.spec.general.is_some());
        let sites = self.backbone.sites().into_iter();
        sites
            .map(|(path, site)| (path, site.bank.num_experts() - general))
            .collect()
    }

    fn config(&self, source: &Path) -> Result<Value, ModelError> {
        let path = source.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(io(&path))?;
        let config = serde_json::from_str::<Map<String, Value>>(&text);
        let mut config = config.map_err(|e| ModelError::file(&path, e.to_string()))?;
        let base = config.get("model_type").cloned().unwrap_or_default();
        let (kind, class) = match self.backbone {
            Backbone::Encoder(_) => ("encoder", "Model"),
            Backbone::Decoder(_) => ("decoder", "ForCausalLM"),
            Backbone::EncoderDecoder(_) => ("encoder_decoder", "ForSeq2SeqLM"),
        };
        let has_heads = self.heads.iter().any(Option::is_some);
        let mut classes = vec!["Model", class];
        classes.extend(has_heads.then_some("ForSequenceClassification"));
        let mut map = Map::new();
        map.insert(
            "AutoConfig".into(),
            "configuration_molora.MoloraConfig".into(),
        );
        for name in classes {
            let class = format!("modeling_molora.Molora{name}");
            map.insert(format!("Auto{}", auto(name)), class.into());
        }
        let width = self.backbone.width();
        let sites = self.sites().into_iter();
        let sites = sites.map(|(path, experts)| json!({"path": path, "experts": experts}));
        let layers = self.layers().into_iter();
        let layers =
            layers.map(|(path, experts)| json!({"path": path, "experts": experts, "width": width}));
        let tasks = self.tasks.iter().zip(self.heads);
        let tasks = tasks.map(|((name, labels), head)| {
            let outputs = head.as_ref().map(TaskHead::num_classes);
            json!({"name": name, "labels": labels, "head": outputs})
        });
        let mut molora = self.more.clone();
        for (name, value) in [
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("kind", json!(kind)),
            ("adapter", json!(self.spec)),
            ("sites", sites.collect()),
            ("layers", layers.collect()),
            ("tasks", tasks.collect()),
        ] {
            molora.insert(name.into(), value);
        }
        for (name, value) in [
            ("base_model_type", base),
            ("model_type", json!("molora")),
            ("architectures", json!([format!("Molora{class}")])),
            ("auto_map", Value::Object(map)),
            ("molora", Value::Object(molora)),
        ] {
            config.insert(name.into(), value);
        }
        Ok(Value::Object(config))
    }
}

/// What transformers calls the class that finds one of ours.
fn auto(name: &str) -> String {
    match name {
        "Model" => "Model".into(),
        name => format!("Model{name}"),
    }
}

/// Writes the base's files as they are, the other tensors and the index of all.
fn write_weights(weights: &ModelWeights, tensors: &Tensors, out: &Path) -> Result<(), ModelError> {
    let files = weights.files();
    let count = files.len() + 1;
    let name = |number: usize| format!("model-{number:05}-of-{count:05}.safetensors");
    let (mut places, mut bytes) = (Map::new(), 0);
    for (number, file) in files.iter().enumerate() {
        let name = name(number + 1);
        let to = out.join(&name);
        std::fs::copy(file.path(), &to).map_err(io(&to))?;
        for tensor in file.names() {
            let size: usize = file.shape(tensor).unwrap_or_default().iter().product();
            bytes += size * file.dtype(tensor).map_or(0, |dtype| dtype.bitsize()) / 8;
            places.insert(tensor.clone(), name.clone().into());
        }
    }
    let name = name(count);
    write_tensors(&out.join(&name), tensors)?;
    for (tensor, (_, values)) in tensors {
        bytes += values.len() * 4;
        places.insert(tensor.clone(), name.clone().into());
    }
    let index = json!({"metadata": {"total_size": bytes}, "weight_map": places});
    let path = out.join("model.safetensors.index.json");
    write(&path, format!("{index:#}\n").as_bytes())
}
