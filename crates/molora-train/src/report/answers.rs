//! Example answers of a run as tables of its page.

use minijinja::{Value, context};

use super::details::{ExampleAnswer, ExampleKind, ExampleReport};

/// Longer texts are cut.
const SHOWN: usize = 300;
/// What a cut text shows of itself when it is pointed at; browsers show no more anyway.
const POINTED_AT: usize = 5000;
/// Up to so many tasks are all unfolded.
const UNFOLDED: usize = 3;

/// One table for each task that has examples; nothing without any.
pub(super) fn answer_values(report: &ExampleReport) -> Option<Value> {
    let with_examples = || report.tasks.iter().filter(|(_, all)| !all.is_empty());
    let count = with_examples().count();
    let task = |(name, all): (&String, &Vec<ExampleAnswer>)| {
        let has_base = all.iter().any(|example| example.base.is_some());
        let kinds = [
            ExampleKind::Gained,
            ExampleKind::Lost,
            ExampleKind::Wrong,
            ExampleKind::Right,
        ];
        let groups = kinds
            .into_iter()
            .filter_map(|kind| group(kind, all, has_base));
        context! {
            name => name,
            examples => all.len(),
            has_base => has_base,
            groups => groups.collect::<Vec<_>>(),
            is_open => count <= UNFOLDED,
        }
    };
    let tasks: Vec<Value> = with_examples().map(task).collect();
    (count > 0).then(|| context! { split => &report.split, tasks => tasks })
}

/// The examples of one kind under their title.
fn group(kind: ExampleKind, all: &[ExampleAnswer], has_base: bool) -> Option<Value> {
    let of_kind = all.iter().filter(|example| example.kind == kind);
    let rows: Vec<Value> = of_kind.map(|example| row(example, has_base)).collect();
    let title = match (kind, has_base) {
        (ExampleKind::Gained, _) => "right, where the base model was wrong",
        (ExampleKind::Lost, _) => "wrong, where the base model was right",
        (ExampleKind::Wrong, true) => "wrong, as the base model was",
        (ExampleKind::Right, true) => "right, as the base model was",
        (ExampleKind::Wrong, false) => "wrong",
        (ExampleKind::Right, false) => "right",
    };
    (!rows.is_empty()).then(|| context! { title => title, rows => rows })
}

fn row(example: &ExampleAnswer, has_base: bool) -> Value {
    let mut texts = vec![
        text(&example.input),
        text(&example.expected),
        text(&example.answer),
    ];
    if has_base {
        texts.push(text(example.base.as_deref().unwrap_or("-")));
    }
    context! { record => example.record, texts => texts }
}

/// A text as it is shown, and more of it where it is cut.
fn text(whole: &str) -> Value {
    let shown = cut(whole, SHOWN);
    let more = (shown.len() < whole.len()).then(|| cut(whole, POINTED_AT));
    context! { shown => shown, more => more }
}

/// At most so many characters of a text, dots for the rest.
pub(super) fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some(_) => text.chars().take(limit - 3).collect::<String>() + "...",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("bar\u{e9}", 4), "bar\u{e9}");
        assert_eq!(cut(&"\u{e9}".repeat(5), 4), "\u{e9}...");
        let long = "x".repeat(400);
        let values = text(&long);
        assert_eq!(values.get_attr("more").unwrap().to_string(), long);
        assert!(text("short").get_attr("more").unwrap().is_none());
    }

    #[test]
    fn examples_are_grouped_by_kind() {
        let mut report = sample::examples();
        let titles = |report: &ExampleReport| {
            let values = answer_values(report).expect("examples").to_string();
            let kinds = [
                "where the base model was wrong",
                "as the base model was",
                "'wrong'",
            ];
            kinds.map(|kind| values.contains(kind))
        };
        assert_eq!(titles(&report), [true, true, false]);
        for example in report.tasks.values_mut().flatten() {
            (example.kind, example.base) = (ExampleKind::Wrong, None);
        }
        assert_eq!(titles(&report), [false, false, true]);
        report.tasks.values_mut().for_each(Vec::clear);
        assert!(answer_values(&report).is_none());
    }
}
