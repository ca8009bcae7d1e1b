//! Paths of `--set` as earlier versions knew them.

use toml::Value;

use crate::recipe::overrides::like;
use crate::recipe::{Recipe, Scope, StageConfig, Transform};

/// A path of an earlier version, and its value, as they are now; see the tables here and in
/// the specification of the adapter.
pub(in crate::recipe) fn renamed(recipe: &Recipe, path: &str, value: Value) -> (String, Value) {
    let table = |key: &str, value| Value::Table([(key.to_owned(), value)].into_iter().collect());
    let name = |name: &str| Value::String(name.into());
    let below = |front: &str| path.strip_prefix(front).filter(|rest| is_end(rest));
    match (path, &value) {
        ("adapter.experts_per_layer", Value::Array(list)) if list.is_empty() => {
            return ("adapter.experts".into(), name("same"));
        }
        ("adapter.experts_per_layer", Value::Array(_)) => {
            return ("adapter.experts".into(), table("by_layer", value));
        }
        ("adapter.expert_per_task", Value::Boolean(per_task)) => {
            let count = if *per_task { "per_task" } else { "same" };
            return ("adapter.experts".into(), name(count));
        }
        ("adapter.blend", Value::Float(_) | Value::Integer(_)) => {
            let share = like(&Value::Float(0.0), value);
            return ("adapter.general".into(), table("routed_share", share));
        }
        _ => {}
    }
    let stage = path
        .strip_suffix(".gated")
        .filter(|_| value == Value::Boolean(false));
    if let Some(stage) = stage.filter(|stage| is_gate(recipe, stage)) {
        return (format!("{stage}.scope"), name("each_task"));
    }
    let has_groups = recipe.adapter.task_groups().is_some();
    let path = if let Some(rest) = below("adapter.experts_per_layer") {
        format!("adapter.experts.by_layer{rest}")
    } else if let Some(rest) = below("adapter.groups").filter(|_| has_groups) {
        format!("adapter.router.scorer.grouped.tasks{rest}")
    } else if path == "adapter.bank.sharing" {
        "adapter.bank.slices".into()
    } else if path == "adapter.bank.rank_scale" {
        "adapter.bank.core".into()
    } else if let Some((rest, stage)) = below("instructions").zip(instructions(recipe)) {
        format!("stages.{stage}.transform.embed_instructions{rest}")
    } else {
        path.to_owned()
    };
    (path, value)
}

/// Whether a path ends here or continues with another key.
fn is_end(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('.')
}

/// Whether the stage at a path, such as `stages.1`, trains gates.
fn is_gate(recipe: &Recipe, path: &str) -> bool {
    let number = path
        .strip_prefix("stages.")
        .and_then(|n| n.parse::<usize>().ok());
    let stage = number.and_then(|number| recipe.stages.get(number));
    stage.is_some_and(|stage| stage.scope == Scope::EachGate)
}

/// Number of the stage that embeds instructions.
fn instructions(recipe: &Recipe) -> Option<usize> {
    let embeds =
        |stage: &StageConfig| matches!(stage.transform, Some(Transform::EmbedInstructions(_)));
    recipe.stages.iter().position(embeds)
}

#[cfg(test)]
mod tests {
    use crate::recipe::find;
    use crate::recipe::overrides::apply;

    /// Recipe, path and value of then, path and value of now.
    const PAIRS: [(&str, &str, &str); 16] = [
        (
            "mosld",
            "adapter.experts_per_layer=[3]",
            "adapter.experts={ by_layer = [3] }",
        ),
        (
            "mosld",
            "adapter.experts_per_layer=[]",
            "adapter.experts=same",
        ),
        (
            "mosld",
            "adapter.experts_per_layer.1=5",
            "adapter.experts.by_layer.1=5",
        ),
        (
            "mosld",
            "adapter.expert_per_task=true",
            "adapter.experts=per_task",
        ),
        (
            "at-moe",
            "adapter.expert_per_task=false",
            "adapter.experts=same",
        ),
        (
            "at-moe",
            "adapter.blend=1",
            "adapter.general.routed_share=1",
        ),
        (
            "samora",
            "adapter.blend=0.5",
            "adapter.general={ routed_share = 0.5 }",
        ),
        (
            "at-moe",
            "adapter.groups={ a = [\"x\"] }",
            "adapter.router.scorer.grouped.tasks={ a = [\"x\"] }",
        ),
        (
            "samora",
            "adapter.bank.sharing=independent",
            "adapter.bank.slices=independent",
        ),
        (
            "lora",
            "adapter.bank.sharing=shared_a",
            "adapter.bank.slices=shared",
        ),
        (
            "samora",
            "adapter.bank.rank_scale=false",
            "adapter.bank.core=none",
        ),
        (
            "lora",
            "adapter.bank.rank_scale=true",
            "adapter.bank.core=scale",
        ),
        (
            "samora",
            "adapter.router.selection=sigmoid",
            "adapter.router.normaliser=sigmoid",
        ),
        (
            "phatgoose",
            "stages.1.gated=false",
            "stages.1.scope=each_task",
        ),
        (
            "phatgoose",
            "stages.0.gated=true",
            "stages.0.scope=each_gate",
        ),
        (
            "glider",
            "instructions.weight=50",
            "stages.4.transform.embed_instructions.weight=50",
        ),
    ];

    #[test]
    fn paths_of_earlier_versions_lead_to_what_they_are_now() {
        for (name, old, new) in PAIRS {
            let recipe = find(name).expect("listed");
            let set = |text: &str| {
                apply(&recipe, &[text.to_owned()]).unwrap_or_else(|error| panic!("{error}"))
            };
            assert_eq!(set(old), set(new), "{old}");
            assert_ne!(set(old), recipe, "{old} changes nothing");
        }
    }
}
