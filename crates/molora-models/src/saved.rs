//! Tables of a model that are trained whole beside its adapters: PEFT's `modules_to_save`.

use std::fmt;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{AdapterSpec, ModelError, TokenTable};

/// A table of a model that is trained whole.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SavedModule {
    /// The embeddings of tokens.
    #[serde(
        alias = "embed_tokens",
        alias = "word_embeddings",
        alias = "wte",
        alias = "shared"
    )]
    Embeddings,
    /// The head that scores the tokens of the vocabulary.
    #[serde(alias = "lm_head")]
    Head,
}

/// Copies in f32 of a model's tables, which are trained and read in the place of the frozen ones.
///
/// Where the frozen model has one table for both, a copy is that of one of them, and the other stays as
/// it is: so does PEFT.
#[derive(Module, Debug, Default)]
pub struct SavedTables {
    embeddings: Option<Param<Tensor<2>>>,
    head: Option<Param<Tensor<2>>>,
}

impl SavedTables {
    /// Copies of the tables that a specification names, whose numbers are in f32; `head` is that of the model, if it has
    /// one.
    ///
    /// # Errors
    /// [`ModelError::Inconsistent`] for a head that the model has not.
    pub(crate) fn of(
        spec: &AdapterSpec,
        embeddings: impl Fn() -> Tensor<2>,
        head: Option<&dyn Fn() -> Tensor<2>>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let copy = |table: Tensor<2>| Param::from_data(table.detach().into_data(), device);
        let mut saved = Self::default();
        for module in &spec.modules_to_save {
            match (module, head) {
                (SavedModule::Embeddings, _) => saved.embeddings = Some(copy(embeddings())),
                (SavedModule::Head, Some(head)) => saved.head = Some(copy(head())),
                (SavedModule::Head, None) => {
                    let text = "adapter.modules_to_save has head, expected embeddings alone: an encoder \
                                scores no vocabulary, and the heads of its tasks train anyway";
                    return Err(ModelError::Inconsistent(text.into()));
                }
            }
        }
        Ok(saved)
    }

    /// The embeddings that are read: the trained ones, or else those of the frozen model.
    pub(crate) fn embeddings<'a>(&'a self, frozen: &'a Param<Tensor<2>>) -> &'a Param<Tensor<2>> {
        self.embeddings.as_ref().unwrap_or(frozen)
    }

    /// Rows for tokens `[N]`, `[N, D]`, of the trained embeddings, or else of those of the frozen model.
    pub(crate) fn rows(&self, frozen: &TokenTable, ids: Tensor<1, Int>) -> Tensor<2> {
        match &self.embeddings {
            Some(trained) => trained.val().select(0, ids),
            None => frozen.rows(ids),
        }
    }

    /// Scores of hidden states `[B, T, D]` by the trained head, or else by that of the frozen model: `[B, T, V]`.
    pub(crate) fn scores(&self, frozen: &TokenTable, hidden: Tensor<3>) -> Tensor<3> {
        match &self.head {
            Some(trained) => molora_kernels::linear_transposed(hidden, trained.val(), None),
            None => frozen.scores(hidden),
        }
    }

    /// Whether a head is read in the place of that of the frozen model.
    pub(crate) fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Those that there are, by the paths that both have in files.
    pub(crate) fn listed(
        &mut self,
        embeddings: &str,
        head: &str,
    ) -> Vec<(String, &mut Param<Tensor<2>>)> {
        let both = [(embeddings, &mut self.embeddings), (head, &mut self.head)];
        let named = both.into_iter();
        named
            .filter_map(|(path, table)| Some((path.to_owned(), table.as_mut()?)))
            .collect()
    }

    /// Whether the embeddings train.
    pub(crate) fn trains_embeddings(&self) -> bool {
        let embeddings = self.embeddings.as_ref();
        embeddings.is_some_and(|table| table.is_require_grad())
    }
}

/// A table as a tensor in files.
pub(crate) fn table_tensor(table: &mut Param<Tensor<2>>) -> PartTensor<'_> {
    let [rows, width] = table.dims().map(|size| [Axis::Unit.of(size)]);
    PartTensor::matrix("weight", ParameterKind::Saved, table, &rows, &width)
}

/// A list of modules, or their names in one text with commas between them.
pub(crate) fn read_list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SavedModule>, D::Error> {
    from.deserialize_any(List)
}

/// The schema of what [`read_list`] reads, with the names that transformers has for the modules.
pub(crate) fn list_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [
        {"type": "array", "items": {"type": "string", "enum": NAMES}},
        {"type": "string"},
    ]})
}

/// The names of all modules, and others that are read as these.
const NAMES: [&str; 7] = [
    "embeddings",
    "head",
    "embed_tokens",
    "word_embeddings",
    "wte",
    "shared",
    "lm_head",
];

struct List;

impl<'de> Visitor<'de> for List {
    type Value = Vec<SavedModule>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`embeddings`, `head` or both")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let names = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        let read =
            |name| SavedModule::deserialize(serde::de::value::StrDeserializer::<E>::new(name));
        names.map(read).collect()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<AdapterSpec, String> {
        let text = format!(r#"{{"targets": ["q"], "bank": {{}}, "modules_to_save": {value}}}"#);
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_name_of_the_schema_is_read() {
        for name in NAMES {
            read(&format!("[{name:?}]")).expect(name);
        }
    }

    #[test]
    fn modules_are_a_list_or_a_text() {
        use SavedModule::{Embeddings, Head};
        for (text, expected) in [
            (r#""embeddings""#, vec![Embeddings]),
            (r#""embeddings, head""#, vec![Embeddings, Head]),
            (r#"["lm_head", "embed_tokens"]"#, vec![Head, Embeddings]),
            (r#""""#, vec![]),
        ] {
            assert_eq!(read(text).expect("valid").modules_to_save, expected);
        }
        let error = read(r#""embeddings,norm""#).expect_err("no such module");
        assert!(error.contains("unknown variant `norm`"), "{error}");
        let error = read("true").expect_err("no name");
        assert!(error.contains("`embeddings`, `head` or both"), "{error}");
    }

    #[test]
    fn without_modules_the_key_is_left_out() {
        let text = |spec: &AdapterSpec| serde_json::to_string(spec).expect("plain data");
        let mut spec = AdapterSpec::default();
        assert!(!text(&spec).contains("modules_to_save"));
        spec.modules_to_save = vec![SavedModule::Head, SavedModule::Head];
        assert!(text(&spec).contains(r#""modules_to_save":["head","head"]"#));
        let problems: Vec<String> = spec.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems, ["adapter.modules_to_save names head twice"]);
    }
}
