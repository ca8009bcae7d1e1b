use super::*;

fn labels(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn close(found: f64, expected: f64) {
    assert!(
        (found - expected).abs() < 1e-12,
        "{found} instead of {expected}"
    );
}

fn f1(class: usize) -> Metric {
    let label = class.to_string();
    Metric::F1 { class, label }
}

// All expected numbers of the tests were computed with scikit-learn 1.9.1.

#[test]
fn four_classes_agree_with_scikit_learn() {
    let predictions = [0, 2, 1, 2, 0, 1, 1, 3, 3, 0, 2, 2, 1, 0, 3, 2];
    let targets = [0, 1, 1, 2, 0, 2, 1, 3, 0, 0, 2, 2, 1, 3, 3, 1];
    let score = |metric: Metric| metric.score(&predictions, &targets, 4);
    close(score(Metric::Accuracy), 0.6875);
    close(score(Metric::MacroF1), 0.6874999999999999);
    close(score(Metric::MatthewsCorrelation), 0.5842105263157895);
    close(score(f1(0)), 0.75);
    close(score(f1(3)), 0.6666666666666666);
    close(accuracy(&predictions, &targets), 0.6875);
}

#[test]
fn two_classes_agree_with_scikit_learn() {
    let predictions = [1, 0, 1, 1, 0, 0, 1, 0, 1, 1];
    let targets = [1, 0, 0, 1, 0, 1, 1, 0, 1, 0];
    let score = |metric: Metric| metric.score(&predictions, &targets, 2);
    close(score(Metric::Accuracy), 0.7);
    close(score(Metric::MacroF1), 0.696969696969697);
    close(score(Metric::MatthewsCorrelation), 0.408248290463863);
    close(score(f1(1)), 0.7272727272727273);
    let opposed = Metric::MatthewsCorrelation.score(&[1, 0, 1, 0, 1], &[0, 1, 0, 1, 1], 2);
    close(opposed, -0.6666666666666666);
}

/// Class 1 stands nowhere and does not count; 2 is only predicted and 3 only a target: F1 0.
#[test]
fn absent_classes_are_treated_as_by_scikit_learn() {
    let (predictions, targets) = ([0, 0, 2, 0, 4, 2], [0, 0, 0, 3, 4, 4]);
    close(
        Metric::MacroF1.score(&predictions, &targets, 5),
        0.3333333333333333,
    );
    close(
        Metric::MatthewsCorrelation.score(&predictions, &targets, 5),
        0.3181818181818182,
    );
    close(f1(1).score(&predictions, &targets, 5), 0.0);
}

#[test]
fn one_sided_predictions_score_zero_where_undefined() {
    let (predictions, targets) = ([0; 5], [0, 0, 1, 0, 1]);
    close(
        Metric::MatthewsCorrelation.score(&predictions, &targets, 2),
        0.0,
    );
    close(f1(1).score(&predictions, &targets, 2), 0.0);
    close(Metric::MacroF1.score(&predictions, &targets, 2), 0.375);
    close(Metric::MatthewsCorrelation.score(&[1; 4], &[1; 4], 2), 0.0);
    close(Metric::MacroF1.score(&[1; 4], &[1; 4], 2), 1.0);
    close(Metric::MacroF1.score(&[], &[], 2), 0.0);
}

#[test]
fn the_majority_share_is_the_metric_of_one_answer() {
    let targets = [0, 0, 1, 0, 1];
    close(Metric::Accuracy.majority_share(&targets, 2), 0.6);
    close(Metric::MacroF1.majority_share(&targets, 2), 0.375);
    close(f1(1).majority_share(&targets, 2), 0.0);
    close(f1(0).majority_share(&targets, 2), 0.75);
    // Equally frequent: the first class is taken.
    close(f1(0).majority_share(&[0, 1], 2), 2.0 / 3.0);
}

#[test]
fn names_and_remarks_are_read() {
    let labels = labels(&["ham", "spam", "not sure", "odd (very)"]);
    let parse = |text| Metric::parse(text, &labels).unwrap().to_string();
    assert_eq!(parse("accuracy"), "accuracy");
    assert_eq!(parse("accuracy (macro-F1 second)"), "accuracy");
    assert_eq!(parse("accuracy / f1"), "accuracy");
    assert_eq!(parse("macro_f1"), "macro_f1");
    assert_eq!(parse("matthews_correlation"), "matthews_correlation");
    assert_eq!(parse("f1_spam (accuracy second)"), "f1_spam");
    assert_eq!(parse("f1_not sure"), "f1_not_sure");
    assert_eq!(parse("f1_not_sure"), "f1_not_sure");
    assert_eq!(parse("f1_odd (very)"), "f1_odd_(very)");
    assert_eq!(parse(&parse("f1_odd (very)")), "f1_odd_(very)");
}

#[test]
fn unknown_names_are_errors() {
    let labels = labels(&["ham", "spam"]);
    let message = |text| Metric::parse(text, &labels).unwrap_err().to_string();
    assert!(message("acuracy").starts_with("unknown metric \"acuracy\""));
    assert!(message("").starts_with("unknown metric \"\""));
    assert_eq!(
        message("f1_spma"),
        "metric \"f1_spma\" names no label of the task, the labels are ham, spam"
    );
    let many: Vec<String> = (0..12).map(|label| label.to_string()).collect();
    let message = Metric::parse("f1_x", &many).unwrap_err().to_string();
    assert!(message.ends_with("are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"));
}
