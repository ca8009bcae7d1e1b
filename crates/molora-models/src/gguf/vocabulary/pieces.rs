//! SentencePiece's pairs of pieces, as Llama 1 and 2 have them.
//!
//! llama.cpp joins the two neighbours whose piece has the highest score; the tokenizers library joins those
//! whose merge comes first. Both do the same if a piece's merges are next to each other and are all the ways in
//! which two pieces make it; this is checked, and the score of a piece is minus the place of its first merge.

use std::collections::{HashMap, HashSet};

use serde_json::{Value as Json, json};

use super::{File, Kind, Model, Tokens};
use crate::ModelError;

/// What stands for a space.
const SPACE: &str = "\u{2581}";

/// The scores of a file, one for each of `size` tokens, and its tokens.
pub(super) fn read(file: &File, size: usize) -> Result<(Model, Tokens), ModelError> {
    file.refuse_options(&[
        ("dropout", Json::Null),
        ("continuing_subword_prefix", Json::Null),
        ("end_of_word_suffix", Json::Null),
        ("ignore_merges", false.into()),
    ])?;
    if file.field("pre_tokenizer").is_some() {
        return Err(file.refuse("pre_tokenizer", "none with byte_fallback"));
    }
    let adds_space = adds_space(file)?;
    let own = file.own()?;
    let ranks = ranks(file, &own)?;
    let mut scores = vec![0.0; size];
    let mut tokens = Vec::new();
    for (text, id) in own {
        let is_unknown = file.root["model"]["unk_token"] == **text;
        let kind = match () {
            () if is_unknown => Kind::Unknown,
            () if is_byte(text) => Kind::Byte,
            () => Kind::Normal,
        };
        // Behind all merges: single characters are never joined from others.
        let rank = ranks.get(text.as_str()).copied().unwrap_or(ranks.len());
        // One beyond the model's tokens is refused where they are put in their places.
        if let Some(score) = scores.get_mut(id as usize) {
            *score = -(rank as f32);
        }
        tokens.push((text.clone(), id, kind));
    }
    Ok((Model::Pieces { scores, adds_space }, tokens))
}

/// Whether a space is put in front of a text, which the normaliser says.
fn adds_space(file: &File) -> Result<bool, ModelError> {
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let front = json!({"type": "Prepend", "prepend": SPACE});
    let root = file.field("normalizer");
    let steps = root.map(|root| match root["normalizers"].as_array() {
        Some(steps) => steps.clone(),
        None => vec![root.clone()],
    });
    match steps.as_deref() {
        Some([first, second]) if *first == front && *second == spaces => Ok(true),
        Some([only]) if *only == spaces => Ok(false),
        _ => {
            let expected =
                "Replace of a space by U+2581, with or without Prepend of U+2581 before it";
            Err(file.refuse("normalizer", expected))
        }
    }
}

/// `<0x00>` to `<0xFF>`.
fn is_byte(text: &str) -> bool {
    let digits = text
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Each joined piece's place among those that are joined.
fn ranks<'a>(
    file: &'a File,
    own: &[(&'a String, u32)],
) -> Result<HashMap<String, usize>, ModelError> {
    let refuse = |problem: String| Err(ModelError::file(&file.path, problem));
    let pieces: HashSet<&str> = own.iter().map(|(text, _)| text.as_str()).collect();
    let merges = file.merges()?;
    let mut ranks: HashMap<String, usize> = HashMap::new();
    let mut last = String::new();
    for (first, second) in &merges {
        let piece = format!("{first}{second}");
        if piece != last {
            if ranks.contains_key(&piece) {
                return refuse(format!(
                    "model.merges has merges of `{piece}` apart from each other, which scores of \
                     SentencePiece cannot say"
                ));
            }
            ranks.insert(piece.clone(), ranks.len());
            last = piece;
        }
    }
    let merges: HashSet<(&str, &str)> = merges.into_iter().collect();
    let added: HashSet<String> = file.added()?.into_iter().map(|(text, ..)| text).collect();
    let joined = own.iter().map(|(text, _)| text.as_str());
    for piece in joined.filter(|text| !is_byte(text) && !added.contains(*text)) {
        let splits = piece
            .char_indices()
            .skip(1)
            .map(|(at, _)| piece.split_at(at));
        for (first, second) in splits {
            let is_pair = pieces.contains(first) && pieces.contains(second);
            if is_pair && !merges.contains(&(first, second)) {
                return refuse(format!(
                    "model.merges lacks `{first}` and `{second}`, which SentencePiece would join to \
                     `{piece}`"
                ));
            }
        }
    }
    Ok(ranks)
}
