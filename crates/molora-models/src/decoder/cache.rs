//! Keys and values of the tokens so far.

use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Int, Tensor, TensorData};
use molora_routing::RouterOutput;

use super::pass::Decisions;

/// What a decoder remembers of the tokens it has seen, so that the next forward pass only computes
/// new ones: keys and values of every layer, and which of the tokens are real.
///
/// Rows can join ([`append`](Self::append)) and leave ([`select`](Self::select)) between passes: what a row
/// gets does not depend on the others.
///
/// Routing decisions per sequence are taken in the first pass, of the prompt, and kept: what is
/// written later does not change the experts that write it.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    /// Those of a first pass that decides for all sites; empty without one.
    pub(crate) first_pass: Vec<LayerCache>,
    pub(crate) decisions: Decisions,
    /// `[B, S]`, after the first pass.
    mask: Option<Tensor<2, Bool>>,
    /// The tokens `[B, S]` of a model whose rotary positions depend on the length of a text, and what they
    /// were computed for.
    tokens: Option<(Tensor<2, Int>, Vec<usize>)>,
}

/// Keys and values of one layer; keys have been turned by their positions.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerCache(Option<Stored>);

/// Keys and values with room for more tokens, so that those of a new token are written beside the others, which stay
/// where they are.
#[derive(Debug, Clone)]
struct Stored {
    /// `[B, room, G * W]`; zeros behind the tokens.
    keys: Tensor<3>,
    /// As the keys.
    values: Tensor<3>,
    /// Number S of tokens.
    tokens: usize,
}

/// The room for tokens grows by so many, and is at most so much larger than what it holds.
pub(crate) const ROOM: usize = 64;

impl KvCache {
    /// An empty cache for a model of so many layers.
    pub(crate) fn new(num_layers: usize) -> Self {
        Self {
            layers: vec![LayerCache::default(); num_layers],
            first_pass: vec![LayerCache::default(); num_layers],
            decisions: Decisions::new(),
            mask: None,
            tokens: None,
        }
    }

    /// Number S of tokens in each row, padding included.
    pub fn num_tokens(&self) -> usize {
        self.mask.as_ref().map_or(0, |mask| mask.dims()[1])
    }

    /// Number B of rows; 0 before the first pass.
    pub fn num_rows(&self) -> usize {
        self.mask.as_ref().map_or(0, |mask| mask.dims()[0])
    }

    /// Keys and values with their mask, and, in a cache of its own with the same mask, what is a method's own:
    /// those of a first pass, and decisions.
    pub(super) fn apart(self) -> (Self, Self) {
        let empty = Self::new(self.layers.len());
        let own = Self {
            first_pass: self.first_pass,
            decisions: self.decisions,
            mask: self.mask.clone(),
            ..empty.clone()
        };
        let shared = Self {
            layers: self.layers,
            mask: self.mask,
            ..empty
        };
        (shared, own)
    }

    /// Puts the rows of another cache of the same model behind the own ones. The shorter rows get padding
    /// in front.
    ///
    /// # Panics
    /// If the caches are of different models.
    pub fn append(&mut self, other: Self) {
        self.insert(self.num_rows(), other);
    }

    /// As [`append`](Self::append) in front of the row of a number, which only a cache without decisions of routers takes
    /// elsewhere than at the end.
    pub(super) fn insert(&mut self, at: usize, other: Self) {
        let (Some(own), Some(new)) = (&self.mask, &other.mask) else {
            if other.mask.is_some() {
                *self = other;
            }
            return;
        };
        assert_eq!(
            self.layers.len(),
            other.layers.len(),
            "layers of the caches"
        );
        let (own, new, device) = (own.clone(), new.clone(), own.device());
        let ([own_rows, own_tokens], [new_rows, new_tokens]) = (own.dims(), new.dims());
        let width = own_tokens.max(new_tokens);
        let padded = |mask: Tensor<2, Bool>, rows: usize, tokens: usize| match width - tokens {
            0 => mask,
            more => Tensor::cat(vec![Tensor::full([rows, more], false, &device), mask], 1),
        };
        let own = padded(own, own_rows, own_tokens);
        let new = padded(new, new_rows, new_tokens);
        self.mask = Some(inserted(own, new, at));
        for (own, new) in self.layers.iter_mut().zip(other.layers) {
            own.insert(at, new, width);
        }
        for (own, new) in self.first_pass.iter_mut().zip(other.first_pass) {
            own.insert(at, new, width);
        }
        let is_plain = self.decisions.is_empty() && self.tokens.is_none();
        assert!(is_plain || at == own_rows, "decisions are at the end");
        self.tokens = joined(self.tokens.take(), other.tokens, width);
        let mut new = other.decisions;
        let own = std::mem::take(&mut self.decisions);
        self.decisions = own
            .into_iter()
            .map(|(site, own)| {
                let new = new.remove(&site).expect("both decide at the same sites");
                (site, RouterOutput::cat(vec![own, new]))
            })
            .collect();
    }

    /// Keeps some rows, by their numbers, in the order that is given; tokens that are padding in all of
    /// them are dropped.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&mut self, rows: &[usize]) {
        let Some(mask) = self.mask.take() else {
            assert!(rows.is_empty(), "no row {rows:?} in an empty cache");
            return;
        };
        let device = mask.device();
        if rows.is_empty() {
            *self = Self::new(self.layers.len());
            return;
        }
        let width = mask.dims()[1];
        let real = mask.into_data().convert::<bool>().try_into_vec::<bool>();
        let real = real.expect("just converted");
        let real: Vec<&[bool]> = rows
            .iter()
            .map(|row| &real[row * width..][..width])
            .collect();
        let is_used = |column: &usize| real.iter().any(|row| row[*column]);
        let used: Vec<usize> = (0..width).filter(is_used).collect();
        let kept = real
            .iter()
            .flat_map(|row| used.iter().map(|&column| row[column]));
        let kept = TensorData::new(kept.collect::<Vec<bool>>(), [rows.len(), used.len()]);
        self.mask = Some(Tensor::from_data(kept, &device));
        let numbers = |of: &[usize]| {
            let of: Vec<i64> = of.iter().map(|&number| number as i64).collect();
            let count = of.len();
            Tensor::<1, Int>::from_data(TensorData::new(of, [count]), &device)
        };
        let rows = numbers(rows);
        let columns = (used.len() < width).then(|| numbers(&used));
        for layer in self.layers.iter_mut().chain(&mut self.first_pass) {
            layer.select(&rows, columns.as_ref());
        }
        self.tokens = self.tokens.take().map(|(ids, stages)| {
            let ids = ids.select(0, rows.clone());
            let ids = match &columns {
                Some(columns) => ids.select(1, columns.clone()),
                None => ids,
            };
            (ids, stages)
        });
        let decisions = std::mem::take(&mut self.decisions).into_iter();
        self.decisions = decisions
            .map(|(site, of)| (site, of.select(&rows)))
            .collect();
    }

    /// Adds new tokens `[B, T]`, which are computed for `stages`. Where those of the cache were computed for
    /// others, their keys and values are forgotten, and all tokens are returned, to be computed again.
    pub(crate) fn outdated(
        &mut self,
        stages: Vec<usize>,
        new: &Tensor<2, Int>,
    ) -> Option<Tensor<2, Int>> {
        let Some((ids, before)) = self.tokens.take() else {
            self.tokens = Some((new.clone(), stages));
            return None;
        };
        let ids = Tensor::cat(vec![ids, new.clone()], 1);
        let is_outdated = before != stages;
        self.tokens = Some((ids.clone(), stages));
        if is_outdated {
            self.layers.fill(LayerCache::default());
            self.first_pass.fill(LayerCache::default());
        }
        is_outdated.then_some(ids)
    }

    /// Adds the mask of new tokens `[B, T]` and returns that of all, `[B, S + T]`.
    pub(crate) fn extend_mask(&mut self, new: Tensor<2, Bool>) -> Tensor<2, Bool> {
        let all = match self.mask.take() {
            Some(mask) => Tensor::cat(vec![mask, new], 1),
            None => new,
        };
        self.mask = Some(all.clone());
        all
    }
}

/// Tokens of two caches with padding in front up to `width` tokens, and what they were computed for:
/// nothing, where that differs, so that they are computed again.
fn joined(
    own: Option<(Tensor<2, Int>, Vec<usize>)>,
    new: Option<(Tensor<2, Int>, Vec<usize>)>,
    width: usize,
) -> Option<(Tensor<2, Int>, Vec<usize>)> {
    let ((own, own_stages), (new, new_stages)) = (own?, new?);
    let padded = |ids: Tensor<2, Int>| {
        let [rows, tokens] = ids.dims();
        match width - tokens {
            0 => ids,
            more => Tensor::cat(vec![Tensor::zeros([rows, more], &ids.device()), ids], 1),
        }
    };
    let stages = match own_stages == new_stages {
        true => own_stages,
        false => Vec::new(),
    };
    Some((Tensor::cat(vec![padded(own), padded(new)], 0), stages))
}

/// The own rows with new ones in front of the row of a number.
fn inserted<const D: usize, K: Basic>(
    own: Tensor<D, K>,
    new: Tensor<D, K>,
    at: usize,
) -> Tensor<D, K> {
    let behind = own.dims()[0] - at;
    if behind == 0 {
        return Tensor::cat(vec![own, new], 0);
    }
    let last = own.clone().narrow(0, at, behind);
    match at {
        0 => Tensor::cat(vec![new, last], 0),
        _ => Tensor::cat(vec![own.narrow(0, 0, at), new, last], 0),
    }
}

impl LayerCache {
    /// Puts rows of another cache in front of the row of a number, all with padding in front up to `width` tokens.
    fn insert(&mut self, at: usize, other: Self, width: usize) {
        let (Some(own), Some(new)) = (self.0.take(), other.0) else {
            return;
        };
        let padded = |part: Tensor<3>| {
            let [rows, tokens, features] = part.dims();
            match width - tokens {
                0 => part,
                more => {
                    let padding = Tensor::zeros([rows, more, features], &part.device());
                    Tensor::cat(vec![padding, part], 1)
                }
            }
        };
        let both = |own, new| inserted(padded(own), padded(new), at);
        let ([keys, values], [new_keys, new_values]) = (own.filled(), new.filled());
        self.0 = Some(Stored {
            keys: both(keys, new_keys),
            values: both(values, new_values),
            tokens: width,
        });
    }

    /// Keeps some rows, and some of their tokens or all.
    fn select(&mut self, rows: &Tensor<1, Int>, columns: Option<&Tensor<1, Int>>) {
        let kept = |part: Tensor<3>| {
            let part = part.select(0, rows.clone());
            match columns {
                Some(columns) => part.select(1, columns.clone()),
                None => part,
            }
        };
        self.0 = self.0.take().map(|stored| {
            let [keys, values] = stored.filled().map(kept);
            Stored {
                tokens: keys.dims()[1],
                keys,
                values,
            }
        });
    }

    /// Adds new keys and values `[B, T, G * W]` and returns all, `[B, S + T, G * W]`.
    pub(crate) fn extend(&mut self, key: Tensor<3>, value: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let stored = match self.0.take() {
            Some(stored) => stored.extended(key, value),
            None => Stored {
                tokens: key.dims()[1],
                keys: key,
                values: value,
            },
        };
        let [keys, values] = stored.filled();
        self.0 = Some(stored);
        (keys, values)
    }
}

impl Stored {
    /// Keys and values without the room behind them.
    fn filled(&self) -> [Tensor<3>; 2] {
        [&self.keys, &self.values].map(|part| part.clone().narrow(1, 0, self.tokens))
    }

    /// With those of new tokens.
    fn extended(self, key: Tensor<3>, value: Tensor<3>) -> Self {
        let tokens = self.tokens + key.dims()[1];
        let added = |stored: Tensor<3>, new: Tensor<3>| {
            let [batch, room, features] = stored.dims();
            let stored = match tokens > room {
                true => {
                    let shape = [batch, tokens.next_multiple_of(ROOM), features];
                    let old = stored.narrow(1, 0, self.tokens);
                    let wider = Tensor::zeros(shape, &new.device());
                    wider.slice_assign([0..batch, 0..self.tokens, 0..features], old)
                }
                false => stored,
            };
            stored.slice_assign([0..batch, self.tokens..tokens, 0..features], new)
        };
        Self {
            keys: added(self.keys, key),
            values: added(self.values, value),
            tokens,
        }
    }
}
