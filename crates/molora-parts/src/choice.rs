//! The choices of an axis as an enum that is read and written by name.

use std::fmt;
use std::marker::PhantomData;

use schemars::{Schema, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Makes the enum of an axis' choices from a list with a line for each: its name in files and the
/// type of its numbers.
///
/// In files a choice is its name alone, if it has no numbers or its default ones are meant, or a table
/// of its name with its numbers: `scorer = "cosine"`, `scorer = { linear = { bias = true } }`.
///
/// ```
/// use molora_parts::schemars::{self, JsonSchema};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
/// pub struct Round;
/// #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
/// pub struct Square {
///     pub side: f64,
/// }
///
/// molora_parts::choices! {
///     /// A shape.
///     pub enum Shape {
///         "round" => Round(Round),
///         "square" => Square(Square),
///     }
/// }
///
/// # fn main() -> Result<(), serde_json::Error> {
/// let read = |text: &str| serde_json::from_str::<Shape>(text);
/// assert_eq!(read(r#""round""#)?, Round.into());
/// assert_eq!(read(r#"{"square": {"side": 2}}"#)?, Square { side: 2.0 }.into());
/// assert_eq!(serde_json::to_string(&Shape::from(Round))?, r#""round""#);
/// let error = read(r#""oval""#).expect_err("no such shape");
/// assert!(error.to_string().starts_with("unknown variant `oval`"));
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! choices {
    ($(#[$meta:meta])* pub enum $Choice:ident {
        $($(#[$doc:meta])* $name:literal => $Variant:ident($Numbers:ty)),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum $Choice {
            $($(#[$doc])* #[doc = concat!("`", $name, "`: see [`", stringify!($Numbers), "`].")] $Variant($Numbers),)*
        }

        impl $Choice {
            /// Names of all choices in files.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// Every choice with its default numbers, in the order of the list.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$Variant(<$Numbers>::default())),*]
            }

            /// The name in files.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$Variant(_) => $name,)*
                }
            }
        }

        $(impl From<$Numbers> for $Choice {
            fn from(numbers: $Numbers) -> Self {
                Self::$Variant(numbers)
            }
        })*

        impl $crate::schemars::JsonSchema for $Choice {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($Choice).into()
            }

            fn json_schema(generator: &mut $crate::schemars::SchemaGenerator) -> $crate::schemars::Schema {
                let choices = [$(($name, size_of::<$Numbers>() > 0, generator.subschema_for::<$Numbers>())),*];
                $crate::schema(choices)
            }
        }

        impl ::serde::Serialize for $Choice {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$Variant(numbers) => $crate::write($name, numbers, serializer),)*
                }
            }
        }

        const _: () = {
            /// A choice with its numbers.
            #[derive(::serde::Deserialize)]
            enum Table {
                $(#[serde(rename = $name)] $Variant($Numbers),)*
            }

            impl From<Table> for $Choice {
                fn from(table: Table) -> Self {
                    match table {
                        $(Table::$Variant(numbers) => Self::$Variant(numbers),)*
                    }
                }
            }

            impl<'de> ::serde::Deserialize<'de> for $Choice {
                fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    $crate::read::<D, Table, Self>(deserializer, Self::NAMES, |name| match name {
                        $($name => Some(Self::$Variant(<$Numbers>::default())),)*
                        _ => None,
                    })
                }
            }
        };
    };
}

/// The JSON schema of a choice, from every name, whether it has numbers, and their schema: the name alone,
/// or a table of one name with its numbers.
#[doc(hidden)]
pub fn schema<const N: usize>(choices: [(&'static str, bool, Schema); N]) -> Schema {
    let names: Vec<_> = choices.iter().map(|(name, ..)| *name).collect();
    let mut forms = vec![json_schema!({"type": "string", "enum": names})];
    for (name, has_numbers, numbers) in choices {
        if has_numbers {
            forms.push(json_schema!({
                "type": "object",
                "properties": {name: numbers},
                "required": [name],
                "additionalProperties": false,
            }));
        }
    }
    json_schema!({"oneOf": forms})
}

/// Writes a choice: its name alone where it has no numbers.
///
/// # Errors
/// What the serializer says.
#[doc(hidden)]
pub fn write<S: Serializer, N: Serialize>(
    name: &'static str,
    numbers: &N,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match size_of::<N>() {
        0 => serializer.serialize_str(name),
        _ => serializer.serialize_newtype_variant("", 0, name, numbers),
    }
}

/// Reads a choice: `by_name` gives the one of that name with default numbers, `T` reads a table of
/// a name with numbers.
///
/// # Errors
/// An unknown name, with those that exist; no name, or two; and what is wrong with the numbers.
pub fn read<'de, D, T, C>(
    deserializer: D,
    names: &'static [&'static str],
    by_name: impl Fn(&str) -> Option<C>,
) -> Result<C, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Into<C>,
{
    deserializer.deserialize_any(NameOrTable {
        names,
        by_name,
        table: PhantomData::<T>,
    })
}

/// Reads a choice that was a flag in earlier files: `of_flag` says what the flag stands for.
///
/// # Errors
/// What is wrong with the choice.
pub fn or_flag<'de, D, C>(deserializer: D, of_flag: fn(bool) -> C) -> Result<C, D::Error>
where
    D: Deserializer<'de>,
    C: Deserialize<'de>,
{
    deserializer.deserialize_any(ChoiceOrFlag(of_flag))
}

struct ChoiceOrFlag<C>(fn(bool) -> C);

impl<'de, C: Deserialize<'de>> Visitor<'de> for ChoiceOrFlag<C> {
    type Value = C;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the name of a choice")
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<C, E> {
        Ok((self.0)(flag))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<C, E> {
        C::deserialize(name.into_deserializer())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<C, A::Error> {
        C::deserialize(MapAccessDeserializer::new(map))
    }
}

struct NameOrTable<F, T> {
    names: &'static [&'static str],
    by_name: F,
    table: PhantomData<T>,
}

impl<'de, F, T, C> Visitor<'de> for NameOrTable<F, T>
where
    F: Fn(&str) -> Option<C>,
    T: Deserialize<'de> + Into<C>,
{
    type Value = C;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "one of {}", self.names.join(", "))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<C, E> {
        (self.by_name)(name).ok_or_else(|| E::unknown_variant(name, self.names))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<C, A::Error> {
        let choice = T::deserialize(MapAccessDeserializer::new(&mut map))?.into();
        match map.next_key::<String>()? {
            None => Ok(choice),
            Some(second) => Err(A::Error::custom(format!(
                "found `{second}` beside another name, expected one of {}",
                self.names.join(", ")
            ))),
        }
    }
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "the enum is public where it is used")]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
    pub struct Plain;

    #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    pub struct Sized {
        size: usize,
    }

    choices! {
        /// Of two kinds.
        pub enum Kind {
            /// Has no numbers.
            "plain_one" => Plain(Plain),
            /// Has one.
            "sized" => Sized(Sized),
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct File {
        kind: Kind,
    }

    #[test]
    fn every_choice_survives_its_own_text() {
        for kind in [Plain.into(), Sized { size: 3 }.into()] {
            let file = File { kind };
            let text = toml::to_string(&file).expect("plain data");
            assert_eq!(toml::from_str::<File>(&text).expect("its own text"), file);
            let text = serde_json::to_string(&file).expect("plain data");
            assert_eq!(serde_json::from_str::<File>(&text).expect("its own"), file);
        }
        assert_eq!(Kind::NAMES, ["plain_one", "sized"]);
        let names: Vec<_> = Kind::all().iter().map(Kind::name).collect();
        assert_eq!(names, Kind::NAMES);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            (
                "kind = \"pla\"",
                "unknown variant `pla`, expected `plain_one` or `sized`",
            ),
            ("kind = { sizd = { size = 1 } }", "unknown variant `sizd`"),
            ("kind = { sized = { sise = 1 } }", "unknown field `sise`"),
            ("kind = { sized = { size = 1 }, other = 1 }", "`other`"),
            ("kind = 3", "expected one of plain_one, sized"),
        ] {
            let error = toml::from_str::<File>(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("line 1"), "{error}");
        }
    }
}
