//! `cargo xtask torture pairs`: two commands at the same time on the same folder.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::{End, run, start};
use super::report::{Findings, Row};
use super::scenario::{Stage, compare_line, train_line, words};
use super::tree::{self, Tree};
use super::{Draw, Torture};

/// The longest time that the second command waits before it begins.
const LATEST: usize = 150;

/// Two commands, and what may come of them.
struct Pair {
    name: &'static str,
    /// The state that they begin from.
    state: &'static str,
    commands: [String; 2],
    /// How many of the two have to succeed at least, and may at most.
    succeed: (usize, usize),
    /// The second one only reads, and may be refused.
    reads: bool,
}

/// Words of refusals that a command may get because of the other one.
const REFUSALS: [&str; 9] = [
    "is writing here",
    "exists already",
    "the run is finished",
    "has an expert of",
    "has no expert of",
    "is not finished",
    "was cut short",
    "no run here",
    "is being",
];

fn all() -> Vec<Pair> {
    let pair = |name, state, one: &str, other: &str, succeed, reads| Pair {
        name,
        state,
        commands: [one.to_owned(), other.to_owned()],
        succeed,
        reads,
    };
    let train = train_line();
    let force = format!("{train} --force");
    let compare = compare_line();
    let [resume, eval] = ["train --resume run", "eval run"];
    let [weather, birds] = ["weather", "birds"].map(|task| format!("add-expert run --task {task}"));
    let remove = "remove-expert run --task weather";
    let export = "export run --expert pets --out out";
    let merge = "merge run --expert pets --out out";
    vec![
        pair("train, train", "plain", &train, &train, (1, 1), false),
        pair(
            "train --force twice",
            "other",
            &force,
            &force,
            (1, 2),
            false,
        ),
        pair("resume, resume", "stopped", resume, resume, (1, 1), false),
        pair(
            "resume, train --force",
            "stopped",
            resume,
            &force,
            (1, 2),
            false,
        ),
        pair(
            "add, add the same",
            "two",
            &weather,
            &weather,
            (1, 1),
            false,
        ),
        pair("add, add another", "two", &weather, &birds, (1, 2), false),
        pair("add, remove", "three", &birds, remove, (1, 2), false),
        pair(
            "compare, compare",
            "plain",
            &compare,
            &compare,
            (1, 2),
            false,
        ),
        pair("resume, eval", "stopped", resume, eval, (1, 2), true),
        pair("add, eval", "two", &weather, eval, (1, 2), true),
        pair("train --force, eval", "other", &force, eval, (1, 2), true),
        pair("export, export", "two", export, export, (1, 1), false),
        pair("merge, merge", "two", merge, merge, (1, 1), false),
    ]
}

/// A pair with the folders that it may lead to: of the commands that succeeded, in either order.
struct Reference {
    pair: Pair,
    results: Vec<(Vec<usize>, Tree)>,
}

impl Reference {
    /// Runs the commands one after the other, alone and in both orders.
    fn measure(stage: &Stage, pair: Pair) -> Result<Self> {
        let place = stage.folder.join("references/pair/world");
        let orders: &[&[usize]] = match pair.reads {
            true => &[&[0]],
            false => &[&[0], &[1], &[0, 1], &[1, 0]],
        };
        let mut results = Vec::new();
        for order in orders {
            tree::replace(stage.state(pair.state)?, &place)?;
            let lines = order.iter().map(|index| words(&pair.commands[*index]));
            let ends = lines.map(|line| run(stage.program.command(&place, &line)));
            let ends: Vec<End> = ends.collect::<Result<_>>()?;
            // What a later command refuses is no result of its own.
            if ends.iter().all(End::is_success) {
                results.push((order.to_vec(), Tree::read_result(&place)?));
            }
        }
        Ok(Self { pair, results })
    }

    /// What is wrong with the ends of both commands and the folder that they left.
    fn fault(&self, ends: &[End; 2], world: &Path) -> Result<Option<String>> {
        for (end, line) in ends.iter().zip(&self.pair.commands) {
            let begin = line.split(" --").next().unwrap_or_default();
            if let Some(fault) = end.fault() {
                return Ok(Some(format!("{begin}: {fault}")));
            }
            let last = end.last_line();
            let is_known = REFUSALS.iter().any(|words| last.contains(words))
                // One that reads takes no lock: the run may be replaced under its eyes.
                || self.pair.reads && line.starts_with("eval") && last.contains("No such file");
            if !end.is_success() && !is_known {
                return Ok(Some(format!("{begin}: {}", end.last_line())));
            }
        }
        let done: Vec<usize> = (0..2).filter(|index| ends[*index].is_success()).collect();
        let (least, most) = self.pair.succeed;
        if done.len() < least || done.len() > most {
            let lines = ends.each_ref().map(End::last_line);
            return Ok(Some(format!("{} succeeded: {lines:?}", done.len())));
        }
        let found = Tree::read_result(world)?;
        let is_of = |order: &Vec<usize>| match self.pair.reads {
            true => true,
            false => done.iter().all(|index| order.contains(index)) && order.len() == done.len(),
        };
        let mut differences = Vec::new();
        for (order, expected) in self.results.iter().filter(|(order, _)| is_of(order)) {
            match found.difference(expected) {
                None => return Ok(None),
                Some(difference) => differences.push(format!("{order:?}: {difference}")),
            }
        }
        Ok(Some(format!(
            "{done:?} succeeded, but {}",
            differences.join("; or ")
        )))
    }
}

/// One try: when the second command begins, and whether the two are exchanged.
struct Try {
    pair: usize,
    wait: Duration,
    is_exchanged: bool,
}

/// Runs pairs at moments drawn at random, as many as are asked for.
pub(super) fn run_all(stage: &Stage, options: &Torture) -> Result<Findings> {
    let wanted = |pair: &Pair| options.only.as_ref().is_none_or(|only| only == pair.name);
    let references: Vec<Reference> = all()
        .into_iter()
        .filter(wanted)
        .map(|pair| Reference::measure(stage, pair))
        .collect::<Result<_>>()?;
    let mut draw = Draw(options.seed);
    let count = if options.limit == 0 {
        1300
    } else {
        options.limit
    };
    let tries: Vec<Try> = (0..count)
        .map(|index| Try {
            pair: index % references.len().max(1),
            wait: Duration::from_millis(draw.below(LATEST) as u64 * draw.below(2) as u64),
            is_exchanged: draw.below(2) == 1,
        })
        .collect();
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(vec![[0_usize; 4]; references.len()]);
    std::thread::scope(|scope| {
        let work = |worker| {
            let (next, counts, references, tries) = (&next, &counts, &references, &tries);
            scope.spawn(move || work(stage, worker, references, tries, next, counts))
        };
        let workers: Vec<_> = (0..options.jobs.max(1)).map(work).collect();
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(_) => bail!("a worker panicked"),
            })
    })?;
    let counts = counts.into_inner().ok().context("a worker panicked")?;
    let mut findings = Findings::default();
    for (reference, [none, one, two, faults]) in references.iter().zip(counts) {
        findings.add(Row {
            name: reference.pair.name.into(),
            kind: "pair".into(),
            operations: 0,
            cases: none + one + two + faults,
            outcomes: vec![("one succeeded", one), ("both succeeded", two)],
            faults,
        });
    }
    Ok(findings)
}

fn work(
    stage: &Stage,
    worker: usize,
    references: &[Reference],
    tries: &[Try],
    next: &AtomicUsize,
    counts: &Mutex<Vec<[usize; 4]>>,
) -> Result<()> {
    loop {
        let index = next.fetch_add(1, Ordering::SeqCst);
        let Some(one) = tries.get(index) else {
            return Ok(());
        };
        let reference = &references[one.pair];
        let folder = stage.folder.join(format!("worker-{worker}"));
        let (ends, world) = at_once(stage, &folder, reference, one)?;
        let fault = reference.fault(&ends, &world)?;
        let outcome = match &fault {
            Some(fault) => {
                let kept = stage.folder.join("failed").join(format!("pair-{index}"));
                std::fs::create_dir_all(kept.parent().context("a folder above")?)?;
                std::fs::rename(&folder, &kept)?;
                println!(
                    "FAULT {} ({} ms later): {fault}",
                    reference.pair.name,
                    one.wait.as_millis()
                );
                println!("  kept: {}", kept.display());
                3
            }
            None => ends.iter().filter(|end| end.is_success()).count(),
        };
        if let Ok(mut counts) = counts.lock() {
            counts[one.pair][outcome] += 1;
        }
    }
}

/// Lets both commands run, and returns how they ended, in the order of the pair.
fn at_once(
    stage: &Stage,
    folder: &Path,
    reference: &Reference,
    one: &Try,
) -> Result<([End; 2], PathBuf)> {
    let world = folder.join("world");
    tree::remove(folder)?;
    tree::copy(stage.state(reference.pair.state)?, &world)?;
    let command = |index: usize| {
        let line = words(&reference.pair.commands[index]);
        stage.program.command(&world, &line)
    };
    let (first, second) = if one.is_exchanged { (1, 0) } else { (0, 1) };
    let running = start(command(first))?;
    std::thread::sleep(one.wait);
    let later = start(command(second))?;
    let (one_end, other_end) = (running.wait()?, later.wait()?);
    let ends = match one.is_exchanged {
        true => [other_end, one_end],
        false => [one_end, other_end],
    };
    Ok((ends, world))
}
