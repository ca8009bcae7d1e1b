//! `cargo xtask torture kills` and `errors`: every operation of every command goes wrong once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};

use super::process::{Fault, Operation, UNREADABLE};
use super::report::{Findings, Row};
use super::scenario::{self, Stage};
use super::trial::{Bench, Case, Outcome, Reference};
use super::{Draw, Torture};

/// Kinds of faults that end the process.
pub(super) const KILLS: [&str; 2] = ["kill", "torn"];
/// Kinds of faults that the program is told of.
pub(super) const ERRORS: [&str; 7] = [
    "eio", "enospc", "short", "eintr", "full", "readonly", UNREADABLE,
];

/// Whether an operation can go wrong in a way; `short` and `eintr` are no errors of most.
fn applies(kind: &str, operation: &Operation) -> bool {
    let call = operation.call.as_str();
    match kind {
        "torn" | "short" => ["write", "copy"].contains(&call),
        "eintr" => ["open", "write", "copy", "truncate"].contains(&call),
        _ => true,
    }
}

/// All cases of some kinds, or as many as are asked for, drawn at random.
fn cases(references: &[Reference], kinds: &[&'static str], options: &Torture) -> Vec<Case> {
    let mut draw = Draw(options.seed);
    let mut all = Vec::new();
    for (scenario, reference) in references.iter().enumerate() {
        for &kind in kinds {
            let operations = match kind == UNREADABLE {
                true => &reference.reads,
                false => &reference.writes,
            };
            for (index, operation) in operations.iter().enumerate() {
                if !applies(kind, operation) {
                    continue;
                }
                let fault = Fault {
                    at: index + 1,
                    kind,
                };
                let mut add = |again| {
                    all.push(Case {
                        scenario,
                        fault,
                        again,
                    })
                };
                add(None);
                if kind == "kill" {
                    add(Some(1 + draw.below(operations.len())));
                }
            }
        }
    }
    draw.shuffle(&mut all);
    if options.limit > 0 {
        all.truncate(options.limit);
    }
    all
}

/// The case that `--case SCENARIO:KIND:N[:M]` names.
fn named(references: &[Reference], text: &str) -> Result<Case> {
    let parts: Vec<&str> = text.split(':').collect();
    let [name, kind, at, again @ ..] = &parts[..] else {
        bail!("{text}: a case is SCENARIO:KIND:N[:M]");
    };
    let found = references
        .iter()
        .position(|reference| reference.scenario.name == *name);
    let kinds = KILLS.iter().chain(&ERRORS);
    let kind = kinds.copied().find(|known| known == kind);
    Ok(Case {
        scenario: found.with_context(|| format!("no scenario `{name}`"))?,
        fault: Fault {
            at: at.parse()?,
            kind: kind.context("no such kind of fault")?,
        },
        again: again.first().map(|text| text.parse()).transpose()?,
    })
}

fn name_of(reference: &Reference, case: &Case) -> String {
    let again = case.again.map(|at| format!(":{at}")).unwrap_or_default();
    let Fault { at, kind } = case.fault;
    format!("{}:{kind}:{at}{again}", reference.scenario.name)
}

/// The operation that went wrong, as the undisturbed run did it.
fn operation<'a>(reference: &'a Reference, case: &Case) -> Option<&'a Operation> {
    let list = match case.fault.kind == UNREADABLE {
        true => &reference.reads,
        false => &reference.writes,
    };
    list.get(case.fault.at - 1)
}

/// Runs the cases of some kinds; says in a table how they ended.
pub(super) fn run(stage: &Stage, kinds: &[&'static str], options: &Torture) -> Result<Findings> {
    let wanted = |scenario: &scenario::Scenario| match (&options.case, &options.only) {
        (Some(case), _) => case.split(':').next() == Some(scenario.name),
        (None, Some(only)) => only == scenario.name,
        (None, None) => true,
    };
    let scenarios = scenario::all().into_iter().filter(wanted);
    let references: Vec<Reference> = scenarios
        .map(|scenario| Reference::measure(stage, scenario))
        .collect::<Result<_>>()?;
    let cases = match &options.case {
        Some(text) => vec![named(&references, text)?],
        None => cases(&references, kinds, options),
    };
    let command = if kinds == KILLS { "kills" } else { "errors" };
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(Seen::default()));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.max(1))
            .map(|worker| {
                let (next, seen, cases, references) = (&next, &seen, &cases, &references);
                scope.spawn(move || {
                    work(
                        &Bench::new(stage, worker),
                        command,
                        references,
                        cases,
                        next,
                        seen,
                    )
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(_) => bail!("a worker panicked"),
            })
    })?;
    let seen = seen.into_inner().ok().context("a worker panicked")?;
    Ok(seen.findings(&references, kinds))
}

fn work(
    bench: &Bench<'_>,
    command: &str,
    references: &[Reference],
    cases: &[Case],
    next: &AtomicUsize,
    seen: &Mutex<Seen>,
) -> Result<()> {
    while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
        let reference = &references[case.scenario];
        let result = bench.try_case(reference, case)?;
        if let Err(fault) = &result {
            let name = name_of(reference, case);
            let kept = bench.keep(&name.replace(':', "-"))?;
            let what = operation(reference, case);
            let what = what
                .map(|at| format!("{} {}", at.call, at.path))
                .unwrap_or_default();
            println!("FAULT {name} ({what}): {fault}");
            println!("  kept: {}", kept.display());
            println!("  again: cargo xtask torture {command} --case {name}");
        }
        if let Ok(mut seen) = seen.lock() {
            seen.add(case, result);
        }
    }
    Ok(())
}

/// How cases ended, by scenario and kind.
#[derive(Default)]
struct Seen(BTreeMap<(usize, &'static str), Counts>);

#[derive(Default)]
struct Counts {
    outcomes: BTreeMap<Outcome, usize>,
    faults: usize,
}

impl Seen {
    fn add(&mut self, case: &Case, result: Result<Outcome, String>) {
        let kind = match case.again {
            Some(_) => "kill twice",
            None => case.fault.kind,
        };
        let counts = self.0.entry((case.scenario, kind)).or_default();
        match result {
            Ok(outcome) => *counts.outcomes.entry(outcome).or_default() += 1,
            Err(_) => counts.faults += 1,
        }
    }

    fn findings(&self, references: &[Reference], kinds: &[&'static str]) -> Findings {
        let mut findings = Findings::default();
        for ((scenario, kind), counts) in &self.0 {
            let reference = &references[*scenario];
            let of = |outcome| counts.outcomes.get(&outcome).copied().unwrap_or(0);
            let operations = match *kind == UNREADABLE {
                true => reference.reads.len(),
                false => reference.writes.len(),
            };
            findings.add(Row {
                name: reference.scenario.name.into(),
                kind: (*kind).into(),
                operations,
                cases: counts.outcomes.values().sum::<usize>() + counts.faults,
                outcomes: vec![
                    ("went on", of(Outcome::WentOn)),
                    ("told", of(Outcome::Told)),
                    ("right", of(Outcome::Right)),
                ],
                faults: counts.faults,
            });
        }
        debug_assert!(!kinds.is_empty());
        findings
    }
}
