//! `--set key.path=value`: changing single values of a recipe.

use toml::Value;

use super::Recipe;
use super::earlier::renamed;
use crate::TrainError;

/// Applies assignments such as `adapter.bank.rank=4` or `stages.0.steps=50` to a recipe.
///
/// A value is read as TOML; a bare word is a string, and in the place of a list a list of itself. Numbers in
/// a path count list entries from 0. Where one of several forms is chosen by its name, as in
/// `adapter.bank.scaling.rank_stabilized=16`, the form that was there goes.
///
/// # Errors
/// [`TrainError::RecipeText`] for text without `=`, a path that leads nowhere, a misspelt key or a
/// value of another type.
pub fn apply(recipe: &Recipe, assignments: &[String]) -> Result<Recipe, TrainError> {
    let mut recipe = recipe.clone();
    for assignment in assignments {
        recipe = apply_one(&recipe, assignment).map_err(|problem| TrainError::RecipeText {
            place: format!("--set {assignment}"),
            problem,
        })?;
    }
    Ok(recipe)
}

fn apply_one(recipe: &Recipe, assignment: &str) -> Result<Recipe, String> {
    let (path, text) = assignment
        .split_once('=')
        .ok_or("no `=`, expected key.path=value".to_owned())?;
    let mut root = Value::try_from(recipe).expect("recipes are plain data");
    let (path, value) = renamed(recipe, path.trim(), parse(text.trim()));
    let other_form = other_form(&root, &path, &value);
    let set = descend(&mut root, &path).map(|slot| *slot = like(slot, value));
    let read = |root: Value| {
        let read: Result<Recipe, toml::de::Error> = root.try_into();
        read.map_err(|error| error.message().replace('\n', " "))
    };
    match set.and_then(|()| read(root)) {
        Ok(recipe) => Ok(recipe),
        Err(problem) => match other_form.map(read) {
            Some(Ok(recipe)) => Ok(recipe),
            // It names the forms that there are.
            Some(Err(unknown)) if unknown.contains("unknown variant") => Err(unknown),
            _ => Err(too_large(text).unwrap_or(problem)),
        },
    }
}

/// That a text has a whole number that TOML has no room for: it was then read as a text.
fn too_large(text: &str) -> Option<String> {
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit());
    let found = numbers.find(|digits| !digits.is_empty() && digits.parse::<i64>().is_err())?;
    Some(format!(
        "{found} is too large, expected at most {}",
        i64::MAX
    ))
}

/// The whole with nothing but the last key of a path in its table, or in the place of a name that stands
/// there: another form of the same value.
fn other_form(root: &Value, path: &str, value: &Value) -> Option<Value> {
    let (parent, key) = path.rsplit_once('.')?;
    let mut root = root.clone();
    let slot = descend(&mut root, parent).ok()?;
    let is_form = match slot {
        Value::String(_) => true,
        Value::Table(table) => table.len() == 1 && !table.contains_key(key),
        _ => false,
    };
    if !is_form {
        return None;
    }
    *slot = Value::Table([(key.to_owned(), value.clone())].into_iter().collect());
    Some(root)
}

/// Ends of the paths of tables that recipes leave out where they hold nothing but defaults.
const LEFT_OUT: [&str; 4] = [
    "data.task_weights",
    "data.writing.templates",
    "guard",
    "optimizer.weight_decays",
];

/// The value at a path. The last key of a table may be new: whether it exists is decided when the
/// recipe is read again, which knows every optional key.
fn descend<'a>(root: &'a mut Value, path: &str) -> Result<&'a mut Value, String> {
    let mut value = root;
    let mut done = String::new();
    let keys: Vec<&str> = path.split('.').collect();
    for (index, key) in keys.iter().enumerate() {
        let is_last = index + 1 == keys.len();
        value = match value {
            Value::Table(table) => {
                let is_left_out = |table: &&str| {
                    let names: Vec<&str> = table.split('.').collect();
                    keys[..=index].ends_with(&names)
                };
                if !table.contains_key(*key) && LEFT_OUT.iter().any(is_left_out) {
                    table.insert((*key).to_owned(), Value::Table(toml::Table::new()));
                }
                if !table.contains_key(*key) && !is_last {
                    let known: Vec<&String> = table.keys().collect();
                    return Err(no_key(key, &done, &known));
                }
                table
                    .entry((*key).to_owned())
                    .or_insert(Value::Boolean(false))
            }
            Value::Array(list) => {
                let length = list.len();
                let entry = key
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| list.get_mut(index));
                entry.ok_or(format!(
                    "no entry `{key}` in `{done}`, which has {length} entries"
                ))?
            }
            // A variant without a value, such as `decay = "linear"`, can become one with a value.
            other => {
                return Err(format!("`{done}` is {}, not a table", other.type_str()));
            }
        };
        done = if done.is_empty() {
            (*key).to_owned()
        } else {
            format!("{done}.{key}")
        };
    }
    Ok(value)
}

fn no_key(key: &str, parent: &str, known: &[&String]) -> String {
    let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    let place = if parent.is_empty() {
        String::new()
    } else {
        format!(" in `{parent}`")
    };
    format!(
        "unknown field `{key}`{place}, expected one of {}",
        names.join(", ")
    )
}

/// The value of an assignment: TOML, or else a string.
pub(crate) fn parse(text: &str) -> Value {
    let document = format!("value = {text}");
    let parsed = document
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// `alpha=16` means 16.0 where a fraction stands now, and `targets=all-linear` a list of one.
pub(super) fn like(old: &Value, new: Value) -> Value {
    match (old, new) {
        (Value::Float(_), Value::Integer(number)) => Value::Float(number as f64),
        (Value::Array(_), Value::String(text)) => Value::Array(vec![Value::String(text)]),
        (_, new) => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::find;
    use molora_adapters::Scaling;

    fn set(assignment: &str) -> Result<Recipe, String> {
        apply(&find("samora").expect("listed"), &[assignment.to_owned()])
            .map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_set_by_path() {
        assert_eq!(
            set("adapter.bank.rank=4").expect("valid").adapter.bank.rank,
            4
        );
        assert_eq!(
            set("stages.0.steps = 50").expect("valid").stages[0].steps,
            50
        );
        assert_eq!(
            set("objective.1.weight=0").expect("valid").objective.terms[1].weight,
            0.0
        );
        assert_eq!(
            set("adapter.targets=[\"query\"]")
                .expect("valid")
                .adapter
                .targets,
            ["query"]
        );
        let scaling = set("adapter.bank.scaling={ alpha_over_rank = 4 }").expect("valid");
        assert_eq!(scaling.adapter.bank.scaling, Scaling::AlphaOverRank(4.0));
        let target = set("adapter.targets=all-linear").expect("valid");
        assert_eq!(target.adapter.targets, ["all-linear"]);
        let form = set("adapter.bank.scaling.rank_stabilized=16").expect("valid");
        assert_eq!(form.adapter.bank.scaling, Scaling::RankStabilized(16.0));
        assert_eq!(set("guard.every=5").expect("valid").guard.every, 5);
        let decay = set("stages.0.optimizer.weight_decays.routers=0.5").expect("valid");
        let decays = &decay.stages[0].optimizer.weight_decays;
        assert_eq!(decays[&molora_models::ParameterKind::Routers], 0.5);
        let error = set("adapter.bank.scaling.rank_stabilised=16").expect_err("misspelt");
        assert!(error.contains("`rank_stabilized`"), "{error}");
        let count = set("adapter.router.selection.top_k=2").expect("valid");
        let router = count.adapter.router.expect("it has one");
        assert_eq!(router.selection, molora_routing::Selection::TopK(2));
        let packing = set("data.writing.packing=true").expect("valid");
        assert!(packing.data.writing.packing);
        let template = set("data.writing.templates.law={{ input }} ?").expect("valid");
        assert_eq!(template.data.writing.templates["law"], "{{ input }} ?");
        let weights = set("data.task_weights.law=2").expect("valid");
        assert_eq!(weights.data.task_weights["law"], 2.0);
        let weights = set("data.task_weights={ law = 2.0 }").expect("valid");
        assert_eq!(weights.data.task_weights["law"], 2.0);
        let bare = set("stages.0.schedule.decay=cosine").expect("valid");
        assert_eq!(bare.stages[0].schedule.decay, crate::recipe::Decay::Cosine);
    }

    #[test]
    fn mistakes_are_named_in_one_line() {
        for (assignment, text) in [
            (
                "adapter.bank.rank=99999999999999999999",
                "99999999999999999999 is too large, expected at most 9223372036854775807",
            ),
            (
                "adapter.bank.combine.sizes.shares=[1, 99999999999999999999]",
                "99999999999999999999 is too large",
            ),
            ("adapter.bank.rnak=4", "unknown field `rnak`"),
            (
                "adaptr.bank.rank=4",
                "unknown field `adaptr`, expected one of",
            ),
            (
                "stages.3.steps=4",
                "no entry `3` in `stages`, which has 1 entries",
            ),
            ("adapter.bank.rank=many", "invalid type"),
            ("adapter.bank.rank", "no `=`"),
            ("name.first=x", "`name` is string, not a table"),
        ] {
            let error = set(assignment).expect_err(assignment);
            assert!(
                error.starts_with(&format!("--set {assignment}: ")),
                "{error}"
            );
            assert!(error.contains(text) && !error.contains('\n'), "{error}");
        }
    }
}
