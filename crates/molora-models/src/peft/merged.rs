//! Writing a whole model in Hugging Face layout.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::parameters::{Parameter, parameters};
use super::pattern::ends_with;
use crate::ModelError;
use crate::checkpoint::{ModelWeights, current_name, narrowed};
use crate::modules::BaseModel;

/// The type of the numbers of a written model. What was computed in f32 is rounded to the nearest number of
/// the type, to the one with an even last bit where two are equally near; nothing is rounded twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MergedDtype {
    /// The type that each tensor has in the source; a head that the source lacks gets that of the table that it
    /// was tied to.
    #[default]
    AsSource,
    /// f32, which holds what was computed exactly.
    Float32,
    /// f16 for all tensors.
    Float16,
    /// bf16 for all tensors.
    BFloat16,
}

impl MergedDtype {
    /// The type that all tensors get, and its name in a configuration; none if each keeps its own.
    fn one(self) -> Option<(Dtype, &'static str)> {
        match self {
            Self::AsSource => None,
            Self::Float32 => Some((Dtype::F32, "float32")),
            Self::Float16 => Some((Dtype::F16, "float16")),
            Self::BFloat16 => Some((Dtype::BF16, "bfloat16")),
        }
    }

    /// The type of a tensor that has this one in the source; f32 where the source has none.
    pub(crate) fn of(self, source: Option<Dtype>) -> Dtype {
        match self.one() {
            Some((dtype, _)) => dtype,
            None => source.unwrap_or(Dtype::F32),
        }
    }
}

/// Ends of the names of files that belong to a model beside its weights.
const COPIED: [&str; 5] = [".json", ".txt", ".model", ".jinja", ".md"];

/// Starts or ends of names that look like these and are none.
const LEFT: [&str; 5] = [
    ".safetensors.index.json",
    ".bin.index.json",
    "adapter_config.json",
    "README.md",
    // Of what the source is, and not of the merged model.
    "manifest.json",
];

/// Writes a model that was read from `source` and then changed into the folder `out`, as
/// transformers reads it: `config.json`, tokenizer and other small files as in the source, and
/// `model.safetensors` with all of the source's tensors, those of the model with its values.
///
/// # Errors
/// [`ModelError::Inconsistent`] if an adapter is still attached; a source that cannot be read or is
/// of another model; a number that the type cannot hold; a file that cannot be written.
pub fn save_merged<M: BaseModel>(
    model: &M,
    source: &Path,
    out: &Path,
    dtype: MergedDtype,
) -> Result<(), ModelError> {
    let mut model = model.clone();
    let head_scale = model.head_scale();
    let weights = ModelWeights::open(source)?;
    let mut tensors = Vec::new();
    for name in weights.names() {
        let path = name.rsplit_once('.').map_or("", |(path, _)| path);
        // Masks and positions of old files are of other types, and are not read.
        let is_float = matches!(
            weights.dtype(name),
            Some(Dtype::F32 | Dtype::F16 | Dtype::BF16)
        );
        if is_float && !model.copies_table(path) {
            tensors.push(name.clone());
        }
    }
    let mut parts = parameters(&mut model)?;
    let head = parts.iter().find(|part| part.is_head);
    let new_head = head.filter(|head| !weights.has(&head.name));
    let has_new_head = new_head.is_some();
    tensors.extend(new_head.map(|head| head.name.clone()));
    std::fs::create_dir_all(out).map_err(|e| io(out, e))?;
    for part in parts.iter_mut().filter(|part| part.is_head && has_new_head) {
        part.scale = head_scale;
    }
    copy_small_files(source, out)?;
    let has_own_head = parts.iter().any(|part| part.is_head) && head_scale == 1.0;
    write_config(source, out, dtype, [has_new_head, has_own_head])?;
    write_weights(
        &out.join("model.safetensors"),
        &weights,
        &tensors,
        &parts,
        dtype,
    )
}

fn io(path: &Path, source: std::io::Error) -> ModelError {
    ModelError::Io {
        path: path.into(),
        source,
    }
}

/// Copies what belongs to a model beside its weights and configuration.
pub(crate) fn copy_small_files(source: &Path, out: &Path) -> Result<(), ModelError> {
    for entry in std::fs::read_dir(source).map_err(|e| io(source, e))? {
        let path = entry.map_err(|e| io(source, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_copied = COPIED.iter().any(|end| name.ends_with(end))
            && !LEFT.iter().any(|left| name.ends_with(left));
        if is_copied && path.is_file() && name != "config.json" {
            let target = out.join(name.as_ref());
            let bytes = std::fs::read(&path).map_err(|e| io(&path, e))?;
            std::fs::write(&target, bytes).map_err(|e| io(&target, e))?;
        }
    }
    Ok(())
}

fn write_config(
    source: &Path,
    out: &Path,
    dtype: MergedDtype,
    [has_new_head, has_own_head]: [bool; 2],
) -> Result<(), ModelError> {
    let (from, to) = (source.join("config.json"), out.join("config.json"));
    let text = std::fs::read_to_string(&from).map_err(|e| io(&from, e))?;
    let mut config: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| ModelError::file(&from, e.to_string()))?;
    if let Some((_, type_name)) = dtype.one() {
        // Older files have the second name alone; transformers reads both.
        let name = match config.contains_key("torch_dtype") {
            true => "torch_dtype",
            false => "dtype",
        };
        config.insert(name.into(), type_name.into());
    }
    // A file may hold a head of its own although its configuration denies it.
    let denies_head = config.get("tie_word_embeddings") != Some(&Value::Bool(false));
    if has_own_head && denies_head {
        config.insert("tie_word_embeddings".into(), false.into());
    }
    if has_new_head {
        config.insert("tie_word_embeddings".into(), false.into());
        config.remove("scale_decoder_outputs");
    }
    let text = format!("{:#}\n", Value::Object(config));
    std::fs::write(&to, text).map_err(|e| io(&to, e))
}

/// What one tensor of the file is.
struct Planned<'a> {
    name: &'a str,
    shape: Vec<usize>,
    dtype: Dtype,
    /// The model's own; else the source's is copied.
    own: Option<&'a Parameter>,
}

fn write_weights(
    path: &Path,
    source: &ModelWeights,
    names: &[String],
    parts: &[Parameter],
    dtype: MergedDtype,
) -> Result<(), ModelError> {
    let plan = names
        .iter()
        .map(|name| planned(source, names, name, parts, dtype));
    let plan: Vec<Planned<'_>> = plan.collect::<Result<_, _>>()?;
    refuse_unwritten(path, parts, &plan)?;
    let file = File::create(path).map_err(|e| io(path, e))?;
    let mut file = BufWriter::new(file);
    file.write_all(&header(&plan)).map_err(|e| io(path, e))?;
    for planned in &plan {
        let values = match planned.own {
            Some(own) => own.values(),
            None => source.values(planned.name, &planned.shape)?,
        };
        let bytes = narrowed(source.path(), planned.name, values, planned.dtype)?;
        file.write_all(&bytes).map_err(|e| io(path, e))?;
    }
    file.flush().map_err(|e| io(path, e))
}

fn planned<'a>(
    source: &ModelWeights,
    names: &[String],
    name: &'a str,
    parts: &'a [Parameter],
    dtype: MergedDtype,
) -> Result<Planned<'a>, ModelError> {
    let own = own(parts, name);
    let found = source.shape(name).map(<[usize]>::to_vec);
    if let (Some(own), Some(found)) = (own, &found)
        && own.shape != *found
    {
        return Err(ModelError::Shape {
            path: source.path().into(),
            name: name.into(),
            found: found.clone(),
            expected: own.shape.clone(),
        });
    }
    let shape = found.or(own.map(|own| own.shape.clone()));
    let shape = shape.expect("a name is the model's or the source's");
    // A head that the source lacks was its table, which has the same shape.
    let table = || {
        let mut others = names
            .iter()
            .filter(|other| source.shape(other) == Some(&shape));
        others.next().and_then(|other| source.dtype(other))
    };
    let dtype = dtype.of(source.dtype(name).or_else(table));
    Ok(Planned {
        name,
        shape,
        dtype,
        own,
    })
}

/// The parameter of a name, which may have another front in the source.
fn own<'a>(parts: &'a [Parameter], name: &str) -> Option<&'a Parameter> {
    let name = &current_name(name)[..];
    let exact = parts.iter().find(|part| part.name == name);
    exact.or_else(|| {
        parts
            .iter()
            .find(|part| ends_with(&part.name, name) || ends_with(name, &part.name))
    })
}

fn refuse_unwritten(
    path: &Path,
    parts: &[Parameter],
    plan: &[Planned<'_>],
) -> Result<(), ModelError> {
    let is_written = |part: &Parameter| {
        let mut own = plan.iter().filter_map(|planned| planned.own);
        own.any(|own| own.name == part.name)
    };
    match parts.iter().find(|part| !is_written(part)) {
        None => Ok(()),
        Some(part) => {
            let name = &part.name;
            let problem = format!("the source has no tensor for the model's `{name}`");
            Err(ModelError::file(path, problem))
        }
    }
}

/// Length and text of a safetensors header, padded so that numbers are aligned.
fn header(plan: &[Planned<'_>]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut start = 0;
    for planned in plan {
        let count: usize = planned.shape.iter().product();
        let end = start + count * planned.dtype.bitsize() / 8;
        let entry = json!({
            "dtype": format!("{:?}", planned.dtype),
            "shape": planned.shape,
            "data_offsets": [start, end],
        });
        entries.insert(planned.name.into(), entry);
        start = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    header
}
