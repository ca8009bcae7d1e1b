//! Batches of examples, padded to their longest row.
//!
//! A batch lives on the host until a model asks for its tensors, so that it can be cut into
//! smaller ones without touching the device.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::TensorData;

use super::example::{Example, Target};

/// The id in padded places. The mask keeps models from looking there, so any id would do.
const PAD_ID: i32 = 0;

/// Rows of tokens padded to the longest of them, on the host; all matrices are row-major
/// `[rows, width]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Token ids, 0 where padded.
    pub input_ids: Vec<i32>,
    /// 0 for the first text, 1 for the second, 0 where padded.
    pub type_ids: Vec<i32>,
    /// `true` for tokens, `false` where padded.
    pub mask: Vec<bool>,
    /// Number of rows.
    pub rows: usize,
    /// Tokens of the longest row.
    pub width: usize,
    /// Task index of each row.
    pub task_ids: Vec<usize>,
    /// Answer of each row; of a packed row, those of all its examples.
    pub targets: Vec<Target>,
    /// Number of examples in each row: 1 unless they are packed.
    pub examples: Vec<usize>,
    /// The number within its row of the example that each token belongs to, where examples are
    /// packed.
    pub segments: Option<Vec<i32>>,
    /// The share of every answer token in the loss, where all tokens count alike instead of all
    /// examples.
    pub token_weight: Option<f32>,
    /// The place of each row's record in its split, where that is known.
    pub records: Vec<usize>,
}

/// A target token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerToken {
    /// Row of the batch.
    pub row: usize,
    /// The position in the row whose hidden state predicts it: that of the token before it.
    pub place: usize,
    /// The token.
    pub token: i32,
    /// Its share in the loss of its example: one divided by the number of the answers' tokens, or the
    /// batch's `token_weight`.
    pub weight: f32,
}

impl Batch {
    /// Pads `examples` to the longest of them; rows keep their order.
    ///
    /// # Panics
    /// If there is no example.
    pub fn from_examples(examples: &[&Example]) -> Self {
        let width = examples.iter().map(|example| example.ids.len()).max();
        let width = width.expect("a batch has at least one example");
        let mut batch = Self::with_capacity(examples.len(), width);
        for example in examples {
            // Ids fit: `TextTokenizer::check_vocabulary` bounds them by an embedding's rows.
            let ids = example.ids.iter().map(|&id| id as i32);
            let type_ids = example.type_ids.iter().map(|&id| id as i32);
            batch.push_row(ids, type_ids, example.task, example.target.clone());
        }
        batch
    }

    /// Packs examples whose text holds its answers into rows of at most `max_length` tokens, each of
    /// one task: the longest first, each into the first row that has room.
    ///
    /// # Panics
    /// If there is no example, or one whose target is no [`Target::Answer`].
    pub fn packed(examples: &[&Example], max_length: usize) -> Self {
        let mut order: Vec<&Example> = examples.to_vec();
        order.sort_by_key(|example| (example.task, std::cmp::Reverse(example.ids.len())));
        let mut rows: Vec<Vec<&Example>> = Vec::new();
        for example in order {
            let has_room = |row: &Vec<&Example>| {
                let tokens: usize = row.iter().map(|example| example.ids.len()).sum();
                row[0].task == example.task && tokens + example.ids.len() <= max_length
            };
            match rows.iter_mut().find(|row| has_room(row)) {
                Some(row) => row.push(example),
                None => rows.push(vec![example]),
            }
        }
        let packed: Vec<Example> = rows.iter().map(|row| joined(row)).collect();
        let mut batch = Self::from_examples(&packed.iter().collect::<Vec<_>>());
        batch.examples = rows.iter().map(Vec::len).collect();
        let mut segments = vec![0; batch.input_ids.len()];
        for (row, examples) in rows.iter().enumerate() {
            let numbers = examples.iter().zip(0..);
            let numbers = numbers.flat_map(|(e, number)| vec![number; e.ids.len()]);
            let places = &mut segments[row * batch.width..];
            places
                .iter_mut()
                .zip(numbers)
                .for_each(|(place, number)| *place = number);
        }
        batch.segments = Some(segments);
        batch
    }

    /// Cuts the batch into batches of at most `micro_rows` rows, in order, each with the width of
    /// its own longest row.
    ///
    /// # Panics
    /// If `micro_rows` is 0.
    pub fn split(&self, micro_rows: usize) -> Vec<Self> {
        let rows: Vec<usize> = (0..self.rows).collect();
        rows.chunks(micro_rows)
            .map(|rows| self.select(rows))
            .collect()
    }

    /// The rows of each task, in order of the tasks.
    pub fn rows_by_task(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut rows = BTreeMap::<usize, Vec<usize>>::new();
        for (row, &task) in self.task_ids.iter().enumerate() {
            rows.entry(task).or_default().push(row);
        }
        rows
    }

    /// Number of examples of each task.
    pub fn examples_by_task(&self) -> BTreeMap<usize, usize> {
        let mut examples = BTreeMap::new();
        for (&task, &count) in self.task_ids.iter().zip(&self.examples) {
            *examples.entry(task).or_default() += count;
        }
        examples
    }

    /// Number of examples.
    pub fn num_examples(&self) -> usize {
        self.examples.iter().sum()
    }

    /// Number of real tokens, read or written.
    pub fn num_tokens(&self) -> usize {
        let read = self.mask.iter().filter(|&&is_token| is_token).count();
        read + self.written().map(<[u32]>::len).sum::<usize>()
    }

    /// Number of places, padding included: `rows * width`, and those of texts that are written.
    pub fn num_padded(&self) -> usize {
        let written = self.written().map(<[u32]>::len).max().unwrap_or(0);
        self.rows * (self.width + written)
    }

    /// The target tokens, row by row. For texts that are written places are in
    /// [`target_ids`](Self::target_ids), else in [`input_ids`](Self::input_ids).
    pub fn answers(&self) -> Vec<AnswerToken> {
        let mut answers = self.weighed_by_example();
        if let Some(weight) = self.token_weight {
            answers.iter_mut().for_each(|answer| answer.weight = weight);
        }
        answers
    }

    /// Lets every answer token of the batch count alike in its loss, as transformers does.
    pub fn average_over_tokens(&mut self) {
        let tokens = self.answers().len().max(1);
        self.token_weight = Some(self.num_examples() as f32 / tokens as f32);
    }

    fn weighed_by_example(&self) -> Vec<AnswerToken> {
        let mut answers = Vec::new();
        for (row, target) in self.targets.iter().enumerate() {
            match target {
                Target::Answer(is_answer) => self.answers_within(row, is_answer, &mut answers),
                Target::Text(text) => {
                    let weight = 1.0 / (text.len() - 1) as f32;
                    let tokens = text[1..].iter().enumerate();
                    answers.extend(tokens.map(|(place, &token)| AnswerToken {
                        row,
                        place,
                        token: token as i32,
                        weight,
                    }));
                }
                Target::Class(_) | Target::Number(_) => {}
            }
        }
        answers
    }

    /// Answers within the text of a row; the first token of an example is not predicted.
    fn answers_within(&self, row: usize, is_answer: &[bool], answers: &mut Vec<AnswerToken>) {
        let at = |place: usize| row * self.width + place;
        let segment = |place: usize| self.segments.as_ref().map_or(0, |all| all[at(place)]);
        let places = (1..is_answer.len())
            .filter(|&place| is_answer[place] && segment(place) == segment(place - 1));
        let mut counts = BTreeMap::<i32, usize>::new();
        for place in places.clone() {
            *counts.entry(segment(place)).or_default() += 1;
        }
        answers.extend(places.map(|place| AnswerToken {
            row,
            place: place - 1,
            token: self.input_ids[at(place)],
            weight: 1.0 / counts[&segment(place)] as f32,
        }));
    }

    /// Token ids, `[rows, width]`.
    pub fn input_ids(&self, device: &Device) -> Tensor<2, Int> {
        self.int_tensor(&self.input_ids, device)
    }

    /// Segment ids, `[rows, width]`.
    pub fn type_ids(&self, device: &Device) -> Tensor<2, Int> {
        self.int_tensor(&self.type_ids, device)
    }

    /// The numbers of the examples that tokens belong to, `[rows, width]`, where they are packed.
    pub fn segments(&self, device: &Device) -> Option<Tensor<2, Int>> {
        let segments = self.segments.as_ref();
        segments.map(|segments| self.int_tensor(segments, device))
    }

    /// `true` for tokens, `[rows, width]`.
    pub fn mask(&self, device: &Device) -> Tensor<2, Bool> {
        let data = TensorData::new(self.mask.clone(), [self.rows, self.width]);
        Tensor::from_data(data, device)
    }

    /// 1 for the tokens in front of a row's first answer, `[rows, width]`, of a row without a prompt
    /// for its first token; `None` if no row holds its answers.
    pub fn prompt(&self, device: &Device) -> Option<Tensor<2>> {
        let holds_answers = |target: &Target| matches!(target, Target::Answer(_));
        if !self.targets.iter().any(holds_answers) {
            return None;
        }
        let mut prompt = vec![0.0_f32; self.rows * self.width];
        for (row, target) in self.targets.iter().enumerate() {
            let tokens = match target {
                Target::Answer(is_answer) => {
                    let given = is_answer.iter().take_while(|&&is_answer| !is_answer);
                    given.count().max(1)
                }
                _ => self.length(row),
            };
            prompt[row * self.width..][..tokens].fill(1.0);
        }
        let data = TensorData::new(prompt, [self.rows, self.width]);
        Some(Tensor::from_data(data, device))
    }

    /// Token ids and mask of the texts that are written, without their last token, which is told
    /// only: `[rows, longest]`. `None` if no row has one.
    pub fn target_ids(&self, device: &Device) -> Option<(Tensor<2, Int>, Tensor<2, Bool>)> {
        let width = self.written().map(|text| text.len() - 1).max()?;
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for (row, target) in self.targets.iter().enumerate() {
            if let Target::Text(text) = target {
                ids.extend(text[..text.len() - 1].iter().map(|&id| id as i32));
                mask.resize(ids.len(), true);
            }
            ids.resize((row + 1) * width, PAD_ID);
            mask.resize((row + 1) * width, false);
        }
        let shape = [self.rows, width];
        let ids = Tensor::from_data(TensorData::new(ids, shape), device);
        Some((ids, Tensor::from_data(TensorData::new(mask, shape), device)))
    }

    fn written(&self) -> impl Iterator<Item = &[u32]> {
        self.targets.iter().filter_map(|target| match target {
            Target::Text(text) => Some(&text[..]),
            _ => None,
        })
    }

    fn int_tensor(&self, values: &[i32], device: &Device) -> Tensor<2, Int> {
        let data = TensorData::new(values.to_vec(), [self.rows, self.width]);
        Tensor::from_data(data, device)
    }

    fn with_capacity(rows: usize, width: usize) -> Self {
        Self {
            input_ids: Vec::with_capacity(rows * width),
            type_ids: Vec::with_capacity(rows * width),
            mask: Vec::with_capacity(rows * width),
            rows: 0,
            width,
            task_ids: Vec::with_capacity(rows),
            targets: Vec::with_capacity(rows),
            examples: Vec::with_capacity(rows),
            segments: None,
            token_weight: None,
            records: Vec::new(),
        }
    }

    fn push_row(
        &mut self,
        ids: impl ExactSizeIterator<Item = i32>,
        type_ids: impl Iterator<Item = i32>,
        task: usize,
        target: Target,
    ) {
        let length = ids.len();
        self.rows += 1;
        let end = self.rows * self.width;
        self.input_ids.extend(ids);
        self.input_ids.resize(end, PAD_ID);
        self.type_ids.extend(type_ids);
        self.type_ids.resize(end, 0);
        self.mask.resize(end - self.width + length, true);
        self.mask.resize(end, false);
        self.task_ids.push(task);
        self.targets.push(target);
        self.examples.push(1);
    }

    /// Number of tokens of a row; they stand at its beginning.
    fn length(&self, row: usize) -> usize {
        let mask = &self.mask[row * self.width..(row + 1) * self.width];
        mask.iter().filter(|&&is_token| is_token).count()
    }

    fn select(&self, rows: &[usize]) -> Self {
        let width = rows.iter().map(|&row| self.length(row)).max().unwrap_or(0);
        let mut batch = Self::with_capacity(rows.len(), width);
        for &row in rows {
            let tokens = row * self.width..row * self.width + self.length(row);
            let ids = self.input_ids[tokens.clone()].iter().copied();
            let type_ids = self.type_ids[tokens].iter().copied();
            batch.push_row(ids, type_ids, self.task_ids[row], self.targets[row].clone());
        }
        batch.examples = rows.iter().map(|&row| self.examples[row]).collect();
        batch.token_weight = self.token_weight;
        if !self.records.is_empty() {
            batch.records = rows.iter().map(|&row| self.records[row]).collect();
        }
        batch.segments = self.segments.as_ref().map(|segments| {
            let row = |&row: &usize| &segments[row * self.width..][..width];
            rows.iter().flat_map(row).copied().collect()
        });
        batch
    }
}

/// Examples one after the other as one.
fn joined(examples: &[&Example]) -> Example {
    let answers = examples.iter().flat_map(|example| match &example.target {
        Target::Answer(is_answer) => &is_answer[..],
        _ => panic!("only texts that hold their answers are packed"),
    });
    Example {
        ids: examples.iter().flat_map(|e| &e.ids).copied().collect(),
        type_ids: examples.iter().flat_map(|e| &e.type_ids).copied().collect(),
        task: examples[0].task,
        target: Target::Answer(answers.copied().collect()),
    }
}

#[cfg(test)]
mod tests;
