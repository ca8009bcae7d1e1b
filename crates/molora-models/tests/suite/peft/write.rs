//! What is written is read again, and computes the same.

use molora_adapters::core::ScaleConfig;
use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;
use molora_adapters::{BankConfig, Slices};
use molora_kernels::random::Seed;
use molora_models::peft::{
    MergedDtype, PeftAbout, PeftAdapter, ResolvedAdapter, attach, detach, expert, merge_into,
    mixture, save_merged, static_mixture, write_adapter,
};
use molora_models::{Adaptable, AdapterSpec, Bert, Decoder, EncoderInput, ForwardContext, T5};
use molora_routing::RouterConfig;
use molora_testkit::{assert_close, device};
use proptest::prelude::*;

use super::world::{File, batch, bundled, logits, randomize, read_file, write_file};

/// Relative to the largest value.
const TOLERANCE: f32 = 1e-5;

pub(crate) fn decoder(folder: &str) -> Decoder {
    Decoder::from_folder(&bundled("golden").join(folder), &device()).expect("a bundled model")
}

fn about(name: &str) -> PeftAbout {
    PeftAbout {
        name: name.into(),
        base_model: "base".into(),
        task_type: Some("CAUSAL_LM".into()),
    }
}

/// A model with random experts at the given layers.
pub(crate) fn with_experts(model: &Decoder, targets: &[&str], bank: BankConfig) -> Decoder {
    let mut model = model.clone();
    let spec = AdapterSpec {
        targets: targets.iter().map(|&target| target.into()).collect(),
        bank,
        ..AdapterSpec::default()
    };
    let device = device();
    model
        .attach(&spec, 1, Seed::new(1), &device)
        .expect("a valid specification");
    randomize(&mut model, &device);
    model
}

/// Writes an adapter, reads it again and attaches it to a model.
pub(crate) fn written(model: &Decoder, adapter: &ResolvedAdapter, name: &str) -> Decoder {
    let folder = tempfile::tempdir().expect("a folder");
    write_adapter(folder.path(), model, adapter, &about(name)).expect("writable");
    let read = PeftAdapter::open(folder.path()).expect("readable");
    assert_eq!(read.name(), name);
    let read = read.resolve(model).expect("of this model");
    let mut model = model.clone();
    attach(&mut model, &read);
    model
}

pub(crate) fn assert_same_logits(one: &Decoder, other: &Decoder, what: &str) {
    let input = batch(&device());
    assert_close(logits(one, &input), logits(other, &input), TOLERANCE, what);
}

#[test]
fn adapter_names_survive() {
    let base = decoder("llama");
    let model = with_experts(&base, &["q_proj", "v_proj"], BankConfig::default());
    let adapter = static_mixture(&model).expect("a plain LoRA");
    for name in [
        "default", "0", "1", "layers", "lora_A", "lora_B", "model", "weight",
    ] {
        assert_same_logits(&written(&base, &adapter, name), &model, name);
    }
    for name in ["", "a.b", "../a", "a/b"] {
        let folder = tempfile::tempdir().expect("a folder");
        let error = write_adapter(folder.path(), &base, &adapter, &about(name));
        let text = error.expect_err("no name").to_string();
        assert!(
            text.starts_with(&format!("adapter name `{name}`")),
            "{text}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_adapter_name_survives(name in "[A-Za-z0-9_-]{1,16}") {
        let base = decoder("llama");
        let model = with_experts(&base, &["k_proj"], BankConfig::default());
        let adapter = static_mixture(&model).expect("a plain LoRA");
        assert_same_logits(&written(&base, &adapter, &name), &model, &name);
    }
}

#[test]
fn a_static_mixture_is_one_exact_adapter() {
    for folder in ["llama", "gpt2"] {
        let base = decoder(folder);
        for (sharing, rank) in [(Slices::Independent, 6), (Slices::Shared, 3)] {
            let bank = BankConfig {
                slices: sharing,
                num_experts: 3,
                rank: 3,
                core: ScaleConfig.into(),
                ..BankConfig::default()
            };
            let targets = match folder {
                "gpt2" => ["attn.c_attn.q", "attn.c_attn.v", "mlp.c_proj"],
                _ => ["q_proj", "v_proj", "down_proj"],
            };
            let model = with_experts(&base, &targets, bank);
            let weights = [0.5, -0.25, 0.0];
            let adapter = mixture(&model, |_, _| weights.to_vec()).expect("static");
            let first = &adapter.loras[1];
            let parts = if first.path.ends_with("c_attn") { 2 } else { 1 };
            assert_eq!(first.a.dims()[1], rank * parts, "{}", first.path);
            // Without a router every expert has weight 1: the weights go into B.
            let mut weighted = model.clone();
            for (_, site) in weighted.sites_mut() {
                let b = site.bank.b_by_expert();
                let factors = Tensor::<1>::from_data(weights, &device()).reshape([3, 1, 1]);
                site.bank.b = Param::from_tensor((b * factors).reshape(site.bank.b.dims()));
            }
            let what = format!("{folder} {sharing:?}");
            assert_same_logits(&written(&base, &adapter, "default"), &weighted, &what);
            let mut own = model.clone();
            detach(&mut own);
            merge_into(&mut own, &adapter);
            assert_same_logits(&own, &weighted, &what);
        }
    }
}

#[test]
fn one_expert_keeps_its_rank_and_factors() {
    let base = decoder("llama");
    let bank = BankConfig {
        num_experts: 3,
        ..BankConfig::default()
    };
    let model = with_experts(&base, &["up_proj"], bank);
    let adapter = expert(&model, 2).expect("the last one");
    assert_eq!(adapter.loras[0].a.dims()[1], 8);
    let mut alone = model.clone();
    for (_, site) in alone.sites_mut() {
        let b = site.bank.b.val();
        let others = Tensor::zeros([16, b.dims()[1]], &device());
        let own = b.narrow(0, 16, 8);
        site.bank.b = Param::from_tensor(Tensor::cat(vec![others, own], 0));
    }
    assert_same_logits(&written(&base, &adapter, "0"), &alone, "expert 2");
    let text = expert(&model, 3).expect_err("no such expert").to_string();
    assert!(text.starts_with("expert 3 does not exist"), "{text}");
}

#[test]
fn ranks_and_scales_that_differ_become_patterns() {
    let base = decoder("llama");
    for case in ["peft_rank_pattern", "peft_dora", "peft_rslora_all"] {
        let adapter = PeftAdapter::open(&bundled("golden").join(case)).expect("readable");
        let mut model = base.clone();
        attach(&mut model, &adapter.resolve(&base).expect("of this model"));
        let again = static_mixture(&model).expect("one expert");
        assert_same_logits(&written(&base, &again, "again"), &model, case);
    }
    let saved = bundled("golden_peft");
    let base = Decoder::from_folder(&saved.join("base"), &device()).expect("the base");
    let adapter = PeftAdapter::open(&saved.join("embed_head")).expect("readable");
    let adapter = adapter.resolve(&base).expect("of this model");
    let mut model = base.clone();
    attach(&mut model, &adapter);
    assert_same_logits(&written(&base, &adapter, "again"), &model, "embed_head");
}

#[test]
fn a_routed_mixture_is_not_static() {
    let mut model = decoder("llama");
    let spec = AdapterSpec {
        targets: vec!["q_proj".into()],
        router: Some(RouterConfig::default()),
        ..AdapterSpec::default()
    };
    model
        .attach(&spec, 1, Seed::new(0), &device())
        .expect("valid");
    let text = static_mixture(&model).expect_err("routed").to_string();
    assert!(
        text.contains("layers.0.self_attn.q_proj: its router weighs"),
        "{text}"
    );
    let out = tempfile::tempdir().expect("a folder");
    let source = bundled("golden/llama");
    let error = save_merged(&model, &source, out.path(), MergedDtype::Float32);
    assert!(
        error
            .expect_err("attached")
            .to_string()
            .ends_with("merge it first")
    );
    detach(&mut model);
    let text = static_mixture(&model).expect_err("nothing").to_string();
    assert!(text.starts_with("no adapter is attached"), "{text}");
}

/// A folder with the merged model, read again.
fn saved(model: &Decoder, source: &Path, dtype: MergedDtype) -> (tempfile::TempDir, Decoder) {
    let out = tempfile::tempdir().expect("a folder");
    save_merged(model, source, out.path(), dtype).expect("writable");
    let read = Decoder::from_folder(out.path(), &device()).expect("a whole model");
    (out, read)
}

#[test]
fn merged_models_are_read_again() {
    for (folder, target) in [
        ("llama", "q_proj"),
        ("llama_tied_scaled_rope", "down_proj"),
        ("qwen2", "k_proj"),
        ("qwen3", "gate_proj"),
        ("gpt2", "attn.c_attn.k"),
    ] {
        let base = decoder(folder);
        let attached = with_experts(&base, &[target], BankConfig::default());
        let mut merged = attached.clone();
        detach(&mut merged);
        merge_into(&mut merged, &static_mixture(&attached).expect("static"));
        let source = bundled("golden").join(folder);
        let (_, read) = saved(&merged, &source, MergedDtype::Float32);
        assert_same_logits(&read, &attached, folder);
        // Nothing but the layer differs from the source.
        let (out, _) = saved(&base, &source, MergedDtype::AsSource);
        let file = "model.safetensors";
        assert_eq!(
            read_file(&out.path().join(file)),
            read_file(&source.join(file)),
            "{folder}"
        );
    }
}

#[test]
fn an_untied_head_is_written() {
    let base = decoder("llama_tied_scaled_rope");
    let adapter = static_mixture(&with_experts(&base, &["q_proj"], BankConfig::default()));
    let mut adapter = adapter.expect("static");
    let vocab_size = base.vocab_size();
    let lora = &mut adapter.loras[0];
    lora.path = "model.embed_tokens".into();
    lora.a = Tensor::ones([vocab_size, lora.a.dims()[1]], &device());
    adapter.loras.truncate(1);
    adapter.unties = true;
    let mut merged = base.clone();
    merge_into(&mut merged, &adapter);
    let source = bundled("golden/llama_tied_scaled_rope");
    let (out, read) = saved(&merged, &source, MergedDtype::Float32);
    assert_same_logits(&read, &merged, "untied");
    let file = read_file(&out.path().join("model.safetensors"));
    let before = read_file(&source.join("model.safetensors"));
    assert_eq!(file["lm_head.weight"], before["model.embed_tokens.weight"]);
}

#[test]
fn other_families_are_written_as_they_were() {
    let device = device();
    for folder in ["t5", "t5_v1_1"] {
        let source = bundled("golden").join(folder);
        let out = tempfile::tempdir().expect("a folder");
        let model = T5::from_folder(&source, &device).expect("a bundled model");
        save_merged(&model, &source, out.path(), MergedDtype::Float32).expect("writable");
        T5::from_folder(out.path(), &device).expect("a whole model");
        let mut before = read_file(&source.join("model.safetensors"));
        before.retain(|name, _| !name.ends_with("embed_tokens.weight"));
        assert_eq!(read_file(&out.path().join("model.safetensors")), before);
    }
    let source = bundled("golden/bert");
    let out = tempfile::tempdir().expect("a folder");
    let mut model = Bert::from_folder(&source, &device).expect("a bundled model");
    let spec = AdapterSpec::default();
    model
        .attach(&spec, 1, Seed::new(0), &device)
        .expect("valid");
    let paths: Vec<String> = model.sites().into_iter().map(|(path, _)| path).collect();
    let adapter = static_mixture(&model).expect("a plain LoRA");
    assert_eq!(
        adapter.loras.iter().map(|l| &l.path).collect::<Vec<_>>(),
        paths.iter().collect::<Vec<_>>()
    );
    detach(&mut model);
    save_merged(&model, &source, out.path(), MergedDtype::Float32).expect("writable");
    let read = Bert::from_folder(out.path(), &device).expect("a whole model");
    let input = EncoderInput {
        ids: batch(&device).ids,
        type_ids: batch(&device).ids.zeros_like(),
        mask: batch(&device).mask,
    };
    let context = ForwardContext::new(input.mask.clone().float());
    let [one, other] = [&model, &read].map(|model| model.forward(&input, &context).hidden);
    assert_close(one, other, 0.0, "BERT");
}

/// The model in a folder on a small batch.
fn encoded(folder: &Path) -> Tensor<3> {
    let device = device();
    let model = Bert::from_folder(folder, &device).expect("a whole model");
    let input = EncoderInput {
        ids: batch(&device).ids,
        type_ids: batch(&device).ids.zeros_like(),
        mask: batch(&device).mask,
    };
    let context = ForwardContext::new(input.mask.clone().float());
    model.forward(&input, &context).hidden
}

#[test]
fn an_encoder_may_have_old_names_or_lie_in_shards() {
    let source = bundled("golden/bert");
    let expected = encoded(&source);
    let all = read_file(&source.join("model.safetensors"));
    let with_config = || {
        let folder = tempfile::tempdir().expect("a folder");
        let name = "config.json";
        std::fs::copy(source.join(name), folder.path().join(name)).expect("writable");
        folder
    };
    let old = with_config();
    let renamed = all.iter().map(|(name, tensor)| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        (
            name.replace("LayerNorm.bias", "LayerNorm.beta"),
            tensor.clone(),
        )
    });
    write_file(&old.path().join("model.safetensors"), &renamed.collect());
    assert_close(encoded(old.path()), expected.clone(), 0.0, "old names");
    // Written again, the names are those of the source.
    let out = tempfile::tempdir().expect("a folder");
    let model = Bert::from_folder(old.path(), &device()).expect("a whole model");
    save_merged(&model, old.path(), out.path(), MergedDtype::Float32).expect("writable");
    assert_close(encoded(out.path()), expected.clone(), 0.0, "written again");

    let shards = with_config();
    let mut map = serde_json::Map::new();
    for number in 0..2 {
        let file = format!("model-{number}.safetensors");
        let part = all
            .iter()
            .enumerate()
            .filter(|(index, _)| index % 2 == number);
        let part = part.map(|(_, (name, tensor))| (name.clone(), tensor.clone()));
        let part: File = part.collect();
        map.extend(part.keys().map(|name| (name.clone(), file.clone().into())));
        write_file(&shards.path().join(file), &part);
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    let path = shards.path().join("model.safetensors.index.json");
    std::fs::write(path, index).expect("writable");
    assert_close(encoded(shards.path()), expected, 0.0, "shards");
}
