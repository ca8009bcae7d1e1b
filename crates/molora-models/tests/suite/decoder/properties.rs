//! Padding, caches and packing change nothing.

use burn::tensor::{Bool, Int, Tensor};
use molora_models::{Decoder, DecoderInput};
use molora_testkit::{assert_close, device};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::world::{FAMILIES, context, family, gpt2, llama, logits, model, qwen2, qwen3, sequence};

/// Values agree up to the order of sums.
const ROUNDING: f32 = 1e-5;

fn any_config() -> impl Strategy<Value = Value> {
    let base = prop::sample::select(vec![llama(), qwen2(), qwen3(), gpt2()]);
    let heads = prop::sample::select(vec![(1, 1), (2, 1), (4, 2), (4, 4), (8, 1)]);
    (base, heads, 1..3usize).prop_map(|(mut config, (heads, kv_heads), layers)| {
        if config["model_type"] == "gpt2" {
            config["n_head"] = heads.into();
            config["n_layer"] = layers.into();
        } else {
            config["num_attention_heads"] = heads.into();
            config["num_key_value_heads"] = kv_heads.into();
            config["num_hidden_layers"] = layers.into();
            config["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
        }
        config
    })
}

/// Any family: one whose shape is drawn, or one of the golden cases with other numbers.
fn any_model() -> impl Strategy<Value = Decoder> {
    let drawn = (any_config(), any::<u64>()).prop_map(|(config, seed)| model(&config, seed));
    let bundled = (prop::sample::select(FAMILIES.to_vec()), any::<u64>());
    prop_oneof![drawn, bundled.prop_map(|(name, seed)| family(name, seed))]
}

/// One row with padding of token 5 on both sides.
fn padded(tokens: &[usize], left: usize, right: usize) -> DecoderInput {
    let row = [&vec![5; left][..], tokens, &vec![5; right][..]].concat();
    let input = DecoderInput::from_sequences(&[row], &device());
    let parts = [(left, false), (tokens.len(), true), (right, false)];
    let parts = parts.into_iter().filter(|(length, _)| *length > 0);
    let parts = parts.map(|(length, real)| Tensor::full([1, length], real, &device()));
    let mask: Tensor<2, Bool> = Tensor::cat(parts.collect(), 1);
    DecoderInput { mask, ..input }
}

fn alone(model: &Decoder, tokens: &[usize]) -> Tensor<3> {
    logits(model, &padded(tokens, 0, 0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn padding_changes_nothing(
        model in any_model(), length in 1..9usize, left in 0..4usize, right in 0..4usize, seed: u64,
    ) {
        let tokens = sequence(length, seed);
        let after = logits(&model, &padded(&tokens, left, right)).narrow(1, left, length);
        assert_close(after, alone(&model, &tokens), ROUNDING, "padded");
    }

    #[test]
    fn a_cache_changes_nothing(
        model in any_model(), lengths in prop::collection::vec(1..4usize, 1..5), left in 0..3usize,
        seed: u64,
    ) {
        let tokens = sequence(lengths.iter().sum(), seed);
        let all = padded(&tokens, left, 0);
        let (mut cache, mut parts, mut start) = (model.cache(), Vec::new(), 0);
        for (index, &length) in lengths.iter().enumerate() {
            // Padding comes with the first piece.
            let length = if index == 0 { length + left } else { length };
            let part = DecoderInput {
                ids: all.ids.clone().narrow(1, start, length),
                mask: all.mask.clone().narrow(1, start, length),
                segments: None,
            };
            let output = model.forward_cached(&part, &mut cache, &context(&part));
            parts.push(model.logits(output.hidden));
            start += length;
        }
        let after = Tensor::cat(parts, 1).narrow(1, left, tokens.len());
        assert_close(after, alone(&model, &tokens), ROUNDING, "cached");
    }

    #[test]
    fn packed_sequences_do_not_see_each_other(
        model in any_model(), lengths in prop::collection::vec(1..9usize, 1..4), seed: u64,
    ) {
        let sequences: Vec<Vec<usize>> =
            lengths.iter().zip(0..).map(|(&length, index)| sequence(length, index)).collect();
        let segments: Vec<i64> =
            lengths.iter().zip(3..).flat_map(|(&length, number)| vec![number; length]).collect();
        let mut input = padded(&sequences.concat(), 0, 0);
        let segments = Tensor::<1, Int>::from_ints(&segments[..], &device());
        input.segments = Some(segments.unsqueeze());
        let packed = logits(&model, &input);
        let mut start = 0;
        for tokens in &sequences {
            let part = packed.clone().narrow(1, start, tokens.len());
            assert_close(part, alone(&model, tokens), ROUNDING, "packed");
            start += tokens.len();
        }
    }
}
