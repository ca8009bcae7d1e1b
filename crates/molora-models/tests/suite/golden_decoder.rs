//! Decoders against transformers: any configuration in a golden folder with the model's own files
//! beside `expected.safetensors`.

use std::path::Path;

use burn::tensor::{Bool, Device, Int, Tensor, activation};
use molora_models::{
    Decoder, DecoderConfig, DecoderInput, Finish, ForwardContext, GenerateOptions, Generated,
};
use molora_testkit::golden::{self, Case};
use molora_testkit::{assert_close, autodiff_device, device};

/// Relative to the largest value.
const TOLERANCE: f32 = 1e-4;

fn decoder_cases() -> Vec<Case> {
    let bundled = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    golden::of_kind(
        golden::cases(bundled, golden::MOLORA_GOLDEN),
        "decoder",
        |case| {
            let config = case.json("config.json").unwrap_or_default();
            let family = config["model_type"].as_str().unwrap_or_default();
            DecoderConfig::families().any(|name| name == family) && case.tensors().has("lm_loss")
        },
    )
}

fn read(case: &Case, device: &Device) -> (Decoder, DecoderInput) {
    let model = Decoder::from_folder(&case.dir, device)
        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let expected = case.tensors();
    let input = DecoderInput {
        ids: expected.int_tensor("input_ids", device),
        mask: expected.bool_tensor("attention_mask", device),
        segments: None,
    };
    (model, input)
}

fn context(mask: &Tensor<2, Bool>) -> ForwardContext {
    ForwardContext::new(mask.clone().float())
}

fn logits(model: &Decoder, input: &DecoderInput) -> Tensor<3> {
    model.logits(model.forward(input, &context(&input.mask)).hidden)
}

/// Zeros at padded positions, where a model may hold anything.
fn at_real_tokens(values: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<3> {
    let padding = mask.clone().bool_not().unsqueeze_dim::<3>(2);
    let padding = padding.expand(values.dims());
    values.mask_fill(padding, 0.0)
}

/// Mean of `-log p(next token)` over real next tokens.
fn lm_loss(logits: Tensor<3>, input: &DecoderInput) -> Tensor<1> {
    let [batch, tokens, vocab_size] = logits.dims();
    let scores = activation::log_softmax(logits.narrow(1, 0, tokens - 1), 2);
    let next: Tensor<2, Int> = input.ids.clone().narrow(1, 1, tokens - 1);
    let mask = input.mask.clone().narrow(1, 1, tokens - 1).float();
    let chosen = scores
        .reshape([batch * (tokens - 1), vocab_size])
        .gather(1, next.reshape([batch * (tokens - 1), 1]))
        .reshape([batch, tokens - 1]);
    -(chosen * mask.clone()).sum() / mask.sum()
}

fn check(case: &Case, device: &Device) {
    let expected = case.tensors();
    let (model, input) = read(case, device);
    let logits = logits(&model, &input);
    let wanted = at_real_tokens(expected.tensor("logits", device), &input.mask);
    let what = format!("{}: logits", case.name);
    let actual = at_real_tokens(logits.clone(), &input.mask);
    assert_close(actual, wanted, TOLERANCE, &what);
    expected.assert_close("lm_loss", lm_loss(logits, &input), TOLERANCE);
}

#[test]
fn golden_decoder_equals_transformers() {
    for case in decoder_cases() {
        check(&case, &device());
    }
}

/// Training runs through autodiff, which must not change a value.
#[test]
fn golden_decoder_equals_transformers_under_autodiff() {
    for case in decoder_cases() {
        check(&case, &autodiff_device());
    }
}

#[test]
fn golden_decoder_generates_as_transformers_does() {
    let device = device();
    for case in decoder_cases() {
        let expected = case.tensors();
        let (model, _) = read(&case, &device);
        let [rows, prompt] = expected.shape("prompt")[..] else {
            panic!("{}: prompt has not two axes", case.name);
        };
        let length = expected.shape("greedy")[1];
        let input = DecoderInput {
            ids: expected.int_tensor("prompt", &device),
            mask: Tensor::full([rows, prompt], true, &device),
            segments: None,
        };
        let options = GenerateOptions {
            max_new_tokens: length - prompt,
            ..Default::default()
        };
        let generated = model.generate(&input, &options, &context(&input.mask));
        let wanted = expected.ints("greedy");
        let wanted = wanted.chunks(length).map(|row| Generated {
            tokens: row[prompt..].iter().map(|&token| token as usize).collect(),
            finish: Finish::MaxNewTokens,
        });
        let wanted: Vec<Generated> = wanted.collect();
        assert_eq!(generated, Ok(wanted), "{}", case.name);
    }
}

/// What padding holds, and on which side it stands, must not reach a real token.
#[test]
fn golden_decoder_ignores_padding() {
    let device = device();
    for case in decoder_cases() {
        let (model, input) = read(&case, &device);
        let before = logits(&model, &input);
        let padding = input.mask.clone().bool_not();
        let last = model.vocab_size() as i64 - 1;
        let junk = DecoderInput {
            ids: input.ids.clone().mask_fill(padding, last),
            ..input.clone()
        };
        assert_close(
            at_real_tokens(logits(&model, &junk), &input.mask),
            at_real_tokens(before.clone(), &input.mask),
            0.0,
            &case.name,
        );
        // The same rows with three more of padding in front.
        let [rows, width] = input.ids.dims();
        let moved = DecoderInput {
            ids: Tensor::cat(
                vec![Tensor::zeros([rows, 3], &device), input.ids.clone()],
                1,
            ),
            mask: Tensor::cat(
                vec![Tensor::full([rows, 3], false, &device), input.mask.clone()],
                1,
            ),
            segments: None,
        };
        let after = logits(&model, &moved).narrow(1, 3, width);
        assert_close(
            at_real_tokens(after, &input.mask),
            at_real_tokens(before.clone(), &input.mask),
            1e-5,
            &case.name,
        );
        if model.depends_on_length() {
            // A row alone is shorter than the batch, which is another text to these models.
            continue;
        }
        // Each row alone, moved to the right end of a longer one.
        let expected = case.tensors();
        for (row, mask) in expected.bools("attention_mask").chunks(width).enumerate() {
            let real = mask.iter().filter(|&&is_real| is_real).count();
            let ids = input.ids.clone().narrow(0, row, 1).narrow(1, 0, real);
            let moved = DecoderInput {
                ids: Tensor::cat(vec![Tensor::zeros([1, 3], &device), ids], 1),
                mask: Tensor::cat(
                    vec![
                        Tensor::full([1, 3], false, &device),
                        Tensor::full([1, real], true, &device),
                    ],
                    1,
                ),
                segments: None,
            };
            let after = logits(&model, &moved).narrow(1, 3, real);
            let before = before.clone().narrow(0, row, 1).narrow(1, 0, real);
            assert_close(after, before, 1e-5, &case.name);
        }
    }
}

/// Tokens given one by one, and in pieces, to a cache.
#[test]
fn golden_decoder_with_a_cache_equals_it_without() {
    let device = device();
    for case in decoder_cases() {
        let (model, input) = read(&case, &device);
        let before = logits(&model, &input);
        let tokens = input.ids.dims()[1];
        for piece in [1, 3, tokens] {
            let mut cache = model.cache();
            let mut parts = Vec::new();
            for start in (0..tokens).step_by(piece) {
                let length = piece.min(tokens - start);
                let part = DecoderInput {
                    ids: input.ids.clone().narrow(1, start, length),
                    mask: input.mask.clone().narrow(1, start, length),
                    segments: None,
                };
                let output = model.forward_cached(&part, &mut cache, &context(&part.mask));
                parts.push(model.logits(output.hidden));
            }
            assert_eq!(cache.num_tokens(), tokens);
            let (mut after, mut before, mut mask) =
                (Tensor::cat(parts, 1), before.clone(), input.mask.clone());
            if model.depends_on_length() {
                // What came before was a shorter text: the last piece alone is of the whole one.
                let last = (tokens - 1) / piece * piece;
                let end = |x: Tensor<3>| x.narrow(1, last, tokens - last);
                (after, before) = (end(after), end(before));
                mask = mask.narrow(1, last, tokens - last);
            }
            let after = at_real_tokens(after, &mask);
            let before = at_real_tokens(before, &mask);
            assert_close(after, before, 1e-5, &case.name);
        }
    }
}
