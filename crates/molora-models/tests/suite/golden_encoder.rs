//! Encoders against transformers: any configuration in a golden folder with the model's own
//! files beside `expected.safetensors`.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use molora_models::{Encoder, EncoderInput, ForwardContext, masked_mean};
use molora_testkit::golden::{self, Case, Tensors};
use molora_testkit::{FORWARD, autodiff_device, device};

const FAMILIES: [&str; 8] = [
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "mpnet",
    "modernbert",
    "deberta-v2",
];

fn encoder_cases() -> Vec<Case> {
    let bundled = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    golden::of_kind(
        golden::cases(bundled, golden::MOLORA_GOLDEN),
        "encoder",
        |case| {
            let config = case.json("config.json").unwrap_or_default();
            let family = config["model_type"].as_str().unwrap_or_default();
            FAMILIES.contains(&family) && case.tensors().has("last_hidden_state")
        },
    )
}

/// The case's batch. Transformers takes type 0 for every token where no types are given.
fn batch(expected: &Tensors, device: &Device) -> EncoderInput {
    let ids = expected.int_tensor::<2>("input_ids", device);
    let type_ids = match expected.has("token_type_ids") {
        true => expected.int_tensor("token_type_ids", device),
        false => ids.zeros_like(),
    };
    EncoderInput {
        ids,
        type_ids,
        mask: expected.bool_tensor("attention_mask", device),
    }
}

/// Hidden states `[B, T, D]` and the normalised masked mean `[B, D]`.
fn encode(model: &Encoder, input: &EncoderInput) -> (Tensor<3>, Tensor<2>) {
    let context = ForwardContext::new(input.mask.clone().float());
    let hidden = model.forward(input, &context).hidden;
    let mean = masked_mean(hidden.clone(), &input.mask);
    let norm = mean.clone().square().sum_dim(1).sqrt();
    (hidden, mean / norm)
}

/// Zeros at padded positions, where a model may hold anything.
fn at_real_tokens(hidden: Tensor<3>, input: &EncoderInput) -> Tensor<3> {
    let padding = input
        .mask
        .clone()
        .bool_not()
        .unsqueeze_dim::<3>(2)
        .expand(hidden.dims());
    hidden.mask_fill(padding, 0.0)
}

fn check(case: &Case, device: &Device) {
    let expected = case.tensors();
    let model = Encoder::from_folder(&case.dir, device)
        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let input = batch(&expected, device);
    let (hidden, embedding) = encode(&model, &input);
    let wanted = at_real_tokens(expected.tensor("last_hidden_state", device), &input);
    let what = format!("{}: last_hidden_state", case.name);
    molora_testkit::assert_close(at_real_tokens(hidden, &input), wanted, FORWARD, &what);
    if expected.has("sentence_embedding") {
        expected.assert_close("sentence_embedding", embedding, FORWARD);
    }
}

#[test]
fn golden_encoder_equals_transformers() {
    for case in encoder_cases() {
        check(&case, &device());
    }
}

/// Training runs the same kernels through autodiff, which must not change a value.
#[test]
fn golden_encoder_equals_transformers_under_autodiff() {
    for case in encoder_cases() {
        check(&case, &autodiff_device());
    }
}

/// What padding holds must not reach a real token.
#[test]
fn golden_encoder_ignores_the_content_of_padding() {
    let device = device();
    for case in encoder_cases() {
        let expected = case.tensors();
        let model = Encoder::from_folder(&case.dir, &device).expect("read in the test above");
        let input = batch(&expected, &device);
        let last = model.vocab_size() as i64 - 1;
        let padding = input.mask.clone().bool_not();
        let junk = EncoderInput {
            ids: input.ids.clone().mask_fill(padding, last),
            ..input.clone()
        };
        let (before, after) = (encode(&model, &input), encode(&model, &junk));
        molora_testkit::assert_close(
            at_real_tokens(after.0, &input),
            at_real_tokens(before.0, &input),
            0.0,
            &case.name,
        );
        molora_testkit::assert_close(after.1, before.1, 0.0, &case.name);
    }
}
