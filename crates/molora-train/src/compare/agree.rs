//! Whether a folder holds the comparison that is asked for.

use std::path::Path;

use toml::Value;

use super::COMPARISON;
use super::error::CompareError;
use super::plan::Plan;
use crate::base::place::write_atomically;

/// Writes the plan into its folder, or refuses a folder that was planned differently.
pub(super) fn write_or_agree(plan: &Plan, folder: &Path) -> Result<(), CompareError> {
    let path = folder.join(COMPARISON);
    let text = toml::to_string(plan).expect("plain data");
    if !path.exists() {
        return Ok(write_atomically(&path, text.as_bytes())?);
    }
    let stored = fs_err::read_to_string(&path)?;
    match differs(&stored, &text) {
        Ok(None) => Ok(()),
        Ok(Some(difference)) => Err(CompareError::Differs { path, difference }),
        Err(error) => {
            let text = error.message().replace('\n', " ");
            Err(CompareError::folder(&path, text))
        }
    }
}

/// The first field in which the texts of two plans differ, in words. What an older version did not write has the value
/// that it stands for.
fn differs(stored: &str, asked: &str) -> Result<Option<String>, toml::de::Error> {
    let written: toml::Table = toml::from_str(stored)?;
    // As text, since a single-precision number becomes another one in double precision.
    let stored = match toml::from_str::<Plan>(stored) {
        Ok(plan) => toml::from_str(&toml::to_string(&plan).expect("plain data"))?,
        // The field that only the other version knows is what differs.
        Err(_) => written,
    };
    let asked = toml::from_str(asked)?;
    Ok(difference("", &Value::Table(stored), &Value::Table(asked)))
}

/// The first field in which two values differ, in words.
fn difference(field: &str, stored: &Value, asked: &Value) -> Option<String> {
    let inside = |key: &str| match field {
        "" => key.to_owned(),
        field => format!("{field}.{key}"),
    };
    match (stored, asked) {
        (Value::Table(old), Value::Table(new)) => {
            let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
            keys.sort();
            keys.into_iter()
                .find_map(|key| match (old.get(key), new.get(key)) {
                    (Some(old), Some(new)) => difference(&inside(key), old, new),
                    (old, _) => {
                        let [here, asked] = if old.is_some() {
                            ["present", "not"]
                        } else {
                            ["absent", "present"]
                        };
                        Some(format!("{} is {here}, asked now is {asked}", inside(key)))
                    }
                })
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => (0..old.len())
            .find_map(|index| difference(&inside(&index.to_string()), &old[index], &new[index])),
        (Value::Array(old), Value::Array(new)) => Some(format!(
            "{field} has {} entries, asked now are {}",
            old.len(),
            new.len()
        )),
        (old, new) if old == new => None,
        (old, new) => Some(format!("{field} is {old}, asked now is {new}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::plan;
    use super::*;

    fn parse(text: &str) -> Value {
        Value::Table(toml::from_str(text).expect("TOML"))
    }

    #[test]
    fn the_first_field_that_differs_is_named() {
        let stored = "a = 1\nlist = [{ name = 'x', n = 1 }]\nt = { k = 'v' }";
        for (asked, expected) in [
            (stored, None),
            (
                "a = 2\nlist = []\nt = { k = 'v' }",
                Some("a is 1, asked now is 2"),
            ),
            (
                "a = 1\nlist = []\nt = { k = 'v' }",
                Some("list has 1 entries, asked now are 0"),
            ),
            (
                "a = 1\nlist = [{ name = 'y', n = 2 }]\nt = { k = 'v' }",
                Some("list.0.n is 1, asked now is 2"),
            ),
            (
                "a = 1\nlist = [{ name = 'x', n = 1 }]\nt = { m = 1 }",
                Some("t.k is present, asked now is not"),
            ),
            (
                "a = 1\nb = 1\nlist = [{ name = 'x', n = 1 }]\nt = { k = 'v' }",
                Some("b is absent, asked now is present"),
            ),
        ] {
            let found = difference("", &parse(stored), &parse(asked));
            assert_eq!(found.as_deref(), expected);
        }
    }

    #[test]
    fn a_plan_agrees_with_its_own_text() {
        let text = toml::to_string(&plan()).expect("plain data");
        assert_eq!(differs(&text, &text), Ok(None));
    }

    #[test]
    fn a_key_that_an_older_version_did_not_write_has_its_default_value() {
        let mut plan = plan();
        let text = |plan: &Plan| toml::to_string(plan).expect("plain data");
        let older = text(&plan).replace("shuffle_buffer = 8192\n", "");
        assert_ne!(older, text(&plan), "the key is there");
        assert_eq!(differs(&older, &text(&plan)), Ok(None));
        plan.recipes[0].recipe.data.shuffle_buffer = 7;
        let field = "recipes.0.recipe.data.shuffle_buffer";
        let expected = format!("{field} is 8192, asked now is 7");
        assert_eq!(differs(&older, &text(&plan)), Ok(Some(expected)));
    }

    #[test]
    fn a_key_that_only_a_newer_version_knows_is_named() {
        let text = toml::to_string(&plan()).expect("plain data");
        let newer = text.replace("seeds = 3\n", "seeds = 3\nmoons = 1\n");
        let expected = "moons is present, asked now is not".to_owned();
        assert_eq!(differs(&newer, &text), Ok(Some(expected)));
    }
}
