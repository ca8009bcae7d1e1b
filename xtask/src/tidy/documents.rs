//! Code that has to have its document: crates and recipes.

use anyhow::Result;
use xshell::Shell;

use super::Finding;

/// The map of the code, which has to mention every crate.
const ARCHITECTURE: &str = "docs/architecture.md";
/// The folder with one file per method.
const RECIPES: &str = "crates/molora-train/src/recipe/";
/// Files of that folder that are no method.
const NO_RECIPES: [&str; 19] = [
    "about",
    "check",
    "cluster_texts",
    "data",
    "file",
    "growth",
    "guard",
    "instructions",
    "phases",
    "limits",
    "mod",
    "optimizer",
    "order",
    "overrides",
    "profile",
    "report",
    "schema",
    "stage",
    "validation",
];
/// How a citation begins; the second is for papers that are in no archive.
const CITATIONS: [&str; 2] = ["arXiv:", "openreview:"];

/// Checks that every crate and every recipe is documented.
pub(super) fn check(shell: &Shell, files: &[String]) -> Result<Vec<Finding>> {
    let crates: Vec<&str> = files.iter().filter_map(|file| crate_of(file)).collect();
    let architecture = match files.iter().any(|file| file == ARCHITECTURE) {
        true => shell.read_file(ARCHITECTURE)?,
        false => String::new(),
    };
    let mut findings = check_crates(&crates, &architecture);
    for (file, name) in files
        .iter()
        .filter_map(|file| Some((file, recipe_of(file)?)))
    {
        // Names of recipes are written as on the command line: `at-moe` in `at_moe.rs`.
        let page = format!("docs/methods/{}.md", name.replace('_', "-"));
        findings.extend(check_recipe(
            file,
            &shell.read_file(file)?,
            &page,
            files.contains(&page),
        ));
    }
    Ok(findings)
}

/// Name of the crate whose manifest a file is.
fn crate_of(file: &str) -> Option<&str> {
    let name = file.strip_suffix("/Cargo.toml")?;
    Some(name.strip_prefix("crates/").unwrap_or(name))
}

/// Name of the method whose recipe a file is.
fn recipe_of(file: &str) -> Option<&str> {
    let name = file.strip_prefix(RECIPES)?.strip_suffix(".rs")?;
    (!NO_RECIPES.contains(&name) && !name.contains('/')).then_some(name)
}

fn check_crates(crates: &[&str], architecture: &str) -> Vec<Finding> {
    let missing = crates.iter().filter(|name| !architecture.contains(**name));
    let finding = |name: &&str| Finding::error(ARCHITECTURE, 1, format!("does not mention {name}"));
    missing.map(finding).collect()
}

fn check_recipe(file: &str, text: &str, page: &str, has_page: bool) -> Vec<Finding> {
    let is_cited = CITATIONS.iter().any(|citation| text.contains(citation));
    let uncited = (!is_cited).then(|| format!("no citation (`{}...`)", CITATIONS[0]));
    let undocumented = (!has_page).then(|| format!("no page {page}"));
    let messages = uncited.into_iter().chain(undocumented);
    messages
        .map(|message| Finding::error(file, 1, message))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_and_recipes_are_known_by_their_paths() {
        assert_eq!(
            crate_of("crates/molora-train/Cargo.toml"),
            Some("molora-train")
        );
        assert_eq!(crate_of("xtask/Cargo.toml"), Some("xtask"));
        assert_eq!(crate_of("Cargo.toml"), None);
        assert_eq!(
            recipe_of("crates/molora-train/src/recipe/samora.rs"),
            Some("samora")
        );
        assert_eq!(recipe_of("crates/molora-train/src/recipe/mod.rs"), None);
        assert_eq!(recipe_of("crates/molora-train/src/trainer.rs"), None);
    }

    #[test]
    fn a_crate_that_is_not_mentioned_is_found() {
        let found = check_crates(&["molora-train", "xtask"], "`molora-train`: the program");
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].to_string(),
            "docs/architecture.md:1: error: does not mention xtask"
        );
    }

    #[test]
    fn a_recipe_needs_citation_and_page() {
        let page = "docs/methods/samora.md";
        assert!(check_recipe("samora.rs", "//! arXiv:2106.09685", page, true).is_empty());
        let found = check_recipe("samora.rs", "//! By somebody", page, false);
        let messages: Vec<_> = found
            .iter()
            .map(|finding| finding.message.as_str())
            .collect();
        assert_eq!(
            messages,
            [
                "no citation (`arXiv:...`)",
                "no page docs/methods/samora.md"
            ]
        );
    }
}
