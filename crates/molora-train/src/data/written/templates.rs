//! The templates of one task.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

/// One template, or several that ask for the same in other words: a text, or a list of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Templates(Vec<String>);

impl Templates {
    /// Several templates, of which the first scores; `None` without any.
    pub fn new(sources: Vec<String>) -> Option<Self> {
        (!sources.is_empty()).then_some(Self(sources))
    }

    /// The templates' texts, at least one.
    pub fn sources(&self) -> &[String] {
        &self.0
    }
}

impl From<&str> for Templates {
    fn from(source: &str) -> Self {
        Self(vec![source.into()])
    }
}

impl From<String> for Templates {
    fn from(source: String) -> Self {
        Self(vec![source])
    }
}

impl PartialEq<&str> for Templates {
    fn eq(&self, other: &&str) -> bool {
        self.0.len() == 1 && self.0[0] == *other
    }
}

impl Serialize for Templates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => serializer.serialize_str(one),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Templates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMore)
    }
}

struct OneOrMore;

impl<'de> Visitor<'de> for OneOrMore {
    type Value = Templates;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a template or a list of templates")
    }

    fn visit_str<E: Error>(self, source: &str) -> Result<Templates, E> {
        Ok(source.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Templates, A::Error> {
        let mut sources = Vec::new();
        while let Some(source) = access.next_element()? {
            sources.push(source);
        }
        Templates::new(sources).ok_or_else(|| A::Error::invalid_length(0, &"at least one template"))
    }
}

impl JsonSchema for Templates {
    fn schema_name() -> Cow<'static, str> {
        "Templates".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}}
        ]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_template_is_a_text_and_several_are_a_list() {
        #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
        struct File {
            a: Templates,
        }
        for text in ["a = \"x\"\n", "a = [\"x\", \"y\"]\n"] {
            let file: File = toml::from_str(text).expect("templates");
            assert_eq!(toml::to_string(&file).expect("plain data"), text);
        }
        let error = toml::from_str::<File>("a = []").expect_err("none");
        assert!(
            error.to_string().contains("at least one template"),
            "{error}"
        );
    }
}
