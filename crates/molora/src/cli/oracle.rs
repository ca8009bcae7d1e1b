//! `molora oracle`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::progress::Progress;
use super::{print, print_written};
use molora_train::base::DeviceSpec;
use molora_train::data::Split;
use molora_train::report::total_table;
use molora_train::run::{MAX_PATHS, OracleReport, OracleRequest, OracleScore, search_oracle};
use molora_train::train::Event;

/// Options of `molora oracle`.
#[derive(Debug, Args)]
pub(super) struct OracleArgs {
    /// Folder of a finished run with routers
    run: PathBuf,
    /// The records that are searched: test, validation or train
    #[arg(long, default_value = "test", value_name = "SPLIT")]
    split: Split,
    /// Search for at most N records of each task, the same ones each time
    #[arg(long, default_value = "64", value_name = "N")]
    limit: NonZeroUsize,
    /// Largest mean cost of a path over layers, from 0 (nothing) to 1 (always the largest expert); for
    /// experts of different rank
    #[arg(long, value_name = "COST")]
    budget: Option<f64>,
    /// Width of the beam search for each record, where there are more than 6,561 paths (three choices in
    /// eight layers); with fewer every path is tried
    #[arg(long, default_value = "4", value_name = "N")]
    beam: NonZeroUsize,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training]
    #[arg(long)]
    device: Option<DeviceSpec>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl OracleArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let request = OracleRequest {
            split: self.split,
            limit: Some(self.limit),
            budget: self.budget,
            max_paths: MAX_PATHS,
            beam: self.beam,
            device: self.device,
        };
        let mut progress = Progress::new();
        let show = &mut |event: Event<'_>| progress.show(event);
        let report = search_oracle(&self.run, &request, show)?;
        progress.finish();
        match self.json {
            true => print_written(&format!("{}\n", serde_json::to_string(&report)?)),
            false => print(&text(&report)),
        }
    }
}

fn text(report: &OracleReport) -> String {
    let how = match report.exhaustive {
        true => "every path was tried",
        false => "by beam search, which may miss a better path",
    };
    let layers = report.layers.len();
    format!(
        "Mean loss on the {} split if each record takes the best expert in each of {layers} layers ({how}),\n\
         beside what the routers decide\n{}\n{}",
        report.split,
        table(report),
        taken(report)
    )
}

fn table(report: &OracleReport) -> String {
    let scores = || report.tasks.values();
    let has = |of: fn(&OracleScore) -> Option<f64>| scores().all(|score| of(score).is_some());
    let mut columns: Vec<(&str, Column)> = vec![
        ("routers", |score| Some(score.routers)),
        ("oracle", |score| Some(score.oracle)),
        ("mean path", |score| score.mean_path),
        ("routers' cost", |score| score.routers_cost),
        ("oracle's cost", |score| score.oracle_cost),
    ];
    columns.retain(|(_, of)| has(*of));
    let mut header = vec!["task".to_owned()];
    header.extend(columns.iter().map(|(name, _)| (*name).to_owned()));
    header.push("records".into());
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (task, score) in &report.tasks {
        let mut row = vec![task.clone()];
        row.extend(columns.iter().map(|(_, of)| number(of(score))));
        row.push(score.n.to_string());
        rows.push(row);
    }
    let count = scores().len().max(1) as f64;
    let mean = |of: &Column| scores().map(of).sum::<Option<f64>>().map(|sum| sum / count);
    let mut row = vec!["mean".to_owned()];
    row.extend(columns.iter().map(|(_, of)| number(mean(of))));
    row.push(scores().map(|score| score.n).sum::<usize>().to_string());
    rows.push(row);
    total_table(header, rows, 1)
}

type Column = fn(&OracleScore) -> Option<f64>;

/// Experts whose shares are shown of a layer with more.
const SHOWN: usize = 6;

/// How often the best paths took each expert, by layer; of many experts those that were taken most.
fn taken(report: &OracleReport) -> String {
    let mut text = String::from(
        "Share of records whose best path takes each expert, from the first layer on\n",
    );
    for (number, layer) in report.layers.iter().enumerate() {
        let mut shares: Vec<(usize, f64)> = layer.iter().copied().enumerate().collect();
        if shares.len() > SHOWN {
            shares.sort_by(|a, b| b.1.total_cmp(&a.1));
            shares.truncate(SHOWN);
        }
        let shares = shares
            .into_iter()
            .map(|(expert, share)| format!("e{expert} {:5.1} %", share * 100.0));
        let shares: Vec<String> = shares.collect();
        text += &format!("  layer {number:2}  {}\n", shares.join("  "));
    }
    text
}
