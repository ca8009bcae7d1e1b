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

    /// The places of all values in a recipe.
    fn places(value: &Value, here: &str, found: &mut Vec<String>) {
        let below: Vec<(String, &Value)> = match value {
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), value))
                .collect(),
            Value::Array(list) => (0..)
                .map(|place: usize| place.to_string())
                .zip(list)
                .collect(),
            _ => Vec::new(),
        };
        for (key, value) in below {
            let place = format!("{here}/{key}");
            places(value, &place, found);
            found.push(place);
        }
    }

    /// A value in other forms: of another type, several in a text, one instead of a list, a name without its
    /// numbers.
    fn forms(value: &Value) -> Vec<Value> {
        let mut forms = vec![
            json!(true),
            json!(1),
            json!(0.5),
            json!("linear"),
            json!({}),
        ];
        match value {
            Value::Object(map) => forms.extend(map.keys().map(|key| json!(key))),
            Value::Array(list) => {
                forms.extend(list.first().cloned());
                let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
                forms.push(json!(texts.join(",")));
            }
            // serde reads tables from lists too, which nobody writes.
            single => forms.push(json!([single])),
        }
        forms
    }

    #[test]
    fn whatever_form_the_reader_takes_is_admitted() {
        let schema = schema();
        let mut seen = std::collections::BTreeSet::new();
        let mut taken = Vec::new();
        for recipe in names().map(|name| find(name).expect("listed")) {
            let mut whole = value_of(&recipe.to_toml());
            whole["adapter"]["modules_to_save"] = json!(["embeddings", "head"]);
            let mut found = Vec::new();
            places(&whole, "", &mut found);
            for place in found {
                let part = |part| match str::parse::<usize>(part) {
                    Ok(_) => "*",
                    Err(_) => part,
                };
                let path: Vec<&str> = place.split('/').map(part).collect();
                if !seen.insert(path.join(".")) {
                    continue;
                }
                for form in forms(whole.pointer(&place).expect("a place")) {
                    let mut changed = whole.clone();
                    *changed.pointer_mut(&place).expect("a place") = form.clone();
                    // A flag was the earlier form of a core.
                    let is_earlier = path.last() == Some(&"core") && form.is_boolean();
                    let text = toml::to_string(&changed).expect("plain data");
                    if !is_earlier && Recipe::from_toml(&text, "changed.toml").is_ok() {
                        let admitted = check(&schema, &schema, &changed);
                        assert_eq!(admitted, Ok(()), "{place} = {form}");
                        taken.push(format!("{} = {form}", path.join(".")));
                    }
                }
            }
        }
        for form in [
            ".adapter.modules_to_save = \"embeddings,head\"",
            ".adapter.modules_to_save = \"embeddings\"",
            ".adapter.router.scorer = \"linear\"",
        ] {
            assert!(taken.iter().any(|one| one == form), "{form}: {taken:#?}");
        }
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
