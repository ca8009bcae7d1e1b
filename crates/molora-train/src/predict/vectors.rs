//! Vectors of texts, by the encoder of a finished run with its adapters.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use burn::module::Module;
use serde_json::json;

use super::Predictor;
use crate::TrainError;
use crate::data::{Split, TextTokenizer, parse_unlabelled, tokenize_tasks};
use crate::eval::frozen::Frozen;
use crate::guide::{Query, count_tokens, unit_rows};

impl Predictor {
    /// A vector of length 1 for every text, the mean over its tokens, all of which are read, and the number of
    /// tokens of all. With a `task` gates and routers know that the texts are of this one.
    ///
    /// # Errors
    /// A run whose model is no encoder, a task that the run has not, a text that has more tokens than the
    /// encoder reads.
    pub fn vectors(
        &mut self,
        texts: &[&str],
        task: Option<&str>,
    ) -> Result<(Vec<Vec<f32>>, usize), TrainError> {
        let known = task.map(|task| self.opened.task_number(&self.run, task));
        let known = known.transpose()?;
        // The records of a task that nobody knows have to stand somewhere.
        let place = known.unwrap_or(0);
        let loaded = &mut self.opened.loaded;
        let tokenizer = TextTokenizer::from_folder(&loaded.folder)?;
        let max_tokens = loaded.base.max_tokens().unwrap_or(usize::MAX);
        let count = count_tokens(&tokenizer, texts, max_tokens)?;
        let mut lines = String::new();
        for text in texts {
            writeln!(lines, "{}", json!({"input": text})).expect("a String takes all");
        }
        let mut tasks = self.tasks.clone();
        let (path, none) = (Path::new("texts"), BTreeMap::new());
        tasks[place].test = parse_unlabelled(&lines, path, &tasks[place].meta, &none)?;
        loaded.tasks = tokenize_tasks(&tasks, &tokenizer, max_tokens)?;
        let query = match (known, &self.query) {
            // No task, no instruction of it.
            (None, Query::Task) => &Query::Request,
            (_, query) => query,
        };
        let guide = self.guide(query)?;
        let loaded = &self.opened.loaded;
        let frozen = Frozen {
            model: &self.opened.model.valid(),
            num_tasks: tasks.len(),
            place,
            known,
            batch_size: self.opened.config.recipe.data.eval_batch_size,
            device: &loaded.device,
        };
        let rows: Vec<usize> = (0..texts.len()).collect();
        let test = (&loaded.tasks[place], Split::Test);
        let pooled = frozen.pooled(test, &rows, guide.as_ref(), &mut |_| Ok(()))?;
        Ok((unit_rows(pooled), count))
    }
}
