//! `molora report`.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use super::print;
use molora_train::compare::{is_comparison, page_of_comparison, page_of_runs, runs_of};
use molora_train::store::{write_page, write_report};

/// File of several runs' page, if no other is asked for.
const PAGE: &str = "comparison.html";

/// Options of `molora report`.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Folders of finished runs, or of comparisons, each of which stands for all its runs
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// File to write; only an older report is overwritten [default: report.html in the folder of a single
    /// run, comparison.html here for several]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl ReportArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if let Some(missing) = self.runs.iter().find(|folder| !folder.is_dir()) {
            let missing = missing.display();
            bail!("{missing}: no such folder, expected one of a run or of a comparison");
        }
        let written = match &self.runs[..] {
            [folder] if is_comparison(folder) => self.several(page_of_comparison(folder)?)?,
            [folder] => write_report(folder, self.output.as_deref())?,
            folders => match &all_runs(folders)?[..] {
                // The same one under several names.
                [one] => write_report(one, self.output.as_deref())?,
                runs => self.several(page_of_runs(runs)?)?,
            },
        };
        print(&format!("report: {}\n", written.display()))
    }

    /// Writes a page of several runs.
    fn several(&self, page: String) -> anyhow::Result<PathBuf> {
        let path = self.output.as_deref().unwrap_or(Path::new(PAGE));
        write_page(path, &page)?;
        Ok(path.to_owned())
    }
}

/// The runs that folders stand for, each once.
fn all_runs(folders: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut runs: Vec<PathBuf> = Vec::new();
    let mut known: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let found = match is_comparison(folder) {
            true => runs_of(folder)?,
            false => vec![folder.clone()],
        };
        for run in found {
            let place = run.canonicalize().unwrap_or_else(|_| run.clone());
            if !known.contains(&place) {
                known.push(place);
                runs.push(run);
            }
        }
    }
    Ok(runs)
}
