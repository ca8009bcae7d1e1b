//! Answers as lines of JSON, in a file from which a killed process can be resumed.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Answer, CHUNK, Predictor};
use crate::TrainError;
use crate::base::digest::sha256;
use crate::data::{Record, TaskKind, TaskMeta};
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
/// A file that is there already, unless `force`; a line in the file beside it that is no answer to its record;
/// whatever [`Predictor::answers`] and writing give.
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
    let (done, length) = lines_of(&part, records, predictor.task())?;
    let written = go_on(predictor, records, (&part, done, length), on_event);
    // Nothing to go on from is no reason to leave a file.
    if written.is_err() && part.metadata().is_ok_and(|found| found.len() == 0) {
        drop(std::fs::remove_file(&part));
    }
    written?;
    Ok(fs_err::rename(&part, out)?)
}

/// Writes the answers that are not in the file yet, of which so many are, in so many bytes.
fn go_on(
    predictor: &mut Predictor,
    records: &[Record],
    (part, mut done, length): (&Path, usize, u64),
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<(), TrainError> {
    let mut file = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(part)?;
    file.set_len(length)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
    while done < records.len() {
        let chunk = &records[done..records.len().min(done + CHUNK)];
        file.write_all(predictor.lines(chunk)?.as_bytes())?;
        done += chunk.len();
        on_event(Event::Evaluated(done, records.len()));
    }
    Ok(file.sync_all()?)
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

/// Number and bytes of the whole lines at the beginning of a file, which are those of the records: a killed
/// process leaves the beginning of a line at the end, which is written again.
///
/// # Errors
/// [`RunProblem::OtherAnswer`] with the first whole line that is no answer to its record.
fn lines_of(part: &Path, records: &[Record], task: &TaskMeta) -> Result<(usize, u64), TrainError> {
    let text = match fs_err::read(part) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((0, 0)),
        other => other?,
    };
    let (mut count, mut length) = (0, 0);
    let lines = text.split_inclusive(|&byte| byte == b'\n');
    for line in lines.filter(|line| line.ends_with(b"\n")) {
        let problem = match records.get(count) {
            Some(record) => foreign(line, record, task),
            None => Some(format!("found another line, expected {count} records")),
        };
        if let Some(problem) = problem {
            let line = count + 1;
            return Err(TrainError::run(
                part,
                RunProblem::OtherAnswer { line, problem },
            ));
        }
        (count, length) = (count + 1, length + line.len() as u64);
    }
    Ok((count, length))
}

/// What of a line is not what [`prediction`] writes of a record, whatever the scores, number or text.
fn foreign(line: &[u8], record: &Record, task: &TaskMeta) -> Option<String> {
    let found: Map<String, Value> = match serde_json::from_slice(line) {
        Ok(found) => found,
        Err(error) => return Some(format!("no JSON object: {error}")),
    };
    let answer = match answer_of(&found, record, task) {
        Ok(answer) => answer,
        Err(problem) => return Some(problem),
    };
    let expected = prediction(record, &answer, task);
    let expected = expected.as_object().expect("an object");
    let other = expected
        .iter()
        .find(|(key, value)| found.get(*key) != Some(value));
    if let Some((key, value)) = other {
        let found = found.get(key).unwrap_or(&Value::Null);
        return Some(format!("key \"{key}\" is {found}, expected {value}"));
    }
    let unknown = found.keys().find(|key| !expected.contains_key(*key));
    unknown.map(|key| format!("key \"{key}\" is none of an answer"))
}

/// The answer that a line holds.
fn answer_of(
    found: &Map<String, Value>,
    record: &Record,
    task: &TaskMeta,
) -> Result<Answer, String> {
    let get = |key: &str| found.get(key).unwrap_or(&Value::Null);
    let wrong = |key: &str, expected: &str| {
        let found = get(key);
        format!("key \"{key}\" is {found}, expected {expected}")
    };
    let scores = |list: Vec<Option<f64>>, count: usize| {
        let is_score = |score: &f64| (0.0..=1.0).contains(score);
        let scores: Option<Vec<f64>> = list.into_iter().collect();
        let scores = scores.filter(|list| list.len() == count && list.iter().all(is_score));
        let expected = format!("probabilities of {count} answers");
        scores
            .map(Answer::Chosen)
            .ok_or_else(|| wrong("scores", &expected))
    };
    match task.kind {
        TaskKind::Regression => match get("value").as_f64() {
            Some(value) => Ok(Answer::Number(value)),
            None => Err(wrong("value", "a number")),
        },
        TaskKind::Generation => match get("text") {
            Value::String(text) => Ok(Answer::Text(text.clone())),
            _ => Err(wrong("text", "a text")),
        },
        TaskKind::MultipleChoice => {
            let list = get("scores").as_array().into_iter().flatten();
            scores(list.map(Value::as_f64).collect(), record.choices.len())
        }
        TaskKind::Classification => {
            let of = |label: &String| get("scores").get(label).and_then(Value::as_f64);
            scores(task.labels.iter().map(of).collect(), task.labels.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::parse_unlabelled;

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

    /// What [`lines_of`] finds in a file of that text, for records `a`, `b` and `c`.
    fn found(text: &str, kind: TaskKind) -> Result<(usize, u64), String> {
        let folder = tempfile::tempdir().expect("a folder");
        let part = folder.path().join("part");
        std::fs::write(&part, text).expect("writable");
        let records = match kind {
            TaskKind::MultipleChoice => records(r#"{"input": "q", "choices": ["x", "y"]}"#, kind),
            _ => records("a\nb\nc", kind),
        };
        lines_of(&part, &records, &task(kind)).map_err(|error| {
            let text = error.to_string();
            let place = text.find("part: ").expect("the file is named");
            text[place..].to_owned()
        })
    }

    fn chosen(id: &str, label: &str, no: f64) -> String {
        let scores = json!({"no": no, "yes": 1.0 - no});
        format!("{}\n", json!({"id": id, "label": label, "scores": scores}))
    }

    #[test]
    fn whole_lines_are_kept_and_what_a_kill_cut_is_not() {
        let kind = TaskKind::Classification;
        let (one, two) = (chosen("1", "no", 0.75), chosen("2", "yes", 0.25));
        let none = lines_of(Path::new("no/part"), &records("a", kind), &task(kind));
        assert_eq!(none.expect("no file"), (0, 0));
        let both = one.clone() + &two;
        assert_eq!(found(&both, kind), Ok((2, both.len() as u64)));
        for cut in [&both[..both.len() - 1], &both[..both.len() - 7]] {
            assert_eq!(found(cut, kind), Ok((1, one.len() as u64)), "{cut}");
        }
        for (kind, line) in [
            (TaskKind::Regression, r#"{"id": "1", "value": -0.5}"#),
            (TaskKind::Generation, r#"{"id": "1", "text": ""}"#),
            (
                TaskKind::MultipleChoice,
                r#"{"id": "1", "choice": 1, "answer": "y", "scores": [0.25, 0.75]}"#,
            ),
        ] {
            let line = format!("{line}\n");
            assert_eq!(found(&line, kind), Ok((1, line.len() as u64)), "{line}");
        }
    }

    #[test]
    fn a_line_that_is_no_answer_to_its_record_is_named() {
        let one = chosen("1", "no", 0.75);
        let class = TaskKind::Classification;
        for (kind, line, words) in [
            (
                class,
                "{}".into(),
                r#"key "scores" is null, expected probabilities of 2 answers"#,
            ),
            (
                class,
                chosen("9", "yes", 0.25),
                r#"key "id" is "9", expected "2""#,
            ),
            (
                class,
                chosen("2", "dog", 0.25),
                r#"key "label" is "dog", expected "yes""#,
            ),
            (
                class,
                chosen("2", "no", 0.25),
                r#"key "label" is "no", expected "yes""#,
            ),
            (
                class,
                chosen("2", "yes", -0.25),
                r#"key "scores" is {"no":-0.25"#,
            ),
            (class, "{\"id\"".into(), "no JSON object: "),
            (
                class,
                chosen("2", "yes", 0.25).replace("\"id\"", "\"seen\": 1, \"id\""),
                r#"key "seen" is none of an answer"#,
            ),
            (
                TaskKind::Generation,
                r#"{"id": "2", "value": 1}"#.into(),
                r#"key "text" is null"#,
            ),
            (
                TaskKind::Regression,
                r#"{"id": "2", "value": "1"}"#.into(),
                r#"key "value" is "1""#,
            ),
        ] {
            let first = match kind {
                TaskKind::Generation => "{\"id\": \"1\", \"text\": \"t\"}\n".to_owned(),
                TaskKind::Regression => "{\"id\": \"1\", \"value\": 1.0}\n".to_owned(),
                _ => one.clone(),
            };
            let line = line.trim_end();
            let error = found(&format!("{first}{line}\n"), kind).expect_err(words);
            let expected = format!("part: line 2: {words}");
            assert!(error.starts_with(&expected), "{error}, not {expected}");
            assert!(
                error.ends_with("; remove the file to begin again"),
                "{error}"
            );
        }
        let lines = chosen("1", "no", 0.75) + &chosen("2", "no", 0.75) + &chosen("3", "no", 0.75);
        let error = found(&(lines + "{}\n"), class).expect_err("a fourth");
        assert!(
            error.contains("line 4: found another line, expected 3 records"),
            "{error}"
        );
    }
}
