//! `molora models`.

use std::fmt::Write;

use anyhow::bail;
use clap::Args;
use molora_models::{BaseDtype, Family, FamilyKind};

use super::print;

/// Options of `molora models`.
#[derive(Debug, Args)]
pub(super) struct ModelsArgs {
    /// Show what is read of this family's config.json, and what is refused
    #[arg(long, value_name = "MODEL_TYPE")]
    show: Option<String>,
}

impl ModelsArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.show {
            Some(name) => print(&shown(&name)?),
            None => print(&everything()?),
        }
    }
}

/// What is done with a family's models beside training.
fn uses(family: &Family) -> Vec<&'static str> {
    let mut uses = vec!["train", "merge", "PEFT"];
    if family.kind != FamilyKind::Encoder {
        uses.push("generate");
    }
    uses.extend(family.about.transformers.then_some("transformers"));
    uses.extend(family.about.gguf.map(|_| "GGUF"));
    uses
}

/// Types of the frozen matrices, which are the same for all families.
fn dtypes() -> String {
    BaseDtype::ALL.map(|dtype| dtype.to_string()).join(", ")
}

fn everything() -> anyhow::Result<String> {
    let mut text = String::from(
        "families of base models, by model_type of config.json (--show NAME for its fields)\n",
    );
    for kind in FamilyKind::ALL {
        writeln!(text, "\n{}s", kind.name())?;
        for family in Family::all().filter(|family| family.kind == kind) {
            let about = family.about;
            writeln!(
                text,
                "  {:<12} {:<32} {}",
                about.model_type, about.models, about.special
            )?;
            writeln!(text, "  {:<12} {}", "", uses(&family).join(", "))?;
        }
    }
    writeln!(
        text,
        "\nThe first line of a family: its models, and how they differ from those of the first family of the kind, or what\n\
         those may have. The second line: what is done with them; PEFT, transformers and GGUF are formats of `molora\n\
         export`. The frozen matrices of all may be kept as {} (--base-dtype).",
        dtypes()
    )?;
    Ok(text)
}

fn shown(name: &str) -> anyhow::Result<String> {
    let Some(family) = Family::find(name) else {
        let names: Vec<&str> = Family::all()
            .map(|family| family.about.model_type)
            .collect();
        bail!(
            "there is no family {name}, expected one of {}",
            names.join(", ")
        );
    };
    let about = family.about;
    let mut text = format!(
        "{name}: {}\n{}, {}\n{}; --base-dtype {}\n\nfields of config.json that are read\n",
        about.models,
        family.kind.name(),
        about.special,
        uses(&family).join(", "),
        dtypes()
    );
    let fields = family.fields();
    for field in &fields {
        let needed = if field.is_needed { "needed" } else { "" };
        writeln!(text, "  {:<32} {needed:<7} {}", field.name, field.expected)?;
    }
    text.push_str("\nrefused, if it is not\n");
    for field in &fields {
        for limit in &field.limits {
            writeln!(text, "  {:<32} {limit}", field.name)?;
        }
    }
    let foreign = family.foreign_fields().join(", ");
    writeln!(
        text,
        "  off (factors: 1) or nothing, as fields of other architectures: {foreign}"
    )?;
    text.push_str(
        "Any other field is named in a warning, unless it has no effect without dropout.\n",
    );
    Ok(text)
}
