//! Which golden cases are read, and which of a folder are not.

use std::io::Write;

use crate::cases::{CASES, Reading, all, name_of};

/// What the folder has that no test reads, as lines for a person.
fn unread(names: &[String]) -> Vec<String> {
    let reason = |name: &String| {
        let listed = CASES.iter().find(|(known, _)| known == name);
        match listed.map(|(_, reading)| reading) {
            Some(Reading::On) => None,
            Some(Reading::Off(missing)) => Some(format!("{name}: {missing}")),
            None => Some(format!("{name}: nobody knows this case")),
        }
    };
    names.iter().filter_map(reason).collect()
}

#[test]
fn golden_methods_that_are_not_read_yet() {
    let mut names: Vec<String> = all().iter().filter_map(name_of).collect();
    names.sort();
    names.dedup();
    for line in unread(&names) {
        // Past the capture of the test harness; a lost note is no reason to fail.
        let _ = writeln!(std::io::stderr(), "golden: not read yet: {line}");
    }
    for &(name, reading) in CASES {
        let here = names.iter().any(|found| found == name);
        if reading == Reading::On {
            assert_eq!(!crate::cases::cases(name).is_empty(), here, "{name}");
        }
    }
}

#[test]
fn a_case_that_no_test_reads_is_named() {
    let unread_one = CASES.iter().find_map(|(name, reading)| match reading {
        Reading::Off(missing) => Some((name.to_string(), format!("{name}: {missing}"))),
        Reading::On => None,
    });
    let (off, reason): (Vec<String>, Vec<String>) = unread_one.into_iter().unzip();
    let names = [vec!["moa".into()], off, vec!["novel".into()]].concat();
    let expected = [reason, vec!["novel: nobody knows this case".into()]].concat();
    assert_eq!(unread(&names), expected);
}

#[test]
fn the_list_names_every_case_once() {
    let mut names: Vec<&str> = CASES.iter().map(|(name, _)| *name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), CASES.len());
}
