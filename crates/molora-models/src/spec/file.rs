//! A specification in a file, with the keys of earlier versions.
//!
//! | earlier key | what it is now |
//! |---|---|
//! | `experts_per_layer = [2, 4]` | `experts = { by_layer = [2, 4] }` |
//! | `expert_per_task = true` | `experts = "per_task"` |
//! | `blend = 0.7` | `general = { routed_share = 0.7 }` |
//! | `groups` | `router.scorer.grouped.tasks` |
//!
//! `bank.sharing` and `bank.rank_scale` are aliases beside the fields themselves, and so is the
//! sigmoid among the selections of a router.

use molora_adapters::{BankConfig, GateConfig, GeneralExpert};
use molora_routing::scorer::TaskGroups;
use molora_routing::{LayerRule, RouterConfig};
use serde::Deserialize;

use super::{AdapterSpec, Composition, ExpertCount, RouterScope};
use crate::SavedModule;
use crate::saved::read_list;

/// An [`AdapterSpec`] in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdapterFile {
    targets: Vec<String>,
    #[serde(default)]
    composition: Composition,
    experts: Option<ExpertCount>,
    general: Option<GeneralExpert>,
    #[serde(default)]
    router_scope: RouterScope,
    #[serde(default)]
    layer_rule: LayerRule,
    bank: BankConfig,
    router: Option<RouterConfig>,
    gate: Option<GateConfig>,
    #[serde(default)]
    dora: bool,
    #[serde(default, deserialize_with = "read_list")]
    modules_to_save: Vec<SavedModule>,
    experts_per_layer: Option<Vec<usize>>,
    expert_per_task: Option<bool>,
    blend: Option<f64>,
    groups: Option<TaskGroups>,
}

impl TryFrom<AdapterFile> for AdapterSpec {
    type Error = String;

    fn try_from(file: AdapterFile) -> Result<Self, String> {
        let earlier = file.experts_per_layer.is_some() || file.expert_per_task.is_some();
        let experts = match (file.experts, earlier) {
            (Some(_), true) => {
                let keys = "experts_per_layer and expert_per_task";
                return Err(format!(
                    "{keys} are earlier names of experts, which is there too"
                ));
            }
            (Some(experts), false) => experts,
            (None, _) => earlier_count(
                file.experts_per_layer.unwrap_or_default(),
                file.expert_per_task.unwrap_or_default(),
            )?,
        };
        let general = match (file.general, file.blend) {
            (Some(_), Some(_)) => {
                return Err("blend is an earlier name of general, which is there too".into());
            }
            (general, blend) => general.or(blend.map(GeneralExpert::RoutedShare)),
        };
        let mut router = file.router;
        let groups = file.groups.unwrap_or_default();
        if !groups.is_empty() {
            let tasks = router.as_mut().and_then(|r| r.scorer.task_groups());
            let tasks = tasks.ok_or("groups needs router.scorer.grouped")?;
            if !tasks.is_empty() {
                let text =
                    "groups is an earlier name of router.scorer.grouped.tasks, which is there too";
                return Err(text.into());
            }
            *tasks = groups;
        }
        Ok(Self {
            targets: file.targets,
            composition: file.composition,
            experts,
            general,
            router_scope: file.router_scope,
            layer_rule: file.layer_rule,
            bank: file.bank,
            router,
            gate: file.gate,
            dora: file.dora,
            modules_to_save: file.modules_to_save,
        })
    }
}

fn earlier_count(by_layer: Vec<usize>, per_task: bool) -> Result<ExpertCount, String> {
    match (by_layer.is_empty(), per_task) {
        (true, false) => Ok(ExpertCount::Same),
        (true, true) => Ok(ExpertCount::PerTask),
        (false, false) => Ok(ExpertCount::ByLayer(by_layer)),
        (false, true) => Err("experts_per_layer contradicts expert_per_task = true".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AdapterSpec, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_of_earlier_versions_read_as_what_they_are_now() {
        let pair = |old: &str, new: &str| {
            let text = |keys| format!(r#"{{"targets": ["query"], "bank": {{}}, {keys}}}"#);
            let (old, new) = (read(&text(old)), read(&text(new)));
            assert_eq!(old.expect("an older file"), new.expect("a file of today"));
        };
        pair(
            r#""experts_per_layer": [2, 4], "expert_per_task": false"#,
            r#""experts": {"by_layer": [2, 4]}"#,
        );
        pair(
            r#""experts_per_layer": [], "expert_per_task": true"#,
            r#""experts": "per_task""#,
        );
        pair(
            r#""experts_per_layer": [], "expert_per_task": false"#,
            r#""experts": "same""#,
        );
        pair(r#""blend": 0.7"#, r#""general": {"routed_share": 0.7}"#);
        pair(
            r#""groups": {"a": ["x"]}, "router": {"scorer": {"grouped": {"groups": []}}}"#,
            r#""router": {"scorer": {"grouped": {"tasks": {"a": ["x"]}}}}"#,
        );
    }

    #[test]
    fn two_names_of_one_thing_are_refused() {
        for (keys, expected) in [
            (
                r#""blend": 0.7, "general": {"routed_share": 0.5}"#,
                "blend is an",
            ),
            (
                r#""expert_per_task": true, "experts": "same""#,
                "earlier names of",
            ),
            (
                r#""experts_per_layer": [2], "expert_per_task": true"#,
                "experts_per_layer contradicts",
            ),
            (
                r#""groups": {"a": ["x"]}"#,
                "groups needs router.scorer.grouped",
            ),
            (r#""blnd": 0.7"#, "unknown field `blnd`"),
        ] {
            let text = format!(r#"{{"targets": ["query"], "bank": {{}}, {keys}}}"#);
            let error = read(&text).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
