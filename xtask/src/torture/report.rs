//! The table of what was tried and how it ended.

use comfy_table::Table;

/// One line: cases of one command and one kind.
#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) kind: String,
    /// Operations that the command does; 0 where they are not counted.
    pub(super) operations: usize,
    pub(super) cases: usize,
    pub(super) outcomes: Vec<(&'static str, usize)>,
    pub(super) faults: usize,
}

/// All lines of a campaign.
#[derive(Debug, Default)]
pub(super) struct Findings {
    rows: Vec<Row>,
}

impl Findings {
    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Cases with a fault.
    pub(super) fn faults(&self) -> usize {
        self.rows.iter().map(|row| row.faults).sum()
    }

    /// Prints the table, and a line with the sums.
    pub(super) fn print(&self, title: &str) {
        let Some(first) = self.rows.first() else {
            println!("{title}: no case");
            return;
        };
        let mut table = Table::new();
        let mut header = vec!["command", "kind", "operations", "cases"];
        header.extend(first.outcomes.iter().map(|(name, _)| *name));
        header.push("faults");
        table.set_header(header);
        for row in &self.rows {
            let mut cells = vec![row.name.clone(), row.kind.clone()];
            cells.extend([row.operations, row.cases].map(|number| number.to_string()));
            cells.extend(row.outcomes.iter().map(|(_, number)| number.to_string()));
            cells.push(row.faults.to_string());
            table.add_row(cells);
        }
        let cases: usize = self.rows.iter().map(|row| row.cases).sum();
        println!("\n{table}");
        println!("{title}: {cases} cases, {} with a fault", self.faults());
    }
}
