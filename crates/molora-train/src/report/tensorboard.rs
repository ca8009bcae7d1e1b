//! A run's records as TensorBoard reads them.
//!
//! An event file is a row of frames: the length of an event, its checksum, the event, its checksum, all
//! little-endian. An event is a protobuf message of TensorFlow's `event.proto`; of it there is what holds
//! scalars. `prost` encodes the fields and `crc32c` sums them up: the crates that write whole event files have
//! not been kept since 2022, and prost's derive would compile burn's with another syn.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::encoding::{bytes, double, float, int64, string};

use super::acts::GuardRecord;
use super::error::ReportError;
use super::schema::{Record, StepRecord, ValidationRecord};

/// Name of the file, which has to hold `tfevents`.
const FILE: &str = "events.out.tfevents.molora";

/// Appends a run's records to an event file: one event for each record, behind one that says the version.
#[derive(Debug)]
pub(super) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Opens the file in a folder so that it holds the events of `records` and no others: those that it
    /// lacks are written, and what lies behind them is cut away.
    pub(super) fn open(folder: &Path, records: &[Record]) -> Result<Self, ReportError> {
        fs::create_dir_all(folder).map_err(ReportError::io("create", folder))?;
        let path = folder.join(FILE);
        let found = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(ReportError::io("read", &path))?,
        };
        let (mut kept, mut events) = (0, 0);
        while events <= records.len()
            && let Some(length) = whole_frame(&found[kept..])
        {
            (kept, events) = (kept + length, events + 1);
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(ReportError::io("open", &path))?;
        file.set_len(kept as u64)
            .map_err(ReportError::io("truncate", &path))?;
        let mut this = Self { file, path };
        if events == 0 {
            let mut event = Vec::new();
            double::encode(1, &now(), &mut event);
            string::encode(3, &"brain.Event:2".into(), &mut event);
            this.append(&event)?;
        }
        let missing = &records[events.saturating_sub(1)..];
        missing.iter().try_for_each(|record| this.write(record))?;
        Ok(this)
    }

    fn write(&mut self, record: &Record) -> Result<(), ReportError> {
        match record {
            Record::Step(record) => self.write_step(record),
            Record::Validation(record) => self.write_validation(record),
            Record::Guard(record) => self.write_guard(record),
        }
    }

    /// Appends a step.
    pub(super) fn write_step(&mut self, record: &StepRecord) -> Result<(), ReportError> {
        self.write_scalars(record.step, of_step(record))
    }

    /// Appends a score of the validation split.
    pub(super) fn write_validation(
        &mut self,
        record: &ValidationRecord,
    ) -> Result<(), ReportError> {
        self.write_scalars(record.step, of_validation(record))
    }

    /// Appends what a guard saw.
    pub(super) fn write_guard(&mut self, record: &GuardRecord) -> Result<(), ReportError> {
        let act = &record.guard;
        let scalar = (format!("guard/{}", act.watch), act.value);
        self.write_scalars(record.step, vec![scalar])
    }

    fn write_scalars(
        &mut self,
        step: usize,
        scalars: Vec<(String, f64)>,
    ) -> Result<(), ReportError> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut scalar = Vec::new();
            string::encode(1, &tag, &mut scalar);
            float::encode(2, &(value as f32), &mut scalar);
            bytes::encode(1, &scalar, &mut summary);
        }
        let mut event = Vec::new();
        double::encode(1, &now(), &mut event);
        int64::encode(2, &(step as i64), &mut event);
        bytes::encode(5, &summary, &mut event);
        self.append(&event)
    }

    fn append(&mut self, event: &[u8]) -> Result<(), ReportError> {
        let length = (event.len() as u64).to_le_bytes();
        let sums = [&length[..], event].map(|part| masked(part).to_le_bytes());
        let frame = [&length[..], &sums[0], event, &sums[1]].concat();
        self.file
            .write_all(&frame)
            .map_err(ReportError::io("append to", &self.path))
    }
}

/// The checksum of an event file's parts: CRC-32C, turned and shifted, so that a sum can be summed up again.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// Length of the frame that data begin with, if it is whole.
fn whole_frame(data: &[u8]) -> Option<usize> {
    let (length, rest) = data.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*sum) != masked(length) {
        return None;
    }
    let event = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let (sum, _) = rest[event.len()..].split_first_chunk::<4>()?;
    (u32::from_le_bytes(*sum) == masked(event)).then_some(event.len() + 16)
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

fn of_step(record: &StepRecord) -> Vec<(String, f64)> {
    let plain = [
        ("loss", record.loss),
        ("task_loss", record.task_loss),
        ("learning_rate", record.learning_rate),
        ("gradient_norm", record.gradient_norm),
        (
            "tokens_per_second",
            record.tokens as f64 / record.seconds.max(1e-9),
        ),
    ];
    let plain = plain.map(|(name, value)| (format!("train/{name}"), value));
    let terms = record.terms.iter();
    let terms = terms.map(|(name, &value)| (format!("terms/{name}"), value));
    let tasks = record.tasks.iter();
    let tasks = tasks.map(|(name, &value)| (format!("tasks/{name}"), value));
    plain.into_iter().chain(terms).chain(tasks).collect()
}

fn of_validation(record: &ValidationRecord) -> Vec<(String, f64)> {
    let scores = &record.validation;
    let plain = [
        ("mean_score", scores.mean_score),
        ("worst_task", scores.worst_task),
        ("loss", scores.loss),
    ];
    let plain = plain.map(|(name, value)| (format!("validation/{name}"), value));
    let tasks = scores.tasks.iter();
    let tasks = tasks.map(|(name, task)| (format!("validation/tasks/{name}"), task.value));
    plain.into_iter().chain(tasks).collect()
}

#[cfg(test)]
mod tests {
    use prost::encoding::{WireType, decode_key, decode_varint};

    use super::*;
    use crate::report::sample;

    /// Numbers of the fields of a message, with what they hold.
    fn fields(mut data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut found = Vec::new();
        while !data.is_empty() {
            let (number, wire) = decode_key(&mut data).expect("a key");
            let length = match wire {
                WireType::Varint => {
                    let value = decode_varint(&mut data).expect("a number");
                    found.push((number, value.to_le_bytes().to_vec()));
                    continue;
                }
                WireType::SixtyFourBit => 8,
                WireType::ThirtyTwoBit => 4,
                _ => decode_varint(&mut data).expect("a length") as usize,
            };
            let (value, rest) = data.split_at(length);
            found.push((number, value.to_vec()));
            data = rest;
        }
        found
    }

    /// The step of every event behind the first, and its scalars by name.
    fn read(folder: &Path) -> Vec<(u64, Vec<(String, f32)>)> {
        let data = fs::read(folder.join(FILE)).expect("an event file");
        let (mut place, mut events) = (0, Vec::new());
        while let Some(length) = whole_frame(&data[place..]) {
            events.push(fields(&data[place + 12..place + length - 4]));
            place += length;
        }
        assert_eq!(place, data.len(), "whole frames");
        let first = events.remove(0);
        assert_eq!(first[1], (3, b"brain.Event:2".to_vec()));
        let scalar = |(number, value): (u32, Vec<u8>)| {
            assert_eq!(number, 1);
            let scalar = fields(&value);
            let value = scalar[1].1[..].try_into().expect("four bytes");
            let name = String::from_utf8(scalar[0].1.clone()).expect("UTF-8");
            (name, f32::from_le_bytes(value))
        };
        let event = |event: Vec<(u32, Vec<u8>)>| {
            assert_eq!(
                event.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
                [1, 2, 5]
            );
            let step = event[1].1[..].try_into().expect("eight bytes");
            let scalars = fields(&event[2].1).into_iter().map(scalar);
            (u64::from_le_bytes(step), scalars.collect())
        };
        events.into_iter().map(event).collect()
    }

    fn steps(found: &[(u64, Vec<(String, f32)>)]) -> Vec<u64> {
        found.iter().map(|(step, _)| *step).collect()
    }

    #[test]
    fn events_are_the_records() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let records = sample::records(20);
        EventFile::open(folder.path(), &records).expect("written");
        let found = read(folder.path());
        let expected: Vec<u64> = records.iter().map(|record| record.step() as u64).collect();
        assert_eq!(steps(&found), expected);
        for (record, (_, scalars)) in records.iter().zip(&found) {
            let value = |name: &str| scalars.iter().find(|(own, _)| own == name).expect(name).1;
            match record {
                Record::Step(step) => {
                    assert_eq!(value("train/loss"), step.loss as f32);
                    for (task, loss) in &step.tasks {
                        assert_eq!(value(&format!("tasks/{task}")), *loss as f32);
                    }
                }
                Record::Validation(record) => {
                    let score = record.validation.mean_score;
                    assert_eq!(value("validation/mean_score"), score as f32);
                }
                Record::Guard(_) => unreachable!("the sample has no guard"),
            }
        }
    }

    #[test]
    fn a_resumed_run_has_no_step_twice() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let records = sample::records(20);
        EventFile::open(folder.path(), &records).expect("written");
        let path = folder.path().join(FILE);
        // Half a frame, as a kill leaves it.
        let mut data = fs::read(&path).expect("readable");
        data.truncate(data.len() - 3);
        fs::write(&path, &data).expect("writable");
        for kept in [15, 3, 0] {
            let mut file = EventFile::open(folder.path(), &records[..kept]).expect("cut");
            file.write(&records[kept]).expect("written");
            assert_eq!(steps(&read(folder.path())), {
                let kept = records[..=kept].iter();
                kept.map(|record| record.step() as u64).collect::<Vec<_>>()
            });
        }
        // What is no event file is replaced by one.
        fs::write(&path, b"something else").expect("writable");
        EventFile::open(folder.path(), &records[..2]).expect("written");
        assert_eq!(read(folder.path()).len(), 2);
    }

    /// The check value of CRC-32C, masked as in TensorFlow's `crc32c.h`.
    #[test]
    fn checksums_are_masked() {
        let sum: u32 = 0xe306_9283;
        assert_eq!(crc32c::crc32c(b"123456789"), sum);
        let expected = sum.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked(b"123456789"), expected);
    }
}
