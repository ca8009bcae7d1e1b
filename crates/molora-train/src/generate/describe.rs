//! The instruction of a task, written by a language model from a few of its records.
//!
//! GLIDER (Li et al., arXiv:2410.07172, section 3) has a large language model sum up input-output
//! samples of a data set in one instruction. Its prompt is not published; this one is ours.

use molora_kernels::random::Seed;

use super::Writer;
use crate::TrainError;
use crate::data::draw::shuffle;
use crate::data::{Record, Task};

/// Most tokens of an instruction.
const MAX_NEW_TOKENS: usize = 64;

/// Longest part of a record's text in the prompt, in characters.
const MAX_CHARACTERS: usize = 400;

/// A small model needs to see what is wanted: one task of another kind with its instruction.
const DEMONSTRATION: &str = "For every task, write one sentence of instruction that tells someone \
    who has not seen the examples what to do. Begin with a verb.\n\n\
    Input: The soup was cold and nobody came.\nOutput: negative\n\
    Input: Lovely staff, we will be back.\nOutput: positive\n\
    Instruction: Decide whether this restaurant review is positive or negative.\n\n";

/// One sentence that tells what to do in a task, from `examples` records of its training split that
/// are drawn by `seed`.
///
/// # Errors
/// If the model gives no text, and whatever writing gives.
pub fn describe(
    task: &Task,
    examples: usize,
    seed: u64,
    writer: &Writer,
) -> Result<String, TrainError> {
    let answer = writer.answer(&prompt(task, examples, seed), MAX_NEW_TOKENS)?;
    first_sentence(&answer).ok_or_else(|| TrainError::Recipe {
        name: "describe".into(),
        problems: vec![format!(
            "the model wrote no instruction for task {}",
            task.meta.name
        )],
    })
}

/// The request to the model.
fn prompt(task: &Task, examples: usize, seed: u64) -> String {
    let mut order: Vec<usize> = (0..task.train.len()).collect();
    let mut generator = Seed::new(seed)
        .child("describe")
        .child(&task.meta.name)
        .generator();
    shuffle(&mut generator, &mut order);
    let mut text = String::from(DEMONSTRATION);
    for record in chosen(task, &order, examples) {
        let both = [Some(&record.input), record.input_b.as_ref()];
        let input: Vec<String> = both.into_iter().flatten().map(|text| cut(text)).collect();
        text += &format!(
            "Input: {}\nOutput: {}\n",
            input.join(" / "),
            cut(&record.output)
        );
    }
    text + "Instruction:"
}

/// Records in the given order, first one of every answer and then the others.
fn chosen<'a>(task: &'a Task, order: &[usize], count: usize) -> Vec<&'a Record> {
    let mut seen: Vec<&str> = Vec::new();
    let mut is_new = |record: &'a Record| {
        let is_new = !seen.contains(&&record.output[..]);
        seen.push(&record.output);
        is_new
    };
    let records = order.iter().map(|&index| &task.train[index]);
    let (first, rest): (Vec<_>, Vec<_>) = records.partition(|record| is_new(record));
    first.into_iter().chain(rest).take(count).collect()
}

fn cut(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    one_line.chars().take(MAX_CHARACTERS).collect()
}

/// The first line that says something, up to the end of its first sentence, without quotes.
fn first_sentence(answer: &str) -> Option<String> {
    let line = answer
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())?;
    let line = line.strip_prefix("Instruction:").unwrap_or(line).trim();
    let line = line.trim_matches(['"', '\'', '*', ' ']);
    let end = line.find(". ").map_or(line.len(), |end| end + 1);
    let sentence = line[..end].trim();
    (!sentence.is_empty()).then(|| sentence.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Label, TaskKind, TaskMeta};

    fn task() -> Task {
        let record = |(index, output): (usize, &&str)| Record {
            id: format!("r{index}"),
            instruction: "old".into(),
            input: format!("text\n {index}"),
            label: Label::Index(0),
            output: (*output).into(),
            ..Record::default()
        };
        let train = ["cat", "cat", "cat", "dog"].iter().enumerate().map(record);
        Task {
            meta: TaskMeta {
                name: "pets".into(),
                kind: TaskKind::Classification,
                instruction: "old".into(),
                labels: vec!["cat".into(), "dog".into()],
                metric_text: "accuracy".into(),
                ..TaskMeta::default()
            },
            train: train.collect(),
            ..Task::default()
        }
    }

    #[test]
    fn the_prompt_shows_every_answer_before_one_again() {
        for seed in 0..5 {
            let text = prompt(&task(), 2, seed);
            assert!(
                text.contains("Output: cat\n") && text.contains("Output: dog\n"),
                "{text}"
            );
            assert_eq!(text.matches("Input: text ").count(), 2, "{text}");
            assert_eq!(text, prompt(&task(), 2, seed), "the same draw");
        }
        assert_eq!(prompt(&task(), 9, 0).matches("Input: text").count(), 4);
    }

    #[test]
    fn an_answer_is_cut_to_its_first_sentence() {
        let found = first_sentence("\n  Instruction: \"Name the animal. Be brief.\"\nInput: x");
        assert_eq!(found.as_deref(), Some("Name the animal."));
        assert_eq!(first_sentence("Sort them").as_deref(), Some("Sort them"));
        assert_eq!(first_sentence(" \n"), None);
    }
}
