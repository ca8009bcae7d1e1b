//! Writing a run's records so that a kill at any moment leaves whole files behind.
//!
//! `steps.jsonl` grows by whole lines, each in one write; every other file is replaced at once by
//! a rename.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::acts::GuardRecord;
use super::error::ReportError;
use super::reader::refuse_device;
use super::schema::{Record, SCHEMA_VERSION, StepRecord, ValidationRecord};
use super::tensorboard::EventFile;

/// Appends [`Record`]s to a JSON Lines file.
#[derive(Debug)]
pub(crate) struct StepWriter {
    file: File,
    path: PathBuf,
    events: Option<EventFile>,
}

impl StepWriter {
    /// Opens `path` for appending and creates it if it is missing.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(crate) fn open(path: impl Into<PathBuf>) -> Result<Self, ReportError> {
        let path = path.into();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(ReportError::io("open", &path))?;
        let events = None;
        Ok(Self { file, path, events })
    }

    /// Writes TensorBoard events too, into an event file in `folder`, which then holds all that the file
    /// of records does.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub(crate) fn with_events(mut self, folder: &Path) -> Result<Self, ReportError> {
        self.events = Some(EventFile::open(folder, &read_records(&self.path)?)?);
        Ok(self)
    }

    /// Appends one record as one line, in a single write.
    ///
    /// # Errors
    /// If a number of the record is not finite (nothing is written then), or the write fails.
    pub(crate) fn write(&mut self, record: &StepRecord) -> Result<(), ReportError> {
        refuse_non_finite(record)?;
        self.append(record)?;
        self.events
            .iter_mut()
            .try_for_each(|events| events.write_step(record))
    }

    /// Appends what was found on the validation split, behind the record of its step.
    ///
    /// # Errors
    /// If a number of it is not finite (nothing is written then), or the write fails.
    pub(crate) fn write_validation(
        &mut self,
        record: &ValidationRecord,
    ) -> Result<(), ReportError> {
        let scores = &record.validation;
        let plain = [
            ("validation.mean_score", scores.mean_score),
            ("validation.worst_task", scores.worst_task),
            ("validation.loss", scores.loss),
        ];
        if let Some((field, value)) = plain.into_iter().find(|(_, value)| !value.is_finite()) {
            let (step, field) = (record.step, field.to_owned());
            return Err(ReportError::NotFinite { step, field, value });
        }
        self.append(record)?;
        self.events
            .iter_mut()
            .try_for_each(|events| events.write_validation(record))
    }

    /// Appends what a guard did, behind the record of its step.
    ///
    /// # Errors
    /// If its value is not finite (nothing is written then), or the write fails.
    pub(crate) fn write_guard(&mut self, record: &GuardRecord) -> Result<(), ReportError> {
        let (step, value) = (record.step, record.guard.value);
        if !value.is_finite() {
            let field = format!("guard.{}", record.guard.watch);
            return Err(ReportError::NotFinite { step, field, value });
        }
        self.append(record)?;
        self.events
            .iter_mut()
            .try_for_each(|events| events.write_guard(record))
    }

    fn append(&mut self, record: &impl Serialize) -> Result<(), ReportError> {
        let mut line = serde_json::to_vec(record).map_err(|source| ReportError::Serialize {
            path: self.path.clone(),
            source,
        })?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(ReportError::io("append to", &self.path))
    }

    /// Waits until everything written so far is on the disk; call it before a checkpoint.
    ///
    /// # Errors
    /// If the system cannot write the file out.
    pub(crate) fn sync(&self) -> Result<(), ReportError> {
        self.file
            .sync_data()
            .map_err(ReportError::io("sync", &self.path))
    }
}

/// JSON has no NaN, so a line with one could never be read back.
fn refuse_non_finite(record: &StepRecord) -> Result<(), ReportError> {
    let plain = [
        ("loss", record.loss),
        ("task_loss", record.task_loss),
        ("learning_rate", record.learning_rate),
        ("gradient_norm", record.gradient_norm),
        ("seconds", record.seconds),
    ];
    let plain = plain.map(|(name, value)| (name.to_owned(), value));
    let terms = record
        .terms
        .iter()
        .map(|(name, &value)| (format!("terms.{name}"), value));
    let tasks = record
        .tasks
        .iter()
        .map(|(name, &value)| (format!("tasks.{name}"), value));
    match plain
        .into_iter()
        .chain(terms)
        .chain(tasks)
        .find(|(_, value)| !value.is_finite())
    {
        Some((field, value)) => Err(ReportError::NotFinite {
            step: record.step,
            field,
            value,
        }),
        None => Ok(()),
    }
}

/// Reads the steps of a `steps.jsonl`; a last line without its line end is left out.
///
/// # Errors
/// If the file cannot be read, or a whole line is no [`Record`].
pub fn read_steps(path: &Path) -> Result<Vec<StepRecord>, ReportError> {
    let step = |record| match record {
        Record::Step(record) => Some(record),
        Record::Validation(_) | Record::Guard(_) => None,
    };
    Ok(read_records(path)?.into_iter().filter_map(step).collect())
}

/// Reads all records of a `steps.jsonl`; a last line without its line end is left out.
///
/// # Errors
/// If the file cannot be read, or a whole line is no [`Record`].
pub fn read_records(path: &Path) -> Result<Vec<Record>, ReportError> {
    refuse_device(path)?;
    let text = fs::read(path).map_err(ReportError::io("read", path))?;
    whole_lines(&text)
        .enumerate()
        .map(|(index, line)| parse(path, index, line))
        .collect()
}

/// Cuts a `steps.jsonl` back to the records up to and including `step`, for a run that resumes.
///
/// A half-written last line goes too. A missing file counts as empty.
///
/// # Errors
/// If the file cannot be read or cut, or a whole line before the cut is no [`Record`].
pub(crate) fn truncate_after(path: &Path, step: usize) -> Result<(), ReportError> {
    refuse_device(path)?;
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(ReportError::io("read", path))?,
    };
    let mut keep = 0;
    for (index, line) in whole_lines(&text).enumerate() {
        if parse(path, index, line)?.step() > step {
            break;
        }
        keep += line.len();
    }
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(ReportError::io("open", path))?;
    file.set_len(keep as u64)
        .map_err(ReportError::io("truncate", path))?;
    file.sync_all().map_err(ReportError::io("sync", path))
}

/// Lines that end in a line feed, each with it.
fn whole_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&byte| byte == b'\n')
        .filter(|line| line.ends_with(b"\n"))
}

/// Distinguishes the two kinds of lines.
#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    version: u32,
    validation: Option<serde::de::IgnoredAny>,
    guard: Option<serde::de::IgnoredAny>,
}

fn parse(path: &Path, index: usize, line: &[u8]) -> Result<Record, ReportError> {
    let kind = serde_json::from_slice::<Kind>(line).ok();
    // First of all, as a later version may have fields that this molora does not know.
    if let Some(found) = kind.as_ref().map(|kind| kind.version)
        && found > SCHEMA_VERSION
    {
        return Err(ReportError::Newer {
            path: path.to_owned(),
            found,
            known: SCHEMA_VERSION,
        });
    }
    let record = match kind {
        Some(kind) if kind.validation.is_some() => {
            serde_json::from_slice(line).map(Record::Validation)
        }
        Some(kind) if kind.guard.is_some() => serde_json::from_slice(line).map(Record::Guard),
        _ => serde_json::from_slice(line).map(Record::Step),
    };
    record.map_err(|source| ReportError::Parse {
        path: path.to_owned(),
        line: index + 1,
        source,
    })
}

/// Peak resident memory of this process in bytes, so far; `None` where the system does not report it.
pub fn peak_memory_bytes() -> Option<u64> {
    peak_of_status(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Reads `VmHWM` of Linux' `/proc/self/status`, which is in KiB.
fn peak_of_status(status: &str) -> Option<u64> {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::SCHEMA_VERSION;

    fn record(step: usize) -> StepRecord {
        StepRecord {
            version: SCHEMA_VERSION,
            step,
            stage: "joint".into(),
            expert: None,
            loss: 1.0 / step as f64,
            task_loss: 0.1 + step as f64,
            terms: [("orthogonality".to_owned(), 0.3)].into(),
            tasks: [("sms_spam".to_owned(), 0.7)].into(),
            learning_rate: 1e-4,
            gradient_norm: 0.5,
            tokens: 900,
            padded_tokens: 1000,
            seconds: 0.25,
        }
    }

    fn written(steps: std::ops::RangeInclusive<usize>) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.jsonl");
        let mut writer = StepWriter::open(&path).unwrap();
        steps.for_each(|step| writer.write(&record(step)).unwrap());
        writer.sync().unwrap();
        (folder, path)
    }

    #[test]
    fn records_come_back_to_the_last_bit() {
        let (_folder, path) = written(1..=7);
        assert_eq!(
            read_steps(&path).unwrap(),
            (1..=7).map(record).collect::<Vec<_>>()
        );
    }

    #[test]
    fn opening_again_appends() {
        let (_folder, path) = written(1..=2);
        StepWriter::open(&path).unwrap().write(&record(3)).unwrap();
        assert_eq!(read_steps(&path).unwrap().len(), 3);
    }

    #[test]
    fn a_resumed_run_drops_later_records_and_a_half_line() {
        for (last, resume_at, kept) in [(5, 3, 3), (5, 5, 5), (5, 9, 5), (5, 0, 0)] {
            let (_folder, path) = written(1..=last);
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(br#"{"version":1,"step":6,"sta"#).unwrap();
            truncate_after(&path, resume_at).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count(), kept, "resumed at {resume_at}");
            assert!(text.is_empty() || text.ends_with('\n'));
            StepWriter::open(&path)
                .unwrap()
                .write(&record(kept + 1))
                .unwrap();
            let steps: Vec<_> = read_steps(&path).unwrap().iter().map(|r| r.step).collect();
            assert_eq!(steps, (1..=kept + 1).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_missing_file_needs_no_cut() {
        let folder = tempfile::tempdir().unwrap();
        truncate_after(&folder.path().join("steps.jsonl"), 4).unwrap();
    }

    #[test]
    fn a_broken_line_is_named() {
        let (_folder, path) = written(1..=2);
        let text = fs::read_to_string(&path)
            .unwrap()
            .replacen("\"step\":2", "\"step\":x", 1);
        fs::write(&path, text).unwrap();
        let message = read_steps(&path).unwrap_err().to_string();
        assert!(message.contains("steps.jsonl, line 2: "), "{message}");
        assert_eq!(truncate_after(&path, 2).unwrap_err().to_string(), message);
    }

    #[test]
    fn a_newer_line_is_called_that() {
        let (_folder, path) = written(1..=1);
        let text = fs::read_to_string(&path).unwrap();
        let newer = text.replacen("\"version\":1", "\"version\":99,\"new\":1", 1);
        fs::write(&path, text + &newer).unwrap();
        let message = read_steps(&path).unwrap_err().to_string();
        assert!(
            message.contains("version is 99, but this molora knows up to 1"),
            "{message}"
        );
    }

    #[test]
    fn a_folder_in_its_place_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let message = read_records(folder.path()).unwrap_err().to_string();
        assert!(message.contains("no plain file"), "{message}");
    }

    #[test]
    fn numbers_that_json_cannot_hold_are_refused() {
        let (_folder, path) = written(1..=1);
        let mut bad = record(2);
        bad.terms.insert("z_loss".into(), f64::NAN);
        let message = StepWriter::open(&path)
            .unwrap()
            .write(&bad)
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "step 2: terms.z_loss is NaN, expected a finite number"
        );
        assert_eq!(read_steps(&path).unwrap().len(), 1);
    }

    #[test]
    fn peak_memory_is_read_in_bytes() {
        assert_eq!(
            peak_of_status("VmPeak:\t 9 kB\nVmHWM:\t    1536 kB\n"),
            Some(1536 * 1024)
        );
        assert_eq!(peak_of_status("VmPeak:\t 9 kB\n"), None);
        if cfg!(target_os = "linux") {
            assert!(peak_memory_bytes().unwrap() > 100_000);
        }
    }
}
