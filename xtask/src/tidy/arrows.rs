//! Dependency arrows between our crates: lower layers know nothing of higher ones.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use xshell::Shell;

use super::Finding;
use super::source::BACKENDS;

/// Which of our crates each crate may depend on (beside dev-dependencies).
const ALLOWED: [(&str, &[&str]); 12] = [
    ("molora-parts", &[]),
    ("molora-kernels", &[]),
    ("molora-adapters", &["molora-kernels", "molora-parts"]),
    ("molora-routing", &["molora-kernels", "molora-parts"]),
    (
        "molora-regularize",
        &[
            "molora-adapters",
            "molora-kernels",
            "molora-parts",
            "molora-routing",
        ],
    ),
    (
        "molora-models",
        &[
            "molora-adapters",
            "molora-kernels",
            "molora-parts",
            "molora-routing",
        ],
    ),
    (
        "molora-train",
        &[
            "molora-adapters",
            "molora-kernels",
            "molora-models",
            "molora-parts",
            "molora-regularize",
            "molora-routing",
        ],
    ),
    ("molora-serve", &["molora-models", "molora-train"]),
    (
        "molora",
        &[
            "molora-adapters",
            "molora-kernels",
            "molora-models",
            "molora-regularize",
            "molora-routing",
            "molora-serve",
            "molora-train",
        ],
    ),
    ("molora-testkit", &[]),
    ("xtask", &[]),
    (
        "molora-fuzz",
        &["molora-models", "molora-testkit", "molora-train"],
    ),
];

/// Crates whose manifests may name a backend: the program, the kernels, and what tests use.
const WITH_BACKENDS: [&str; 4] = ["molora", "molora-kernels", "molora-testkit", "molora-train"];

/// What tests may use although the arrows above leave it out.
const DEV_ONLY: &str = "molora-testkit";

/// What tests and examples of a crate may use, and its library must not: a model is trained with losses.
const DEV_ARROWS: [(&str, &str); 1] = [("molora-models", "molora-regularize")];

/// Checks every crate of the workspace against [`ALLOWED`].
pub(super) fn check(shell: &Shell) -> Result<Vec<Finding>> {
    let root = shell.current_dir();
    let metadata = MetadataCommand::new()
        .current_dir(&root)
        .no_deps()
        .exec()
        .context("cannot read the workspace with `cargo metadata`")?;
    let packages: Vec<&Package> = metadata.workspace_packages();
    let ours: BTreeSet<&str> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let mut findings = Vec::new();
    for package in &packages {
        let path = package
            .manifest_path
            .strip_prefix(&root)
            .unwrap_or(&package.manifest_path);
        let manifest = shell.read_file(path)?;
        findings.extend(check_package(package, &ours, path.as_str(), &manifest));
    }
    Ok(findings)
}

fn check_package(
    package: &Package,
    ours: &BTreeSet<&str>,
    path: &str,
    manifest: &str,
) -> Vec<Finding> {
    let arrows = package
        .dependencies
        .iter()
        .filter(|arrow| ours.contains(arrow.name.as_str()));
    let problem = |arrow: &cargo_metadata::Dependency| {
        let message = forbidden(&package.name, &arrow.name, arrow.kind)?;
        Some(Finding::error(
            path,
            line_of(manifest, &arrow.name),
            message,
        ))
    };
    arrows
        .filter_map(problem)
        .chain(unplaced(&package.name, path))
        .chain(backend_in(&package.name, path, manifest))
        .collect()
}

fn backend_in(package: &str, path: &str, manifest: &str) -> Option<Finding> {
    if WITH_BACKENDS.contains(&package) {
        return None;
    }
    let (line, backend) = manifest_backend(manifest)?;
    let may = WITH_BACKENDS.join(", ");
    let message = format!("{package} names the backend `{backend}`; only {may} may");
    Some(Finding::error(path, line, message))
}

/// First line of a manifest that names a backend, as a feature or as a crate of its own.
fn manifest_backend(manifest: &str) -> Option<(usize, &'static str)> {
    let is_named = |line: &str, name: &str| {
        let forms = [
            format!("\"{name}\""),
            format!("burn/{name}"),
            format!("burn-{name}"),
        ];
        forms.iter().any(|form| line.contains(form))
    };
    let lines = manifest.lines().enumerate();
    let mut code = lines.filter(|(_, line)| !line.trim_start().starts_with('#'));
    code.find_map(|(index, line)| {
        let backend = BACKENDS.iter().find(|name| is_named(line, name))?;
        Some((index + 1, *backend))
    })
}

/// A crate that the table does not know has no layer yet.
fn unplaced(package: &str, path: &str) -> Option<Finding> {
    let is_known = ALLOWED.iter().any(|(name, _)| *name == package);
    let message = format!("{package} has no layer: add it to ALLOWED in xtask/src/tidy/arrows.rs");
    (!is_known).then(|| Finding::error(path, 1, message))
}

/// Says why `from` must not depend on `to`, or nothing where it may.
fn forbidden(from: &str, to: &str, kind: DependencyKind) -> Option<String> {
    let (_, allowed) = ALLOWED.iter().find(|(name, _)| *name == from)?;
    let is_allowed = match kind {
        DependencyKind::Development => {
            let is_dev = to == DEV_ONLY || to == from || DEV_ARROWS.contains(&(from, to));
            is_dev || allowed.contains(&to)
        }
        _ => allowed.contains(&to),
    };
    let allowed = match allowed {
        [] => "none of our crates".to_owned(),
        names => names.join(", "),
    };
    (!is_allowed).then(|| format!("{from} must not depend on {to}; it may depend on {allowed}"))
}

/// Line of a manifest that begins with the name of a dependency; 1 if there is none.
fn line_of(manifest: &str, dependency: &str) -> usize {
    let names_it = |line: &str| {
        let rest = line.trim_start().strip_prefix(dependency);
        rest.is_some_and(|rest| rest.starts_with([' ', '=', '.']))
    };
    manifest
        .lines()
        .position(names_it)
        .map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_point_down() {
        use DependencyKind::{Build, Development, Normal};
        let cases = [
            ("molora-adapters", "molora-kernels", Normal, true),
            ("molora-adapters", "molora-routing", Normal, false),
            ("molora-routing", "molora-adapters", Build, false),
            ("molora-regularize", "molora-models", Normal, false),
            ("molora-models", "molora-train", Normal, false),
            ("molora-train", "molora-regularize", Normal, true),
            ("molora-train", "molora", Normal, false),
            ("molora", "molora-train", Normal, true),
            ("molora-train", "molora-testkit", Normal, false),
            ("molora-train", "molora-testkit", Development, true),
            ("molora-kernels", "molora-kernels", Development, true),
            ("molora-kernels", "molora-adapters", Development, false),
            ("molora-models", "xtask", Development, false),
        ];
        for (from, to, kind, allowed) in cases {
            assert_eq!(
                forbidden(from, to, kind).is_none(),
                allowed,
                "{from} -> {to}"
            );
        }
    }

    #[test]
    fn the_message_names_both_ends_and_what_is_allowed() {
        let message = forbidden("molora-routing", "molora-models", DependencyKind::Normal);
        let expected = "molora-routing must not depend on molora-models; \
                        it may depend on molora-kernels, molora-parts";
        assert_eq!(message.as_deref(), Some(expected));
    }

    #[test]
    fn a_new_crate_needs_a_layer() {
        assert!(unplaced("molora-train", "Cargo.toml").is_none());
        let finding = unplaced("molora-new", "crates/molora-new/Cargo.toml").unwrap();
        assert!(
            finding.message.contains("molora-new has no layer"),
            "{finding}"
        );
    }

    #[test]
    fn the_line_of_a_dependency_is_found() {
        let manifest = "[dependencies]\nmolora-a-b = \"1\"\nmolora-a.workspace = true\n";
        assert_eq!(line_of(manifest, "molora-a"), 3);
        assert_eq!(line_of(manifest, "molora-c"), 1);
    }

    #[test]
    fn backends_are_found_in_manifests() {
        let cases = [
            ("[dependencies]\nburn = { workspace = true }\n", None),
            ("# flex = [\"burn/flex\"]\n", None),
            ("[features]\nflex = [\"burn/flex\"]\n", Some((2, "flex"))),
            (
                "\nburn = { version = \"1\", features = [\"std\", \"cuda\"] }\n",
                Some((2, "cuda")),
            ),
            ("burn-wgpu = \"1\"\n", Some((1, "wgpu"))),
        ];
        for (manifest, expected) in cases {
            assert_eq!(manifest_backend(manifest), expected, "{manifest}");
        }
    }

    #[test]
    fn allowed_arrows_have_no_circle() {
        for (from, targets) in ALLOWED {
            for to in targets {
                let kind = DependencyKind::Normal;
                assert!(forbidden(to, from, kind).is_some(), "{from} <-> {to}");
            }
        }
    }
}
