//! The report of a finished run from the files in its folder, and where pages may be written.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::manifest::put_locked;
use super::names::is_name_of_run;
use super::{
    BASE, EVAL, EXAMPLES, EXPERT_REPORT, FolderLock, REPORT, ROUTING, RunConfig, STEPS, SUMMARY,
    is_run, read_config,
};

use crate::base::files::{is_there, parent};
use crate::base::place::write_atomically;
use crate::error::{RunProblem, TrainError};
use crate::report::{
    BaseReport, EvalReport, ExampleReport, ExpertReport, Page, Record, ReportError, RoutingReport,
    RunSummary, read_json, read_json_if_there, read_records, render,
};

/// What the title of every page ends with.
const TITLE_END: &str = "molora</title>";

/// A finished run as its report shows it.
#[derive(Debug, Clone)]
pub struct FinishedRun {
    /// Its resolved configuration.
    pub config: RunConfig,
    /// Its facts.
    pub summary: RunSummary,
    /// Its scores.
    pub eval: EvalReport,
    /// How its routers shared the tasks.
    pub routing: Option<RoutingReport>,
    /// Its steps, and its scores of the validation split.
    pub records: Vec<Record>,
    /// What the base model alone is worth.
    pub base: Option<BaseReport>,
    /// What it answered to some records.
    pub examples: Option<ExampleReport>,
    /// What its experts do.
    pub experts: Option<ExpertReport>,
}

impl FinishedRun {
    /// Reads a run and changes nothing.
    ///
    /// # Errors
    /// If the folder holds no run, or one that is not finished, was not scored, or is of a newer
    /// molora; if one of its files is broken.
    pub fn read(folder: &Path) -> Result<Self, TrainError> {
        let config = read_config(folder)?;
        for (file, problem) in [
            (SUMMARY, RunProblem::NotFinished),
            (EVAL, RunProblem::NotScored),
        ] {
            if !is_there(&folder.join(file)) {
                return Err(TrainError::run(folder, problem));
            }
        }
        let steps = folder.join(STEPS);
        Ok(Self {
            config,
            summary: read_json(&folder.join(SUMMARY))?,
            eval: read_eval(folder)?,
            routing: read_json_if_there(&folder.join(ROUTING))?,
            // A run of assembled experts was not trained.
            records: if is_there(&steps) {
                read_records(&steps)?
            } else {
                Vec::new()
            },
            base: read_base(folder)?,
            examples: read_json_if_there(&folder.join(EXAMPLES))?,
            experts: read_json_if_there(&folder.join(EXPERT_REPORT))?,
        })
    }

    /// Its page.
    pub fn render(&self) -> String {
        render(&Page {
            summary: &self.summary,
            eval: &self.eval,
            routing: self.routing.as_ref(),
            records: &self.records,
            base: self.base.as_ref(),
            examples: self.examples.as_ref(),
            experts: self.experts.as_ref(),
            settings: &self.config.recipe.to_toml(),
        })
    }
}

fn read_eval(folder: &Path) -> Result<EvalReport, ReportError> {
    let path = folder.join(EVAL);
    let eval = read_json(&path)?;
    check_scores(&path, "", &eval)?;
    Ok(eval)
}

/// What the base model is worth on the tasks of a run, if that was measured.
///
/// # Errors
/// If the file is there and cannot be read, or has a score that cannot be shown.
pub fn read_base(folder: &Path) -> Result<Option<BaseReport>, ReportError> {
    let path = folder.join(BASE);
    let base: Option<BaseReport> = read_json_if_there(&path)?;
    if let Some(base) = &base {
        check_scores(&path, "scores.", &base.scores)?;
    }
    Ok(base)
}

/// Refuses scores of a file, which anybody may have made, that cannot be shown.
fn check_scores(path: &Path, above: &str, scores: &EvalReport) -> Result<(), ReportError> {
    match scores.unshowable() {
        None => Ok(()),
        Some((field, found)) => Err(ReportError::Score {
            path: path.to_owned(),
            field: format!("{above}{field}"),
            found,
        }),
    }
}

/// Writes the page of a finished run again, into its folder or elsewhere; the path that was written.
///
/// # Errors
/// As [`FinishedRun::read`] and [`write_page`]; [`RunProblem::InUse`] if another process writes the run.
pub fn write_report(folder: &Path, output: Option<&Path>) -> Result<PathBuf, TrainError> {
    if let Some(path) = output.filter(|path| !is_own_report(folder, path)) {
        write_page(path, &FinishedRun::read(folder)?.render())?;
        return Ok(path.to_owned());
    }
    if !is_run(folder)? {
        return Err(TrainError::run(folder, RunProblem::NoRun));
    }
    let _lock = FolderLock::take(folder)?;
    let path = folder.join(REPORT);
    check_page(&path)?;
    put_locked(
        folder,
        REPORT,
        FinishedRun::read(folder)?.render().as_bytes(),
    )?;
    Ok(path)
}

/// Whether a path is that of a run's own report.
fn is_own_report(folder: &Path, path: &Path) -> bool {
    let place = |path: &Path| path.canonicalize().ok();
    let is_in = place(parent(path)).is_some_and(|found| Some(found) == place(folder));
    is_in && path.file_name() == Some(REPORT.as_ref())
}

/// Writes a page at once to a place that is free or has a page of molora.
///
/// # Errors
/// [`RunProblem::NoPage`] if there is something else, [`RunProblem::OfRun`] if the place is that of a
/// run's own file, [`RunProblem::NoFolder`] if there is no such folder; [`TrainError::Io`] if the place
/// cannot be written.
pub fn write_page(path: &Path, page: &str) -> Result<(), TrainError> {
    let folder = parent(path);
    if !folder.is_dir() || path.file_name().is_none() {
        return Err(TrainError::run(path, RunProblem::NoFolder));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if is_run(folder)? && is_name_of_run(&name) {
        return Err(TrainError::run(path, RunProblem::OfRun));
    }
    check_page(path)?;
    write_atomically(path, page.as_bytes())
}

/// Refuses a place where there is something that is no page of molora.
///
/// # Errors
/// [`RunProblem::NoPage`]; [`TrainError::Io`] if the file cannot be read.
pub(crate) fn check_page(path: &Path) -> Result<(), TrainError> {
    match is_page(path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(TrainError::run(path, RunProblem::NoPage)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a file is a page of molora, by its title.
fn is_page(path: &Path) -> std::io::Result<bool> {
    if !fs_err::metadata(path)?.is_file() {
        return Ok(false);
    }
    let mut head = Vec::new();
    fs_err::File::open(path)?
        .take(4096)
        .read_to_end(&mut head)?;
    let head = String::from_utf8_lossy(&head);
    Ok(head.starts_with("<!DOCTYPE html>") && head.contains(TITLE_END))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Page, sample};

    #[test]
    fn only_pages_are_replaced() {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("page.html");
        let (summary, eval) = (sample::summary(), sample::eval());
        let page = render(&Page::new(&summary, &eval));
        write_page(&path, &page).expect("free");
        write_page(&path, &page).expect("a page");
        for (name, text) in [
            ("eval.json", "{}"),
            ("other.html", "<!DOCTYPE html><p>mine"),
        ] {
            let path = root.path().join(name);
            std::fs::write(&path, text).expect("writable");
            let error = write_page(&path, &page).expect_err("refused").to_string();
            assert!(error.contains("is no page of molora"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).expect("readable"), text);
        }
        let error = write_page(root.path(), &page)
            .expect_err("a folder")
            .to_string();
        assert!(error.contains("is no page of molora"), "{error}");
        write_page(&root.path().join("none/page.html"), &page).expect_err("no folder");
    }

    #[test]
    fn scores_that_no_run_has_are_named() {
        let root = tempfile::tempdir().expect("a folder");
        let mut base = sample::base();
        let task = base.scores.tasks.keys().next().expect("a task").clone();
        base.scores.tasks.get_mut(&task).expect("there").value = 1e308;
        let text = serde_json::to_string(&base).expect("plain data");
        std::fs::write(root.path().join(BASE), text).expect("writable");
        let error = read_base(root.path()).expect_err("refused").to_string();
        let words = format!("base.json: scores.tasks.{task}.value is 1e308, expected a fraction");
        assert!(error.ends_with(&words), "{error}");
    }

    #[test]
    fn a_folder_without_a_run_gets_no_lock() {
        let root = tempfile::tempdir().expect("a folder");
        let error = write_report(root.path(), None)
            .expect_err("no run")
            .to_string();
        assert!(error.ends_with("not a run folder"), "{error}");
        assert_eq!(std::fs::read_dir(root.path()).expect("readable").count(), 0);
    }
}
