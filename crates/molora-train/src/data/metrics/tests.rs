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

#[test]
fn metrics_of_other_kinds_are_read() {
    use TaskKind::{Generation, MultipleChoice, Regression};
    let read = |kind, text: &str| Metric::parse_for(kind, text, &[]);
    let check = |kind, text: &str, expected: &str| {
        let metric = read(kind, text).unwrap();
        assert_eq!(metric.to_string(), expected);
        assert_eq!(read(kind, expected), Ok(metric), "its own text");
    };
    let gsm8k = "exact match of the number after ####; also token NLL/perplexity of the answer";
    check(Generation, gsm8k, "exact_match after ####");
    check(Generation, "exact match; also answer NLL", "exact_match");
    check(MultipleChoice, "accuracy", "accuracy");
    check(Regression, "spearman", "spearman");
    check(Regression, "pearson / spearman", "pearson");
    let message = |kind, text: &str| read(kind, text).unwrap_err().to_string();
    assert_eq!(
        message(Regression, "accuracy"),
        "unknown metric \"accuracy\", expected spearman or pearson"
    );
    for text in ["exact", "exact match of", "exact match after ", "rouge"] {
        assert!(
            message(Generation, text).contains("expected exact_match, or"),
            "{text}"
        );
    }
    assert!(message(MultipleChoice, "f1").ends_with("expected accuracy"));
}

#[test]
fn answers_are_found_after_the_marker() {
    let found = |text: &str| extract_answer(text, Some("####"));
    let check = |text: &str, expected: &str| assert_eq!(found(text).as_deref(), Some(expected));
    check("2 + 3 = 5\n#### 5", "5");
    check("#### 1,234.50", "1234.5");
    check("####\n  72. ", "72");
    check("#### $18 a day", "18");
    check("#### 2 + 3 = -5", "-5");
    check("#### 3-5", "5");
    check("#### 5\n\nQuestion: 7?\n#### 7", "5");
    check("#### none ", "none");
    check("####", "");
    assert_eq!(found("5"), None);
    assert_eq!(extract_answer(" 007.10 ", None).as_deref(), Some("7.1"));
    assert_eq!(extract_answer("a. ", None).as_deref(), Some("a."));
}

#[test]
fn numbers_match_by_value_and_words_by_letter() {
    for (one, other) in [
        ("5", "5.0"),
        ("1,234.50", "1234.5."),
        ("-0", "0"),
        (".5", "0.50"),
        ("+3", " 3\n"),
        ("12345678901234567890", "12,345,678,901,234,567,890"),
    ] {
        assert!(exact_match(one, other, None), "{one} {other}");
    }
    for (one, other) in [
        ("12345678901234567890", "12345678901234567891"),
        ("1,2", "12"),
        ("Paris", "paris"),
        ("5 apples", "5"),
        ("-5", "5"),
        ("", "0"),
        (".", "0"),
    ] {
        assert!(!exact_match(one, other, None), "{one} {other}");
    }
    assert!(exact_match("so #### 5.", "5 = 5\n#### 5", Some("####")));
    assert!(exact_match("#### 5", "5", Some("####")));
    assert!(!exact_match("5", "#### 5", Some("####")));
    let metric = Metric::ExactMatch { marker: None };
    let texts = |texts: [&str; 2]| texts.map(String::from);
    close(
        metric.score_texts(&texts(["1", "2"]), &texts(["1.0", "3"])),
        0.5,
    );
    close(metric.score_texts(&[], &[]), 0.0);
}

/// Expected numbers from scipy 1.17.1 and numpy.
#[test]
fn correlations_agree_with_scipy() {
    let predictions = [1.2, 3.4, 2.2, 2.2, 5.0, 0.1, 4.4];
    let targets = [1.0, 3.0, 3.0, 2.0, 4.5, 0.0, 5.0];
    close(pearson(&predictions, &targets), 0.9605067630482627);
    close(spearman(&predictions, &targets), 0.9363636363636364);
    close(rmse(&predictions, &targets), 0.46291004988627565);
    close(
        Metric::Pearson.score_numbers(&predictions, &targets),
        0.9605067630482627,
    );
    close(
        Metric::Spearman.score_numbers(&predictions, &targets),
        0.9363636363636364,
    );
    let opposed: Vec<f64> = targets.iter().map(|x| -x.powi(3)).collect();
    close(spearman(&targets, &opposed), -1.0);
}

#[test]
fn undefined_correlations_are_zero() {
    let numbers = [1.0, 2.0, 3.0];
    for other in [[0.1; 3], [f64::NAN; 3], [f64::INFINITY, 1.0, 2.0]] {
        assert_eq!(pearson(&numbers, &other), 0.0);
        assert_eq!(spearman(&other, &numbers), 0.0);
    }
    assert_eq!(
        (pearson(&[], &[]), spearman(&[1.0], &[2.0]), rmse(&[], &[])),
        (0.0, 0.0, 0.0)
    );
}
