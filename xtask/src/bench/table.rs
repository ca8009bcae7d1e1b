//! Tables for the terminal, which are Markdown as well.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::ASCII_MARKDOWN};

use super::bars::Verdict;
use super::record::Record;

fn table(header: &[&str], text_columns: usize) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for column in table.column_iter_mut().skip(text_columns) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Everything that was measured of us.
pub(crate) fn measurements(records: &[Record]) -> String {
    let header = [
        "case",
        "device",
        "base",
        "median ms",
        "spread",
        "tokens/s",
        "GFLOP/s",
        "of peak",
        "GB/s",
        "of peak",
        "MiB",
    ];
    let mut table = table(&header, 3);
    for record in records {
        let ours = &record.ours;
        table.add_row([
            format!("{}/{}", record.suite, record.case),
            record.device.clone(),
            ours.dtype.clone(),
            number(Some(ours.median_ms)),
            percent(Some(ours.spread)),
            number(ours.tokens_per_s),
            number(ours.gflops),
            percent(record.share_of_peak()),
            number(ours.gb_per_s),
            percent(record.share_of_memory(ours)),
            number(ours.peak_memory_mib),
        ]);
    }
    table.to_string()
}

/// What servers did, a line each.
pub(crate) fn serving(rows: &[[String; 5]]) -> String {
    let header = [
        "server",
        "tokens/s, one stream",
        "tokens/s, 16 streams",
        "first token ms, idle",
        "first token ms, 15 streams",
    ];
    let mut table = table(&header, 1);
    rows.iter().for_each(|row| {
        table.add_row(row);
    });
    table.to_string()
}

/// Steps of all recipes at the same number of parameters, beside that of a LoRA on the same device;
/// none without it.
pub(crate) fn methods(records: &[Record]) -> Option<String> {
    let of_suite = |record: &&Record| record.suite == "methods";
    let lora = |device: &str| {
        let is_lora = |record: &&Record| record.case == "lora" && record.device == device;
        records.iter().filter(of_suite).find(is_lora)
    };
    let header = ["recipe", "device", "median ms", "times lora", "MiB"];
    let mut table = table(&header, 2);
    let mut is_empty = true;
    for record in records.iter().filter(of_suite) {
        let Some(lora) = lora(&record.device) else {
            continue;
        };
        is_empty = false;
        table.add_row([
            record.case.clone(),
            record.device.clone(),
            number(Some(record.ours.median_ms)),
            times(Some(record.ours.median_ms / lora.ours.median_ms)),
            number(record.ours.peak_memory_mib),
        ]);
    }
    (!is_empty).then(|| table.to_string())
}

/// What families of base models are measured against: the first that reads, and the first that writes.
const FIRST: [&str; 2] = ["bert", "llama"];

/// Steps and decoding of every family, beside those of BERT or, where it writes, of Llama; none without them.
pub(crate) fn families(records: &[Record]) -> Option<String> {
    let find = |what: &str, name: &str, device: &str| {
        let case = format!("{what}-{name}");
        let mut of_suite = records.iter().filter(|record| record.suite == "families");
        of_suite.find(|record| record.case == case && record.device == device)
    };
    let rate = |record: &Record| record.ours.tokens_per_s;
    let header = [
        "family",
        "device",
        "step tokens/s",
        "of the first",
        "GFLOP/s",
        "decode tokens/s",
        "of the first",
    ];
    let mut table = table(&header, 2);
    let mut is_empty = true;
    for step in records.iter().filter(|record| record.suite == "families") {
        let (Some(name), device) = (step.case.strip_prefix("step-"), &step.device[..]) else {
            continue;
        };
        let decode = find("decode", name, device);
        let first = FIRST[usize::from(decode.is_some())];
        let ratio = |what: &str, record: Option<&Record>| {
            Some(rate(record?)? / rate(find(what, first, device)?)?)
        };
        is_empty = false;
        table.add_row([
            name.to_owned(),
            device.to_owned(),
            number(rate(step)),
            times(ratio("step", Some(step))),
            number(step.ours.gflops),
            number(decode.and_then(rate)),
            times(ratio("decode", decode)),
        ]);
    }
    (!is_empty).then(|| table.to_string())
}

/// Cases with a reference.
pub(crate) fn ratios(records: &[Record]) -> String {
    let header = [
        "case",
        "base",
        "ours ms",
        "Python ms",
        "spread",
        "time",
        "tokens/s",
        "memory",
    ];
    let mut table = table(&header, 2);
    for record in records {
        let Some(python) = &record.python else {
            continue;
        };
        table.add_row([
            format!("{}/{}", record.suite, record.case),
            record.ours.dtype.clone(),
            number(Some(record.ours.median_ms)),
            number(Some(python.median_ms)),
            percent(Some(python.spread)),
            times(record.time_ratio()),
            times(record.throughput_ratio()),
            times(record.memory_ratio()),
        ]);
    }
    table.to_string()
}

/// Cases that llama.cpp went through as well, in the fastest of its formats of the same size; none without one.
pub(crate) fn llama(records: &[Record]) -> Option<String> {
    let header = [
        "case",
        "base",
        "llama.cpp",
        "tokens/s",
        "llama.cpp",
        "ratio",
        "GB/s",
        "of peak",
        "llama.cpp",
        "of peak",
    ];
    let mut table = table(&header, 3);
    let compared = records.iter().filter_map(|record| {
        let llama = record.llama.as_ref()?;
        Some((record, &record.ours, llama))
    });
    for (record, ours, llama) in compared {
        table.add_row([
            format!("{}/{}", record.suite, record.case),
            ours.dtype.clone(),
            llama.dtype.clone(),
            number(ours.tokens_per_s),
            number(llama.tokens_per_s),
            times(record.llama_time_ratio().map(|ratio| 1.0 / ratio)),
            number(ours.gb_per_s),
            percent(record.share_of_memory(ours)),
            number(llama.gb_per_s),
            percent(record.share_of_memory(llama)),
        ]);
    }
    let is_some = records.iter().any(|record| record.llama.is_some());
    is_some.then(|| table.to_string())
}

/// Promises and how they were kept.
pub(crate) fn bars(verdicts: &[Verdict]) -> String {
    let mut table = table(&["case", "bar", "measured", ""], 2);
    for verdict in verdicts {
        let word = if verdict.is_met { "met" } else { "not met" };
        let value = format!("{:.2}", verdict.value);
        table.add_row([&verdict.case, &verdict.promise, &value, word]);
    }
    table.to_string()
}

/// One measured case while others still run.
pub(crate) fn line(record: &Record) -> String {
    let ratio = record
        .time_ratio()
        .map(|ratio| format!(", {ratio:.2} x Python"));
    let llama = record
        .llama_time_ratio()
        .map(|ratio| format!(", {ratio:.2} x llama.cpp"));
    format!(
        "  {}/{}: {} ms{}{}",
        record.suite,
        record.case,
        number(Some(record.ours.median_ms)),
        ratio.unwrap_or_default(),
        llama.unwrap_or_default()
    )
}

/// Three digits that count, or the whole number.
fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.0} %", share * 100.0))
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or("-".into(), |ratio| format!("{ratio:.2} x"))
}

#[cfg(test)]
mod tests {
    use super::super::bars::judge;
    use super::super::record::tests::{measurement, record};
    use super::*;

    #[test]
    fn tables_are_markdown() {
        let records = [
            record("step", "lora", 50.0, Some(100.0)),
            record("mix", "3-dense", 0.5, None),
        ];
        let text = measurements(&records);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines.iter().all(|line| line.starts_with('|')), "{text}");
        assert!(lines[1].contains("--"), "{text}");
        let cells: Vec<&str> = lines[2].split('|').map(str::trim).collect();
        assert_eq!(
            cells[1..12],
            [
                "step/lora",
                "flex",
                "f32",
                "50.0",
                "1 %",
                "20000",
                "200",
                "100 %",
                "20.0",
                "50 %",
                "200"
            ]
        );
        assert!(ratios(&records).contains("0.50 x"));
        assert!(!ratios(&records).contains("3-dense"));
        assert!(bars(&judge(&records)).contains("not met"));
        assert_eq!(llama(&records), None);
        let against = Record {
            llama: Some(measurement(25.0)),
            ..record("decode", "batch-1", 50.0, None)
        };
        let text = llama(&[against]).expect("a row");
        let last = text.lines().last().expect("a row");
        let cells: Vec<&str> = last.split('|').map(str::trim).collect();
        let expected = ["20000", "40000", "0.50 x", "20.0", "50 %", "40.0", "100 %"];
        assert_eq!(cells[4..11], expected);
    }

    #[test]
    fn families_stand_beside_the_first_of_their_kind() {
        assert_eq!(families(&[record("step", "lora", 50.0, None)]), None);
        let records = [
            record("families", "step-bert", 10.0, None),
            record("families", "step-electra", 20.0, None),
            record("families", "step-llama", 40.0, None),
            record("families", "decode-llama", 10.0, None),
            record("families", "step-opt", 50.0, None),
            record("families", "decode-opt", 5.0, None),
        ];
        let text = families(&records).expect("families");
        let row = |name: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("| {name} ")));
            let cells = line.expect("a row").split('|').map(str::trim);
            cells.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("electra")[3..8], ["50000", "0.50 x", "500", "-", "-"]);
        assert_eq!(
            row("opt")[3..8],
            ["20000", "0.80 x", "200", "200000", "2.00 x"]
        );
    }

    #[test]
    fn numbers_show_three_digits() {
        let shown = [1234.5, 12.34, 1.234, 0.5].map(|value| number(Some(value)));
        assert_eq!(shown, ["1234", "12.3", "1.23", "0.50"]);
        assert_eq!(number(None), "-");
    }
}
