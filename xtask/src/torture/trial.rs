//! One command with a fault in it, what readers make of the result, and going on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::process::{End, Fault, Operation, UNREADABLE, run};
use super::scenario::{Expected, Scenario, Stage, is_done, next, words};
use super::tree::{self, Tree};

/// A scenario that was run undisturbed.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) scenario: Scenario,
    pub(super) expected: Expected,
    pub(super) writes: Vec<Operation>,
    pub(super) reads: Vec<Operation>,
}

/// What happens in a trial: faults of the command, and perhaps one while one goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) scenario: usize,
    pub(super) fault: Fault,
    /// The operation at which the command is killed that goes on.
    pub(super) again: Option<usize>,
}

/// How a trial ended that has no fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// Killed, and went on to the undisturbed result.
    WentOn,
    /// An error, told in one line; went on to the undisturbed result.
    Told,
    /// The right result in spite of the error.
    Right,
}

impl Reference {
    /// Runs a scenario undisturbed, and counts what it does.
    pub(super) fn measure(stage: &Stage, scenario: Scenario) -> Result<Self> {
        let place = stage
            .folder
            .join("references")
            .join(scenario.name)
            .join("world");
        let mut measured = Vec::new();
        for reads in [true, false] {
            tree::replace(stage.state(scenario.state)?, &place)?;
            let (end, operations) = stage.program.count(&place, &scenario.command, reads)?;
            anyhow::ensure!(end.is_success(), "{}: {}", scenario.name, end.errors);
            measured.push(operations);
        }
        let writes = measured.pop().context("counted twice")?;
        let reads = measured.pop().context("counted twice")?;
        let expected = Expected {
            before: Tree::read_result(stage.state(scenario.state)?)?,
            after: Tree::read_result(&place)?,
        };
        Ok(Self {
            scenario,
            expected,
            writes,
            reads,
        })
    }
}

/// The folder of one of several workers, in which its trials run one after the other.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    stage: &'a Stage,
    folder: PathBuf,
}

impl<'a> Bench<'a> {
    pub(super) fn new(stage: &'a Stage, worker: usize) -> Self {
        let folder = stage.folder.join(format!("worker-{worker}"));
        Self { stage, folder }
    }

    fn world(&self) -> PathBuf {
        self.folder.join("world")
    }

    /// Keeps the folder of a trial that found a fault.
    pub(super) fn keep(&self, name: &str) -> Result<PathBuf> {
        let kept = self.stage.folder.join("failed").join(name);
        tree::remove(&kept)?;
        std::fs::create_dir_all(kept.parent().context("a folder above")?)?;
        std::fs::rename(&self.folder, &kept)?;
        Ok(kept)
    }

    /// Tries a case; what is wrong is `Err` in words.
    pub(super) fn try_case(
        &self,
        reference: &Reference,
        case: &Case,
    ) -> Result<Result<Outcome, String>> {
        tree::remove(&self.folder)?;
        let world = self.world();
        tree::copy(self.stage.state(reference.scenario.state)?, &world)?;
        let trial = Trial {
            stage: self.stage,
            world: &world,
            reference,
        };
        trial.run(case)
    }
}

struct Trial<'a> {
    stage: &'a Stage,
    world: &'a Path,
    reference: &'a Reference,
}

impl Trial<'_> {
    fn run(&self, case: &Case) -> Result<Result<Outcome, String>> {
        let scenario = &self.reference.scenario;
        let end = self.with_fault(&scenario.command, case.fault)?;
        let is_kill = ["kill", "torn"].contains(&case.fault.kind);
        if !(is_kill && end.is_killed())
            && let Some(fault) = end.fault()
        {
            return Ok(Err(format!("the command {fault}")));
        }
        let left = Tree::read_result(self.world)?;
        if scenario.changes_run
            && let Some(fault) = self.reference.expected.fault_of_run(&left)
        {
            return Ok(Err(format!("after the fault `run` is {fault}")));
        }
        if let Some(fault) = self.read(case)? {
            return Ok(Err(fault));
        }
        if end.is_success()
            && let Some(fault) = left
                .without_leftovers()
                .difference(&self.reference.expected.after)
        {
            return Ok(Err(format!("success, but {fault}")));
        }
        if end.is_success() && left == self.reference.expected.after {
            return Ok(Ok(Outcome::Right));
        }
        if let Some(at) = case.again {
            let end = self.with_fault(&next(scenario, self.world), Fault { at, kind: "kill" })?;
            if !end.is_killed() && !is_done(&end) {
                return Ok(Err(format!("cannot go on: {}", end.last_line())));
            }
        }
        if let Some(fault) = self.go_on()? {
            return Ok(Err(fault));
        }
        Ok(Ok(match (end.is_killed(), end.is_success()) {
            (true, _) => Outcome::WentOn,
            (false, false) => Outcome::Told,
            (false, true) => Outcome::Right,
        }))
    }

    fn with_fault(&self, arguments: &[String], fault: Fault) -> Result<End> {
        let mut command = self.stage.program.command(self.world, arguments);
        self.stage.program.inject(&mut command, self.world, fault);
        run(command)
    }

    /// Lets a command read what the fault left; it may refuse, and changes nothing.
    fn read(&self, case: &Case) -> Result<Option<String>> {
        let run_folder = self.world.join("run");
        if !run_folder.is_dir() || case.fault.kind == UNREADABLE {
            return Ok(None);
        }
        let before = Tree::read(self.world)?;
        let reader = match case.fault.at % 3 {
            0 => "eval run",
            1 => "export run --expert pets --out ../read",
            _ => "merge run --expert pets --out ../read",
        };
        let end = run(self.stage.program.command(self.world, &words(reader)))?;
        tree::remove(&self.world.join("../read"))?;
        if let Some(fault) = end.fault() {
            return Ok(Some(format!("{reader} {fault}")));
        }
        let after = Tree::read(self.world)?;
        Ok(after
            .difference(&before)
            .map(|fault| format!("{reader} changed what it read: {fault}")))
    }

    /// Goes on as the documents say, until the result is there.
    fn go_on(&self) -> Result<Option<String>> {
        let scenario = &self.reference.scenario;
        let arguments = next(scenario, self.world);
        let end = run(self.stage.program.command(self.world, &arguments))?;
        if let Some(fault) = end.fault() {
            return Ok(Some(format!("going on {fault}")));
        }
        if !is_done(&end) {
            return Ok(Some(format!("cannot go on: {}", end.last_line())));
        }
        let found = Tree::read_result(self.world)?;
        let difference = found.difference(&self.reference.expected.after);
        Ok(difference.map(|fault| format!("went on, but {fault} ({})", arguments.join(" "))))
    }
}
