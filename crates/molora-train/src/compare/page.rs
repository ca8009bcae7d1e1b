//! Runs side by side as a page: those of a comparison, or any others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::CompareError;
use super::result::Comparison;
use super::table::{interval_note, plain_tables};
use super::{COMPARISON, PAGE, Plan, RESULT, run_folder};
use crate::base::write_atomically;
use crate::recipe::Recipe;
use crate::report::{BASE_FILES, ComparedRun, read_json, render_comparison};
use crate::store::{FinishedRun, RunConfig, check_page};
use sha2::{Digest, Sha256};

/// Whether a folder holds a comparison.
pub fn is_comparison(folder: &Path) -> bool {
    folder.join(COMPARISON).is_file()
}

/// The run folders of a finished comparison, by recipe and seed.
///
/// # Errors
/// If the comparison is not finished, or its result cannot be read.
pub fn runs_of(folder: &Path) -> Result<Vec<PathBuf>, CompareError> {
    let comparison = read_result(folder)?;
    let recipes = comparison.recipes.iter();
    let runs = recipes.flat_map(|recipe| {
        (0..comparison.seeds).map(|seed| run_folder(folder, &recipe.name, seed))
    });
    Ok(runs.collect())
}

fn read_result(folder: &Path) -> Result<Comparison, CompareError> {
    let path = folder.join(RESULT);
    match path.is_file() {
        true => {
            let comparison: Comparison = read_json(&path)?;
            comparison
                .check()
                .map_err(|problem| CompareError::folder(&path, problem))?;
            Ok(comparison)
        }
        false => {
            let text = "holds no compare.json: the comparison is not finished; the same molora \
                        compare goes on with it";
            Err(CompareError::folder(folder, text))
        }
    }
}

/// The page of finished runs, which may be of several comparisons or of none.
///
/// # Errors
/// If one of the folders holds no finished run.
pub fn page_of_runs(folders: &[PathBuf]) -> Result<String, CompareError> {
    Ok(render_comparison(&read_runs(folders)?, &[], ""))
}

/// The page of a finished comparison, with its intervals and what was tuned.
///
/// # Errors
/// If it is not finished, or one of its runs cannot be read.
pub fn page_of_comparison(folder: &Path) -> Result<String, CompareError> {
    let comparison = read_result(folder)?;
    let runs = read_runs(&runs_of(folder)?)?;
    Ok(render(&comparison, &runs))
}

/// Writes the page of a comparison into its folder.
pub(super) fn write(plan: &Plan, comparison: &Comparison, out: &Path) -> Result<(), CompareError> {
    let recipes = plan.recipes.iter();
    let folders = recipes
        .flat_map(|recipe| (0..plan.seeds).map(|seed| run_folder(out, &recipe.name, seed)))
        .collect::<Vec<_>>();
    let page = render(comparison, &read_runs(&folders)?);
    let path = out.join(PAGE);
    check_page(&path)?;
    Ok(write_atomically(&path, page.as_bytes())?)
}

fn render(comparison: &Comparison, runs: &[ComparedRun]) -> String {
    render_comparison(runs, &plain_tables(comparison), &interval_note(comparison))
}

/// Reads runs and puts those together that differ in their seed alone.
fn read_runs(folders: &[PathBuf]) -> Result<Vec<ComparedRun>, CompareError> {
    let read = folders.iter().map(|folder| FinishedRun::read(folder));
    let runs: Vec<FinishedRun> = read.collect::<Result<_, _>>()?;
    let names = folder_names(folders);
    let inputs: Vec<_> = runs.iter().map(|run| inputs(&run.config)).collect();
    let kinds: Vec<Kind<'_>> = runs
        .iter()
        .zip(&names)
        .zip(&inputs)
        .map(|((run, name), inputs)| Kind {
            run: name,
            recipe: &run.config.recipe,
            model: &run.config.model,
            inputs,
        })
        .collect();
    let groups = group_names(&kinds);
    let compared = runs.into_iter().zip(names).zip(groups).zip(inputs);
    Ok(compared
        .map(|(((run, name), recipe), inputs)| ComparedRun {
            inputs,
            recipe,
            name,
            summary: run.summary,
            eval: run.eval,
            records: run.records,
            base: run.base,
        })
        .collect())
}

/// The last part of each path, with the one before it where that alone names several.
fn folder_names(folders: &[PathBuf]) -> Vec<String> {
    let last = |folder: &Path, parts: usize| {
        let full = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let all: Vec<String> = full
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let short: Vec<String> = folders.iter().map(|folder| last(folder, 1)).collect();
    let name = |(folder, name): (&PathBuf, &String)| {
        let is_one = short.iter().filter(|other| *other == name).count() == 1;
        // A run of a comparison lies in its folder `runs`.
        if is_one {
            name.clone()
        } else {
            last(folder, 3)
        }
    };
    folders.iter().zip(&short).map(name).collect()
}

/// What a run was made of beside its recipe, in words and as the beginning of a digest.
fn inputs(config: &RunConfig) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let dtype = config.base_dtype.to_string();
    found.insert("types of the base's matrices".to_owned(), dtype);
    let Some(digests) = &config.digests else {
        return found;
    };
    found.insert(BASE_FILES.to_owned(), short(&digests.base));
    for (task, files) in &digests.tasks {
        found.insert(format!("files of task {task}"), short(files));
    }
    found
}

/// The beginning of a digest of digests.
fn short(files: &BTreeMap<String, String>) -> String {
    let all: Vec<String> = files
        .iter()
        .map(|(name, digest)| format!("{name} {digest}"))
        .collect();
    format!("{:.8x}", Sha256::digest(all.join("\n")))
}

/// What runs of one column have in common.
#[derive(Debug, Clone, Copy)]
struct Kind<'a> {
    run: &'a str,
    recipe: &'a Recipe,
    model: &'a str,
    inputs: &'a BTreeMap<String, String>,
}

impl Kind<'_> {
    fn is_same(&self, other: &Self) -> bool {
        self.recipe == other.recipe && self.model == other.model && self.inputs == other.inputs
    }
}

/// What each run's recipe is called: by its name, with that of the first run that has it where there
/// are others of the same name, with other settings, another base model or other data.
fn group_names(runs: &[Kind<'_>]) -> Vec<String> {
    let mut by_name: BTreeMap<&str, Vec<Kind<'_>>> = BTreeMap::new();
    for &kind in runs {
        let known = by_name.entry(&kind.recipe.name).or_default();
        if !known.iter().any(|other| other.is_same(&kind)) {
            known.push(kind);
        }
    }
    let name = |kind: &Kind<'_>| {
        let (recipe, known) = (&kind.recipe.name, &by_name[&kind.recipe.name[..]]);
        match known.iter().find(|other| other.is_same(kind)) {
            Some(first) if known.len() > 1 => format!("{recipe} ({})", first.run),
            _ => recipe.clone(),
        }
    };
    runs.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_recipe_with_other_settings_are_told_apart() {
        let recipe = crate::recipe::find("lora").expect("listed");
        let mut other = recipe.clone();
        other.stages[0].steps += 1;
        let inputs = BTreeMap::new();
        let kind = |run, recipe| Kind {
            run,
            recipe,
            model: "mini",
            inputs: &inputs,
        };
        let names = |runs: &[Kind<'_>]| group_names(runs);
        assert_eq!(
            names(&[kind("a", &recipe), kind("b", &recipe)]),
            ["lora", "lora"]
        );
        assert_eq!(
            names(&[kind("a", &recipe), kind("b", &other), kind("c", &recipe)]),
            ["lora (a)", "lora (b)", "lora (a)"]
        );
        // Other data are no other seed.
        let others = BTreeMap::from([("files of task pets".to_owned(), "0f".to_owned())]);
        let changed = Kind {
            inputs: &others,
            ..kind("b", &recipe)
        };
        assert_eq!(
            names(&[kind("a", &recipe), changed]),
            ["lora (a)", "lora (b)"]
        );
    }

    #[test]
    fn folders_of_the_same_name_are_told_apart() {
        let names = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            folder_names(&paths)
        };
        assert_eq!(names(&["/x/one", "/x/two"]), ["one", "two"]);
        assert_eq!(
            names(&["/x/a/runs/lora-seed0", "/x/b/runs/lora-seed0", "/x/c"]),
            ["a/runs/lora-seed0", "b/runs/lora-seed0", "c"]
        );
    }
}
