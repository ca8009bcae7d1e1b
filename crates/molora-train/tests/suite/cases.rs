//! The golden cases of methods: one list of all that are known, and the way to read one.

use std::io::Write;
use std::path::Path;

use molora_testkit::golden::{self, Case};

/// Whether the tests read a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// They do.
    On,
    /// Not yet: what is missing, in words. A test that asks for the case finds none.
    Off(&'static str),
}

use Reading::{Off, On};

/// Every known case. To switch one on, write its test with [`cases`] and put `On` here.
pub(crate) const CASES: &[(&str, Reading)] = &[
    ("at_moe_static", On),
    ("at_moe_token", On),
    ("glider", On),
    ("hydralora", On),
    ("mixlora_ffn", On),
    ("moa", On),
    ("mtlora_block", Off("adapters beside a whole block")),
    ("merge_adamerging", On),
    ("merge_concrete", On),
    ("merge_dare", On),
    ("merge_lora_factors", On),
    ("merge_magnitude", On),
    ("merge_task_arithmetic", On),
    ("merge_ties", On),
    ("mosld", On),
    ("mosld_layers", On),
    ("phatgoose", On),
    ("routing_losses", On),
    ("samora", On),
    ("e_wemoe", On),
    ("weight_regularizers", On),
    ("ld_mole", On),
    ("loramoe", On),
    ("malora", On),
    ("mode", On),
    ("mode_rank2", On),
    ("moe_lora_topk", On),
    ("moelora_contrastive", On),
    ("mola", On),
    ("mtl_lora", On),
    ("omoe", On),
    ("riemannian_precondition", On),
    ("goat_init", On),
    ("flylora", On),
    ("mtlora_grouped", On),
    ("mor1e_grid", On),
    ("poly", On),
    ("adamole", On),
    ("arrow", On),
    ("hmora", On),
    ("sqrt_gate", On),
    ("straight_through_ffn", On),
    ("straight_through_top1", On),
    ("xlora", On),
    ("mocle", On),
    ("mod_squad", On),
    ("top_p", On),
    ("lily", On),
    ("wemoe", On),
];

/// The cases of this name, which are bundled or below `MOLORA_GOLDEN_METHODS`; none while the list
/// says that they are not read.
///
/// # Panics
/// If the list does not know the name.
pub(crate) fn cases(name: &str) -> Vec<Case> {
    let listed = CASES.iter().find(|(known, _)| *known == name);
    let (_, reading) = listed.unwrap_or_else(|| panic!("{name} is missing in the list of cases"));
    if let Off(missing) = reading {
        // A lost note is no reason to fail the test.
        let _ = writeln!(
            std::io::stderr(),
            "golden: {name} is not read yet: {missing}"
        );
        return Vec::new();
    }
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
