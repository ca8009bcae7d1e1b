//! Answers as lines of JSON, in a file from which a killed process can be resumed.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Answer, CHUNK, Predictor};
use crate::TrainError;
use crate::base::digest::sha256;
use crate::data::{Record, TaskMeta};
use crate::error::RunProblem;
use crate::train::Event;

/// What decides the answers of a run beside its base model, which `run.toml` names.
const RUN_FILES: [&str; 4] = [
    "run.toml",
    "adapter_model.safetensors",
    "heads.safetensors",
    "instructions.json",
];

/// The line of a record: `{"id", "label", "scores": {name: probability}}` for a classification, `{"id",
/// "choice", "answer", "scores": [probability]}` for a multiple choice, `{"id", "value"}` for a
/// regression, `{"id", "text"}` for a generation. Of equally likely answers it is the first.
pub fn prediction(record: &Record, answer: &Answer, task: &TaskMeta) -> Value {
    let id = &record.id;
    match answer {
        Answer::Number(value) => json!({"id": id, "value": value}),
        Answer::Text(text) => json!({"id": id, "text": text}),
        Answer::Chosen(scores) => {
            let first = |best: usize, (place, score): (usize, &f64)| match *score > scores[best] {
                true => place,
                false => best,
            };
            let best = scores.iter().enumerate().fold(0, first);
            if !record.choices.is_empty() {
                let answer = &record.choices[best];
                return json!({"id": id, "choice": best, "answer": answer, "scores": scores});
            }
            let names = task.labels.iter().cloned();
            let scores: Map<String, Value> = names
                .zip(scores.iter().map(|&score| json!(score)))
                .collect();
            json!({"id": id, "label": task.labels[best], "scores": scores})
        }
    }
}

/// Writes the answers to records into a file, a line each. They are gathered in a file beside it, whose
/// name tells run, task and records: the same call resumes what a killed process left there.
///
/// # Errors
/// A file that is there already, unless `force`; whatever [`Predictor::answers`] and writing give.
pub fn predict_file(
    predictor: &mut Predictor,
    records: &[Record],
    out: &Path,
    force: bool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<(), TrainError> {
    if out.exists() && !force {
        return Err(TrainError::run(out, RunProblem::FileThere));
    }
    let part = part_beside(out, predictor, records)?;
    let (mut done, length) = lines_of(&part, records);
    let mut file = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&part)?;
    file.set_len(length)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
    while done < records.len() {
        let chunk = &records[done..records.len().min(done + CHUNK)];
        file.write_all(predictor.lines(chunk)?.as_bytes())?;
        done += chunk.len();
        on_event(Event::Evaluated(done, records.len()));
    }
    file.sync_all()?;
    drop(file);
    Ok(fs_err::rename(&part, out)?)
}

/// The file in which the answers are gathered.
fn part_beside(
    out: &Path,
    predictor: &Predictor,
    records: &[Record],
) -> Result<PathBuf, TrainError> {
    let mut digest = Sha256::new();
    for name in RUN_FILES {
        let path = predictor.run.join(name);
        if path.is_file() {
            digest.update(sha256(&path)?);
        }
    }
    digest.update(&predictor.task().name);
    for record in records {
        digest.update(format!("{record:?}\n"));
    }
    let digest: String = digest.finalize()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{digest}.part"));
    Ok(out.with_file_name(name))
}

/// Number and bytes of the whole lines at the beginning of a file that are those of the records.
fn lines_of(part: &Path, records: &[Record]) -> (usize, u64) {
    let text = std::fs::read(part).unwrap_or_default();
    let (mut count, mut length) = (0, 0);
    for (line, record) in text.split_inclusive(|&byte| byte == b'\n').zip(records) {
        let found: Option<Value> = serde_json::from_slice(line).ok();
        let is_own = found.is_some_and(|found| found["id"] == record.id[..]);
        if !is_own || !line.ends_with(b"\n") {
            break;
        }
        (count, length) = (count + 1, length + line.len() as u64);
    }
    (count, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{TaskKind, parse_unlabelled};

    fn task(kind: TaskKind) -> TaskMeta {
        TaskMeta {
            name: "t".into(),
            kind,
            labels: vec!["no".into(), "yes".into()],
            ..TaskMeta::default()
        }
    }

    fn records(text: &str, kind: TaskKind) -> Vec<Record> {
        let columns = Default::default();
        parse_unlabelled(text, Path::new("-"), &task(kind), &columns).expect("records")
    }

    #[test]
    fn every_kind_of_answer_has_its_line() {
        let kind = TaskKind::Classification;
        let record = &records("a", kind)[0];
        let line = |answer| prediction(record, &answer, &task(kind)).to_string();
        let chosen = line(Answer::Chosen(vec![0.5, 0.5]));
        assert_eq!(
            chosen,
            r#"{"id":"1","label":"no","scores":{"no":0.5,"yes":0.5}}"#
        );
        assert_eq!(line(Answer::Number(0.25)), r#"{"id":"1","value":0.25}"#);
        assert_eq!(line(Answer::Text("b".into())), r#"{"id":"1","text":"b"}"#);
        let kind = TaskKind::MultipleChoice;
        let record = &records(r#"{"question": "q", "choices": ["x", "y"]}"#, kind)[0];
        let answer = Answer::Chosen(vec![0.25, 0.75]);
        let line = prediction(record, &answer, &task(kind)).to_string();
        let expected = r#"{"answer":"y","choice":1,"id":"1","scores":[0.25,0.75]}"#;
        let [line, expected]: [Value; 2] =
            [&line[..], expected].map(|text| serde_json::from_str(text).expect("JSON"));
        assert_eq!(line, expected);
    }

    #[test]
    fn only_whole_lines_of_the_same_records_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let part = folder.path().join("part");
        let records = records("a\nb\nc", TaskKind::Classification);
        let found = |text: &str| {
            std::fs::write(&part, text).expect("writable");
            lines_of(&part, &records)
        };
        assert_eq!(lines_of(&part, &records), (0, 0), "no file");
        assert_eq!(found("{\"id\":\"1\"}\n{\"id\":\"2\"}\n"), (2, 22));
        assert_eq!(
            found("{\"id\":\"1\"}\n{\"id\":\"2\"}"),
            (1, 11),
            "cut before its end"
        );
        assert_eq!(
            found("{\"id\":\"1\"}\n{\"id\":\"9\"}\n"),
            (1, 11),
            "another record"
        );
        assert_eq!(found("{\"id\":\"1\"}\n{\"i"), (1, 11));
    }
}
