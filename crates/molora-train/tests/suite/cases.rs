//! The golden cases of methods: one list of all that are known, and the way to read one.

use std::path::Path;

use molora_testkit::golden::{self, Case};

/// Every known case, each of which has a test that asks for it with [`cases`].
pub(crate) const CASES: &[&str] = &[
    "at_moe_static",
    "at_moe_token",
    "glider",
    "hydralora",
    "mixlora_ffn",
    "moa",
    "mtlora_block",
    "merge_adamerging",
    "merge_concrete",
    "merge_dare",
    "merge_lora_factors",
    "merge_magnitude",
    "merge_task_arithmetic",
    "merge_ties",
    "mosld",
    "mosld_layers",
    "phatgoose",
    "routing_losses",
    "samora",
    "e_wemoe",
    "weight_regularizers",
    "ld_mole",
    "loramoe",
    "malora",
    "mode",
    "mode_rank2",
    "moe_lora_topk",
    "moelora_contrastive",
    "mola",
    "mtl_lora",
    "omoe",
    "riemannian_precondition",
    "goat_init",
    "flylora",
    "mtlora_grouped",
    "mor1e_grid",
    "poly",
    "adamole",
    "arrow",
    "hmora",
    "sqrt_gate",
    "straight_through_ffn",
    "straight_through_top1",
    "xlora",
    "mocle",
    "mod_squad",
    "top_p",
    "lily",
    "wemoe",
];

/// The cases of this name, which are bundled or below `MOLORA_GOLDEN_METHODS`.
///
/// # Panics
/// If the list does not know the name.
pub(crate) fn cases(name: &str) -> Vec<Case> {
    assert!(
        CASES.contains(&name),
        "{name} is missing in the list of cases"
    );
    golden::of_kind(all(), name, |case| name_of(case).as_deref() == Some(name))
}

/// All cases, of whatever name.
pub(crate) fn all() -> Vec<Case> {
    let bundled = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden-methods"));
    golden::cases(bundled, golden::MOLORA_GOLDEN_METHODS)
}

/// What a case says it is.
pub(crate) fn name_of(case: &Case) -> Option<String> {
    Some(case.json("case.json")?["case"].as_str()?.to_owned())
}
