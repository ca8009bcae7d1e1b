//! Encoder-decoders against transformers: any configuration in a golden folder with the model's own files beside
//! `expected.safetensors`.

use std::path::Path;

use burn::tensor::{Bool, Device, Tensor};
use molora_adapters::BankConfig;
use molora_kernels::random::Seed;
use molora_models::{
    Adaptable, AdapterSpec, BeamOptions, DecoderInput, Encoded, EncoderDecoder, Finish,
    ForwardContext, GenerateOptions, Generated, ModelWeights, RouterScope,
};
use molora_routing::RouterConfig;
use molora_testkit::golden::{self, Case};
use molora_testkit::{assert_close, autodiff_device, device};

/// Relative to the largest value.
const TOLERANCE: f32 = 1e-4;

const FAMILIES: [&str; 4] = ["t5", "mt5", "umt5", "bart"];

fn cases() -> Vec<Case> {
    let bundled = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    golden::of_kind(
        golden::cases(bundled, golden::MOLORA_GOLDEN),
        "encoder-decoder",
        |case| {
            let config = case.json("config.json").unwrap_or_default();
            let family = config["model_type"].as_str().unwrap_or_default();
            FAMILIES.contains(&family) && case.tensors().has("decoder_input_ids")
        },
    )
}

fn read(case: &Case, device: &Device) -> (EncoderDecoder, DecoderInput, DecoderInput) {
    let model = EncoderDecoder::from_folder(&case.dir, device)
        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let expected = case.tensors();
    let source = DecoderInput {
        ids: expected.int_tensor("input_ids", device),
        mask: expected.bool_tensor("attention_mask", device),
        segments: None,
    };
    let ids = expected.int_tensor::<2>("decoder_input_ids", device);
    let target = DecoderInput {
        mask: Tensor::full(ids.dims(), true, device),
        ids,
        segments: None,
    };
    (model, source, target)
}

/// The mask is replaced by each text's own.
fn context(source: &DecoderInput) -> ForwardContext {
    ForwardContext::new(source.mask.clone().float())
}

fn logits(model: &EncoderDecoder, target: &DecoderInput, encoded: &Encoded) -> Tensor<3> {
    let context = context(target);
    model.logits(model.decode(target, encoded, &context).hidden)
}

/// Zeros at padded positions, where a model may hold anything.
fn at_real_tokens(values: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<3> {
    let padding = mask.clone().bool_not().unsqueeze_dim::<3>(2);
    let padding = padding.expand(values.dims());
    values.mask_fill(padding, 0.0)
}

fn check(case: &Case, device: &Device) {
    let expected = case.tensors();
    let (model, source, target) = read(case, device);
    let encoded = model.encode(&source, &context(&source));
    let wanted = expected.tensor("encoder_hidden_state", device);
    assert_close(
        at_real_tokens(encoded.hidden.clone(), &source.mask),
        at_real_tokens(wanted, &source.mask),
        TOLERANCE,
        &case.name,
    );
    expected.assert_close("logits", logits(&model, &target, &encoded), TOLERANCE);
}

#[test]
fn golden_encoder_decoder_equals_transformers() {
    for case in cases() {
        check(&case, &device());
    }
}

#[test]
fn golden_encoder_decoder_equals_transformers_under_autodiff() {
    for case in cases() {
        check(&case, &autodiff_device());
    }
}

/// The end token is suppressed in these cases.
#[test]
fn golden_encoder_decoder_generates_as_transformers_does() {
    let device = device();
    for case in cases() {
        let (model, source, _) = read(&case, &device);
        let expected = case.tensors();
        let length = expected.shape("greedy")[1];
        let config = case.json("config.json").expect("read above");
        let end = config["eos_token_id"].as_u64().expect("an end token") as usize;
        let options = GenerateOptions {
            max_new_tokens: length - 1,
            suppressed_tokens: vec![end],
            ..Default::default()
        };
        let generated = model.generate(&source, &options, &context(&source));
        let wanted = expected.ints("greedy");
        let wanted = wanted.chunks(length).map(|row| {
            assert_eq!(row[0], model.start_token() as i64);
            Generated {
                tokens: row[1..].iter().map(|&token| token as usize).collect(),
                finish: Finish::MaxNewTokens,
            }
        });
        let wanted: Vec<Generated> = wanted.collect();
        assert_eq!(generated, Ok(wanted), "{}", case.name);
    }
}

/// Up to the end of the positions, where a family has one.
#[test]
fn golden_encoder_decoder_with_one_beam_is_greedy() {
    let device = device();
    for case in cases() {
        let (model, source, _) = read(&case, &device);
        let limit = model.max_tokens();
        let longest = limit.map_or(9, |limit| limit + 5);
        let greedy = GenerateOptions {
            max_new_tokens: longest,
            ..Default::default()
        };
        let beams = BeamOptions {
            num_beams: 1,
            length_penalty: 0.0,
            max_new_tokens: longest,
            stop_tokens: Vec::new(),
        };
        let context = context(&source);
        let wanted = model.generate(&source, &greedy, &context).expect("texts");
        let ends = limit.map_or(Finish::MaxNewTokens, |_| Finish::ContextEnd);
        assert!(wanted.iter().all(|row| row.finish == ends), "{}", case.name);
        let found = model.beam_search(&source, &beams, &context);
        assert_eq!(found, Ok(wanted), "{}", case.name);
    }
}

/// What the padding of a source holds must not reach a written token.
#[test]
fn golden_encoder_decoder_ignores_padding() {
    let device = device();
    for case in cases() {
        let (model, source, target) = read(&case, &device);
        let padding = source.mask.clone().bool_not();
        let junk = DecoderInput {
            ids: source.ids.clone().mask_fill(padding, 7),
            ..source.clone()
        };
        let [before, after] = [source, junk].map(|source| {
            let encoded = model.encode(&source, &context(&source));
            logits(&model, &target, &encoded)
        });
        assert_close(after, before, 0.0, &case.name);
    }
}

#[test]
fn golden_encoder_decoder_with_a_cache_equals_it_without() {
    let device = device();
    for case in cases() {
        let (model, source, target) = read(&case, &device);
        let encoded = model.encode(&source, &context(&source));
        let before = logits(&model, &target, &encoded);
        let tokens = target.ids.dims()[1];
        let (mut cache, mut parts) = (model.cache(), Vec::new());
        for start in 0..tokens {
            let part = DecoderInput {
                ids: target.ids.clone().narrow(1, start, 1),
                mask: target.mask.clone().narrow(1, start, 1),
                segments: None,
            };
            let context = context(&part);
            let output = model.decode_cached(&part, &encoded, &mut cache, &context);
            parts.push(model.logits(output.hidden));
        }
        assert_close(Tensor::cat(parts, 1), before, 1e-5, &case.name);
    }
}

#[test]
fn golden_encoder_decoder_takes_adapters_at_every_linear_layer() {
    let device = device();
    for case in cases() {
        let (mut model, source, target) = read(&case, &device);
        let encoded = model.encode(&source, &context(&source));
        let before = logits(&model, &target, &encoded);
        let mut spec = AdapterSpec {
            targets: vec!["**".into()],
            bank: BankConfig {
                num_experts: 2,
                rank: 2,
                ..Default::default()
            },
            router: Some(RouterConfig::default()),
            ..Default::default()
        };
        let paths: Vec<String> = model.linears().into_iter().map(|(path, _)| path).collect();
        let sites = model.attach(&spec, 1, Seed::new(1), &device);
        assert_eq!(sites.expect("every layer matches"), paths, "{}", case.name);
        let file = ModelWeights::open(&case.dir).expect("read above");
        for path in &paths {
            assert!(file.has(&format!("{path}.weight")), "{path}");
        }
        let encoded = model.encode(&source, &context(&source));
        let output = model.decode(&target, &encoded, &context(&target));
        let mut traced: Vec<usize> = encoded
            .routes
            .iter()
            .chain(&output.routes)
            .map(|route| route.site)
            .collect();
        traced.sort_unstable();
        assert_eq!(
            traced,
            (0..paths.len()).collect::<Vec<_>>(),
            "{}",
            case.name
        );
        // Adapters of zero change no bit, but on a GPU the order of a sum that is fused.
        let tolerance = if device == Device::flex() {
            0.0
        } else {
            TOLERANCE
        };
        let logits = model.logits(output.hidden);
        assert_close(logits, before, tolerance, &case.name);

        spec.router_scope = RouterScope::Layer;
        let refused = model.attach(&spec, 1, Seed::new(1), &device);
        let text = refused.expect_err("two texts").to_string();
        assert!(text.starts_with("adapter.router_scope is layer"), "{text}");
    }
}
