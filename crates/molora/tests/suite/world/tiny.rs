//! The tiny BERT of the world: its configuration, tokenizer and weights.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Draw, LAYERS, Tensors, VOCABULARY};

const WIDTH: usize = 32;
const INNER: usize = 64;

/// Its `config.json`.
pub(super) fn config() -> Value {
    json!({"model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": INNER,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 32,
        "type_vocab_size": 2})
}

/// Whole words in lower case, with BERT's special tokens.
pub(super) fn tokenizer() -> Value {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(String::from);
    let words = ["purr", "bark", "sun", "rain", "snow", "never", "surely"].map(String::from);
    let fillers = (0..VOCABULARY - special.len() - words.len()).map(|n| format!("w{n}"));
    let all = special.into_iter().chain(words).chain(fillers);
    let vocab: BTreeMap<String, usize> = all.enumerate().map(|(id, word)| (word, id)).collect();
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}})
}

/// Its tensors, random but for the norms.
pub(super) fn weights() -> Tensors {
    let mut tensors = Tensors::new();
    let mut draw = Draw(7);
    let mut uniform = |name: String, shape: &[usize], bound: f32| {
        let count = shape.iter().product();
        let values = (0..count).map(|_| bound * draw.number()).collect();
        tensors.insert(name, (shape.to_vec(), values));
    };
    for (table, rows, bound) in [
        ("word", VOCABULARY, 1.0),
        ("position", 32, 0.1),
        ("token_type", 2, 0.1),
    ] {
        uniform(
            format!("embeddings.{table}_embeddings.weight"),
            &[rows, WIDTH],
            bound,
        );
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..LAYERS {
        let at = |part: &str| format!("encoder.layer.{layer}.{part}");
        for (part, input, output) in [
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", WIDTH, INNER),
            ("output.dense", INNER, WIDTH),
        ] {
            let bound = (3.0 / input as f32).sqrt();
            uniform(format!("{}.weight", at(part)), &[output, input], bound);
            uniform(format!("{}.bias", at(part)), &[output], 0.1);
        }
        norms.extend([at("attention.output.LayerNorm"), at("output.LayerNorm")]);
    }
    for norm in norms {
        tensors.insert(format!("{norm}.weight"), (vec![WIDTH], vec![1.0; WIDTH]));
        tensors.insert(format!("{norm}.bias"), (vec![WIDTH], vec![0.0; WIDTH]));
    }
    tensors
}
