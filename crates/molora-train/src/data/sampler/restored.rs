//! Whether a sampler that was read from a file can continue.

use rand_xoshiro::rand_core::Rng;

use super::{Deck, Pick, Sampler, SamplerConfig};
use crate::data::DataError;

/// No weight of a task is above this: twice the number that those of a temperature are parts of, or a
/// number of records.
const MAX_WEIGHT: u64 = 1 << 40;

impl Sampler {
    /// Checks that a restored sampler has these settings, belongs to these training examples, and is in
    /// a state that it can come to.
    ///
    /// # Errors
    /// The first thing that is otherwise.
    pub fn check(&self, config: &SamplerConfig, lengths: &[Vec<usize>]) -> Result<(), DataError> {
        if self.lengths.len() != lengths.len() {
            let (saved, found) = (self.lengths.len(), lengths.len());
            return Err(DataError::SamplerData(format!(
                "it has {saved} tasks, found {found}"
            )));
        }
        if let Some(task) = (0..lengths.len()).find(|&task| self.lengths[task] != lengths[task]) {
            let reason = format!("task number {task} has other training examples");
            return Err(DataError::SamplerData(reason));
        }
        if self.config != *config {
            return Err(DataError::SamplerState(
                "config is not that of the run".into(),
            ));
        }
        self.state_problem()
            .map_or(Ok(()), |problem| Err(DataError::SamplerState(problem)))
    }

    /// What no draw could have led to.
    fn state_problem(&self) -> Option<String> {
        let tasks = self.lengths.len();
        let is_weight = |weight: &u64| (1..=MAX_WEIGHT).contains(weight);
        if self.weights.len() != tasks || !self.weights.iter().all(is_weight) {
            return Some(format!(
                "weights are not {tasks} numbers from 1 to {MAX_WEIGHT}"
            ));
        }
        if self.decks.len() != tasks {
            return Some(format!(
                "it has {} decks, expected {tasks}",
                self.decks.len()
            ));
        }
        let mut decks = self.decks.iter().zip(&self.lengths);
        if let Some(task) = decks.position(|(deck, lengths)| !deck.is_whole(lengths.len())) {
            return Some(format!("deck {task} does not hold each record once"));
        }
        let is_batch = |batch: &Vec<Pick>| {
            batch.len() == self.config.batch_size && batch.iter().all(|pick| self.is_pick(*pick))
        };
        if self.pending.len() > self.config.bucket_batches || !self.pending.iter().all(is_batch) {
            return Some("pending are not batches of its examples".into());
        }
        // A generator of zeros draws zeros for ever.
        let mut rng = self.rng.clone();
        let is_stuck = (0..4).all(|_| rng.next_u64() == 0);
        is_stuck.then(|| "rng is all zeros".into())
    }

    fn is_pick(&self, (task, index): Pick) -> bool {
        self.lengths
            .get(task)
            .is_some_and(|lengths| index < lengths.len())
    }
}

impl Deck {
    /// Whether it holds the numbers below `size`, each once.
    fn is_whole(&self, size: usize) -> bool {
        let mut seen = vec![false; size];
        let is_new = |&index: &usize| {
            let seen = seen.get_mut(index);
            seen.is_some_and(|seen| !std::mem::replace(seen, true))
        };
        self.order.len() == size && self.next <= size && self.order.iter().all(is_new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn lengths() -> Vec<Vec<usize>> {
        vec![vec![3; 5], vec![4; 7]]
    }

    fn config() -> SamplerConfig {
        SamplerConfig {
            batch_size: 2,
            bucket_batches: 4,
            ..SamplerConfig::default()
        }
    }

    /// The error for a state with another value at a place.
    fn refusal(pointer: &str, value: Value) -> String {
        let mut sampler = Sampler::new(config(), &lengths(), 1).expect("valid");
        sampler.next_batch();
        assert!(sampler.check(&config(), &lengths()).is_ok());
        let mut state = serde_json::to_value(&sampler).expect("plain data");
        *state.pointer_mut(pointer).expect(pointer) = value;
        let sampler: Sampler = serde_json::from_value(state).expect("of the same types");
        let error = sampler.check(&config(), &lengths());
        error.expect_err(pointer).to_string()
    }

    #[test]
    fn states_that_no_draw_leads_to_are_refused() {
        for (pointer, value, expected) in [
            ("/config/batch_size", json!(3), "config is not that"),
            (
                "/config/bucket_batches",
                json!(u64::MAX),
                "config is not that",
            ),
            ("/weights", json!([]), "weights are not 2"),
            ("/weights/0", json!(0), "weights are not 2"),
            ("/weights/1", json!(u64::MAX), "weights are not 2"),
            ("/decks", json!([]), "it has 0 decks, expected 2"),
            ("/decks/0/next", json!(6), "deck 0 does not hold"),
            ("/decks/1/order/0", json!(7), "deck 1 does not hold"),
            ("/decks/1/order", json!([0]), "deck 1 does not hold"),
            ("/pending/0/0", json!([2, 0]), "pending are not"),
            ("/pending/0", json!([]), "pending are not"),
            ("/rng/s", json!([0, 0, 0, 0]), "rng is all zeros"),
            ("/lengths/0/0", json!(9), "task number 0 has other"),
        ] {
            let error = refusal(pointer, value);
            assert!(error.contains(expected), "{pointer}: {error}");
        }
    }
}
