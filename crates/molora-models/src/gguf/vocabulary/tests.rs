use serde_json::{Value as Json, json};

use super::byte_pairs::{LLAMA_3, QWEN_2};
use super::*;

/// What becomes of a tokenizer for a model with rows for `size` tokens.
fn read(tokenizer: &Json, size: usize) -> Result<Vocabulary, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    std::fs::write(path, tokenizer.to_string()).expect("writable");
    Vocabulary::from_folder(folder.path(), size).map_err(|error| error.to_string())
}

fn value(vocabulary: &Vocabulary, key: &str) -> Value {
    let values = vocabulary.values();
    let found = values.into_iter().find(|(name, _)| name == key);
    found.unwrap_or_else(|| panic!("no {key}")).1
}

fn added(id: u32, text: &str, special: bool) -> Json {
    json!({"id": id, "content": text, "special": special, "lstrip": false, "rstrip": false,
        "single_word": false, "normalized": false})
}

/// Pieces as Llama 2 has them.
fn pieces() -> Json {
    let space = "\u{2581}";
    json!({
        "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "\u{2581}you", false)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": space},
            {"type": "Replace", "pattern": {"String": " "}, "content": space}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false,
            "vocab": {"<unk>": 0, "<s>": 1, "<0x41>": 3, "\u{2581}": 4, "a": 5, "b": 6, "ab": 7,
                "\u{2581}ab": 8},
            "merges": ["a b", "\u{2581} ab"]}})
}

#[test]
fn pieces_have_scores_in_the_order_of_their_merges() {
    let vocabulary = read(&pieces(), 10).expect("a tokenizer of llama.cpp");
    let vocabulary = vocabulary.with_token(SpecialToken::End, 2);
    let value = |key: &str| value(&vocabulary, &format!("tokenizer.ggml.{key}"));
    assert_eq!(value("model"), Value::Text("llama".into()));
    let kinds = vec![2, 3, 4, 6, 1, 1, 1, 1, 1, 5];
    assert_eq!(value("token_type"), Value::Integers(kinds));
    let scores = vec![0.0, 0.0, 0.0, 0.0, -2.0, -2.0, -2.0, 0.0, -1.0, 0.0];
    assert_eq!(value("scores"), Value::Numbers(scores));
    let Value::Texts(tokens) = value("tokens") else {
        panic!("tokens are texts");
    };
    assert_eq!(tokens[2], " you", "looked for in texts as they are");
    assert_eq!(tokens[9], "[PAD9]");
    assert_eq!(value("add_space_prefix"), Value::Bool(true));
    assert_eq!(value("add_bos_token"), Value::Bool(true));
    assert_eq!(value("add_eos_token"), Value::Bool(false));
    assert_eq!(value("bos_token_id"), Value::Integer(1));
    assert_eq!(value("eos_token_id"), Value::Integer(2));
}

#[test]
fn pieces_that_scores_cannot_order_are_refused() {
    let mut tokenizer = pieces();
    tokenizer["model"]["vocab"]["\u{2581}a"] = json!(9);
    let error = read(&tokenizer, 10).expect_err("another way to a piece");
    assert!(
        error.contains("model.merges lacks `\u{2581}` and `a`"),
        "{error}"
    );
    let mut tokenizer = pieces();
    tokenizer["model"]["merges"] = json!(["a b", "\u{2581} ab", "a b"]);
    let error = read(&tokenizer, 10).expect_err("twice");
    assert!(
        error.contains("merges of `ab` apart from each other"),
        "{error}"
    );
    let error = read(&pieces(), 8).expect_err("too few rows");
    assert!(
        error.contains("token 8 `\u{2581}ab` is beyond the model's 8 tokens"),
        "{error}"
    );
}

/// A tokenizer of pairs of bytes with these steps.
fn byte_pairs(steps: &[Json]) -> Json {
    json!({"added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
            "ignore_merges": false}})
}

fn split(pattern: &str) -> [Json; 2] {
    let pattern = json!({"Regex": pattern});
    let step =
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false});
    [step, bytes]
}

#[test]
fn rules_are_found_by_what_they_do() {
    let rule = |tokenizer: &Json| {
        let vocabulary = read(tokenizer, 3).expect("a tokenizer of llama.cpp");
        value(&vocabulary, "tokenizer.ggml.pre")
    };
    let mut llama = byte_pairs(&split(LLAMA_3));
    llama["model"]["ignore_merges"] = true.into();
    assert_eq!(rule(&llama), Value::Text("llama-bpe".into()));
    let mut qwen = byte_pairs(&split(QWEN_2));
    qwen["normalizer"] = json!({"type": "NFC"});
    assert_eq!(rule(&qwen), Value::Text("qwen2".into()));
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    assert_eq!(
        rule(&byte_pairs(std::slice::from_ref(&bytes))),
        Value::Text("gpt-2".into())
    );
    let vocabulary = read(&qwen, 3).expect("a tokenizer");
    let merges = value(&vocabulary, "tokenizer.ggml.merges");
    assert_eq!(merges, Value::Texts(vec!["a b".into()]));
    // The same with something that llama.cpp does not do.
    let error = read(&byte_pairs(&split(LLAMA_3)), 3).expect_err("merges count");
    assert!(
        error.contains("model.ignore_merges is false; llama.cpp reads true"),
        "{error}"
    );
    llama["normalizer"] = json!({"type": "NFC"});
    let error = read(&llama, 3).expect_err("a normaliser");
    assert!(
        error.contains("normalizer is {\"type\":\"NFC\"}"),
        "{error}"
    );
    let prefix = json!({"type": "ByteLevel", "add_prefix_space": true});
    for steps in [&split("x")[..], &[prefix]] {
        let error = read(&byte_pairs(steps), 3).expect_err("no rule");
        assert!(
            error.contains("the rules of gpt-2, smollm, llama-bpe, qwen2"),
            "{error}"
        );
    }
    qwen["model"]["dropout"] = json!(0.1);
    let error = read(&qwen, 3).expect_err("random");
    assert!(error.contains("model.dropout is 0.1"), "{error}");
}
