//! Names of tensors in PEFT files.

use std::fmt;

/// What stands in front of every path of the wrapped model.
pub(crate) const PREFIX: &str = "base_model.model.";

/// Which tensor of a module a key names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ModuleTensor {
    /// `lora_A.weight`, `[R, D]`.
    A,
    /// `lora_B.weight`, `[O, R]`.
    B,
    /// `lora_B.bias`, `[O]`.
    BBias,
    /// `lora_magnitude_vector`, `[O]`.
    Magnitude,
    /// `lora_embedding_A`, `[R, V]`.
    EmbeddingA,
    /// `lora_embedding_B`, `[D, R]`.
    EmbeddingB,
    /// `base_layer.<field>`: a parameter of the base under an adapter.
    Base(String),
    /// `<field>` or `modules_to_save.<adapter>.<field>`: a parameter that replaces that of the base.
    Full(String),
}

/// A key: a module, one of its tensors, and the adapter that it belongs to where it says so.
///
/// PEFT removes the adapter's name when it saves; state dictionaries of training code keep it, as
/// the segment behind `lora_A` and its like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) module: String,
    pub(crate) part: ModuleTensor,
    pub(crate) adapter: Option<String>,
}

/// Segments behind which an adapter's name may stand, with a field after it.
const NAMED: [&str; 3] = ["lora_A", "lora_B", "modules_to_save"];

/// The same without a field.
const BARE: [&str; 3] = [
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
];

impl Key {
    /// Reads a key with or without the prefix; `None` if it has no module or no field.
    ///
    /// A key is read from its end, where only one segment can be the adapter's name: it may be
    /// `0`, `layers` or `lora_A` like a segment of the path.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix(PREFIX).unwrap_or(text);
        let segments: Vec<&str> = text.split('.').collect();
        if segments.iter().any(|segment| segment.is_empty()) {
            return None;
        }
        let at = |from_end: usize| {
            let index = segments.len().checked_sub(from_end)?;
            segments.get(index).copied()
        };
        let (last, second, third) = (at(1)?, at(2), at(3));
        let is_in = |list: &[&str], segment: Option<&str>| {
            segment.is_some_and(|segment| list.contains(&segment))
        };
        let is_named = is_in(&NAMED, third) || (is_in(&BARE, third) && last == "weight");
        let (used, kind, adapter) = if is_named {
            (3, third, second)
        } else if is_in(&NAMED, second) {
            (2, second, None)
        } else if is_in(&BARE, second) {
            // Some versions write `lora_magnitude_vector.weight` without a name.
            (2, second, Some(last).filter(|&name| name != "weight"))
        } else if is_in(&BARE, Some(last)) {
            (1, Some(last), None)
        } else if second == Some("base_layer") {
            (2, second, None)
        } else {
            (1, None, None)
        };
        let module = segments[..segments.len() - used].join(".");
        let part = part(kind, last)?;
        (!module.is_empty()).then(|| Self {
            module,
            part,
            adapter: adapter.map(str::to_owned),
        })
    }
}

fn part(kind: Option<&str>, last: &str) -> Option<ModuleTensor> {
    Some(match (kind, last) {
        (Some("lora_A"), "weight") => ModuleTensor::A,
        (Some("lora_B"), "weight") => ModuleTensor::B,
        (Some("lora_B"), "bias") => ModuleTensor::BBias,
        (Some("lora_magnitude_vector"), _) => ModuleTensor::Magnitude,
        (Some("lora_embedding_A"), _) => ModuleTensor::EmbeddingA,
        (Some("lora_embedding_B"), _) => ModuleTensor::EmbeddingB,
        (Some("base_layer"), field) => ModuleTensor::Base(field.into()),
        (Some("modules_to_save") | None, field) => ModuleTensor::Full(field.into()),
        _ => return None,
    })
}

impl fmt::Display for Key {
    /// As PEFT writes it, or as it is in memory where the key has an adapter's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let module = &self.module;
        write!(f, "{PREFIX}{module}.")?;
        let name = match &self.adapter {
            Some(name) => format!(".{name}"),
            None => String::new(),
        };
        match &self.part {
            ModuleTensor::A => write!(f, "lora_A{name}.weight"),
            ModuleTensor::B => write!(f, "lora_B{name}.weight"),
            ModuleTensor::BBias => write!(f, "lora_B{name}.bias"),
            ModuleTensor::Magnitude => match self.adapter {
                Some(_) => write!(f, "lora_magnitude_vector{name}.weight"),
                None => write!(f, "lora_magnitude_vector"),
            },
            ModuleTensor::EmbeddingA => write!(f, "lora_embedding_A{name}"),
            ModuleTensor::EmbeddingB => write!(f, "lora_embedding_B{name}"),
            ModuleTensor::Base(field) => write!(f, "base_layer.{field}"),
            ModuleTensor::Full(field) => match self.adapter {
                Some(_) => write!(f, "modules_to_save{name}.{field}"),
                None => write!(f, "{field}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, module: &str, part: ModuleTensor, adapter: Option<&str>) {
        let key = Key::parse(text).expect("a key");
        let expected = Key {
            module: module.into(),
            part,
            adapter: adapter.map(str::to_owned),
        };
        assert_eq!(key, expected, "{text}");
    }

    #[test]
    fn keys_of_files_and_of_state_dictionaries() {
        let q = "model.layers.0.self_attn.q_proj";
        let key = |end: &str| format!("base_model.model.{q}.{end}");
        check(&key("lora_A.weight"), q, ModuleTensor::A, None);
        check(
            &key("lora_A.default.weight"),
            q,
            ModuleTensor::A,
            Some("default"),
        );
        check(
            &key("lora_A.lora_A.weight"),
            q,
            ModuleTensor::A,
            Some("lora_A"),
        );
        check(
            &key("lora_B.lora_A.weight"),
            q,
            ModuleTensor::B,
            Some("lora_A"),
        );
        check(
            &key("lora_A.weight.weight"),
            q,
            ModuleTensor::A,
            Some("weight"),
        );
        check(&key("lora_B.bias"), q, ModuleTensor::BBias, None);
        check(
            &key("lora_magnitude_vector"),
            q,
            ModuleTensor::Magnitude,
            None,
        );
        check(
            &key("lora_magnitude_vector.weight"),
            q,
            ModuleTensor::Magnitude,
            None,
        );
        check(
            &key("lora_magnitude_vector.0.weight"),
            q,
            ModuleTensor::Magnitude,
            Some("0"),
        );
        check(
            &key("base_layer.weight"),
            q,
            ModuleTensor::Base("weight".into()),
            None,
        );
        let table = "model.embed_tokens";
        check(
            "base_model.model.model.embed_tokens.lora_embedding_B.layers",
            table,
            ModuleTensor::EmbeddingB,
            Some("layers"),
        );
        let head = ModuleTensor::Full("weight".into());
        check(
            "base_model.model.lm_head.weight",
            "lm_head",
            head.clone(),
            None,
        );
        check(
            "lm_head.modules_to_save.a.weight",
            "lm_head",
            head,
            Some("a"),
        );
    }

    #[test]
    fn what_is_no_key() {
        for text in [
            "",
            "weight",
            "lora_A.weight",
            "a..weight",
            "a.lora_A.default.scale",
        ] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }

    fn any_part() -> impl Strategy<Value = ModuleTensor> {
        prop::sample::select(vec![
            ModuleTensor::A,
            ModuleTensor::B,
            ModuleTensor::BBias,
            ModuleTensor::Magnitude,
            ModuleTensor::EmbeddingA,
            ModuleTensor::EmbeddingB,
            ModuleTensor::Full("weight".into()),
            ModuleTensor::Full("bias".into()),
        ])
    }

    /// Names that are also segments of paths or keys, and arbitrary ones.
    fn any_adapter() -> impl Strategy<Value = String> {
        let hard = [
            "0",
            "1",
            "layers",
            "model",
            "mlp",
            "lora_A",
            "lora_B",
            "lora_embedding_A",
            "lora_magnitude_vector",
            "base_layer",
            "modules_to_save",
            "bias",
            "default",
        ];
        let hard = prop::sample::select(hard.map(str::to_owned).to_vec());
        prop_oneof![
            hard,
            "[A-Za-z0-9_-]{1,12}".prop_filter("a field", |name| name != "weight")
        ]
    }

    proptest! {
        #[test]
        fn adapter_names_survive(
            part in any_part(),
            adapter in prop::option::of(any_adapter()),
            layer in 0..40_usize,
        ) {
            let module = format!("model.layers.{layer}.self_attn.q_proj");
            let key = Key { module, part, adapter };
            prop_assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
    }
}
