//! Records of the scored split with what was answered to them.

use molora_kernels::random::Seed;

use super::Loaded;
use crate::TrainError;
use crate::data::draw::shuffle;
use crate::data::{Split, Target, TokenizedTask};
use crate::report::{
    BaseReport, ExampleAnswer, ExampleKind, ExampleReport, PredictionReport, Predictions,
    SCHEMA_VERSION,
};

/// At most `limit` examples of each kind and task, the same ones each time; none of tasks whose answers
/// are numbers, which are not simply right or wrong.
///
/// # Errors
/// If the tokenizer has no decoder for the text of a candidate.
pub(super) fn examples(
    loaded: &Loaded,
    split: Split,
    answers: &PredictionReport,
    base: Option<&BaseReport>,
    limit: usize,
) -> Result<ExampleReport, TrainError> {
    let mut report = ExampleReport {
        version: SCHEMA_VERSION,
        split: split.name().into(),
        tasks: Default::default(),
    };
    for task in &loaded.tasks {
        let Some(given) = answers.tasks.get(&task.name) else {
            continue;
        };
        let base = base.and_then(|base| base.predictions.tasks.get(&task.name));
        let asked = Asked { task, split };
        report
            .tasks
            .insert(task.name.clone(), asked.examples(given, base, limit)?);
    }
    report.tasks.retain(|_, examples| !examples.is_empty());
    Ok(report)
}

/// Places below `count` in a random order that a name gives.
pub(super) fn shuffled(name: &str, count: usize) -> Vec<usize> {
    let seed = Seed::new(0).child("examples").child(name);
    let mut places: Vec<usize> = (0..count).collect();
    shuffle(&mut seed.generator(), &mut places);
    places
}

/// A task of which examples are shown.
struct Asked<'a> {
    task: &'a TokenizedTask,
    split: Split,
}

impl Asked<'_> {
    fn examples(
        &self,
        given: &Predictions,
        base: Option<&Predictions>,
        limit: usize,
    ) -> Result<Vec<ExampleAnswer>, TrainError> {
        let mut found: Vec<ExampleAnswer> = Vec::new();
        for row in shuffled(&self.task.name, self.task.requests(self.split).len()) {
            let Some(is_right) = self.is_right(given, row) else {
                continue;
            };
            let was_right = base.and_then(|base| self.is_right(base, row));
            let kind = match (is_right, was_right) {
                (true, Some(false)) => ExampleKind::Gained,
                (false, Some(true)) => ExampleKind::Lost,
                (false, _) => ExampleKind::Wrong,
                (true, _) => ExampleKind::Right,
            };
            if found.iter().filter(|example| example.kind == kind).count() >= limit {
                continue;
            }
            let base = base.map(|base| self.text(base, row)).transpose()?;
            found.push(ExampleAnswer {
                kind,
                record: row + 1,
                input: self.task.requests(self.split)[row].clone(),
                expected: self.expected(row)?,
                answer: self.text(given, row)?.unwrap_or_default(),
                base: base.flatten(),
            });
        }
        found.sort_by_key(|example| (example.kind, example.record));
        Ok(found)
    }

    /// Whether the answer to a record is right; `None` where there is none, or none that is simply right
    /// or wrong.
    fn is_right(&self, answers: &Predictions, row: usize) -> Option<bool> {
        match answers {
            Predictions::Classes(classes) => Some(*classes.get(row)? == self.class(row)?),
            Predictions::Texts(texts) => {
                let (text, right) = (texts.get(row)?, self.output(row)?);
                let text = std::slice::from_ref(text);
                Some(self.task.metric.score_texts(text, &[right]) > 0.5)
            }
            Predictions::Numbers(_) => None,
        }
    }

    /// The right class or candidate of a record.
    fn class(&self, row: usize) -> Option<usize> {
        match (&self.task.written, &self.task.split(self.split)[row].target) {
            (Some(written), _) => written.questions(self.split).get(row)?.right,
            (None, Target::Class(class)) => Some(*class),
            _ => None,
        }
    }

    /// The right text of a record.
    fn output(&self, row: usize) -> Option<String> {
        let written = self.task.written.as_ref()?;
        Some(written.questions(self.split).get(row)?.output.clone())
    }

    fn expected(&self, row: usize) -> Result<String, TrainError> {
        match self.class(row) {
            Some(class) => self.candidate(row, class),
            None => Ok(self.output(row).unwrap_or_default()),
        }
    }

    /// The answer to a record as text.
    fn text(&self, answers: &Predictions, row: usize) -> Result<Option<String>, TrainError> {
        Ok(match answers {
            Predictions::Classes(classes) => match classes.get(row) {
                Some(&class) => Some(self.candidate(row, class)?),
                None => None,
            },
            Predictions::Texts(texts) => texts.get(row).cloned(),
            Predictions::Numbers(_) => None,
        })
    }

    /// The text of a class, or of a candidate of a record.
    fn candidate(&self, row: usize, number: usize) -> Result<String, TrainError> {
        let Some(written) = &self.task.written else {
            return Ok(self.task.labels.get(number).cloned().unwrap_or_default());
        };
        let question = &written.questions(self.split)[row];
        let ids = question.choices.get(number).map(|choice| &choice.ids[..]);
        let text = written.writing.tokenizer.decode(ids.unwrap_or_default())?;
        Ok(text.trim().to_owned())
    }
}
