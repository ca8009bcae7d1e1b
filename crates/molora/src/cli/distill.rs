//! `molora distill`.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::export::exported;
use super::progress::Progress;
use super::source::adapter_of;
use super::{print, print_written};
use molora_train::base::DeviceSpec;
use molora_train::exchange::{DistillRequest, Distilled, SiteFit, Teacher, distill};
use molora_train::recipe::{self, BaseKind, overrides};
use molora_train::report::total_table;

/// Options of `molora distill`.
#[derive(Debug, Args)]
pub(super) struct DistillArgs {
    /// Folder of a finished run, or of a LoRA that PEFT or `molora export` wrote
    #[arg(value_name = "RUN|ADAPTER")]
    run: PathBuf,
    /// Base model of an adapter [default: the one that its configuration names]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Rank of the LoRA
    #[arg(long, value_name = "R")]
    rank: usize,
    /// Number of training records that it is fitted on
    #[arg(long, value_name = "N", default_value_t = 512)]
    samples: usize,
    /// Folder with the tasks [default: the one that the run was trained on]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// For an adapter: these tasks, separated by commas [default: all in the folder]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    tasks: Option<Vec<String>>,
    /// For an adapter: change how texts are made, for example data.writing.prompt=chat; may be repeated
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Folder to write [default: RUN/distilled-R]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training]
    #[arg(long)]
    device: Option<DeviceSpec>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

impl DistillArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let default = || self.run.join(format!("distilled-{}", self.rank));
        let request = DistillRequest {
            out: self.out.clone().unwrap_or_else(default),
            teacher: self.teacher()?,
            rank: self.rank,
            samples: self.samples,
            device: self.device,
        };
        let mut progress = Progress::new();
        let distilled = distill(&request, &mut |event| progress.show(event))?;
        progress.finish();
        match self.json {
            true => print_written(&format!("{}\n", as_json(&distilled))),
            false => print(&closing(&distilled)?),
        }
    }
}

impl DistillArgs {
    /// The run, or the adapter with its tasks.
    fn teacher(&self) -> anyhow::Result<Teacher> {
        let name = self.run.display();
        let Some(adapter) = adapter_of(&self.run, self.model.as_deref())? else {
            if self.tasks.is_some() || !self.set.is_empty() {
                bail!(
                    "{name}: --tasks and --set are for the folder of an adapter, and this is none"
                );
            }
            return Ok(Teacher::Run {
                folder: self.run.clone(),
                data: self.data.clone(),
            });
        };
        let Some(data) = self.data.clone() else {
            bail!("{name} is no run: give the tasks' folder with --data");
        };
        let recipe = recipe::find_for("lora", BaseKind::of(&adapter.base.folder)?)?;
        let recipe = overrides::apply(&recipe, &self.set)?;
        recipe.check()?;
        Ok(Teacher::Adapter {
            adapter,
            data,
            tasks: self.tasks.clone(),
            texts: Box::new(recipe.data),
        })
    }
}

fn closing(found: &Distilled) -> anyhow::Result<String> {
    let (records, tokens) = found.samples;
    let mut text = format!(
        "\nerror relative to the deltas, by layer ({records} records, {tokens} tokens)\n{}\n\n",
        errors(&found.sites)
    );
    writeln!(text, "test split\n{}\n", scores(found))?;
    text += &exported(&found.exported);
    Ok(text)
}

fn errors(sites: &[SiteFit]) -> String {
    let percent = |value: f64| format!("{:.2} %", 100.0 * value);
    let row = |site: &str, error: f64, held_out: Option<f64>| {
        let held_out = held_out.map_or("-".into(), percent);
        [site.to_owned(), percent(error), held_out]
    };
    let mut rows: Vec<[String; 3]> = sites
        .iter()
        .map(|site| row(&site.site, site.error, site.held_out))
        .collect();
    let count = sites.len().max(1) as f64;
    let mean = sites.iter().map(|site| site.error).sum::<f64>() / count;
    let held_out: Option<f64> = sites.iter().map(|site| site.held_out).sum();
    rows.push(row("mean", mean, held_out.map(|sum| sum / count)));
    let header = ["layer", "calibration", "validation"].map(str::to_owned);
    total_table(header, rows, 1)
}

fn scores(found: &Distilled) -> String {
    let percent = |value: f64| format!("{:.2}", 100.0 * value);
    let mut rows = Vec::new();
    for (name, mixture) in &found.mixture.tasks {
        let lora = found.lora.tasks.get(name).map(|lora| percent(lora.value));
        let (value, metric) = (percent(mixture.value), mixture.metric.clone());
        rows.push([name.clone(), metric, value, lora.unwrap_or_default()]);
    }
    let (mixture, lora) = (percent(found.mixture.mean), percent(found.lora.mean));
    rows.push(["mean".into(), String::new(), mixture, lora]);
    let header = ["task", "metric", "mixture %", "LoRA %"].map(str::to_owned);
    total_table(header, rows, 2)
}

/// `{"folder", "records", "tokens", "sites": [{"site", "error", "held_out"}], "tasks": {name:
/// {"metric", "mixture", "lora"}}, "mean": {"mixture", "lora"}}`; values are fractions.
fn as_json(found: &Distilled) -> serde_json::Value {
    let site = |site: &SiteFit| {
        json!({
            "site": site.site, "error": site.error, "held_out": site.held_out,
        })
    };
    let tasks = found.mixture.tasks.iter().map(|(name, mixture)| {
        let lora = found.lora.tasks.get(name).map(|lora| lora.value);
        let value = json!({"metric": mixture.metric, "mixture": mixture.value, "lora": lora});
        (name.clone(), value)
    });
    json!({
        "folder": found.exported.folder, "records": found.samples.0, "tokens": found.samples.1,
        "sites": found.sites.iter().map(site).collect::<Vec<_>>(),
        "tasks": tasks.collect::<serde_json::Map<_, _>>(),
        "mean": {"mixture": found.mixture.mean, "lora": found.lora.mean},
    })
}
