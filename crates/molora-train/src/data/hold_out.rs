//! Validation and test records of a source that has none.
//!
//! The different texts are put in the order of a stable hash; the first twentieth of them (at least
//! 1, at most 500) is the test split, the next the validation split, and what stays is trained on.
//! Records with one text stay together, so that none is both trained on and tested.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use molora_kernels::random::Seed;

use super::error::DataError;
use super::format::FormatError;
use super::record::Record;

/// Most texts of a split that is held out.
const MOST: usize = 500;

/// Moves records out of `train` into the splits that are wanted: test, then validation.
///
/// # Errors
/// [`FormatError::TooFew`] if nothing would be left to train on.
pub(super) fn hold_out(
    train: &mut Vec<Record>,
    validation: bool,
    test: bool,
    path: &Path,
) -> Result<[Option<Vec<Record>>; 2], DataError> {
    if !validation && !test {
        return Ok([None, None]);
    }
    let order: BTreeSet<u64> = train.iter().map(key).collect();
    let splits = usize::from(validation) + usize::from(test);
    if order.len() <= splits {
        let too_few = FormatError::TooFew {
            path: path.into(),
            found: order.len(),
            expected: splits + 1,
            missing: match (validation, test) {
                (true, true) => "a validation and a test split",
                (true, false) => "a validation split",
                _ => "a test split",
            },
        };
        return Err(too_few.into());
    }
    let count = (order.len() / 20).clamp(1, MOST);
    let mut keys = order.into_iter();
    let mut take = |is_wanted: bool| {
        is_wanted.then(|| {
            let held: HashSet<u64> = keys.by_ref().take(count).collect();
            train
                .extract_if(.., |record| held.contains(&key(record)))
                .collect()
        })
    };
    let test = take(test);
    Ok([take(validation), test])
}

/// A stable hash of what a record asks; of a text without a prompt, of the text.
fn key(record: &Record) -> u64 {
    let mut key = Seed::new(0);
    if let [questions @ .., _] = &record.messages[..] {
        for message in questions {
            key = key.child(&message.role).child(&message.content);
            // Who calls functions may say nothing beside.
            if let Some(calls) = &message.tool_calls {
                key = key.child(calls);
            }
        }
        return key.value();
    }
    key = key.child(&record.instruction).child(&record.input);
    key = key.child(record.input_b.as_deref().unwrap_or_default());
    if record.is_verbatim && record.input.is_empty() {
        key = key.child(&record.output);
    }
    key.value()
}

#[cfg(test)]
mod tests;
