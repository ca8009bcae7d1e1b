//! Files for llama.cpp, read back by a reader that knows nothing of the writer.

mod reader;

use burn::tensor::Tensor;
use molora_models::peft::PeftAdapter;
use molora_models::{BaseModel, Weights};
use molora_testkit::assert_close;
use serde_json::json;

use super::decoder::{Llama, byte_pairs, golden};
use crate::world::{World, copy_folder, small, write_json};
use reader::Gguf;

/// Rows of a matrix as llama.cpp's, back in the order of Hugging Face's files: of each head first the even
/// rows, then the odd ones.
fn restored(values: &[f32], heads: usize, width: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = values.chunks(width).collect();
    let per_head = rows.len() / heads;
    let mut restored = Vec::new();
    for head in rows.chunks(per_head) {
        for parity in [0, 1] {
            let half = head.iter().skip(parity).step_by(2);
            half.for_each(|row| restored.extend_from_slice(row));
        }
    }
    restored
}

/// A world whose base has a tokenizer that llama.cpp knows.
fn world() -> Llama {
    let world = Llama::new();
    write_json(&world.path("base/tokenizer.json"), &byte_pairs(96));
    write_json(
        &world.path("base/tokenizer_config.json"),
        &json!({"bos_token": "<|start|>", "eos_token": "<|end|>",
            "chat_template": "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"}),
    );
    world
}

#[test]
fn a_model_has_the_tensors_sizes_and_tokens_of_its_folder() {
    let world = world();
    let text = world.done(&["export", "base", "--format", "gguf", "--out", "base.gguf"]);
    assert!(
        text.contains("base.gguf: a whole model with 96 tokens"),
        "{text}"
    );
    let file = Gguf::read(&world.path("base.gguf"));
    let config = crate::world::read_json(&world.path("base/config.json"));
    for (key, field) in [
        ("llama.block_count", "num_hidden_layers"),
        ("llama.embedding_length", "hidden_size"),
        ("llama.feed_forward_length", "intermediate_size"),
        ("llama.attention.head_count", "num_attention_heads"),
        ("llama.attention.head_count_kv", "num_key_value_heads"),
        ("llama.context_length", "max_position_embeddings"),
        ("llama.vocab_size", "vocab_size"),
    ] {
        assert_eq!(file.values[key], config[field], "{key}");
    }
    assert_eq!(file.values["general.architecture"], "llama");
    assert_eq!(file.values["general.type"], "model");
    assert_eq!(file.values["tokenizer.ggml.model"], "gpt2");
    assert_eq!(file.values["tokenizer.ggml.pre"], "smollm");
    assert_eq!(file.values["tokenizer.ggml.add_bos_token"], false);
    let tokens = file.values["tokenizer.ggml.tokens"]
        .as_array()
        .expect("a list");
    let id = |text: &str| tokens.iter().position(|token| token == text).expect(text);
    assert_eq!(tokens.len(), 96);
    assert_eq!(file.values["tokenizer.ggml.bos_token_id"], id("<|start|>"));
    // The configuration names one that ends a text, the template another that ends a message.
    assert_eq!(
        file.values["tokenizer.ggml.eos_token_id"],
        config["eos_token_id"]
    );
    assert_eq!(file.values["tokenizer.ggml.eot_token_id"], id("<|end|>"));
    let kinds = &file.values["tokenizer.ggml.token_type"];
    assert_eq!(kinds[id("<|end|>")], 3, "a control token");
    assert_eq!(kinds[id("a")], 1);
    assert_eq!(file.values["tokenizer.ggml.merges"][0], "a b");
    let template = file.values["tokenizer.chat_template"].as_str();
    assert!(template.expect("a text").contains("messages"));
    let weights = Weights::open(&world.path("base/model.safetensors")).expect("whole");
    let number = |field: &str| config[field].as_u64().expect("a number") as usize;
    let width = number("hidden_size");
    for (ours, theirs) in [
        ("token_embd", "model.embed_tokens"),
        ("output", "lm_head"),
        ("output_norm", "model.norm"),
        ("blk.1.attn_v", "model.layers.1.self_attn.v_proj"),
        ("blk.0.ffn_down", "model.layers.0.mlp.down_proj"),
        ("blk.1.ffn_norm", "model.layers.1.post_attention_layernorm"),
        ("blk.1.attn_norm", "model.layers.1.input_layernorm"),
    ] {
        let name = format!("{theirs}.weight");
        let shape = weights.shape(&name).expect("there").to_vec();
        let (found, values) = &file.tensors[&format!("{ours}.weight")];
        assert_eq!(*found, shape, "{ours}");
        assert_eq!(
            *values,
            weights.values(&name, &shape).expect("f32"),
            "{ours}"
        );
    }
    for (ours, theirs, heads) in [
        ("attn_q", "q_proj", number("num_attention_heads")),
        ("attn_k", "k_proj", number("num_key_value_heads")),
    ] {
        let name = format!("model.layers.0.self_attn.{theirs}.weight");
        let shape = weights.shape(&name).expect("there").to_vec();
        let (found, values) = &file.tensors[&format!("blk.0.{ours}.weight")];
        assert_eq!(*found, shape);
        let expected = weights.values(&name, &shape).expect("f32");
        assert_eq!(restored(values, heads, width), expected, "{ours}");
        assert_ne!(*values, expected, "{ours} is in another order");
    }
    assert_eq!(file.tensors.len(), 3 + 9 * number("num_hidden_layers"));
}

/// `alpha / R` times the product of the factors is what the adapter adds, module by module.
#[test]
fn an_adapter_adds_what_the_lora_of_a_run_adds() {
    let world = world();
    world.assemble("uniform", &[]);
    let base = world.model(None);
    for (arguments, out, folder) in [
        (&["run", "--expert", "law"][..], "law.gguf", "law"),
        (&["med", "--model", "base"], "med.gguf", "med"),
        (&["run"], "both.gguf", "peft"),
    ] {
        let export = [
            &["export"][..],
            arguments,
            &["--format", "gguf", "--out", out],
        ];
        let text = world.done(&export.concat());
        assert!(text.contains(&format!("{out}: a LoRA of rank")), "{text}");
        if folder == "peft" {
            world.done(&["export", "run", "--out", "peft"]);
        }
        let file = Gguf::read(&world.path(out));
        assert_eq!(file.values["general.type"], "adapter");
        assert_eq!(file.values["adapter.type"], "lora");
        let alpha = file.values["adapter.lora.alpha"]
            .as_f64()
            .expect("a number");
        let adapter = PeftAdapter::open(&world.path(folder)).expect("an adapter");
        let adapter = adapter.resolve(&base).expect("of this model");
        assert_eq!(file.tensors.len(), 2 * adapter.loras.len());
        for lora in &adapter.loras {
            let (layer, part) = lora.path["model.layers.".len()..]
                .split_once('.')
                .expect("a layer");
            let ours = match part {
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                _ => "ffn_down",
            };
            let tensor =
                |side: &str| &file.tensors[&format!("blk.{layer}.{ours}.weight.lora_{side}")];
            let ((a_shape, a), (b_shape, b)) = (tensor("a"), tensor("b"));
            let b = match ours {
                "attn_q" => restored(b, base_heads(&world, "num_attention_heads"), b_shape[1]),
                "attn_k" => restored(b, base_heads(&world, "num_key_value_heads"), b_shape[1]),
                _ => b.clone(),
            };
            let matrix = |values: Vec<f32>, shape: &[usize]| {
                let data = burn::tensor::TensorData::new(values, [shape[0], shape[1]]);
                Tensor::<2>::from_data(data, &molora_testkit::device())
            };
            let product = matrix(b, b_shape).matmul(matrix(a.clone(), a_shape));
            let scale = alpha / a_shape[0] as f64;
            let found = product.mul_scalar(scale).transpose();
            assert_close(found, lora.delta(), 1e-5, &format!("{out}: {}", lora.path));
        }
    }
}

fn base_heads(world: &Llama, field: &str) -> usize {
    let config = crate::world::read_json(&world.path("base/config.json"));
    config[field].as_u64().expect("a number") as usize
}

/// Types of a model's numbers: as in its files, or as asked for; vectors in f32.
#[test]
fn numbers_have_the_type_that_is_asked_for() {
    let world = world();
    world.done(&[
        "merge", "law", "--model", "base", "--dtype", "bf16", "--out", "half",
    ]);
    for (more, code) in [
        (&[][..], 30),
        (&["--dtype", "f16"], 1),
        (&["--dtype", "f32"], 0),
    ] {
        let _ = std::fs::remove_file(world.path("half.gguf"));
        let export = ["export", "half", "--format", "gguf", "--out", "half.gguf"];
        world.done(&[&export[..], more].concat());
        let file = Gguf::read(&world.path("half.gguf"));
        assert_eq!(file.types["blk.0.ffn_up.weight"], code, "{more:?}");
        assert_eq!(file.types["output_norm.weight"], 0, "{more:?}");
        let file_type = if code == 30 { 32 } else { code };
        assert_eq!(file.values["general.file_type"], file_type);
    }
}

/// The other families, with what they have beside Llama.
#[test]
fn qwen_and_scaled_positions() {
    let world = world();
    for (name, architecture, extra) in [
        ("qwen2", "qwen2", "blk.0.attn_q.bias"),
        ("qwen3", "qwen3", "blk.0.attn_q_norm.weight"),
        ("llama_tied_scaled_rope", "llama", "rope_freqs.weight"),
    ] {
        copy_folder(&golden(name), &world.path(name));
        let size = crate::world::read_json(&world.path(name).join("config.json"));
        let size = size["vocab_size"].as_u64().expect("a number") as usize;
        write_json(&world.path(name).join("tokenizer.json"), &byte_pairs(size));
        let out = format!("{name}.gguf");
        world.done(&["export", name, "--format", "gguf", "--out", &out]);
        let file = Gguf::read(&world.path(&out));
        assert_eq!(file.values["general.architecture"], architecture);
        assert!(file.tensors.contains_key(extra), "{name}: {extra}");
        let mut model = world.read(name);
        let is_tied = !model
            .modules_mut()
            .iter()
            .any(|module| module.path == "lm_head");
        assert_eq!(
            !file.tensors.contains_key("output.weight"),
            is_tied,
            "{name}"
        );
        let theirs = "model.layers.0.self_attn.q_proj.weight";
        let weights = Weights::open(&world.path(name).join("model.safetensors")).expect("whole");
        let shape = weights.shape(theirs).expect("there").to_vec();
        let is_same =
            file.tensors["blk.0.attn_q.weight"].1 == weights.values(theirs, &shape).expect("f32");
        assert_eq!(
            is_same,
            architecture != "llama",
            "{name}: Llama alone is permuted"
        );
    }
}

#[test]
fn what_llama_cpp_does_not_have_is_refused_by_name() {
    let world = world();
    let export = |name: &'static str| ["export", name, "--format", "gguf", "--out", "out"];
    // A mixture that no LoRA holds.
    world.assemble("arrow", &[]);
    let hints = [
        "its routers weigh the experts anew for each token",
        "molora distill run",
    ];
    world.refused(&export("run"), &hints);
    copy_folder(&golden("gpt2"), &world.path("gpt2"));
    world.refused(
        &export("gpt2"),
        &["gpt2/config.json: model_type is \"gpt2\"", "qwen3"],
    );
    let dora = [&export("dora")[..], &["--model", "base"]].concat();
    world.refused(&dora, &["dora: has a magnitude (DoRA) of ", "molora merge"]);
    let tokenizer = world.path("base/tokenizer.json");
    for (field, value, words) in [
        (
            "normalizer",
            json!({"type": "Lowercase"}),
            "normalizer is {",
        ),
        (
            "pre_tokenizer",
            json!({"type": "Whitespace"}),
            "pre_tokenizer is {",
        ),
        (
            "model",
            json!({"type": "WordLevel", "vocab": {}}),
            "model.type is \"WordLevel\"",
        ),
        (
            "post_processor",
            json!({"type": "RobertaProcessing"}),
            "post_processor is {",
        ),
    ] {
        let mut changed = byte_pairs(96);
        changed[field] = value;
        write_json(&tokenizer, &changed);
        world.refused(&export("base"), &["tokenizer.json: ", words]);
    }
    write_json(&tokenizer, &byte_pairs(96));
    std::fs::write(world.path("there.gguf"), "mine").expect("writable");
    let there = ["export", "base", "--format", "gguf", "--out", "there.gguf"];
    world.refused(&there, &["there.gguf: exists already"]);
    assert_eq!(
        std::fs::read(world.path("there.gguf")).expect("kept"),
        b"mine"
    );
    for more in [&["--dtype", "f16"][..], &["--model", "base"]] {
        let peft = ["export", "run", "--expert", "0", "--out", "out"];
        world.refused(&[&peft[..], more].concat(), &["--format gguf"]);
    }
}

/// An encoder has no place there.
#[test]
fn an_encoder_is_refused() {
    let world = World::new();
    world.train(&small("lora"), "run");
    for source in ["run", "model"] {
        let output = world.run(&["export", source, "--format", "gguf", "--out", "out.gguf"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{source}: {error}");
        assert!(
            error.contains("config.json: model_type is \"bert\""),
            "{error}"
        );
        assert!(!world.path("out.gguf").exists());
    }
}

#[test]
fn nothing_is_left_of_an_export_that_a_kill_or_a_refusal_ended() {
    let world = world();
    std::fs::create_dir(world.path(".molora-base.gguf-dead")).expect("a new folder");
    let before = crate::world::entries(&world.path("."));
    // The base of this one is an encoder, which llama.cpp is not known to compute the same.
    let other = World::new();
    let model = other.path("model").to_string_lossy().into_owned();
    world.refused(
        &[
            "export",
            &model,
            "--format",
            "gguf",
            "--out",
            "a/b/other.gguf",
        ],
        &["model"],
    );
    assert_eq!(crate::world::entries(&world.path(".")), before);
    world.done(&["export", "base", "--format", "gguf", "--out", "base.gguf"]);
    let mut expected = before;
    let left = expected
        .iter()
        .position(|name| name == ".molora-base.gguf-dead");
    expected.remove(left.expect("it was there"));
    expected.push("base.gguf".into());
    expected.sort();
    assert_eq!(crate::world::entries(&world.path(".")), expected);
}
