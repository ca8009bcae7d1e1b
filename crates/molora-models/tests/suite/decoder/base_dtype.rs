//! Bases in lower precision.

use burn::tensor::DType;
use half::bf16;
use molora_models::{BaseDtype, BaseModel, Decoder, DecoderInput, PartMut, peft};
use molora_testkit::{assert_close, device};
use serde_json::Value;

use super::world::{Tensors, context, folder, gpt2, llama, logits, qwen2, sequence, tensors};

/// Error of activations in bf16 after two layers.
const HALF: f32 = 2e-2;

fn input() -> DecoderInput {
    DecoderInput::from_sequences(&[sequence(11, 1), sequence(4, 2)], &device())
}

/// What a base in bf16 keeps, as f32 files hold it: matrices are rounded.
fn rounded(config: &Value) -> Tensors {
    let mut all = tensors(config, 3);
    for (name, (shape, values)) in &mut all {
        if shape.len() == 2 && !name.contains("wpe") {
            values
                .iter_mut()
                .for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
    }
    all
}

fn load(config: &Value, tensors: &Tensors, dtype: BaseDtype) -> Decoder {
    let folder = folder(config, tensors);
    Decoder::from_folder_as(folder.path(), dtype, &device()).expect("a whole folder")
}

#[test]
fn bf16_equals_f32_on_rounded_weights() {
    for config in [llama(), qwen2(), gpt2()] {
        let half = load(&config, &tensors(&config, 3), BaseDtype::Bf16);
        let expected = load(&config, &rounded(&config), BaseDtype::F32);
        let (half, expected) = (logits(&half, &input()), logits(&expected, &input()));
        assert_eq!(half.dtype(), DType::F32);
        assert_close(half, expected, HALF, "logits");
    }
}

#[test]
fn matrices_are_kept_in_bf16_and_nothing_else_is() {
    for config in [llama(), qwen2(), gpt2()] {
        let mut model = load(&config, &tensors(&config, 3), BaseDtype::Bf16);
        for module in model.modules_mut() {
            match module.part {
                PartMut::Linear(parts, _) => {
                    for part in parts {
                        assert_eq!(part.weight.dtype(), BaseDtype::Bf16, "{}", module.path);
                        let bias = part.bias.as_ref().map(|bias| bias.dtype());
                        assert!(bias.is_none_or(|dtype| dtype == DType::F32));
                    }
                }
                PartMut::Norm(scale, _) => assert_eq!(scale.dtype(), DType::F32),
                PartMut::Head(table) => assert_eq!(table.dtype(), BaseDtype::Bf16),
                PartMut::Table(table) => {
                    let is_large = !module.path.contains("wpe");
                    assert_eq!(
                        table.dtype() == BaseDtype::Bf16,
                        is_large,
                        "{}",
                        module.path
                    );
                }
            }
        }
    }
}

#[test]
fn a_cache_continues_a_base_in_bf16() {
    let config = llama();
    let model = load(&config, &tensors(&config, 3), BaseDtype::Bf16);
    let tokens = sequence(12, 5);
    let whole = DecoderInput::from_sequences(std::slice::from_ref(&tokens), &device());
    let expected = logits(&model, &whole).narrow(1, 11, 1);
    let mut cache = model.cache();
    let mut last = None;
    for part in [&tokens[..11], &tokens[11..]] {
        let part = DecoderInput::from_sequences(&[part.to_vec()], &device());
        last = Some(
            model
                .forward_cached(&part, &mut cache, &context(&part))
                .hidden,
        );
    }
    let last = last.expect("two parts");
    assert_close(
        model.logits(last),
        expected,
        HALF,
        "logits of the last token",
    );
}

#[test]
fn a_base_in_bf16_is_written_with_its_values() {
    let config = llama();
    let source = folder(&config, &tensors(&config, 3));
    let half = Decoder::from_folder_as(source.path(), BaseDtype::Bf16, &device()).expect("whole");
    let out = tempfile::tempdir().expect("a folder");
    peft::save_merged(&half, source.path(), out.path(), peft::MergedDtype::Float32)
        .expect("writable");
    let written = Decoder::from_folder(out.path(), &device()).expect("a whole folder");
    let expected = load(&config, &rounded(&config), BaseDtype::F32);
    let (written, expected) = (logits(&written, &input()), logits(&expected, &input()));
    assert_close(written, expected, 0.0, "logits");
}

/// The values that a base of few bits keeps: those that are written from it.
#[test]
fn few_bits_equal_f32_on_the_written_values() {
    for (config, dtype) in [(llama(), BaseDtype::Q8), (gpt2(), BaseDtype::Q4)] {
        let source = folder(&config, &tensors(&config, 3));
        let small = Decoder::from_folder_as(source.path(), dtype, &device()).expect("whole");
        let out = tempfile::tempdir().expect("a folder");
        peft::save_merged(
            &small,
            source.path(),
            out.path(),
            peft::MergedDtype::Float32,
        )
        .expect("writable");
        let written = Decoder::from_folder(out.path(), &device()).expect("a whole folder");
        let (small, written) = (logits(&small, &input()), logits(&written, &input()));
        assert_close(small, written, HALF, "logits");
    }
}

#[test]
fn vocabularies_have_8_bits_where_matrices_have_few() {
    for (config, dtype) in [(llama(), BaseDtype::Q8), (gpt2(), BaseDtype::Q4)] {
        let mut model = load(&config, &tensors(&config, 3), dtype);
        let mut found = Vec::new();
        for module in model.modules_mut() {
            if let PartMut::Head(table) | PartMut::Table(table) = module.part {
                found.push((module.path, table.dtype()));
            }
        }
        for (path, found) in &found {
            let expected = match path.contains("wpe") {
                true => BaseDtype::F32,
                false => BaseDtype::Q8,
            };
            assert_eq!(*found, expected, "{path} of {dtype}");
        }
        assert!(found.len() >= 2, "{found:?}");
    }
}

#[test]
fn names_are_those_of_options() {
    for dtype in BaseDtype::ALL {
        assert_eq!(dtype.to_string().parse(), Ok(dtype));
    }
    let message = "fp8".parse::<BaseDtype>().expect_err("no such type");
    assert!(
        message.starts_with("`fp8` is none of f32, bf16, q8, q4"),
        "{message}"
    );
}
