//! Ranks that are threads of one process: for tests, and for trying out what many ranks do.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use super::{Collective, CollectiveError, group_of};

/// What ranks have put down for each other.
#[derive(Debug)]
struct Table {
    /// By the rank that gets it: what each rank sent.
    parts: Vec<Vec<Option<Vec<u8>>>>,
    /// Ranks that have taken what they got.
    taken: usize,
    /// Ranks that have sent theirs.
    sent: usize,
    gone: Option<usize>,
}

#[derive(Debug)]
struct Meeting {
    table: Mutex<Table>,
    changed: Condvar,
    /// Where the ranks of groups meet, by the groups' ranks.
    groups: Mutex<HashMap<Range<usize>, Arc<Meeting>>>,
}

impl Meeting {
    fn of(ranks: usize) -> Arc<Self> {
        let table = Table {
            parts: vec![vec![None; ranks]; ranks],
            taken: 0,
            sent: 0,
            gone: None,
        };
        Arc::new(Self {
            table: Mutex::new(table),
            changed: Condvar::new(),
            groups: Mutex::default(),
        })
    }

    /// Where some of the ranks meet.
    fn group(&self, ranks: Range<usize>) -> Arc<Self> {
        let groups = self.groups.lock();
        let mut groups = groups.unwrap_or_else(PoisonError::into_inner);
        let meeting = groups.entry(ranks.clone());
        Arc::clone(meeting.or_insert_with(|| Self::of(ranks.len())))
    }
}

/// One of several ranks that are threads of this process.
#[derive(Debug)]
pub struct ThreadRank {
    rank: usize,
    world_size: usize,
    meeting: Arc<Meeting>,
}

impl ThreadRank {
    fn all(world_size: usize) -> Vec<Self> {
        let meeting = Meeting::of(world_size);
        let rank = |rank| Self {
            rank,
            world_size,
            meeting: Arc::clone(&meeting),
        };
        (0..world_size).map(rank).collect()
    }

    fn gone(&self, rank: usize) -> CollectiveError {
        CollectiveError::Gone {
            rank,
            world_size: self.world_size,
        }
    }
}

impl Collective for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        assert_eq!(parts.len(), self.world_size, "a part for each rank");
        let meeting = &self.meeting;
        let table = meeting.table.lock();
        let mut table = table.unwrap_or_else(PoisonError::into_inner);
        // The exchange before this one is over when all have taken theirs.
        let is_open = |table: &mut Table| table.parts[0][self.rank].is_some() || table.taken > 0;
        table = meeting
            .changed
            .wait_while(table, |table| table.gone.is_none() && is_open(table))
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(rank) = table.gone {
            return Err(self.gone(rank));
        }
        for (to, part) in parts.into_iter().enumerate() {
            table.parts[to][self.rank] = Some(part);
        }
        table.sent += 1;
        meeting.changed.notify_all();
        table = meeting
            .changed
            .wait_while(table, |table| {
                table.gone.is_none() && table.sent < self.world_size
            })
            .unwrap_or_else(PoisonError::into_inner);
        // A rank that ends after it has sent everything is missed at the next exchange.
        if table.sent < self.world_size {
            let rank = table.gone.unwrap_or(self.rank);
            return Err(self.gone(rank));
        }
        let own = std::mem::replace(&mut table.parts[self.rank], vec![None; self.world_size]);
        table.taken += 1;
        if table.taken == self.world_size {
            (table.taken, table.sent) = (0, 0);
        }
        meeting.changed.notify_all();
        Ok(own.into_iter().flatten().collect())
    }

    fn group(&self, count: usize) -> Result<Box<dyn Collective + '_>, CollectiveError> {
        let (_, ranks) = group_of(self.rank, count, self.world_size);
        Ok(Box::new(Self {
            rank: self.rank - ranks.start,
            world_size: ranks.len(),
            meeting: self.meeting.group(ranks),
        }))
    }
}

impl Drop for ThreadRank {
    fn drop(&mut self) {
        let table = self.meeting.table.lock();
        let mut table = table.unwrap_or_else(PoisonError::into_inner);
        table.gone.get_or_insert(self.rank);
        self.meeting.changed.notify_all();
    }
}

/// Runs a function on so many ranks at once, each a thread, and returns what they give, by rank.
///
/// # Panics
/// If a rank panics.
pub fn on_threads<T: Send>(world_size: usize, run: impl Fn(&ThreadRank) -> T + Sync) -> Vec<T> {
    let ranks = ThreadRank::all(world_size);
    thread::scope(|scope| {
        let run = &run;
        let started: Vec<_> = ranks
            .into_iter()
            .map(|rank| scope.spawn(move || run(&rank)))
            .collect();
        let ended = started.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_gets_what_the_others_sent_it() {
        for world_size in [1, 2, 3, 5] {
            let found = on_threads(world_size, |rank| {
                let mut all = Vec::new();
                for round in 0..50_usize {
                    let parts = (0..world_size)
                        .map(|to| format!("{round}: {} to {to}", rank.rank()).into_bytes());
                    all.push(rank.exchange(parts.collect()).expect("all are here"));
                }
                all
            });
            for (to, rounds) in found.into_iter().enumerate() {
                for (round, parts) in rounds.into_iter().enumerate() {
                    for (from, part) in parts.into_iter().enumerate() {
                        let expected = format!("{round}: {from} to {to}");
                        assert_eq!(String::from_utf8(part).unwrap(), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn groups_meet_without_the_others() {
        let found = on_threads(5, |rank| {
            let group = rank.group(2).expect("two groups");
            // Other ranks may be behind: as many exchanges as the rank's number says would not end otherwise.
            let rounds = if rank.rank() < 2 { 3 } else { 1 };
            let mut all = Vec::new();
            for _ in 0..rounds {
                all = group.gather(vec![rank.rank() as u8]).expect("all are here");
            }
            rank.barrier().expect("all are here");
            all.concat()
        });
        let (first, second) = (vec![0, 1], vec![2, 3, 4]);
        assert_eq!(
            found,
            [first.clone(), first, second.clone(), second.clone(), second]
        );
    }

    #[test]
    fn what_is_broadcast_comes_from_the_first() {
        let found = on_threads(3, |rank| rank.broadcast(vec![rank.rank() as u8; 2]));
        assert_eq!(found, [(); 3].map(|()| Ok(vec![0, 0])));
    }

    #[test]
    fn who_waits_for_a_rank_that_has_ended_hears_of_it() {
        let found = on_threads(3, |rank| match rank.rank() {
            1 => Ok(()),
            _ => rank.barrier(),
        });
        let gone = CollectiveError::Gone {
            rank: 1,
            world_size: 3,
        };
        assert_eq!(found[0], Err(gone.clone()));
        assert_eq!(found[2], Err(gone));
    }
}
