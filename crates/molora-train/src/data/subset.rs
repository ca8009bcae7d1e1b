//! Some records of a split: the same ones each time, and those of a smaller number among those of a
//! larger one.

use molora_kernels::random::Seed;

use super::example::TokenizedTask;
use super::record::Record;
use super::task::{Split, Task};

/// Places of at most `limit` of `count` records, in their order, drawn by the task's name.
fn places(task: &str, split: Split, count: usize, limit: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..count).collect();
    if count > limit {
        let seed = Seed::new(0).child("subset").child(split.name()).child(task);
        places.sort_by_key(|&place| (seed.index(place as u64).value(), place));
        places.truncate(limit);
        places.sort_unstable();
    }
    places
}

fn pick<T: Clone>(values: &[T], places: &[usize]) -> Vec<T> {
    let known = places.iter().filter_map(|&place| values.get(place));
    known.cloned().collect()
}

/// Several test splits with those of their records that stand at `places` of all.
fn part_of(sets: &[(String, usize)], places: &[usize]) -> Vec<(String, usize)> {
    let mut start = 0;
    let mut part = |(name, count): &(String, usize)| {
        let range = start..start + count;
        start = range.end;
        let kept = places.iter().filter(|place| range.contains(place));
        (name.clone(), kept.count())
    };
    sets.iter().map(&mut part).collect()
}

impl Task {
    /// The task with at most `limit` records of one split and none of the others.
    #[must_use]
    pub fn only(&self, split: Split, limit: usize) -> Self {
        let records = self.split(split);
        let places = places(&self.meta.name, split, records.len(), limit);
        let of = |other: Split| -> Vec<Record> {
            match other == split {
                true => pick(records, &places),
                false => Vec::new(),
            }
        };
        let kept: &[usize] = match split {
            Split::Test => &places,
            Split::Train | Split::Validation => &[],
        };
        Self {
            meta: self.meta.clone(),
            train: of(Split::Train),
            validation: of(Split::Validation),
            test: of(Split::Test),
            test_sets: part_of(&self.test_sets, kept),
            streamed: None,
        }
    }
}

impl TokenizedTask {
    /// Places of at most `limit` records of a split, those of [`Task::only`], in their order.
    pub(crate) fn places(&self, split: Split, limit: usize) -> Vec<usize> {
        places(&self.name, split, self.split(split).len(), limit)
    }

    /// The task with at most `limit` records of the validation split, those of [`Task::only`], and none
    /// of the others.
    #[must_use]
    pub fn validation_part(&self, limit: usize) -> Self {
        self.validated_on(Split::Validation, &self.places(Split::Validation, limit))
    }

    /// The task with the `count` longest records of a split as those of its validation split, and no others.
    #[must_use]
    pub fn longest(&self, split: Split, count: usize) -> Self {
        let lengths = self.lengths(split);
        let mut places: Vec<usize> = (0..lengths.len()).collect();
        places.sort_by_key(|&place| std::cmp::Reverse(lengths[place]));
        places.truncate(count);
        self.validated_on(split, &places)
    }

    /// The task with some records of a split as those of its validation split, and no others.
    fn validated_on(&self, split: Split, places: &[usize]) -> Self {
        let mut part = Self {
            name: self.name.clone(),
            kind: self.kind,
            labels: self.labels.clone(),
            test_sets: Vec::new(),
            instruction: self.instruction.clone(),
            metric: self.metric.clone(),
            train: Vec::new(),
            validation: pick(self.split(split), places),
            test: Vec::new(),
            cut: 0,
            requests: [Vec::new(), pick(self.requests(split), places), Vec::new()],
            written: None,
            streamed: None,
        };
        part.written = self.written.as_ref().map(|written| {
            let questions = pick(written.questions(split), places);
            written.with_validation(questions)
        });
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_test_splits_keep_their_own_records() {
        let sets = [("a".to_owned(), 3), ("b".to_owned(), 2)];
        let found = part_of(&sets, &[0, 2, 4]);
        assert_eq!(found, [("a".to_owned(), 2), ("b".to_owned(), 1)]);
    }

    #[test]
    fn a_smaller_part_lies_in_a_larger_one() {
        let of = |limit| places("pets", Split::Validation, 100, limit);
        let (small, large) = (of(10), of(30));
        assert_eq!((small.len(), large.len()), (10, 30));
        assert!(small.iter().all(|place| large.contains(place)));
        assert!(small.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(of(100), (0..100).collect::<Vec<_>>());
        assert_eq!(of(1000).len(), 100);
        assert_ne!(small, places("weather", Split::Validation, 100, 10));
    }
}
