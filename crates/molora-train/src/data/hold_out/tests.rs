use super::*;
use crate::data::Label;

fn record(input: String, output: &str) -> Record {
    Record {
        id: String::new(),
        instruction: String::new(),
        input,
        input_b: None,
        choices: Vec::new(),
        label: Label::Text,
        output: output.into(),
        ..Record::default()
    }
}

fn inputs(records: &[Record]) -> HashSet<&str> {
    records.iter().map(|record| &record.input[..]).collect()
}

#[test]
fn a_twentieth_is_held_out_without_leaks() {
    let all: Vec<Record> = (0..1000)
        .map(|index| record(format!("text {}", index % 400), &index.to_string()))
        .collect();
    let mut train = all.clone();
    let [validation, test] = hold_out(&mut train, true, true, Path::new("a")).unwrap();
    let (validation, test) = (validation.unwrap(), test.unwrap());
    assert_eq!(train.len() + validation.len() + test.len(), 1000);
    assert_eq!(inputs(&validation).len(), 20);
    assert_eq!(inputs(&test).len(), 20);
    assert_eq!(inputs(&train).len(), 360);
    assert!(inputs(&validation).is_disjoint(&inputs(&test)));
    // The order of the records changes nothing.
    let mut turned: Vec<Record> = all.into_iter().rev().collect();
    let [_, again] = hold_out(&mut turned, true, true, Path::new("a")).unwrap();
    assert_eq!(inputs(&again.unwrap()), inputs(&test));
}

#[test]
fn at_most_500_and_at_least_one_text_are_held_out() {
    let mut train: Vec<Record> = (0..20_000).map(|n| record(n.to_string(), "")).collect();
    let [validation, test] = hold_out(&mut train, false, true, Path::new("a")).unwrap();
    assert_eq!((validation, test.unwrap().len()), (None, 500));
    assert_eq!(train.len(), 19_500);
    let mut few: Vec<Record> = (0..3).map(|n| record(n.to_string(), "")).collect();
    let [validation, test] = hold_out(&mut few, true, true, Path::new("a")).unwrap();
    assert_eq!((validation.unwrap().len(), test.unwrap().len()), (1, 1));
    let error = hold_out(&mut few, true, true, Path::new("a")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a: holds 1 different texts, expected at least 3, because a validation and a test split is \
         held out from them"
    );
}

#[test]
fn texts_without_a_prompt_are_told_apart() {
    let text = |text: &str| Record {
        is_verbatim: true,
        ..record(String::new(), text)
    };
    assert_ne!(key(&text("a")), key(&text("b")));
    assert_eq!(key(&record("a".into(), "x")), key(&record("a".into(), "y")));
}
