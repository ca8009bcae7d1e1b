//! What a recipe file may hold, for editors and other tools.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Recipe;

/// The JSON schema of a recipe file: every key with what it means, its type and its default value.
///
/// Draft 7, which editors of TOML read. Keys of earlier versions, which are still read, are not in it.
/// Ranges and what contradicts what are checked when a recipe is read, not by the schema.
pub fn schema() -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    generator.into_root_schema_for::<Recipe>().to_value()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::recipe::{find, names};

    /// Whether a value keeps to a schema, by the keywords that recipes' schemas have; with why not.
    fn check(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
        let known = "$ref $schema additionalProperties allOf anyOf const default definitions description enum \
                     format items maximum maxLength minimum oneOf properties required title type";
        let Value::Object(keywords) = schema else {
            return match schema {
                Value::Bool(false) => Err(format!("{value} is refused")),
                _ => Ok(()),
            };
        };
        for (keyword, rule) in keywords {
            assert!(
                known.split(' ').any(|one| one == keyword),
                "unknown: {keyword}"
            );
            let rules = || rule.as_array().into_iter().flatten();
            let fits = |rule: &Value| check(root, rule, value);
            match keyword.as_str() {
                "$ref" => {
                    let place = rule.as_str().expect("a place").trim_start_matches('#');
                    fits(root.pointer(place).expect(place))?;
                }
                "allOf" => rules().try_for_each(fits)?,
                "anyOf" | "oneOf" => {
                    let found = rules().filter(|rule| fits(rule).is_ok()).count();
                    if found == 0 || (keyword == "oneOf" && found > 1) {
                        return Err(format!("{value} has {found} forms of {rule}"));
                    }
                }
                "const" if rule != value => return Err(format!("{value} is not {rule}")),
                "enum" if rules().all(|one| one != value) => {
                    return Err(format!("{value} is none of {rule}"));
                }
                "minimum" if value.as_f64() < rule.as_f64() => {
                    return Err(format!("{value} is below {rule}"));
                }
                "type" => {
                    let is = |name: &Value| match name.as_str() {
                        Some("object") => value.is_object(),
                        Some("array") => value.is_array(),
                        Some("string") => value.is_string(),
                        Some("boolean") => value.is_boolean(),
                        Some("integer") => value.is_i64() || value.is_u64(),
                        Some("number") => value.is_number(),
                        Some("null") => value.is_null(),
                        _ => panic!("an unknown type: {name}"),
                    };
                    let fits = if rule.is_array() {
                        rules().any(is)
                    } else {
                        is(rule)
                    };
                    if !fits {
                        return Err(format!("{value} is not of type {rule}"));
                    }
                }
                "required" => {
                    let missing =
                        rules().find(|key| value.get(key.as_str().expect("a key")).is_none());
                    if let (true, Some(key)) = (value.is_object(), missing) {
                        return Err(format!("{key} is missing"));
                    }
                }
                "items" => value
                    .as_array()
                    .into_iter()
                    .flatten()
                    .try_for_each(|one| check(root, rule, one))?,
                "properties" => {
                    for (key, rule) in rule.as_object().expect("keys") {
                        let found = value.get(key).map(|value| check(root, rule, value));
                        found
                            .unwrap_or(Ok(()))
                            .map_err(|problem| format!("{key}: {problem}"))?;
                    }
                }
                "additionalProperties" => {
                    let named = |key: &str| schema.pointer(&format!("/properties/{key}")).is_some();
                    let others = value
                        .as_object()
                        .into_iter()
                        .flatten()
                        .filter(|(key, _)| !named(key));
                    for (key, value) in others {
                        check(root, rule, value).map_err(|problem| format!("{key}: {problem}"))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn value_of(text: &str) -> Value {
        let table: toml::Table = toml::from_str(text).expect("TOML");
        serde_json::to_value(table).expect("plain data")
    }

    #[test]
    fn every_recipe_keeps_to_it() {
        let schema = schema();
        for recipe in names().map(|name| find(name).expect("listed")) {
            let found = check(&schema, &schema, &value_of(&recipe.to_toml()));
            assert_eq!(found, Ok(()), "{}", recipe.name);
        }
    }

    #[test]
    fn what_the_reader_leaves_open_is_open_and_what_it_refuses_is_refused() {
        let schema = schema();
        let lora = find("lora").expect("listed");
        let changed = |place: &str, change: Option<Value>| {
            let mut recipe = value_of(&lora.to_toml());
            let (parent, key) = place.rsplit_once('/').expect("a place");
            let table = recipe.pointer_mut(parent).and_then(Value::as_object_mut);
            let table = table.expect("a table");
            match change {
                Some(value) => drop(table.insert(key.into(), value)),
                None => drop(table.remove(key).expect("a key")),
            }
            let text = toml::to_string(&recipe).expect("plain data");
            let by_reader = Recipe::from_toml(&text, "changed.toml").map(drop);
            let by_schema = check(&schema, &schema, &recipe);
            assert_eq!(
                by_reader.is_ok(),
                by_schema.is_ok(),
                "{place}: {by_reader:?}, {by_schema:?}"
            );
            by_schema.is_ok()
        };
        for key in [
            "/name",
            "/citation",
            "/data",
            "/adapter",
            "/adapter/targets",
            "/adapter/bank",
            "/stages",
        ] {
            assert!(!changed(key, None), "{key} may not be left out");
        }
        for key in [
            "/validation",
            "/checkpoint",
            "/report",
            "/adapter/experts",
            "/stages/0/optimizer",
        ] {
            assert!(changed(key, None), "{key} may be left out");
        }
        assert!(changed(
            "/adapter/router",
            Some(json!({"scorer": "cosine"}))
        ));
        assert!(changed(
            "/adapter/router",
            Some(json!({"selection": {"top_k": 2}}))
        ));
        assert!(changed(
            "/adapter/experts",
            Some(json!({"by_layer": [2, 4]}))
        ));
        assert!(changed("/stages/0/transform", Some(json!("cluster"))));
        assert!(!changed(
            "/adapter/router",
            Some(json!({"scorer": "cosin"}))
        ));
        assert!(!changed("/adapter/bank/rank", Some(json!("four"))));
        assert!(!changed("/adapter/bank/rnk", Some(json!(4))));
        assert!(!changed("/rank", Some(json!(4))));
    }

    #[test]
    fn keys_are_explained() {
        let schema = schema();
        let place = "/properties/adapter";
        let bank = schema.pointer("/definitions/BankConfig/properties/rank/description");
        assert_eq!(bank, Some(&json!("Rank R of each expert.")));
        assert!(schema.pointer(place).is_some(), "{schema:#}");
    }
}
