//! The tables of a comparison, for the terminal and in Markdown. ASCII only.

use comfy_table::presets::{ASCII_BORDERS_ONLY_CONDENSED, ASCII_MARKDOWN};
use comfy_table::{Table, TableStyle};

use super::plan::Budget;
use super::result::{Comparison, RecipeResult};
use super::table_parts::{choices, trials, unseen_gains, unseen_scores};
use crate::report::PlainTable;
use crate::report::format::{duration, last_part, percent, points, thousands};
use crate::report::standing::spread_text as spread;
use crate::report::table::{aligned, markdown};

/// Scores by task, gains over the reference, and costs, one table below the other.
pub fn tables(comparison: &Comparison) -> String {
    let parts = parts(comparison, ASCII_BORDERS_ONLY_CONDENSED);
    let text = |part: TableSection| format!("{}\n{}", part.title, part.table);
    parts.into_iter().map(text).collect::<Vec<_>>().join("\n\n")
}

/// [`tables`] in Markdown, each under its heading.
pub(super) fn tables_markdown(comparison: &Comparison) -> String {
    let text = |part: TableSection| {
        let table = markdown(part.table, part.first_number);
        format!("## {}\n\n{table}", part.title)
    };
    let parts = parts(comparison, ASCII_MARKDOWN).into_iter();
    parts.map(text).collect::<Vec<_>>().join("\n\n")
}

/// The content of `compare.md`.
pub(super) fn document(comparison: &Comparison) -> String {
    let budget = match comparison.budget {
        Budget::Params => format!(
            "Ranks are chosen so that the parameters of adapters, routers and gates together come \
             near those of {}.",
            comparison.reference
        ),
        Budget::Steps => "Recipes keep their own ranks; only the steps are equal.".to_owned(),
    };
    let names: Vec<&str> = comparison.recipes.iter().map(|r| r.name.as_str()).collect();
    format!(
        "# {} compared\n\nSeeds: {}. Model {}, device {}, molora {}. {budget}\n\n{}\n\n{}\n",
        names.join(", "),
        comparison.seeds,
        last_part(&comparison.model),
        comparison.device,
        comparison.molora_version,
        tables_markdown(comparison),
        notes(comparison)
    )
}

fn notes(comparison: &Comparison) -> String {
    format!(
        "{} An expert is dead in a run if it gets less than 1 % of every task's weight at its site.",
        interval_note(comparison)
    )
}

/// What the intervals cover.
pub(super) fn interval_note(comparison: &Comparison) -> String {
    let seeds = match comparison.seeds {
        1 => "and, with one seed, nothing else: there is no verdict",
        _ => "and of seeds (Student's t)",
    };
    format!(
        "The interval covers the choice of test records (paired bootstrap, {} resamples, the same \
         records for both recipes and all seeds) {seeds}, not that of data or settings; by seed is the \
         least and the greatest difference between runs with the same seed. See docs/comparing.md.",
        thousands(comparison.resamples)
    )
}

struct TableSection {
    title: String,
    table: Table,
    first_number: usize,
}

fn parts(comparison: &Comparison, style: TableStyle) -> Vec<TableSection> {
    let part = |titled: Titled| TableSection {
        title: titled.title,
        table: aligned(style, titled.cells.0, titled.cells.1, titled.first_number),
        first_number: titled.first_number,
    };
    titled(comparison).into_iter().map(part).collect()
}

/// The tables that say more than scores and costs: gains with their intervals, tuned settings, unseen
/// tasks.
pub(super) fn plain_tables(comparison: &Comparison) -> Vec<PlainTable> {
    let plain = |titled: Titled| PlainTable {
        title: titled.title,
        header: titled.cells.0,
        rows: titled.cells.1,
    };
    let more = titled(comparison)
        .into_iter()
        .filter(|titled| titled.is_more);
    more.map(plain).collect()
}

/// A table before it has a style.
struct Titled {
    title: String,
    cells: Cells,
    first_number: usize,
    /// Whether it has what no run has by itself.
    is_more: bool,
}

fn titled(comparison: &Comparison) -> Vec<Titled> {
    let reference = &comparison.reference;
    let table = |title: &str, cells: Cells, first_number: usize, is_more: bool| Titled {
        title: title.to_owned(),
        cells,
        first_number,
        is_more,
    };
    let title = "Test scores in %, mean +- standard deviation over seeds";
    let mut tables = vec![table(title, scores(comparison), 2, false)];
    let title = format!("Mean accuracy against {reference}, in percentage points");
    tables.push(table(&title, gains(comparison), 1, true));
    tables.push(table("Cost and dead experts", costs(comparison), 1, false));
    if !comparison.tuned.is_empty() {
        let title = "Settings that were chosen on the validation split, with one seed";
        tables.push(table(title, choices(&comparison.tuned), 2, true));
        let cells = trials(&comparison.tuned);
        tables.push(table("All that were tried", cells, 2, true));
    }
    if let Some(unseen) = &comparison.unseen {
        let title = "Unseen tasks: test scores of linear probes in %, base is without adapters";
        tables.push(table(title, unseen_scores(unseen), 2, true));
        let title = format!(
            "Unseen tasks: mean accuracy against {reference} and against the base model, in \
             percentage points"
        );
        tables.push(table(&title, unseen_gains(unseen), 1, true));
    }
    tables
}

/// Heads of columns, and rows.
pub(super) type Cells = (Vec<String>, Vec<Vec<String>>);

fn scores(comparison: &Comparison) -> Cells {
    let (recipes, base) = (&comparison.recipes, &comparison.base);
    let row = |first: [&str; 2], of_base: String, cell: &dyn Fn(&RecipeResult) -> String| {
        let first = first.map(str::to_owned).into_iter();
        let of_base = (!base.is_empty()).then_some(of_base);
        let cells = first.chain(of_base).chain(recipes.iter().map(cell));
        cells.collect::<Vec<_>>()
    };
    let none = || "-".to_owned();
    let task = |task: &String| {
        let metric = &recipes[0].tasks[task].metric;
        let of_base = base.get(task).map_or_else(none, spread);
        row([task, metric], of_base, &|r| spread(&r.tasks[task].score))
    };
    let test = |task: &String, name: &String| {
        let title = format!("  {name}");
        row([&title, ""], String::new(), &|r| {
            let found = r.tasks[task].tests.get(name);
            found.map_or_else(none, spread)
        })
    };
    let of_task = |name: &String| -> Vec<Vec<String>> {
        let tests = recipes[0].tasks[name].tests.keys();
        std::iter::once(task(name))
            .chain(tests.map(|part| test(name, part)))
            .collect()
    };
    let mut rows: Vec<Vec<String>> = comparison.tasks.iter().flat_map(of_task).collect();
    let tasks = comparison.tasks.iter();
    let sum: Option<f64> = tasks.map(|task| Some(base.get(task)?.mean)).sum();
    let mean = sum.map(|sum| percent(sum / comparison.tasks.len().max(1) as f64));
    let mean = mean.unwrap_or_else(none);
    rows.push(row(["mean", "score"], mean, &|r| spread(&r.mean)));
    rows.push(row(["mean", "accuracy"], none(), &|r| {
        spread(&r.mean_accuracy)
    }));
    rows.push(row(["worst task", "score"], none(), &|r| {
        let worst = r.worst_task.as_ref();
        worst.map_or_else(none, |w| format!("{} {}", w.name, percent(w.score)))
    }));
    let header = row(["task", "metric"], "base".into(), &|r| r.name.clone());
    (header, rows)
}

fn gains(comparison: &Comparison) -> Cells {
    let interval = format!("{:.0} % interval", comparison.confidence * 100.0);
    let header = [
        "recipe",
        "rank",
        "parameters",
        "of reference",
        "gain",
        &interval,
        "by seed",
        "verdict",
    ];
    let budget = comparison.recipes[0].budget_parameters;
    let row = |recipe: &RecipeResult| {
        let share = recipe.budget_parameters as f64 / budget.max(1) as f64;
        let [gain, interval, by_seed, verdict] = gain_cells(recipe);
        vec![
            recipe.name.clone(),
            recipe.rank.to_string(),
            thousands(recipe.budget_parameters),
            format!("{} %", percent(share)),
            gain,
            interval,
            by_seed,
            verdict,
        ]
    };
    let rows = comparison.recipes.iter().map(row).collect();
    (header.map(str::to_owned).into(), rows)
}

fn gain_cells(recipe: &RecipeResult) -> [String; 4] {
    let Some(gain) = &recipe.gain else {
        return ["-", "-", "-", "reference"].map(str::to_owned);
    };
    let range = |low: f64, high: f64| format!("{} to {}", points(low), points(high));
    let seeds = recipe.gain_by_seed.iter().copied();
    let least = seeds.clone().fold(f64::INFINITY, f64::min);
    let most = seeds.fold(f64::NEG_INFINITY, f64::max);
    [
        points(gain.mean_accuracy),
        range(gain.low, gain.high),
        range(least, most),
        gain.verdict.text().to_owned(),
    ]
}

fn costs(comparison: &Comparison) -> Cells {
    let header = [
        "recipe",
        "steps",
        "training time",
        "tokens/s",
        "dead experts",
    ];
    let row = |recipe: &RecipeResult| {
        let dead: usize = recipe.dead_experts.iter().map(|d| d.experts.len()).sum();
        let dead = match recipe.num_experts {
            0 => "-".to_owned(),
            all => format!("{} of {}", thousands(dead), thousands(all)),
        };
        let speed = recipe.tokens_per_second.round().max(0.0) as usize;
        vec![
            recipe.name.clone(),
            thousands(recipe.steps),
            duration(recipe.train_seconds),
            thousands(speed),
            dead,
        ]
    };
    let rows = comparison.recipes.iter().map(row).collect();
    (header.map(str::to_owned).into(), rows)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::compare::result::{DeadExperts, TaskResult, WorstTask};
    use crate::report::{Gain, ParameterCounts, Spread, Verdict};

    fn recipe(name: &str, scores: [f64; 2], gain: Option<Gain>, experts: usize) -> RecipeResult {
        let spread = |shift: f64| Spread::of(scores.map(|score| score - shift).to_vec());
        let task = |shift| TaskResult {
            metric: "accuracy".into(),
            score: spread(shift),
            accuracy: spread(shift),
            tests: BTreeMap::new(),
        };
        let dead = DeadExperts {
            seed: 0,
            site: "query".into(),
            experts: vec![0, 2],
        };
        RecipeResult {
            name: name.into(),
            citation: "arXiv:0000.00000".into(),
            rank: 8,
            steps: 600,
            budget_parameters: 147_456 + experts,
            parameters: ParameterCounts::default(),
            tasks: [("a".into(), task(0.0)), ("b".into(), task(0.5))].into(),
            mean: spread(0.25),
            mean_accuracy: spread(0.25),
            worst_task: Some(WorstTask {
                name: "b".into(),
                score: spread(0.5).mean,
            }),
            gain,
            gain_by_seed: gain.map_or(Vec::new(), |_| vec![0.02, -0.01]),
            train_seconds: 187.0,
            tokens_per_second: 3456.7,
            num_experts: experts,
            dead_experts: if experts > 0 { vec![dead] } else { Vec::new() },
        }
    }

    fn comparison() -> Comparison {
        let gain = |mean_accuracy, low, high, verdict| {
            Some(Gain {
                mean_accuracy,
                low,
                high,
                verdict,
            })
        };
        let none = gain(-0.00001, -0.0123, 0.0123, Verdict::NoGainShown);
        let some = gain(0.0312, 0.0201, 0.0423, Verdict::Gain);
        Comparison {
            version: 1,
            molora_version: "0.1.0".into(),
            model: "bundled:all-MiniLM-L6-v2".into(),
            data: "bundled:tasks".into(),
            device: "cpu".into(),
            seeds: 2,
            budget: Budget::Params,
            reference: "lora".into(),
            tasks: vec!["a".into(), "b".into()],
            resamples: 2000,
            confidence: 0.95,
            tuned: Vec::new(),
            base: BTreeMap::new(),
            recipes: vec![
                recipe("lora", [0.9, 0.9], None, 0),
                recipe("samora", [0.89, 0.91], none, 144),
                recipe("mosld", [0.92, 0.94], some, 1440),
            ],
            unseen: None,
        }
    }

    #[test]
    fn tables_read_well() {
        insta::assert_snapshot!(tables(&comparison()), @r"
        Test scores in %, mean +- standard deviation over seeds
        +-----------------------------------------------------------------+
        | task         metric            lora        samora         mosld |
        +=================================================================+
        | a            accuracy   90.0 +- 0.0   90.0 +- 1.4   93.0 +- 1.4 |
        | b            accuracy   40.0 +- 0.0   40.0 +- 1.4   43.0 +- 1.4 |
        | mean         score      65.0 +- 0.0   65.0 +- 1.4   68.0 +- 1.4 |
        | mean         accuracy   65.0 +- 0.0   65.0 +- 1.4   68.0 +- 1.4 |
        | worst task   score           b 40.0        b 40.0        b 43.0 |
        +-----------------------------------------------------------------+

        Mean accuracy against lora, in percentage points
        +-----------------------------------------------------------------------------------------------------+
        | recipe   rank   parameters   of reference    gain    95 % interval          by seed         verdict |
        +=====================================================================================================+
        | lora        8      147,456        100.0 %       -                -                -       reference |
        | samora      8      147,600        100.1 %   +0.00   -1.23 to +1.23   -1.00 to +2.00   no gain shown |
        | mosld       8      148,896        101.0 %   +3.12   +2.01 to +4.23   -1.00 to +2.00            gain |
        +-----------------------------------------------------------------------------------------------------+

        Cost and dead experts
        +----------------------------------------------------------+
        | recipe   steps   training time   tokens/s   dead experts |
        +==========================================================+
        | lora       600      3 min 07 s      3,457              - |
        | samora     600      3 min 07 s      3,457       2 of 144 |
        | mosld      600      3 min 07 s      3,457     2 of 1,440 |
        +----------------------------------------------------------+
        ");
    }

    #[test]
    fn the_document_is_markdown() {
        let text = document(&comparison());
        assert!(text.starts_with("# lora, samora, mosld compared\n\nSeeds: 2. Model all-MiniLM"));
        assert!(text.is_ascii() && text.ends_with("at its site.\n"));
        insta::assert_snapshot!(tables_markdown(&comparison()), @r"
        ## Test scores in %, mean +- standard deviation over seeds

        | task       | metric   |        lora |      samora |       mosld |
        |------------|----------|------------:|------------:|------------:|
        | a          | accuracy | 90.0 +- 0.0 | 90.0 +- 1.4 | 93.0 +- 1.4 |
        | b          | accuracy | 40.0 +- 0.0 | 40.0 +- 1.4 | 43.0 +- 1.4 |
        | mean       | score    | 65.0 +- 0.0 | 65.0 +- 1.4 | 68.0 +- 1.4 |
        | mean       | accuracy | 65.0 +- 0.0 | 65.0 +- 1.4 | 68.0 +- 1.4 |
        | worst task | score    |      b 40.0 |      b 40.0 |      b 43.0 |

        ## Mean accuracy against lora, in percentage points

        | recipe | rank | parameters | of reference |  gain |  95 % interval |        by seed |       verdict |
        |--------|-----:|-----------:|-------------:|------:|---------------:|---------------:|--------------:|
        | lora   |    8 |    147,456 |      100.0 % |     - |              - |              - |     reference |
        | samora |    8 |    147,600 |      100.1 % | +0.00 | -1.23 to +1.23 | -1.00 to +2.00 | no gain shown |
        | mosld  |    8 |    148,896 |      101.0 % | +3.12 | +2.01 to +4.23 | -1.00 to +2.00 |          gain |

        ## Cost and dead experts

        | recipe | steps | training time | tokens/s | dead experts |
        |--------|------:|--------------:|---------:|-------------:|
        | lora   |   600 |    3 min 07 s |    3,457 |            - |
        | samora |   600 |    3 min 07 s |    3,457 |     2 of 144 |
        | mosld  |   600 |    3 min 07 s |    3,457 |   2 of 1,440 |
        ");
    }

    #[test]
    fn the_base_model_has_a_column_where_it_was_measured() {
        let mut comparison = comparison();
        comparison.base = [("a".to_owned(), Spread::of(vec![0.7]))].into();
        let text = tables_markdown(&comparison);
        let column = |row: usize| {
            let line = text.lines().nth(row + 2).expect("a row");
            line.split('|').nth(3).expect("a cell").trim()
        };
        assert_eq!([0, 2, 3, 4].map(column), ["base", "70.0", "-", "-"]);
        comparison.base.insert("b".into(), Spread::of(vec![0.5]));
        let (_, rows) = scores(&comparison);
        assert_eq!((&rows[1][2][..], &rows[2][2][..]), ("50.0", "60.0"));
    }

    #[test]
    fn a_page_gets_what_no_run_has() {
        let tables = plain_tables(&comparison());
        assert_eq!(tables.len(), 1);
        assert!(tables[0].title.starts_with("Mean accuracy against lora"));
        assert_eq!(tables[0].rows[2][7], "gain");
    }

    #[test]
    fn one_seed_has_no_deviation() {
        assert_eq!(spread(&Spread::of(vec![0.5])), "50.0");
        assert_eq!(points(-0.00001), "+0.00");
    }
}
