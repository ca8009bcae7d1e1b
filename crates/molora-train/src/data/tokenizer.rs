//! Texts to token ids, through the `tokenizer.json` of a model folder.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tokenizers::utils::truncation::{TruncationParams, truncate_encodings};
use tokenizers::{Encoding, PostProcessor, Tokenizer};

use super::error::DataError;
use super::fields::beginning;

/// One tokenized input: special tokens included, no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// 0 for the first text, 1 for the second; as long as `ids`.
    pub type_ids: Vec<u32>,
    /// Whether the text was too long and lost its end.
    pub is_cut: bool,
}

/// The tokenizer of a model folder, with the file's own padding and truncation switched off.
///
/// MiniLM's file, for one, pads everything to 128 tokens: attention over that padding would cost
/// more than the text. Batches pad to their own longest row instead.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    path: PathBuf,
    max_id: u32,
    /// Special tokens that stand in front of a text.
    front: Vec<u32>,
    /// Rows of the model's embedding, once they are known.
    rows: Option<usize>,
}

/// Texts of one word or letter, of which a tokenizer knows at least one.
const PROBES: [&str; 6] = ["a", "A", "0", ".", "the", "_"];

impl TextTokenizer {
    /// Reads `tokenizer.json` in `model_dir`.
    ///
    /// # Errors
    /// If the file is missing or no tokenizer; the message names it.
    pub fn from_folder(model_dir: &Path) -> Result<Self, DataError> {
        let path = model_dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| DataError::Read {
            path: path.clone(),
            source,
        })?;
        match Self::from_bytes(&bytes) {
            Ok((tokenizer, max_id)) => Ok(Self {
                front: front(&tokenizer),
                tokenizer,
                path,
                max_id,
                rows: None,
            }),
            Err(source) => Err(DataError::Tokenizer { path, source }),
        }
    }

    fn from_bytes(bytes: &[u8]) -> tokenizers::Result<(Tokenizer, u32)> {
        // tokenizers 0.22 panics where a file breaks off inside its decoder.
        serde_json::from_slice::<serde::de::IgnoredAny>(bytes)?;
        let mut tokenizer = Tokenizer::from_bytes(bytes)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None)?;
        let max_id = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        Ok((tokenizer, max_id))
    }

    /// The largest token id that it can yield.
    pub fn max_id(&self) -> u32 {
        self.max_id
    }

    /// Checks that every id has a row in an embedding of `vocab_size` rows. Added tokens without one
    /// are named in a warning, and a text that holds one of them is refused from here on.
    ///
    /// # Errors
    /// If the largest id of the vocabulary, added tokens aside, is too large; the message gives both
    /// numbers.
    pub fn check_vocabulary(&mut self, vocab_size: usize) -> Result<(), DataError> {
        self.rows = Some(vocab_size);
        if (self.max_id as usize) < vocab_size {
            return Ok(());
        }
        let added = self.tokenizer.get_added_tokens_decoder();
        let own = self.tokenizer.get_vocab(false).into_values();
        let largest = own.filter(|id| !added.contains_key(id)).max().unwrap_or(0);
        let path = self.path.clone();
        if largest as usize >= vocab_size {
            return Err(DataError::Vocabulary {
                path,
                max_id: largest,
                vocab_size,
            });
        }
        let mut without: Vec<_> = added
            .iter()
            .filter(|(id, _)| **id as usize >= vocab_size)
            .map(|(id, token)| (id, format!("{} ({id})", beginning(&token.content))))
            .collect();
        without.sort();
        let names: Vec<&str> = without.iter().take(5).map(|(_, name)| &name[..]).collect();
        tracing::warn!(
            "{}: {} added tokens have no row in the model's embedding of {vocab_size}, and a text \
             with one of them is refused: {}",
            path.display(),
            without.len(),
            names.join(", ")
        );
        Ok(())
    }

    /// The special tokens that the tokenizer puts in front of a text.
    pub fn front(&self) -> &[u32] {
        &self.front
    }

    /// The id of a token by its text.
    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The longest added token that a text begins with.
    pub(crate) fn added_at_start(&self, text: &str) -> Option<u32> {
        let added = self.tokenizer.get_added_tokens_decoder();
        let fits = added
            .iter()
            .filter(|(_, token)| !token.content.is_empty() && text.starts_with(&token.content));
        let longest = fits.max_by_key(|(_, token)| token.content.len());
        longest.map(|(id, _)| *id)
    }

    /// The first id without a row in the model's embedding, as an error.
    fn check_rows(&self, text: &str, ids: &[u32]) -> Result<(), DataError> {
        let Some(vocab_size) = self.rows else {
            return Ok(());
        };
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(&id) => Err(DataError::NoRow {
                path: self.path.clone(),
                text: beginning(text),
                token: self.tokenizer.id_to_token(id).unwrap_or_default(),
                id,
                vocab_size,
            }),
        }
    }

    /// Tokenizes one text or a pair, cut to at most `max_length` tokens, special tokens included.
    ///
    /// A pair loses tokens from its longer text first; special tokens are never cut. Texts are cut
    /// at their end.
    ///
    /// # Errors
    /// If `max_length` leaves no room for text, or if the tokenizer fails on the text.
    pub fn encode(
        &self,
        input: &str,
        input_b: Option<&str>,
        max_length: usize,
    ) -> Result<Encoded, DataError> {
        let special = self.num_special(input_b.is_some());
        let room = max_length.saturating_sub(special);
        if room == 0 {
            return Err(DataError::MaxLength {
                max_length,
                special,
            });
        }
        let (encoding, is_cut) =
            self.encode_within(input, input_b, room)
                .map_err(|source| DataError::Encode {
                    text: beginning(input),
                    source,
                })?;
        self.check_rows(input, encoding.get_ids())?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            is_cut,
        })
    }

    /// Tokens of a prompt, and how many bytes of white space at its end
    /// they leave out: where a word behind it would take that space into its own token, the model has
    /// learned the space as a part of the word. `with_front` adds the special tokens in front.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode_prompt(
        &self,
        text: &str,
        with_front: bool,
    ) -> Result<(Vec<u32>, usize), DataError> {
        let front = if with_front { self.front() } else { &[] };
        let ids = self.encode_whole(text, false)?;
        let trimmed = text.trim_end();
        let mut count = ids.len();
        if trimmed.len() < text.len() {
            let longer = self.encode_whole(&format!("{text}{}", PROBES[0]), false)?;
            let same = ids.iter().zip(&longer).take_while(|(a, b)| a == b).count();
            let covers_words = ids[..same].starts_with(&self.encode_whole(trimmed, false)?);
            if covers_words && front.len() + same > 0 {
                count = same;
            }
        }
        let left_out = if count < ids.len() {
            text.len() - trimmed.len()
        } else {
            0
        };
        Ok(([front, &ids[..count]].concat(), left_out))
    }

    /// Tokenizes a text whole; `with_special` adds the special tokens around it.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode_whole(&self, text: &str, with_special: bool) -> Result<Vec<u32>, DataError> {
        let encoding = self.tokenizer.encode(text, with_special);
        let encoding = encoding.map_err(|source| DataError::Encode {
            text: beginning(text),
            source,
        })?;
        self.check_rows(text, encoding.get_ids())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// If the tokenizer has no decoder for them.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|source| DataError::Encode {
                text: format!("{ids:?}"),
                source,
            })
    }

    /// The text of one token; special tokens by their names.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub(crate) fn token(&self, id: u32) -> Result<String, DataError> {
        let text = self.decode(&[id])?;
        match text.is_empty() {
            true => Ok(self.tokenizer.id_to_token(id).unwrap_or_default()),
            false => Ok(text),
        }
    }

    /// Tokenizes many inputs on all cores; the results are in the order of the inputs.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_batch(
        &self,
        inputs: &[(&str, Option<&str>)],
        max_length: usize,
    ) -> Result<Vec<Encoded>, DataError> {
        inputs
            .par_iter()
            .map(|(input, input_b)| self.encode(input, *input_b, max_length))
            .collect()
    }

    fn num_special(&self, is_pair: bool) -> usize {
        self.tokenizer
            .get_post_processor()
            .map_or(0, |processor| processor.added_tokens(is_pair))
    }

    /// The limit differs by run, and setting it in the tokenizer would need a copy of it: so the
    /// texts are tokenized bare, cut here, and then given their special tokens.
    fn encode_within(
        &self,
        input: &str,
        input_b: Option<&str>,
        room: usize,
    ) -> tokenizers::Result<(Encoding, bool)> {
        let first = self.tokenizer.encode_fast(input, false)?;
        let second = input_b
            .map(|text| self.tokenizer.encode_fast(text, false))
            .transpose()?;
        let params = TruncationParams {
            max_length: room,
            ..Default::default()
        };
        let length = first.len() + second.as_ref().map_or(0, Encoding::len);
        let (first, second) = truncate_encodings(first, second, &params)?;
        let encoding = self.tokenizer.post_process(first, second, true)?;
        Ok((encoding, length > room))
    }
}

/// The special tokens in front of a text: those of a text that is no special token itself, up to its
/// first own token.
fn front(tokenizer: &Tokenizer) -> Vec<u32> {
    for probe in PROBES {
        let Ok(encoding) = tokenizer.encode_fast(probe, true) else {
            continue;
        };
        let special = encoding.get_special_tokens_mask();
        let count = special.iter().take_while(|&&special| special == 1).count();
        if count < special.len() {
            return encoding.get_ids()[..count].to_vec();
        }
    }
    // A tokenizer that knows no such text: all that it adds.
    let encoding = tokenizer.encode_fast("", true);
    encoding.map_or(Vec::new(), |encoding| encoding.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model_dir() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models/all-MiniLM-L6-v2")
    }

    fn tokenizer() -> TextTokenizer {
        TextTokenizer::from_folder(&model_dir()).unwrap()
    }

    #[test]
    fn one_text_has_special_tokens_and_no_padding() {
        let encoded = tokenizer().encode("Hello, world!", None, 64).unwrap();
        // [CLS] hello , world ! [SEP] in the uncased BERT vocabulary.
        assert_eq!(encoded.ids, [101, 7592, 1010, 2088, 999, 102]);
        assert_eq!(encoded.type_ids, [0; 6]);
    }

    #[test]
    fn long_texts_are_cut_with_special_tokens_kept() {
        let encoded = tokenizer().encode(&"word ".repeat(300), None, 8).unwrap();
        assert_eq!(encoded.ids.len(), 8);
        assert_eq!((encoded.ids[0], encoded.ids[7]), (101, 102));
        let whole = tokenizer().encode(&"word ".repeat(300), None, 400).unwrap();
        assert_eq!(whole.ids.len(), 302, "the file's own limit of 128 is off");
    }

    #[test]
    fn pairs_lose_tokens_from_the_longer_text() {
        let encoded = tokenizer()
            .encode("hello world", Some(&"word ".repeat(50)), 12)
            .unwrap();
        assert_eq!(encoded.ids.len(), 12);
        // [CLS] hello world [SEP] are of type 0, seven words and [SEP] of type 1.
        assert_eq!(encoded.type_ids, [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(&encoded.ids[..4], [101, 7592, 2088, 102]);
    }

    #[test]
    fn cutting_agrees_with_the_tokenizers_crate() {
        let ours = tokenizer();
        let pairs = [
            ("a b c d e f g", "h i"),
            ("a", "b c d e f"),
            ("a b c d", "e f g h i"),
        ];
        for max_length in 4..=12 {
            let mut theirs = ours.tokenizer.clone();
            let params = TruncationParams {
                max_length,
                ..Default::default()
            };
            theirs.with_truncation(Some(params)).unwrap();
            for (first, second) in pairs {
                let expected = theirs.encode((first, second), true).unwrap();
                let found = ours.encode(first, Some(second), max_length).unwrap();
                assert_eq!(found.ids, expected.get_ids());
                assert_eq!(found.type_ids, expected.get_type_ids());
            }
        }
    }

    #[test]
    fn a_batch_equals_its_parts() {
        let inputs = [("one", None), ("two", Some("three")), ("", None)];
        let batch = tokenizer().encode_batch(&inputs, 16).unwrap();
        for (encoded, (input, input_b)) in batch.iter().zip(inputs) {
            assert_eq!(*encoded, tokenizer().encode(input, input_b, 16).unwrap());
        }
        assert_eq!(batch.len(), 3);
    }

    #[test]
    fn the_vocabulary_has_to_cover_all_ids() {
        assert!(tokenizer().check_vocabulary(30522).is_ok());
        let mut tokenizer = tokenizer();
        let message = tokenizer.check_vocabulary(30521).unwrap_err().to_string();
        assert!(message.contains("ids up to 30521"), "{message}");
        assert!(message.contains("has 30521 entries"), "{message}");
    }

    #[test]
    fn a_limit_without_room_is_an_error() {
        let message = tokenizer().encode("a", None, 2).unwrap_err().to_string();
        assert_eq!(
            message,
            "max_length 2 leaves no room for text beside 2 special tokens"
        );
        assert!(tokenizer().encode("a", None, 3).is_ok());
        assert!(tokenizer().encode("a", Some("b"), 3).is_err());
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = TextTokenizer::from_folder(dir.path())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("tokenizer.json: cannot be read"),
            "{message}"
        );
        std::fs::write(dir.path().join("tokenizer.json"), "{\"version\":").unwrap();
        let message = TextTokenizer::from_folder(dir.path())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("tokenizer.json: no usable tokenizer"),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
}
