//! Which golden cases of a folder no test reads.

use std::io::Write;

use crate::cases::{CASES, all, name_of};

/// What of these no test reads.
fn unread(names: &[String]) -> Vec<&String> {
    let is_unknown = |name: &&String| !CASES.contains(&name.as_str());
    names.iter().filter(is_unknown).collect()
}

#[test]
fn golden_methods_that_are_not_read() {
    let mut names: Vec<String> = all().iter().filter_map(name_of).collect();
    names.sort();
    names.dedup();
    for name in unread(&names) {
        // Past the capture of the test harness; a lost note is no reason to fail.
        let _ = writeln!(std::io::stderr(), "golden: nobody knows the case {name}");
    }
    for &name in CASES {
        let here = names.iter().any(|found| found == name);
        assert_eq!(!crate::cases::cases(name).is_empty(), here, "{name}");
    }
}

#[test]
fn a_case_that_no_test_reads_is_named() {
    let names = ["moa", "novel"].map(String::from);
    assert_eq!(unread(&names), ["novel"]);
}

#[test]
fn the_list_names_every_case_once() {
    let mut names = CASES.to_vec();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CASES.len());
}
