//! Weight files of every family, good and bad.

use molora_models::{Encoder, ModelError};
use molora_testkit::{assert_close, device};
use serde_json::json;

use super::world::{CASES, Tensors, hidden, input, model, tensors, written};

/// The prefix of a family in files of models with a head.
fn prefix(case: &str) -> &'static str {
    match case {
        "bert" => "bert.",
        "roberta" | "xlm_roberta" => "roberta.",
        "distilbert" => "distilbert.",
        "electra" => "electra.",
        "mpnet" => "mpnet.",
        "modernbert" => "model.",
        _ => "deberta.",
    }
}

fn read(case: &str, tensors: &Tensors) -> Result<Encoder, ModelError> {
    let folder = written(case, tensors, &json!({}));
    Encoder::from_folder(folder.path(), &device())
}

fn refused(case: &str, tensors: &Tensors) -> String {
    let error = read(case, tensors).expect_err("a bad file").to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    assert!(!error.contains('\n'), "one line: {error}");
    error
}

#[test]
fn prefixes_and_heads_of_other_uses_change_nothing() {
    let input = input(&device());
    for case in CASES {
        let expected = hidden(&model(case, &device()), &input);
        let wrapped = tensors(case)
            .into_iter()
            .map(|(name, tensor)| (format!("{}{name}", prefix(case)), tensor));
        let mut wrapped: Tensors = wrapped.collect();
        for name in [
            "classifier.dense.weight",
            "lm_head.bias",
            "head.norm.weight",
        ] {
            wrapped.insert(name.into(), (vec![2], vec![1.0, 2.0]));
        }
        let read = read(case, &wrapped).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_close(hidden(&read, &input), expected, 0.0, case);
    }
}

#[test]
fn missing_tensors_and_other_shapes_are_named() {
    for case in CASES {
        let all = tensors(case);
        for name in all.keys().filter(|name| !name.starts_with("pooler.")) {
            let mut without = all.clone();
            without.remove(name);
            let error = refused(case, &without);
            let expected = format!("tensor `{name}` is missing");
            assert!(error.contains(&expected), "{case}: {error}");
        }
        let mut larger = all.clone();
        let own = larger
            .iter_mut()
            .filter(|(name, _)| !name.starts_with("pooler."));
        let (name, (shape, values)) = own.last().expect("tensors");
        shape.insert(0, 2);
        values.extend(values.clone());
        let name = name.clone();
        let error = refused(case, &larger);
        assert!(
            error.contains(&format!("tensor `{name}` has shape")),
            "{case}: {error}"
        );
    }
}

#[test]
fn tensors_without_a_place_are_refused() {
    for case in CASES {
        let all = tensors(case);
        let mut own = all.keys().filter(|name| name.contains("layer"));
        let last = own.next_back().expect("a layer").clone();
        let digit = last.find(|c: char| c.is_ascii_digit()).expect("a number");
        let beyond = format!("{}7{}", &last[..digit], &last[digit + 1..]);
        let extra = match case {
            // No biases in the file.
            "modernbert" => "layers.1.attn.Wo.bias".to_owned(),
            "deberta_v2" => "embeddings.token_type_embeddings.weight".to_owned(),
            _ => beyond.clone(),
        };
        for name in [beyond, extra] {
            let mut more = all.clone();
            more.insert(name.clone(), (vec![1], vec![0.5]));
            let error = refused(case, &more);
            let expected = format!("tensor `{name}` has no place in the model");
            assert!(error.contains(&expected), "{case}: {error}");
        }
    }
}
