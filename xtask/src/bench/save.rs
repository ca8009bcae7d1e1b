//! Results in `docs/benchmarks/`.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use xshell::Shell;

use super::hardware::{Setting, commit};
use super::record::Record;
use super::{bars, table};

/// All results of a day on a machine.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Results {
    setting: Setting,
    records: Vec<Record>,
}

/// Adds records to the files of today and this machine; a case that is there already is replaced.
pub(crate) fn add(shell: &Shell, records: Vec<Record>) -> Result<()> {
    let setting = Setting::of_this_machine(shell)?;
    let commit = commit(shell)?;
    let folder = format!("docs/benchmarks/{}", setting.folder());
    let (json, markdown) = (format!("{folder}/bench.json"), format!("{folder}/bench.md"));
    let old = match shell.path_exists(&json) {
        false => Vec::new(),
        true => {
            let text = shell.read_file(&json)?;
            let old: Results = serde_json::from_str(&text).with_context(|| json.clone())?;
            old.records
        }
    };
    let records = records.into_iter().map(|record| Record {
        commit: commit.clone(),
        ..record
    });
    let records = merged(old, records.collect());
    let results = Results { setting, records };
    let text = serde_json::to_string_pretty(&results)?;
    shell.write_file(&json, format!("{text}\n"))?;
    shell.write_file(&markdown, results.markdown())?;
    println!("\nsaved {json} and {markdown}");
    Ok(())
}

/// The old records, each in its place with the new one of its case, and then the other new ones.
fn merged(mut records: Vec<Record>, new: Vec<Record>) -> Vec<Record> {
    for record in new {
        match records.iter_mut().find(|old| old.is_same_case(&record)) {
            Some(old) => *old = record,
            None => records.push(record),
        }
    }
    records
}

impl Results {
    fn markdown(&self) -> String {
        let setting = &self.setting;
        let features = setting.features.join(", ");
        let memory = setting.memory_gib.map(|gib| format!(", {gib} GiB"));
        let peaks = self.records.iter().map(|record| record.peak_gflops);
        let (low, high) = (
            peaks.clone().fold(f64::INFINITY, f64::min),
            peaks.fold(0.0, f64::max),
        );
        let mut commits: Vec<&str> = self.records.iter().map(|r| r.commit.as_str()).collect();
        commits.dedup();
        let mut text = format!(
            "# `cargo xtask bench`, {}\n\n{}, {} cores ({features}){}; burn {}; {}; commits {}.\n\
             Best f32 matmul in the same runs: {low:.0} to {high:.0} GFLOP/s. GFLOP/s count the\n\
             matrix products that a task needs, a multiplication and an addition as two; spread is\n\
             the middle half of the samples, or the distance of the rounds if that is more.\n\n{}\n",
            setting.date,
            setting.processor,
            setting.cores,
            memory.unwrap_or_default(),
            setting.burn,
            setting.rustc,
            commits.join(", "),
            table::measurements(&self.records),
        );
        if let Some(methods) = table::methods(&self.records) {
            text +=
                "\n## A training step of every recipe, at the parameters of a LoRA of rank 32\n\n";
            text += &format!("{methods}\n");
        }
        if let Some(families) = table::families(&self.records) {
            text += "\n## Every family of base models at the same sizes\n\n";
            text += &format!("{families}\n");
        }
        if self.records.iter().any(|record| record.python.is_some()) {
            text += "\n## Against PyTorch, transformers and PEFT, in turn in one run\n\n";
            text += &format!("{}\n", table::ratios(&self.records));
        }
        if let Some(llama) = table::llama(&self.records) {
            text += "\n## Against llama.cpp, in turn in one run\n\n";
            text += &format!("{llama}\n");
        }
        let verdicts = bars::judge(&self.records);
        if !verdicts.is_empty() {
            text += &format!("\n## Bars\n\n{}\n", table::bars(&verdicts));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn a_case_is_replaced_in_its_place() {
        let old = vec![
            record("step", "lora", 2.0, None),
            record("mix", "a", 3.0, None),
        ];
        let new = vec![
            record("mix", "b", 1.0, None),
            record("step", "lora", 1.0, None),
        ];
        let merged = merged(old, new);
        let times: Vec<f64> = merged.iter().map(|record| record.ours.median_ms).collect();
        assert_eq!(times, [1.0, 3.0, 1.0]);
        assert_eq!(merged[2].case, "b");
    }

    #[test]
    fn results_survive_a_file_and_become_a_page() {
        let setting = Setting {
            processor: "AMD EPYC".into(),
            cores: 2,
            features: vec!["avx2".into()],
            memory_gib: Some(24.0),
            burn: "0.22.1".into(),
            rustc: "rustc 1.95".into(),
            date: "2026-11-22".into(),
        };
        let records = vec![
            record("step", "lora", 2.0, Some(4.0)),
            record("methods", "lora", 2.0, None),
            record("methods", "mola", 3.0, None),
        ];
        let results = Results { setting, records };
        let text = serde_json::to_string(&results).expect("plain data");
        assert_eq!(
            serde_json::from_str::<Results>(&text).expect("its own"),
            results
        );
        let page = results.markdown();
        assert!(
            page.contains("AMD EPYC, 2 cores (avx2), 24 GiB; burn 0.22.1"),
            "{page}"
        );
        assert!(
            page.contains("## Bars") && page.contains("Against PyTorch"),
            "{page}"
        );
        let row = page.lines().find(|line| line.starts_with("| mola"));
        assert!(row.is_some_and(|row| row.contains("1.50")), "{page}");
    }
}
