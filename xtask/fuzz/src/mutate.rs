//! Changes of files that hostile or broken ones have.

use proptest::prelude::*;

/// Numbers at which arithmetic or memory ends.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1e9",
    "1e999",
    "-0.0",
    "1000000000000",
    "4294967296",
    "9223372036854775808",
    "18446744073709551616",
    "99999999999999999999999999",
    "NaN",
    "\"7\"",
];

/// Words that mean something somewhere, and bytes that steer.
const WORDS: [&str; 14] = [
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "[[[[[[[[",
    "\u{1b}]0;x\u{7}",
    "\n",
    "\0",
    "../x",
    "\u{202e}",
    "{{",
    "{% for i in range(99999) %}",
    "\"\\ud800\"",
];

/// One change of a file; its numbers choose place and kind.
#[derive(Debug, Clone)]
pub struct Mutation {
    kind: u8,
    place: u32,
    what: u32,
}

/// One to four changes.
pub fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let one = (0_u8..11, any::<u32>(), any::<u32>());
    let one = one.prop_map(|(kind, place, what)| Mutation { kind, place, what });
    proptest::collection::vec(one, 1..5)
}

/// Applies changes to a file; `others` are seeds to take pieces of.
#[must_use]
pub fn mutate(seed: &[u8], others: &[Vec<u8>], changes: &[Mutation]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for change in changes {
        apply(&mut bytes, others, change);
        bytes.truncate(4 << 20);
    }
    bytes
}

fn apply(bytes: &mut Vec<u8>, others: &[Vec<u8>], change: &Mutation) {
    let what = change.what as usize;
    let place = change.place as usize % (bytes.len() + 1);
    let end = (place + 1 + what % 64).min(bytes.len());
    match change.kind {
        0 if place < bytes.len() => bytes[place] ^= 1 << (what % 8),
        1 => bytes.truncate(place),
        2 if !others.is_empty() => {
            let other = &others[what % others.len()];
            bytes.truncate(place);
            bytes.extend(&other[place.min(other.len())..]);
        }
        3 => replace_number(bytes, place, NUMBERS[what % NUMBERS.len()]),
        4 => drop(bytes.splice(place..place, WORDS[what % WORDS.len()].bytes())),
        5 => drop(bytes.drain(place..end)),
        6 => {
            let piece = bytes[place..end].repeat(1 + what % 500);
            drop(bytes.splice(place..place, piece));
        }
        7 => {
            // Where a length may stand, in the beginning and at the end of binary formats.
            let at = [0, bytes.len().saturating_sub(8), place][what % 3].min(bytes.len());
            let number = [u64::MAX, 1 << 40, 1 << 31, 0, 1 << 63][what / 3 % 5];
            let to = (at + 8).min(bytes.len());
            bytes[at..to].copy_from_slice(&number.to_le_bytes()[..to - at]);
        }
        8 => {
            let (open, close) = [("[", "]"), ("{\"a\":", "}"), ("(", ")"), ("-", "")][what % 4];
            let depth = 10_usize.pow(1 + (what / 4 % 4) as u32);
            let nested = [open.repeat(depth), "1".into(), close.repeat(depth)].concat();
            drop(bytes.splice(place..place, nested.bytes()));
        }
        9 => replace_word(bytes, place, what),
        _ => {
            let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            let line = lines[place % lines.len()].to_vec();
            let copies = [&line[..], b"\n"].concat().repeat(1 + what % 40);
            drop(bytes.splice(0..0, copies));
        }
    }
}

/// Replaces the first number behind a place.
fn replace_number(bytes: &mut Vec<u8>, place: usize, number: &str) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(from) = bytes[place..].iter().position(is_digit) else {
        return;
    };
    let from = place + from;
    let length = bytes[from..]
        .iter()
        .take_while(|byte| is_digit(byte))
        .count();
    drop(bytes.splice(from..from + length, number.bytes()));
}

/// Replaces the first quoted text behind a place by another one of the file, or by a word.
fn replace_word(bytes: &mut Vec<u8>, place: usize, what: usize) {
    let quotes: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] == b'"').collect();
    let Some(first) = quotes.iter().position(|&at| at >= place) else {
        return;
    };
    let Some((&from, &to)) = quotes.get(first).zip(quotes.get(first + 1)) else {
        return;
    };
    let other = what % quotes.len();
    let word = match (quotes.get(other), quotes.get(other + 1)) {
        (Some(&from), Some(&to)) if !what.is_multiple_of(3) => bytes[from..=to].to_vec(),
        _ => WORDS[what % WORDS.len()].into(),
    };
    drop(bytes.splice(from..=to, word));
}
