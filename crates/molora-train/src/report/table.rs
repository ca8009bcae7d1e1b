//! Tables for the terminal and, in Markdown, for the documents. ASCII only.

use comfy_table::presets::ASCII_BORDERS_ONLY_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Row, Table, TableStyle};

use super::details::TestScore;
use super::format::{duration, mebibytes, percent, share, thousands};
use super::schema::{EvalReport, ParameterCounts, RunSummary, TaskScore};

/// Scores task by task, with a last row of means; beside those of the base model where there are such.
///
/// A base score by another metric or on another number of records is no score to compare with, and
/// left out.
pub fn task_table(report: &EvalReport, base: Option<&EvalReport>) -> String {
    with_total(aligned(
        ASCII_BORDERS_ONLY_CONDENSED,
        task_header(report, base),
        task_rows(report, base),
        2,
    ))
}

/// Parameters by kind, then speed, memory, time and padding of a run.
pub fn summary_table(summary: &RunSummary) -> String {
    let header = ["parameters", "count", "of base"].map(str::to_owned);
    let counts = total_table(header, parameter_rows(summary), 1);
    let header = ["training", ""].map(str::to_owned);
    let facts = aligned(
        ASCII_BORDERS_ONLY_CONDENSED,
        header,
        fact_rows(summary).into(),
        1,
    );
    format!("{counts}\n{facts}")
}

/// Heads of [`task_rows`], whose last column counts records of the report's split.
pub(super) fn task_header(report: &EvalReport, base: Option<&EvalReport>) -> Vec<String> {
    let records = format!("{} records", report.split);
    let mut header = vec!["task", "metric", "score %"];
    header.extend(base.map(|_| "base %"));
    header.extend(["accuracy %", "majority %", &records]);
    header.into_iter().map(str::to_owned).collect()
}

/// One row of text per task, below it one for each of several test splits, and the row of means.
pub(super) fn task_rows(report: &EvalReport, base: Option<&EvalReport>) -> Vec<Vec<String>> {
    let cells = |first: [String; 3], of_base: Option<f64>, last: [String; 3]| {
        let of_base = base.map(|_| of_base.map_or("-".into(), percent));
        first.into_iter().chain(of_base).chain(last).collect()
    };
    let rows = |(task, score): (&String, &TaskScore)| -> Vec<Vec<String>> {
        let first = [task.clone(), score.metric.clone(), percent(score.value)];
        let last = [
            score.accuracy.map_or("-".into(), percent),
            percent(score.majority),
            thousands(score.n),
        ];
        let whole = cells(first, base.and_then(|base| base.beside(report, task)), last);
        let part = |(name, test): (&String, &TestScore)| {
            let first = [format!("  {name}"), String::new(), percent(test.value)];
            let last = [
                test.accuracy.map_or("-".into(), percent),
                String::new(),
                thousands(test.n),
            ];
            let of_base = base.filter(|base| base.beside(report, task).is_some());
            let of_base = of_base.and_then(|base| base.tasks[task].tests.get(name));
            cells(first, of_base.map(|test| test.value), last)
        };
        std::iter::once(whole)
            .chain(score.tests.iter().map(part))
            .collect()
    };
    let first = ["mean".to_owned(), String::new(), percent(report.mean)];
    let has_accuracy = report.tasks.values().any(|score| score.accuracy.is_some());
    let last = [
        match has_accuracy {
            true => percent(report.mean_accuracy),
            false => "-".into(),
        },
        String::new(),
        thousands(report.tasks.values().map(|score| score.n).sum()),
    ];
    let mean = cells(first, base_mean(report, base), last);
    report.tasks.iter().flat_map(rows).chain([mean]).collect()
}

/// The mean of the base model's scores, if it has one of every task.
fn base_mean(report: &EvalReport, base: Option<&EvalReport>) -> Option<f64> {
    let values = report.tasks.keys().map(|task| base?.beside(report, task));
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    Some(values.iter().sum::<f64>() / values.len().max(1) as f64)
}

/// Kind of parameter, count, and share of the base model.
pub(super) fn parameter_rows(summary: &RunSummary) -> Vec<[String; 3]> {
    count_rows(&summary.parameters)
}

pub(super) fn count_rows(counts: &ParameterCounts) -> Vec<[String; 3]> {
    let mut kinds = vec![
        ("base (frozen)", counts.base),
        ("adapters", counts.adapters),
        ("routers", counts.routers),
        ("gates", counts.gates),
        ("heads", counts.heads),
    ];
    if counts.saved > 0 {
        kinds.push(("saved modules", counts.saved));
    }
    kinds.push(("trainable", counts.trainable()));
    let row = |(kind, count): (&str, usize)| {
        [kind.to_owned(), thousands(count), share(count, counts.base)]
    };
    kinds.into_iter().map(row).collect()
}

/// Name and value of each fact about speed, memory and time.
pub(super) fn fact_rows(summary: &RunSummary) -> [[String; 2]; 5] {
    let facts = [
        ("steps", thousands(summary.steps)),
        ("training time", duration(summary.train_seconds)),
        (
            "tokens/s",
            thousands(summary.tokens_per_second.round().max(0.0) as usize),
        ),
        ("padding", format!("{} %", percent(summary.padding_share))),
        ("peak memory", mebibytes(summary.peak_memory_bytes)),
    ];
    facts.map(|(name, value)| [name.to_owned(), value])
}

/// A table whose columns from `first_number` on are aligned to the right.
pub(crate) fn aligned<R: Into<Row>>(
    style: TableStyle,
    header: R,
    rows: Vec<R>,
    first_number: usize,
) -> Table {
    let mut table = Table::new();
    table
        .load_style(style)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.force_no_tty().set_header(header).add_rows(rows);
    for column in table.column_iter_mut().skip(first_number) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Sets the last row off by a rule: it sums up the rows above it.
pub(crate) fn with_total(table: Table) -> String {
    let mut lines: Vec<String> = table.lines().collect();
    if let Some(rule) = lines.last().cloned() {
        lines.insert(lines.len().saturating_sub(2), rule);
    }
    lines.join("\n")
}

/// A table for the terminal whose last row sums up those above it; its columns from `first_number` on
/// are aligned to the right.
pub fn total_table<R: IntoIterator<Item = String>>(
    header: R,
    rows: Vec<R>,
    first_number: usize,
) -> String {
    let cells = |row: R| -> Vec<String> { row.into_iter().collect() };
    with_total(aligned(
        ASCII_BORDERS_ONLY_CONDENSED,
        cells(header),
        rows.into_iter().map(cells).collect(),
        first_number,
    ))
}

/// Marks the number columns in the second line, which Markdown reads the alignment from.
pub(crate) fn markdown(table: Table, first_number: usize) -> String {
    let mut lines: Vec<String> = table.lines().collect();
    if let Some(rule) = lines.get_mut(1) {
        let cells = rule.trim_matches('|').split('|').enumerate();
        let cells = cells.map(|(column, dashes)| match column < first_number {
            true => dashes.to_owned(),
            false => format!("{}:", &dashes[1..]),
        });
        *rule = format!("|{}|", cells.collect::<Vec<_>>().join("|"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn task_table_reads_well() {
        insta::assert_snapshot!(task_table(&sample::eval(), None), @r"
        +-----------------------------------------------------------------------------+
        | task            metric     score %   accuracy %   majority %   test records |
        +=============================================================================+
        | banking77       accuracy      91.3         92.5          1.3          3,080 |
        | clinc_domain    macro_f1      88.4         89.6         10.0            900 |
        | sms_spam        f1:spam       97.7         98.9         86.6            557 |
        | stackoverflow   mcc           -3.1          5.0          5.0          1,000 |
        +-----------------------------------------------------------------------------+
        | mean                          68.6         71.5                       5,537 |
        +-----------------------------------------------------------------------------+
        ");
    }

    #[test]
    fn several_test_splits_have_a_row_each() {
        let mut eval = sample::eval();
        let of = |value, n| TestScore {
            value,
            accuracy: Some(value),
            n,
        };
        let score = eval.tasks.get_mut("banking77").expect("a task");
        score.tests = [
            ("matched".to_owned(), of(0.5, 10)),
            ("mismatched".to_owned(), of(0.25, 8)),
        ]
        .into();
        let rows = task_rows(&eval, None);
        assert_eq!(rows[1], ["  matched", "", "50.0", "50.0", "", "10"]);
        assert_eq!(rows[2][..3], ["  mismatched", "", "25.0"]);
        let base = eval.clone();
        let rows = task_rows(&eval, Some(&base));
        assert_eq!(rows[2][..4], ["  mismatched", "", "25.0", "25.0"]);
    }

    #[test]
    fn the_base_model_has_a_column() {
        let base = sample::base();
        insta::assert_snapshot!(task_table(&sample::eval(), Some(&base.scores)), @r"
        +--------------------------------------------------------------------------------------+
        | task            metric     score %   base %   accuracy %   majority %   test records |
        +======================================================================================+
        | banking77       accuracy      91.3     83.3         92.5          1.3          3,080 |
        | clinc_domain    macro_f1      88.4     77.4         89.6         10.0            900 |
        | sms_spam        f1:spam       97.7     94.7         98.9         86.6            557 |
        | stackoverflow   mcc           -3.1     -4.0          5.0          5.0          1,000 |
        +--------------------------------------------------------------------------------------+
        | mean                          68.6     62.9         71.5                       5,537 |
        +--------------------------------------------------------------------------------------+
        ");
    }

    #[test]
    fn a_base_score_that_is_of_something_else_is_no_score() {
        let mut base = sample::base().scores;
        base.tasks.remove("sms_spam");
        base.tasks.get_mut("banking77").unwrap().n = 7;
        base.tasks.get_mut("clinc_domain").unwrap().metric = "accuracy".into();
        let rows = task_rows(&sample::eval(), Some(&base));
        let column: Vec<&str> = rows.iter().map(|row| &row[3][..]).collect();
        assert_eq!(column, ["-", "-", "-", "-4.0", "-"]);
    }

    #[test]
    fn summary_table_reads_well() {
        insta::assert_snapshot!(summary_table(&sample::summary()), @r"
        +---------------------------------------+
        | parameters           count    of base |
        +=======================================+
        | base (frozen)   22,713,216   100.00 % |
        | adapters           294,912     1.30 % |
        | routers                576     0.00 % |
        | gates                1,536     0.01 % |
        | heads               43,120     0.19 % |
        +---------------------------------------+
        | trainable          340,144     1.50 % |
        +---------------------------------------+
        +----------------------------+
        | training                   |
        +============================+
        | steps                  600 |
        | training time   6 min 57 s |
        | tokens/s             3,457 |
        | padding              8.3 % |
        | peak memory      1,229 MiB |
        +----------------------------+
        ");
    }

    #[test]
    fn unknown_memory_and_base_are_said() {
        let mut summary = sample::summary();
        summary.peak_memory_bytes = None;
        summary.parameters.base = 0;
        let text = summary_table(&summary);
        assert!(text.contains("unknown") && !text.contains("inf"), "{text}");
        assert!(text.is_ascii());
    }
}
