//! Families of base models, as they describe themselves.
//!
//! A family is an [`About`] and a function from its `config.json`, both in its file of `*/family/`. Which fields it
//! reads and what it refuses is found by asking that function, so that no list can say anything else.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::checkpoint::ConfigFile;
use crate::{DecoderConfig, EncoderConfig, EncoderDecoderConfig, ModelError};
use crate::{decoder, encoder, encoder_decoder};

/// What a base model is built like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FamilyKind {
    /// Reads a text in both directions.
    Encoder,
    /// Writes a text on.
    Decoder,
    /// Reads a text and writes another.
    EncoderDecoder,
}

impl FamilyKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Encoder, Self::Decoder, Self::EncoderDecoder];

    /// What one is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
            Self::EncoderDecoder => "encoder-decoder",
        }
    }
}

/// What a family says of itself.
#[derive(Debug)]
pub struct About {
    /// `model_type` in the `config.json` of its models.
    pub model_type: &'static str,
    /// Its models by their usual names.
    pub models: &'static str,
    /// How it differs from the first family of its kind; of that one, what it may have.
    pub special: &'static str,
    /// What llama.cpp calls it, if its models are written as GGUF.
    pub gguf: Option<&'static str>,
    /// Whether its models are written with a mixture for transformers.
    pub transformers: bool,
    /// A small `config.json` of these sizes, without `model_type`.
    pub(crate) small: fn(&Sizes) -> Value,
}

/// Sizes of a model, whatever its family calls them.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Width of the hidden states.
    pub width: usize,
    /// Width inside the feed-forward part.
    pub inner: usize,
    /// Number of layers, of each half of an encoder-decoder.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Longest text in tokens, where there is a limit.
    pub tokens: usize,
}

/// The field that names the family.
const MODEL_TYPE: &str = "model_type";

/// Sizes that every family can have.
const SMALL: Sizes = Sizes {
    width: 64,
    inner: 96,
    layers: 2,
    heads: 8,
    vocabulary: 128,
    tokens: 32,
};

/// A field of `config.json` that a family reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigField {
    /// Its name.
    pub name: String,
    /// Whether there is no model without it.
    pub is_needed: bool,
    /// What it may hold.
    pub expected: String,
    /// What is refused of that, as what has to be there instead.
    pub limits: Vec<String>,
}

/// The function that reads a configuration, of those of a kind of family by its `model_type`.
///
/// # Errors
/// A family that is not among them; `list` puts their names together.
pub(crate) fn reader<Read: Copy>(
    families: &[(&About, Read)],
    file: &ConfigFile,
    list: impl FnOnce(&[&str]) -> String,
) -> Result<Read, ModelError> {
    let found = file.text(MODEL_TYPE)?;
    let mut known = families.iter();
    match known.find(|(about, _)| Some(about.model_type) == found) {
        Some((_, read)) => Ok(*read),
        None => {
            let names: Vec<&str> = families.iter().map(|(about, _)| about.model_type).collect();
            Err(file.unsupported(MODEL_TYPE, &list(&names)))
        }
    }
}

/// A family of base models.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// What its models are built like.
    pub kind: FamilyKind,
    /// What it says of itself.
    pub about: &'static About,
    read: fn(&ConfigFile) -> Result<(), ModelError>,
}

impl Family {
    /// All families, encoders first.
    pub fn all() -> impl Iterator<Item = Self> {
        let of = |kind, read| move |about| Self { kind, about, read };
        let encoders = encoder::FAMILIES.iter().map(|(about, _)| *about);
        let decoders = decoder::FAMILIES.iter().map(|(about, _)| *about);
        let both = encoder_decoder::FAMILIES.iter().map(|(about, _)| *about);
        let encoders = encoders.map(of(FamilyKind::Encoder, |file| {
            EncoderConfig::of(file).map(drop)
        }));
        let decoders = decoders.map(of(FamilyKind::Decoder, |file| {
            DecoderConfig::of(file).map(drop)
        }));
        let both = both.map(of(FamilyKind::EncoderDecoder, |file| {
            EncoderDecoderConfig::of(file).map(drop)
        }));
        encoders.chain(decoders).chain(both)
    }

    /// The family of a `model_type`.
    pub fn find(model_type: &str) -> Option<Self> {
        Self::all().find(|family| family.about.model_type == model_type)
    }

    /// That of the model in a folder.
    ///
    /// # Errors
    /// A `config.json` that cannot be read, or is of a family that is not supported.
    pub fn of(folder: &Path) -> Result<Self, ModelError> {
        Self::of_file(&ConfigFile::open(&folder.join("config.json"))?)
    }

    pub(crate) fn of_file(file: &ConfigFile) -> Result<Self, ModelError> {
        let found = file.text(MODEL_TYPE)?;
        found.and_then(Self::find).ok_or_else(|| {
            let names: Vec<&str> = Self::all().map(|family| family.about.model_type).collect();
            let names = decoder::any_of(&names);
            file.unsupported(MODEL_TYPE, &format!("{names}; `molora models` lists them"))
        })
    }

    /// A small `config.json` of these sizes.
    pub fn config(&self, sizes: &Sizes) -> Value {
        let mut config = (self.about.small)(sizes);
        config[MODEL_TYPE] = self.about.model_type.into();
        config
    }

    /// The fields that are read beside `model_type`, in the order of their names, found by trying values of each.
    ///
    /// # Panics
    /// If a field is looked for and may hold anything, which is then to be passed over.
    pub fn fields(&self) -> Vec<ConfigField> {
        let names = self.looked_for().looked_for().into_iter();
        let names = names.filter(|name| name != MODEL_TYPE);
        names.map(|name| self.field(name)).collect()
    }

    fn field(&self, name: String) -> ConfigField {
        let small = self.small();
        let mut without = small.clone();
        without.remove(&name);
        let is_needed = self.try_to_read(without).1.is_err();
        let refusal = |part: &str, found: Value| self.refusal(&small, [&name, part], found);
        let of_part = |part: &str| Some(format!("{part} {}", refusal(part, json!("?"))?));
        let expected = refusal("", json!("?"));
        let expected = expected.expect("what is looked for has values that are refused");
        let mut limits: Vec<Option<String>> = match &expected[..] {
            "true or false" => [true, false].map(|found| refusal("", found.into())).into(),
            "an object" => vec![["rope_type", "type"].into_iter().find_map(of_part)],
            text if !is_needed && text.starts_with("a whole number") => vec![refusal("", 1.into())],
            _ => Vec::new(),
        };
        limits.dedup();
        let limits = limits.into_iter().flatten().collect();
        ConfigField {
            name,
            is_needed,
            expected,
            limits,
        }
    }

    /// Fields of other architectures that are refused unless they are off, and of factors unless they are 1.
    pub fn foreign_fields(&self) -> Vec<&'static str> {
        self.looked_for().foreign()
    }

    fn small(&self) -> Map<String, Value> {
        match self.config(&SMALL) {
            Value::Object(fields) => fields,
            _ => unreachable!("a configuration is an object"),
        }
    }

    /// The small configuration, read.
    fn looked_for(&self) -> ConfigFile {
        let (file, read) = self.try_to_read(self.small());
        read.expect("every family reads its own small configuration");
        file
    }

    /// What is expected in the place of a value of a field, or of a part of it, if that is refused.
    fn refusal(
        &self,
        small: &Map<String, Value>,
        [name, part]: [&str; 2],
        found: Value,
    ) -> Option<String> {
        let (path, value) = match part {
            "" => (name.to_owned(), found.clone()),
            part => (format!("{name}.{part}"), json!({ part: found })),
        };
        let mut fields = small.clone();
        fields.insert(name.into(), value);
        let (file, read) = self.try_to_read(fields);
        let expected = file.unsupported(&path, "").to_string();
        let start = match part {
            "" => expected,
            _ => file
                .problem(&path, &format!("is {found}, expected "))
                .to_string(),
        };
        read.err()?
            .to_string()
            .strip_prefix(&start)
            .map(str::to_owned)
    }

    /// Reads fields of no file, without what is said of values that are passed over.
    fn try_to_read(&self, fields: Map<String, Value>) -> (ConfigFile, Result<(), ModelError>) {
        let file = ConfigFile::new(Path::new(""), "", fields);
        let silent = tracing::subscriber::NoSubscriber::default();
        let read = tracing::subscriber::with_default(silent, || (self.read)(&file));
        (file, read)
    }
}
