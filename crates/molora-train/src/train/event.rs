//! Events of a run.

use crate::hub;
use crate::report::{GuardRecord, MicroBatch, StepRecord, ValidationRecord};

/// Something that happened in a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something is about to be done.
    Phase(&'a str),
    /// A base model is downloaded.
    Download(hub::Progress<'a>),
    /// A stage begins, or the part of it that trains the expert of one task.
    Stage(StageEvent<'a>),
    /// The rows that a stage, or scores, compute at once were chosen.
    MicroBatch(&'a MicroBatch),
    /// A step is done; with the total number of steps.
    Step(&'a StepRecord, usize),
    /// A state was scored on the validation split.
    Validated(&'a ValidationRecord),
    /// A guard saw or did something.
    Guard(&'a GuardRecord),
    /// A stage, or the part of it that trained an expert, is done.
    Kept(Kept),
    /// Records are evaluated; with the total number of records.
    Evaluated(usize, usize),
}

/// The beginning of a stage.
#[derive(Debug, Clone, Copy)]
pub struct StageEvent<'a> {
    /// Its name.
    pub name: &'a str,
    /// The task whose expert trains alone.
    pub expert: Option<&'a str>,
    /// Its number, from 1.
    pub number: usize,
    /// Number of stages.
    pub total: usize,
}

/// The state that a stage, or the expert of a task, ends with.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// The step whose state it is.
    pub step: usize,
    /// The step of the last one.
    pub last: usize,
    /// Whether steps were left.
    pub is_early: bool,
}
