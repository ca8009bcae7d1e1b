//! `molora predict`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use clap::Args;

use super::download::Downloads;
use super::progress::Progress;
use super::{STANDARD_INPUT, print_written, read_standard_input, say};
use molora_train::base::{DeviceSpec, base_model};
use molora_train::data::{Record, TaskMeta, load_unlabelled, parse_unlabelled};
use molora_train::predict::{CHUNK, Predictor, predict_file};
use molora_train::store::read_config;

/// Options of `molora predict`.
#[derive(Debug, Args)]
pub(super) struct PredictArgs {
    /// Folder of a finished run
    run: PathBuf,
    /// File with records without answers (.jsonl, .json, .csv, .parquet, or .txt with a text on each
    /// line), or - for standard input (JSON objects or texts, one a line)
    #[arg(long, value_name = "FILE|-")]
    input: PathBuf,
    /// File for the answers, a JSON object a line, where a command that was stopped continues, or - for
    /// standard output, the default
    #[arg(long, value_name = "FILE|-")]
    output: Option<PathBuf>,
    /// The task that the records are of, for a run of several
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// The input's columns by molora's, where they have other names: input=sentence,input_b=passage
    #[arg(long, value_delimiter = ',', value_name = "OURS=THEIRS", value_parser = column)]
    columns: Vec<(String, String)>,
    /// Overwrite an existing output file
    #[arg(long, requires = "output")]
    force: bool,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training]
    #[arg(long)]
    device: Option<DeviceSpec>,
}

/// Columns of records without answers.
const COLUMNS: [&str; 7] = [
    "input",
    "input_b",
    "choices",
    "instruction",
    "system",
    "messages",
    "id",
];

fn column(text: &str) -> Result<(String, String), String> {
    let pair = text
        .split_once('=')
        .filter(|(ours, _)| COLUMNS.contains(ours));
    let (ours, theirs) = pair.ok_or_else(|| {
        let known = COLUMNS.join(", ");
        format!("expected OURS=THEIRS, where OURS is one of {known}")
    })?;
    Ok((ours.into(), theirs.into()))
}

impl PredictArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let columns = self.columns()?;
        // With a bar, should the cache have lost the model since the training.
        let mut downloads = Downloads::new();
        let model = read_config(&self.run)?.model;
        base_model::find(&model, &mut |progress| downloads.show_all(progress))?;
        downloads.finish();
        let mut predictor = Predictor::open(&self.run, self.task.as_deref(), self.device)?;
        let records = self.records(predictor.task(), &columns)?;
        let file = self.output.as_ref();
        let Some(out) = file.filter(|out| *out != Path::new("-")) else {
            for chunk in records.chunks(CHUNK) {
                print_written(&predictor.lines(chunk)?)?;
            }
            return Ok(());
        };
        ensure!(
            !is_same_file(out, &self.input),
            "{}: the output is the input",
            out.display()
        );
        ensure!(
            !is_in(out, &self.run),
            "{}: the output would be a file of the run; choose another place",
            out.display()
        );
        let mut progress = Progress::new();
        let show = &mut |event: molora_train::train::Event<'_>| progress.show(event);
        predict_file(&mut predictor, &records, out, self.force, show)?;
        progress.finish();
        say(&format!("{} answers: {}", records.len(), out.display()));
        Ok(())
    }

    /// The input's columns by molora's.
    fn columns(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut columns = BTreeMap::new();
        for (ours, theirs) in &self.columns {
            if let Some(first) = columns.insert(ours.clone(), theirs.clone()) {
                bail!("--columns: {ours} is given twice, as {first} and as {theirs}");
            }
        }
        Ok(columns)
    }

    fn records(
        &self,
        task: &TaskMeta,
        columns: &BTreeMap<String, String>,
    ) -> anyhow::Result<Vec<Record>> {
        if self.input != Path::new("-") {
            return Ok(load_unlabelled(&self.input, task, columns)?);
        }
        let name = Path::new(STANDARD_INPUT);
        let text = read_standard_input()?;
        Ok(parse_unlabelled(&text, name, task, columns)?)
    }
}

/// Whether two paths are one file that is there.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let (one, other) = (one.canonicalize(), other.canonicalize());
    matches!((one, other), (Ok(one), Ok(other)) if one == other)
}

/// Whether a file lies, or would lie, directly in a folder.
fn is_in(file: &Path, folder: &Path) -> bool {
    let parent = file
        .parent()
        .map(|parent| match parent.as_os_str().is_empty() {
            true => Path::new("."),
            false => parent,
        });
    parent.is_some_and(|parent| is_same_file(parent, folder))
}
