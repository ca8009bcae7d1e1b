//! Weight files of every shape, good and bad.

use molora_models::peft::{MergedDtype, save_merged};
use molora_models::{Decoder, DecoderInput};
use molora_testkit::{assert_close, device};
use serde_json::json;

use super::world::{
    Tensors, folder, gpt2, llama, logits, qwen2, refusal, sequence, tensors, write_file,
};

fn input() -> DecoderInput {
    DecoderInput::from_sequences(&[sequence(7, 1), sequence(4, 2)], &device())
}

fn same(a: &Decoder, b: &Decoder) {
    assert_close(logits(a, &input()), logits(b, &input()), 0.0, "logits");
}

#[test]
fn shards_and_bare_names_give_the_same_model() {
    for config in [llama(), gpt2()] {
        let all = tensors(&config, 1);
        let whole = folder(&config, &all);
        let model = Decoder::from_folder(whole.path(), &device()).expect("a whole folder");

        let shards = folder(&config, &all);
        std::fs::remove_file(shards.path().join("model.safetensors")).expect("there");
        let half = all.len() / 2;
        let (first, second): (Vec<_>, Vec<_>) =
            all.iter().enumerate().partition(|(index, _)| *index < half);
        let mut map = serde_json::Map::new();
        for (name, part) in [("a.safetensors", first), ("b.safetensors", second)] {
            let part: Tensors = part
                .into_iter()
                .map(|(_, (name, value))| (name.clone(), value.clone()))
                .collect();
            map.extend(part.keys().map(|tensor| (tensor.clone(), name.into())));
            write_file(&shards.path().join(name), &part);
        }
        let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
        let path = shards.path().join("model.safetensors.index.json");
        std::fs::write(path, index).expect("writable");
        same(
            &model,
            &Decoder::from_folder(shards.path(), &device()).expect("shards"),
        );

        let bare: Tensors = all
            .into_iter()
            .map(|(name, value)| {
                let bare = name
                    .trim_start_matches("model.")
                    .trim_start_matches("transformer.");
                (bare.to_owned(), value)
            })
            .collect();
        let bare = folder(&config, &bare);
        same(
            &model,
            &Decoder::from_folder(bare.path(), &device()).expect("bare names"),
        );
    }
}

#[test]
fn a_tied_head_is_the_table_of_tokens() {
    let mut config = llama();
    let mut all = tensors(&config, 2);
    let table = all["model.embed_tokens.weight"].clone();
    all.insert("lm_head.weight".into(), table);
    let untied = folder(&config, &all);
    let untied = Decoder::from_folder(untied.path(), &device()).expect("a whole folder");
    config["tie_word_embeddings"] = true.into();
    // With and without the copy that some files hold.
    for _ in 0..2 {
        let tied = folder(&config, &all);
        let tied = Decoder::from_folder(tied.path(), &device()).expect("a tied head");
        same(&untied, &tied);
        all.remove("lm_head.weight");
    }
}

#[test]
fn a_head_that_differs_from_the_table_is_the_head() {
    for mut config in [llama(), gpt2()] {
        let mut all = tensors(&config, 6);
        let table = match config["model_type"] == "gpt2" {
            true => all["transformer.wte.weight"].clone(),
            false => all["model.embed_tokens.weight"].clone(),
        };
        let (shape, mut values) = table;
        values.reverse();
        all.insert("lm_head.weight".into(), (shape, values));
        config["tie_word_embeddings"] = false.into();
        let untied = folder(&config, &all);
        let untied = Decoder::from_folder(untied.path(), &device()).expect("a whole folder");
        config["tie_word_embeddings"] = true.into();
        let denied = folder(&config, &all);
        let read = Decoder::from_folder(denied.path(), &device()).expect("a whole folder");
        same(&untied, &read);
        // Written again, the configuration says what the files hold.
        let out = tempfile::tempdir().expect("a folder");
        save_merged(&read, denied.path(), out.path(), MergedDtype::Float32).expect("written");
        let text = std::fs::read_to_string(out.path().join("config.json")).expect("readable");
        assert!(text.contains("\"tie_word_embeddings\": false"), "{text}");
        let again = Decoder::from_folder(out.path(), &device()).expect("a whole folder");
        same(&untied, &again);
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let config = qwen2();
    let good = tensors(&config, 3);
    let problem = |change: &dyn Fn(&mut Tensors)| {
        let mut bad = good.clone();
        change(&mut bad);
        refusal(folder(&config, &bad).path())
    };
    let key = "model.layers.1.self_attn.k_proj";
    let weight = format!("{key}.weight");
    let text = problem(&|all| drop(all.remove(&weight)));
    assert!(
        text.contains(&format!("model.safetensors: tensor `{weight}` is missing")),
        "{text}"
    );
    let text = problem(&|all| drop(all.remove("lm_head.weight")));
    assert!(
        text.contains("tensor `lm_head.weight` is missing"),
        "{text}"
    );
    let text = problem(&|all| all.get_mut(&weight).expect("there").0.reverse());
    assert!(
        text.contains("has shape [16, 8], expected [8, 16]"),
        "{text}"
    );
    let text = problem(&|all| drop(all.remove(&format!("{key}.bias"))));
    assert!(text.contains(&format!("`{key}.bias` is missing")), "{text}");
}

#[test]
fn tensors_without_a_place_are_named() {
    // Biases that the configuration does not have, and layers beyond the last.
    for (name, size) in [
        ("model.layers.0.self_attn.q_proj.bias", 16),
        ("model.layers.2.input_layernorm.weight", 16),
    ] {
        let mut all = tensors(&llama(), 4);
        all.insert(name.into(), (vec![size], vec![0.0; size]));
        let text = refusal(folder(&llama(), &all).path());
        assert!(
            text.contains(&format!("tensor `{name}` has no place")),
            "{text}"
        );
    }
    // Buffers and heads of other uses are no parameters of the decoder.
    let mut all = tensors(&gpt2(), 4);
    all.insert("transformer.h.0.attn.bias".into(), (vec![1], vec![0.0]));
    all.insert("score.weight".into(), (vec![1], vec![0.0]));
    let folder = folder(&gpt2(), &all);
    assert!(Decoder::from_folder(folder.path(), &device()).is_ok());
}

#[test]
fn missing_and_cut_files_are_named() {
    let whole = folder(&llama(), &tensors(&llama(), 5));
    let path = whole.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("readable");
    std::fs::write(&path, &bytes[..bytes.len() - 3]).expect("writable");
    assert!(refusal(whole.path()).contains("model.safetensors: the file has"));
    std::fs::remove_file(&path).expect("there");
    assert!(refusal(whole.path()).contains("neither model.safetensors nor"));
    std::fs::remove_file(whole.path().join("config.json")).expect("there");
    assert!(refusal(whole.path()).contains("config.json: "));
}
