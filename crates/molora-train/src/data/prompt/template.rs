//! Prompts by a template of one's own: Jinja over a record's fields.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use minijinja::UndefinedBehavior;
use minijinja::value::{Serde, Value as TemplateValue};
use serde_json::{Map, Value};

use crate::data::error::{DataError, Place};
use crate::data::jinja::{Template, TemplateProblem};
use crate::data::{Record, TaskMeta};

/// Columns of answers, which no prompt may show.
pub(in crate::data) const ANSWERS: [&str; 6] = [
    "label",
    "output",
    "answer",
    "answerKey",
    "completion",
    "response",
];

/// A template that writes the prompts of records.
///
/// It reads `input`, `input_b`, `instruction` (the record's or its task's), `choices`, `system`, `id`,
/// `task` and `labels`, and every other column of the record's file by its name. A name that a record has
/// no value for is an error where it is written, and false where it is asked for by `if`.
#[derive(Debug, Clone)]
pub struct PromptTemplate {
    /// At least one.
    templates: Vec<Template>,
    /// Where it is from, as `data.writing.template`.
    field: String,
    names: HashSet<String>,
}

impl PartialEq for PromptTemplate {
    fn eq(&self, other: &Self) -> bool {
        (&self.templates, &self.field) == (&other.templates, &other.field)
    }
}

impl PromptTemplate {
    /// A template from its source; `field` is named in errors.
    ///
    /// # Errors
    /// [`DataError::Template`] if it is no valid Jinja, too long, or reads an answer.
    pub fn new(field: &str, source: &str) -> Result<Self, DataError> {
        Self::of_several(field, &[source.to_owned()])
    }

    /// Templates that ask for the same in other words; see
    /// [`Templates`](crate::data::Templates).
    ///
    /// # Errors
    /// As [`new`](Self::new), with the number of the template.
    ///
    /// # Panics
    /// Without any.
    pub fn of_several(field: &str, sources: &[String]) -> Result<Self, DataError> {
        assert!(!sources.is_empty(), "no template in {field}");
        let one = |(number, source): (usize, &String)| match sources.len() {
            1 => compiled(field, source),
            _ => compiled(&format!("{field}.{number}"), source),
        };
        let templates: Vec<Template> = sources
            .iter()
            .enumerate()
            .map(one)
            .collect::<Result<_, _>>()?;
        let names = templates.iter().flat_map(Template::names).collect();
        Ok(Self {
            templates,
            field: field.into(),
            names,
        })
    }

    /// Number of templates.
    pub(in crate::data) fn count(&self) -> usize {
        self.templates.len()
    }

    /// Whether it reads a field.
    pub(in crate::data) fn reads(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Those columns of a row that hold something and are no answers; null in those that it does not read.
    pub(in crate::data) fn columns(&self, row: &Map<String, Value>) -> Map<String, Value> {
        let columns = row
            .iter()
            .filter(|(name, value)| !value.is_null() && !ANSWERS.contains(&&name[..]));
        let value = |(name, value): (&String, &Value)| match self.reads(name) {
            true => (name.clone(), value.clone()),
            false => (name.clone(), Value::Null),
        };
        columns.map(value).collect()
    }

    /// Writes the prompt of a record that has these `columns` beside its fields.
    ///
    /// # Errors
    /// [`DataError::Prompt`] for a record that is a chat or plain text, one that lacks a field, and one
    /// that nothing is written for.
    pub(in crate::data) fn ask(
        &self,
        record: &mut Record,
        columns: Map<String, Value>,
        meta: &TaskMeta,
        place: &Place,
    ) -> Result<(), DataError> {
        let failed = |problem: String| DataError::Prompt {
            place: place.clone(),
            id: record.id.clone(),
            problem: format!("{}, {problem}", self.field),
        };
        if !record.messages.is_empty() {
            let text =
                "cannot write the messages of a chat; data.writing.templates names single tasks";
            return Err(failed(text.into()));
        }
        if record.is_verbatim && record.input.is_empty() {
            let text = "cannot ask for plain text, which has no prompt; data.writing.templates names single tasks";
            return Err(failed(text.into()));
        }
        let fields = Self::fields(record, columns, meta);
        let bytes = fields.values().map(size).sum();
        let names: Vec<&str> = fields.keys().map(|name| &name[..]).collect();
        let fields: BTreeMap<&str, &Value> = fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (&name[..], value))
            .collect();
        let values = TemplateValue::from(Serde(&fields));
        let mut prompts = Vec::with_capacity(self.templates.len());
        for template in &self.templates {
            let rendered = template.render(values.clone(), fields.len(), bytes);
            let text = rendered.map_err(|problem| {
                let known = names.join(", ");
                failed(format!("{}; the record has {known}", told(problem)))
            })?;
            if text.trim().is_empty() {
                return Err(failed("writes nothing".into()));
            }
            prompts.push(text);
        }
        // Where it stands is the template's choice.
        if self.reads("system") {
            record.system.clear();
        }
        record.prompt = prompts.first().cloned();
        if prompts.len() > 1 {
            record.prompts = prompts;
        }
        Ok(())
    }

    /// What a text is asked as that stands alone, the prompt number `number` of some, as a record of a
    /// task.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub(crate) fn prompt_of(
        &self,
        text: &str,
        number: usize,
        meta: &TaskMeta,
    ) -> Result<String, DataError> {
        let mut record = Record {
            id: number.to_string(),
            input: text.into(),
            ..Record::default()
        };
        let place = Place::file(Path::new("prompts"));
        self.ask(&mut record, Map::new(), meta, &place)?;
        Ok(record.prompt.unwrap_or_default())
    }

    /// What a record says, by the names under which a template reads it; null under names that this one
    /// does not read.
    fn fields(
        record: &Record,
        columns: Map<String, Value>,
        meta: &TaskMeta,
    ) -> BTreeMap<String, Value> {
        let instruction = match record.instruction.is_empty() {
            true => &meta.instruction,
            false => &record.instruction,
        };
        let texts = [
            ("input", Some(&record.input)),
            ("input_b", record.input_b.as_ref()),
            ("instruction", Some(instruction)),
            ("system", Some(&record.system)),
            ("id", Some(&record.id)),
            ("task", Some(&meta.name)),
        ];
        let texts = texts.into_iter().filter_map(|(name, text)| {
            let text = text.filter(|text| !text.is_empty())?;
            Some((name, Value::from(&text[..])))
        });
        let lists = [("choices", &record.choices), ("labels", &meta.labels)];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let lists = lists.map(|(name, list)| (name, Value::from(&list[..])));
        let mut fields: BTreeMap<String, Value> = columns.into_iter().collect();
        let known = texts.chain(lists);
        fields.extend(known.map(|(name, value)| (name.to_owned(), value)));
        fields
    }
}

/// A template that reads no answer.
fn compiled(field: &str, source: &str) -> Result<Template, DataError> {
    let broken = |problem: String| DataError::Template {
        field: field.into(),
        problem,
    };
    let template = Template::new(source.into(), UndefinedBehavior::SemiStrict);
    let template = template.map_err(|problem| broken(told(problem)))?;
    let names = template.names();
    match ANSWERS.iter().find(|name| names.contains(**name)) {
        None => Ok(template),
        Some(answer) => Err(broken(format!(
            "reads \"{answer}\", which is an answer: it follows the prompt by itself"
        ))),
    }
}

/// Bytes of the texts in a value.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + size(value)).sum(),
        _ => 8,
    }
}

fn told(problem: TemplateProblem) -> String {
    match problem {
        TemplateProblem::Bound(problem) => problem,
        TemplateProblem::At {
            line,
            column,
            problem,
        } => format!("line {line}, column {column}: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::error::At;
    use crate::data::{Label, TaskKind};
    use serde_json::json;

    fn meta() -> TaskMeta {
        TaskMeta {
            name: "pets".into(),
            kind: TaskKind::Classification,
            instruction: "Which pet?".into(),
            labels: vec!["cat".into(), "dog".into()],
            ..TaskMeta::default()
        }
    }

    fn record() -> Record {
        Record {
            id: "pets-0".into(),
            input: "purr".into(),
            label: Label::Index(0),
            output: "cat".into(),
            ..Record::default()
        }
    }

    fn asked(source: &str, mut record: Record, columns: Value) -> Result<Record, String> {
        let place = Place::new(Path::new("a.jsonl"), At::Line(3));
        let template = PromptTemplate::new("data.writing.template", source);
        let template = template.map_err(|error| error.to_string())?;
        let columns = template.columns(columns.as_object().expect("an object"));
        let done = template.ask(&mut record, columns, &meta(), &place);
        done.map_err(|error| error.to_string())?;
        Ok(record)
    }

    #[test]
    fn a_template_reads_fields_and_other_columns() {
        let source = "{{ instruction }} ({{ labels | join(', ') }})\n{% if input_b %}\n{{ input_b }}\n\
                      {% endif %}\n{{ input }} {{ age }}:\n";
        let found = asked(
            source,
            record(),
            json!({"age": 3, "label": 0, "other": "x"}),
        );
        let prompt = found.expect("it renders").prompt.expect("it is asked");
        assert_eq!(prompt, "Which pet? (cat, dog)\npurr 3:");
    }

    #[test]
    fn what_a_record_lacks_is_named_with_the_record() {
        let error = asked(
            "{{ input }}\n{{ age }}",
            record(),
            json!({"age": null, "aeg": 3, "label": 0}),
        );
        assert_eq!(
            error.expect_err("no age"),
            "a.jsonl:3: record pets-0: data.writing.template, line 2, column 4: undefined value: \
             `age` is undefined; the record has aeg, id, input, instruction, labels, task"
        );
        let nothing = asked("{% if age %}{{ age }}{% endif %}", record(), json!({}));
        assert!(nothing.expect_err("empty").ends_with("writes nothing"));
    }

    #[test]
    fn templates_that_cannot_ask_are_refused() {
        let chat = Record {
            messages: vec![crate::data::Message::user("a")],
            ..record()
        };
        let error = asked("{{ input }}", chat, json!({})).expect_err("a chat");
        assert!(error.contains("messages of a chat"), "{error}");
        let error = asked("{{ output }}", record(), json!({})).expect_err("an answer");
        assert!(error.contains("reads \"output\""), "{error}");
        let error = asked("{{ input", record(), json!({})).expect_err("no Jinja");
        assert!(
            error.starts_with("data.writing.template, line 1, column "),
            "{error}"
        );
    }

    #[test]
    fn a_system_text_stands_where_the_template_puts_it() {
        let told = Record {
            system: "Be brief".into(),
            ..record()
        };
        let kept = asked("{{ input }}", told.clone(), json!({})).expect("it renders");
        assert_eq!(kept.system, "Be brief");
        let put = asked("{{ input }} {{ system }}", told, json!({})).expect("it renders");
        assert_eq!(
            (put.prompt.as_deref(), &put.system[..]),
            (Some("purr Be brief"), "")
        );
    }
}
