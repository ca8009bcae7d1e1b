//! The largest whole numbers of a recipe: beyond them memory or time would run out, long before the
//! number means anything.

use serde_json::Value;

use super::Recipe;

/// The largest number under a key, wherever it stands.
const LARGEST: [(&str, u64); 16] = [
    ("num_experts", 4096),
    ("by_layer", 4096),
    ("rank", 65_536),
    ("width", 65_536),
    ("task_width", 65_536),
    ("hidden", 65_536),
    ("tokens", 65_536),
    ("batch_size", 65_536),
    ("eval_batch_size", 65_536),
    ("micro_batch_size", 65_536),
    ("bucket_batches", 65_536),
    ("shuffle_buffer", 1 << 24),
    ("streams", 4096),
    ("examples", 1000),
    ("max_length", 1 << 20),
    ("max_new_tokens", 1 << 20),
];

/// The most optimizer steps of a stage.
pub const MAX_STEPS: u64 = 1_000_000_000;

/// Of all others, such as steps.
const LARGEST_OTHER: u64 = MAX_STEPS;

/// The most rows that are drawn together.
const MAX_ROWS: usize = 1 << 24;

/// What is too large, each with the path of its field.
pub(super) fn problems(recipe: &Recipe) -> Vec<String> {
    let mut problems = Vec::new();
    let value = serde_json::to_value(recipe).expect("recipes are plain data");
    check("", "", &value, &mut problems);
    let sampling = &recipe.data.sampling;
    let rows = sampling.batch_size.saturating_mul(sampling.bucket_batches);
    if problems.is_empty() && rows > MAX_ROWS {
        problems.push(format!(
            "data.sampling: batch_size times bucket_batches is {rows}, expected at most {MAX_ROWS}"
        ));
    }
    problems
}

/// Looks at a value at a path, whose last key that is no number of an entry is `key`.
fn check(path: &str, key: &str, value: &Value, problems: &mut Vec<String>) {
    let below = |key: &str| match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                check(&below(key), key, value, problems);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                check(&below(&index.to_string()), key, value, problems);
            }
        }
        Value::Number(number) => {
            let known = LARGEST.iter().find(|(name, _)| *name == key);
            let largest = known.map_or(LARGEST_OTHER, |(_, largest)| *largest);
            if let Some(found) = number.as_u64().filter(|&found| found > largest) {
                problems.push(format!("{path} is {found}, expected at most {largest}"));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{find, names};

    /// The error for a recipe with another number under a key.
    fn refusal(name: &str, old: &str, new: &str) -> String {
        let text = find(name).expect("listed").to_toml();
        let other = text.replacen(old, new, 1);
        assert_ne!(text, other, "{old} is in the recipe");
        let error = Recipe::from_toml(&other, "mine.toml");
        error.expect_err("too large").to_string()
    }

    #[test]
    fn bundled_recipes_are_within_the_limits() {
        for name in names() {
            assert!(problems(&find(name).expect("listed")).is_empty(), "{name}");
        }
    }

    #[test]
    fn numbers_that_no_machine_can_hold_are_named() {
        for (old, new, expected) in [
            (
                "num_experts = 3",
                "num_experts = 1_000_000_000",
                "adapter.bank.num_experts is 1000000000, expected at most 4096",
            ),
            (
                "\nwidth = 8",
                "\nwidth = 1_000_000_000_000",
                "adapter.gate.width is 1000000000000, expected at most 65536",
            ),
            (
                "\nbatch_size = 32",
                "\nbatch_size = 1_000_000_000",
                "data.sampling.batch_size is 1000000000, expected at most 65536",
            ),
            (
                "bucket_batches = 128",
                "bucket_batches = 1_000_000_000_000",
                "data.sampling.bucket_batches is 1000000000000, expected at most 65536",
            ),
            (
                "bucket_batches = 128",
                "bucket_batches = 65_536\nx",
                "unknown field `x`",
            ),
            (
                "steps = 600",
                "steps = 18446744073709551615",
                "stages.0.steps is 18446744073709551615, expected at most 1000000000",
            ),
        ] {
            let new = new.replace("\nx", "\nx = 1");
            let error = refusal("samora", old, &new);
            assert!(error.starts_with("mine.toml"), "{error}");
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn rows_of_a_pool_are_bounded_together() {
        let mut recipe = find("lora").expect("listed");
        recipe.data.sampling.batch_size = 65_536;
        recipe.data.sampling.bucket_batches = 65_536;
        let expected = "data.sampling: batch_size times bucket_batches is 4294967296, expected at \
                        most 16777216";
        assert_eq!(problems(&recipe), [expected]);
        let error = recipe.check().expect_err("too large").to_string();
        assert_eq!(error, format!("recipe `lora`: {expected}"));
    }
}
