//! Records of one prompt and one answer.

use serde_json::Value;

use super::super::error::DataError;
use super::super::fields::{Fields, beginning, whole};
use super::super::format::FormatError;
use super::super::record::{Label, Record};
use super::super::task::{TaskKind, TaskMeta};

/// `instruction`, `input`, `input_b`, `choices`, `label` and `output`, of which the kind of task
/// says what has to be there.
pub(super) fn fields(
    mut fields: Fields<'_>,
    meta: &TaskMeta,
    id: String,
) -> Result<Record, DataError> {
    let instruction = optional(&mut fields, "instruction")?;
    let input = optional(&mut fields, "input")?;
    if instruction.is_none() && input.is_none() {
        return Err(missing(&fields, "input", ""));
    }
    let choices = match fields.take_or_null("choices") {
        Value::Null if meta.kind == TaskKind::MultipleChoice => {
            return Err(missing(
                &fields,
                "choices",
                " (the task is multiple_choice)",
            ));
        }
        Value::Null => Choices::default(),
        value => Choices::parse(&fields, value)?,
    };
    let (label, output) = answer(&mut fields, meta, &choices)?;
    let system = optional(&mut fields, "system")?.unwrap_or_default();
    Ok(Record {
        id,
        instruction: instruction.unwrap_or_else(|| meta.instruction.clone()),
        input: input.unwrap_or_default(),
        input_b: optional(&mut fields, "input_b")?,
        choices: choices.texts,
        label,
        output,
        system,
        ..Record::default()
    })
}

/// `question`, `choices` and the column of the answer.
pub(super) fn question(
    mut fields: Fields<'_>,
    answer: &'static str,
    meta: &TaskMeta,
    id: String,
) -> Result<Record, DataError> {
    for (ours, theirs) in [("label", answer), ("input", "question")] {
        let value = fields.take(theirs)?;
        fields.map.insert(ours.into(), value);
    }
    self::fields(fields, meta, id)
}

/// `prompt` and the column that continues it.
pub(super) fn completion(
    mut fields: Fields<'_>,
    column: &'static str,
    id: String,
) -> Result<Record, DataError> {
    let input = fields.string("prompt")?;
    verbatim(input, fields.string(column)?, column, &fields, id)
}

/// `text` alone.
pub(super) fn text(mut fields: Fields<'_>, id: String) -> Result<Record, DataError> {
    let text = fields.string("text")?;
    verbatim(String::new(), text, "text", &fields, id)
}

fn verbatim(
    input: String,
    output: String,
    column: &'static str,
    fields: &Fields<'_>,
    id: String,
) -> Result<Record, DataError> {
    if output.is_empty() {
        let found = Value::from("");
        return Err(fields.wrong_type(column, &found, "a text that is not empty"));
    }
    Ok(Record {
        id,
        input,
        output,
        is_verbatim: true,
        ..Record::default()
    })
}

/// The most answers to choose from: each is read by the model.
const MAX_CHOICES: usize = 1000;

/// The answers to choose from, and the letters or numbers that stand for them in ARC's files.
#[derive(Default)]
struct Choices {
    texts: Vec<String>,
    keys: Vec<String>,
}

impl Choices {
    fn parse(fields: &Fields<'_>, value: Value) -> Result<Self, DataError> {
        let expected = "a list of strings, or an object with the lists text and label";
        let (texts, keys) = match value {
            Value::Object(mut map) => (
                map.remove("text").unwrap_or_default(),
                map.remove("label").unwrap_or_default(),
            ),
            texts => (texts, Value::Array(Vec::new())),
        };
        if !texts.is_array() || !keys.is_array() {
            return Err(fields.wrong_type("choices", &texts, expected));
        }
        let choices = Self {
            texts: fields.string_list("choices", texts)?,
            keys: fields.string_list("choices", as_texts(keys))?,
        };
        if choices.texts.is_empty() {
            return Err(fields.wrong_type(
                "choices",
                &Value::from(choices.texts),
                "at least one string",
            ));
        }
        if choices.texts.len() > MAX_CHOICES {
            return Err(FormatError::ManyEntries {
                place: fields.place.clone(),
                column: "choices",
                found: choices.texts.len(),
                limit: MAX_CHOICES,
            }
            .into());
        }
        match choices.keys.len() {
            0 => Ok(choices),
            count if count == choices.texts.len() => Ok(choices),
            _ => Err(fields.wrong_type(
                "choices",
                &Value::from(choices.keys),
                "as many labels as texts",
            )),
        }
    }

    /// Whether a text is the place of a choice, and there are no keys that it could be.
    fn is_place(&self, label: &Value) -> bool {
        let place = label.as_str().and_then(|text| text.trim().parse().ok());
        self.keys.is_empty() && place.is_some_and(|place: usize| place < self.texts.len())
    }

    /// The choice of a key.
    fn by_key(&self, text: &str) -> Option<usize> {
        self.keys.iter().position(|key| key == text)
    }

    /// The choice that a text means: by key, in full, or by its letter.
    fn position(&self, text: &str) -> Option<usize> {
        self.by_key(text)
            .or_else(|| self.texts.iter().position(|name| name == text))
            .or_else(|| {
                let [letter @ b'A'..=b'Z'] = text.as_bytes() else {
                    return None;
                };
                Some(usize::from(letter - b'A')).filter(|&index| index < self.texts.len())
            })
    }
}

/// Whole numbers of a list as texts.
fn as_texts(list: Value) -> Value {
    match list {
        Value::Array(items) => {
            let text = |item: Value| spelt(&item).map_or(item, Value::from);
            Value::Array(items.into_iter().map(text).collect())
        }
        other => other,
    }
}

/// Label and output by kind, each from the other where only one is there.
fn answer(
    fields: &mut Fields<'_>,
    meta: &TaskMeta,
    choices: &Choices,
) -> Result<(Label, String), DataError> {
    let label = fields.take_or_null("label");
    let output = text_or_number(fields, "output")?;
    match meta.kind {
        TaskKind::Classification => {
            let names = &meta.labels;
            let is_place =
                |name: &String| name.parse().is_ok_and(|place: usize| place < names.len());
            // In JSON a number is a label's place, unless no name could be meant as one.
            let by_name = !label.is_number() || !names.iter().any(is_place);
            let index = index(fields, label, output.as_deref(), names, "labels", |text| {
                names.iter().position(|name| by_name && name == text)
            })?;
            let name = meta.labels[index].clone();
            match output.filter(|output| *output != name) {
                None => Ok((Label::Index(index), name)),
                Some(other) => {
                    let expected = format!("label {index} is \"{name}\" in task.json");
                    Err(fields.contradiction("output", other, expected))
                }
            }
        }
        TaskKind::MultipleChoice => {
            let texts = &choices.texts;
            // Without keys a number is a place, also where the format has it as text.
            let by_key = label.is_number() || fields.is_text && choices.is_place(&label);
            let index =
                index(
                    fields,
                    label,
                    output.as_deref(),
                    texts,
                    "choices",
                    |text| match by_key {
                        true => choices.by_key(text),
                        false => choices.position(text),
                    },
                )?;
            Ok((Label::Index(index), texts[index].clone()))
        }
        TaskKind::Regression => number(fields, &label, output),
        TaskKind::Generation => match output {
            Some(output) => Ok((Label::Text, output)),
            None => Err(missing(fields, "output", GENERATION)),
        },
    }
}

const GENERATION: &str =
    " (the task is generation; \"type\" in a task.json says that it is something else)";

/// The number of a label or choice: by its name where the value is one, or else by its place.
fn index(
    fields: &Fields<'_>,
    label: Value,
    output: Option<&str>,
    names: &[String],
    what: &'static str,
    position: impl Fn(&str) -> Option<usize>,
) -> Result<usize, DataError> {
    let of_place = |number: &Value| match fields.index(number, names.len(), what)? {
        Label::Index(index) => Ok(index),
        _ => Err(fields.wrong_type("label", number, "a whole number")),
    };
    let (column, text) = match (&label, output) {
        (Value::String(text), _) => ("label", &text[..]),
        (Value::Null, Some(output)) => ("output", output),
        (Value::Null, None) => return Err(missing(fields, "label", "")),
        // A number in JSON is a place, but for names that cannot be mistaken for places.
        (number, _) => {
            let name = spelt(number).and_then(|text| position(&text));
            return name.map_or_else(|| of_place(number), Ok);
        }
    };
    if let Some(index) = position(text).or_else(|| position(text.trim())) {
        return Ok(index);
    }
    let number = text.trim().parse::<f64>().ok().map(Value::from);
    if let Some(number) = number.filter(|number| fields.is_text && !number.is_null()) {
        // Tools write a whole number as 1.0 where some records have none.
        let name = spelt(&number).and_then(|text| position(&text));
        return name.map_or_else(|| of_place(&number), Ok);
    }
    let shown: Vec<&str> = names.iter().take(10).map(|name| &name[..]).collect();
    let more = if names.len() > 10 { ", ..." } else { "" };
    let choice = FormatError::Choice {
        place: fields.place.clone(),
        column,
        found: beginning(text),
        expected: shown.join(", ") + more,
    };
    Err(choice.into())
}

/// A whole number as text.
fn spelt(number: &Value) -> Option<String> {
    whole(number).map(|number| number.to_string())
}

fn number(
    fields: &Fields<'_>,
    label: &Value,
    output: Option<String>,
) -> Result<(Label, String), DataError> {
    let of_text = |text: &str| {
        text.trim()
            .parse()
            .ok()
            .filter(|number: &f64| number.is_finite())
    };
    let (found, number) = match (label, &output) {
        (Value::Null, Some(output)) => (Value::from(&output[..]), of_text(output)),
        (Value::Null, None) => return Err(missing(fields, "label", " (the task is regression)")),
        (Value::String(text), _) if fields.is_text => (label.clone(), of_text(text)),
        (label, _) => (label.clone(), label.as_f64()),
    };
    match number {
        Some(number) => Ok((
            Label::Number(number),
            output.unwrap_or_else(|| number.to_string()),
        )),
        None => Err(fields.wrong_type("label", &found, "a number")),
    }
}

pub(super) fn optional(
    fields: &mut Fields<'_>,
    key: &'static str,
) -> Result<Option<String>, DataError> {
    match fields.take_or_null(key) {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other => Err(fields.wrong_type(key, &other, "a string or null")),
    }
}

fn text_or_number(fields: &mut Fields<'_>, key: &'static str) -> Result<Option<String>, DataError> {
    match fields.take_or_null(key) {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) => Ok(Some(number.to_string())),
        other => Err(fields.wrong_type(key, &other, "a string or a number")),
    }
}

fn missing(fields: &Fields<'_>, column: &str, reason: &'static str) -> DataError {
    let (place, column) = (fields.place.clone(), column.to_owned());
    let found = fields.keys();
    let missing = match found.contains(&column) {
        true => FormatError::NullColumn {
            found: if fields.is_text { "empty" } else { "null" },
            place,
            column,
            reason,
        },
        false => FormatError::MissingColumn {
            place,
            column,
            found,
            reason,
        },
    };
    missing.into()
}
