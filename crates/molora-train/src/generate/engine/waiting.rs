//! Requests that nothing was read of yet.

use std::collections::VecDeque;

use super::request::{Listener, Request};

/// A request with the one who asked.
type Asked = (Request, Box<dyn Listener>);

/// The requests of each model, in the order of arrival.
pub(super) struct Waiting {
    models: Vec<VecDeque<Asked>>,
    /// The model whose turn it is.
    turn: usize,
}

impl Waiting {
    /// None yet of so many models.
    pub(super) fn of(models: usize) -> Self {
        Self {
            models: (0..models).map(|_| VecDeque::new()).collect(),
            turn: 0,
        }
    }

    pub(super) fn add(&mut self, model: usize, request: Request, listener: Box<dyn Listener>) {
        self.models[model].push_back((request, listener));
    }

    /// How many there are of a model.
    pub(super) fn count(&self, model: usize) -> usize {
        self.models[model].len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.models.iter().all(VecDeque::is_empty)
    }

    /// The next one with its model: models take turns.
    pub(super) fn next(&mut self) -> Option<(usize, Asked)> {
        let count = self.models.len();
        let mut models = (0..count).map(|more| (self.turn + more) % count);
        let model = models.find(|&model| !self.models[model].is_empty())?;
        self.turn = (model + 1) % count;
        Some((model, self.models[model].pop_front()?))
    }

    /// Drops those whose listener has gone.
    pub(super) fn leave(&mut self) {
        for model in &mut self.models {
            model.retain(|(_, listener)| !listener.is_gone());
        }
    }

    /// Takes all out.
    pub(super) fn drain(&mut self) -> Vec<Box<dyn Listener>> {
        let all = self.models.iter_mut().flat_map(|model| model.drain(..));
        all.map(|(_, listener)| listener).collect()
    }
}
