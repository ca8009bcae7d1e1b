//! Adapters against PEFT: any folder of golden vectors that holds PEFT's own files.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, activation};
use molora_adapters::merge::{Join, MergeMethod, Rule, Sign, Sparsify};
use molora_models::peft::{
    PeftAdapter, ResolvedAdapter, attach, attach_experts, combine, merge_into, open_poly,
};
use molora_models::{Adaptable, Decoder, DecoderInput, ForwardContext, GenerateOptions};
use molora_testkit::golden::{self, Case, Tensors};
use molora_testkit::{assert_close, autodiff_device, device};

use crate::peft::world::{at_real_tokens, bundled, logits};

/// Relative to the largest value.
const TOLERANCE: f32 = 1e-4;

/// Environment variable with a folder of cases with gradients: one base, one batch, several adapters.
const MOLORA_GOLDEN_PEFT: &str = "MOLORA_GOLDEN_PEFT";

/// Cases with an adapter of a base in a folder beside them.
fn adapter_cases() -> Vec<Case> {
    let cases = golden::cases(&bundled("golden"), golden::MOLORA_GOLDEN);
    golden::of_kind(cases, "PEFT adapter", |case| {
        case.json("adapter_config.json").is_some() && case.tensors().has("logits_merged")
    })
}

/// The base of a case: the folder beside it that its configuration names last.
fn base(case: &Case, config: &str, device: &Device) -> Decoder {
    let config = case.json(config).expect("an adapter");
    let name = config["base_model_name_or_path"].as_str().expect("a base");
    let name = Path::new(name).file_name().expect("a name");
    let folder = case.dir.parent().expect("a folder above").join(name);
    Decoder::from_folder(&folder, device).unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

fn read(folder: &Path, model: &Decoder) -> ResolvedAdapter {
    let adapter = PeftAdapter::open(folder).and_then(|adapter| adapter.resolve(model));
    adapter.unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
}

fn input(tensors: &Tensors, device: &Device) -> DecoderInput {
    DecoderInput {
        ids: tensors.int_tensor("input_ids", device),
        mask: tensors.bool_tensor("attention_mask", device),
        segments: None,
    }
}

fn check(model: &Decoder, input: &DecoderInput, wanted: Tensor<3>, what: &str) {
    let actual = at_real_tokens(logits(model, input), &input.mask);
    assert_close(actual, at_real_tokens(wanted, &input.mask), TOLERANCE, what);
}

#[test]
fn golden_adapters_equal_peft_attached_and_merged() {
    let device = device();
    for case in adapter_cases() {
        let expected = case.tensors();
        let model = base(&case, "adapter_config.json", &device);
        let (adapter, input) = (read(&case.dir, &model), input(&expected, &device));
        let mut attached = model.clone();
        assert!(!attach(&mut attached, &adapter).is_empty());
        let wanted = expected.tensor("logits", &device);
        check(
            &attached,
            &input,
            wanted,
            &format!("{} attached", case.name),
        );
        let mut merged = model.clone();
        merge_into(&mut merged, &adapter);
        let wanted = expected.tensor("logits_merged", &device);
        check(&merged, &input, wanted, &format!("{} merged", case.name));
        assert!(merged.sites().is_empty());
    }
}

/// The folder with gradients, and the adapters in it that have expected values.
fn gradient_folder() -> (PathBuf, Vec<String>) {
    let folder = match std::env::var_os(MOLORA_GOLDEN_PEFT) {
        // Tests run in the crate's folder: a relative path was typed in one above.
        Some(folder) => {
            let here = std::env::current_dir().expect("a folder");
            let mut seen = here.ancestors().map(|above| above.join(&folder));
            seen.find(|path| path.is_dir()).expect("an existing folder")
        }
        None => bundled("golden_peft"),
    };
    let entries = std::fs::read_dir(&folder).expect("a golden folder");
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter(|name| {
            let config = folder.join(name).join("adapter_config.json");
            let is_lora = |text: String| text.contains("\"LORA\"");
            let expected = folder.join(format!("{name}.expected.safetensors"));
            std::fs::read_to_string(config).is_ok_and(is_lora) && expected.exists()
        })
        .collect();
    names.sort();
    assert!(!names.is_empty(), "{} holds no adapter", folder.display());
    (folder, names)
}

fn expected(folder: &Path, file: &str) -> Tensors {
    Tensors::read(&folder.join(format!("{file}.safetensors")))
}

#[test]
fn golden_peft_logits_attached_and_merged() {
    let device = device();
    let (folder, names) = gradient_folder();
    let input = input(&expected(&folder, "inputs"), &device);
    let base = Decoder::from_folder(&folder.join("base"), &device).expect("the base");
    let wanted = expected(&folder, "base.expected").tensor("logits", &device);
    check(&base, &input, wanted, "base");
    for name in names {
        let adapter = read(&folder.join(&name), &base);
        let expected = expected(&folder, &format!("{name}.expected"));
        let wanted: Tensor<3> = expected.tensor("logits", &device);
        let mut attached = base.clone();
        attach(&mut attached, &adapter);
        check(
            &attached,
            &input,
            wanted.clone(),
            &format!("{name} attached"),
        );
        let mut merged = base.clone();
        merge_into(&mut merged, &adapter);
        check(&merged, &input, wanted, &format!("{name} merged"));
        let file = folder.join(format!("{name}.merged.safetensors"));
        if file.exists() {
            let wanted = Tensors::read(&file).tensor("logits", &device);
            check(&merged, &input, wanted, &format!("{name} merged by PEFT"));
        }
    }
}

/// Mean cross-entropy of the next labels that are not -100.
fn loss(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let [batch, tokens, vocab_size] = logits.dims();
    let count = batch * (tokens - 1);
    let scores = activation::log_softmax(logits.narrow(1, 0, tokens - 1), 2);
    let labels = labels.narrow(1, 1, tokens - 1).reshape([count, 1]);
    let is_real = labels.clone().greater_equal_elem(0).float();
    let scores = scores.reshape([count, vocab_size]);
    let chosen = scores.gather(1, labels.clamp_min(0));
    -(chosen * is_real.clone()).sum() / is_real.sum()
}

#[test]
fn golden_peft_losses_and_gradients() {
    let device = autodiff_device();
    let (folder, names) = gradient_folder();
    let inputs = expected(&folder, "inputs");
    let input = input(&inputs, &device);
    let base = Decoder::from_folder(&folder.join("base"), &device).expect("the base");
    let mut compared = 0;
    for name in names {
        let adapter = read(&folder.join(&name), &base);
        let mut model = base.clone();
        attach(&mut model, &adapter);
        let loss = loss(logits(&model, &input), inputs.int_tensor("labels", &device));
        let expected = expected(&folder, &format!("{name}.expected"));
        expected.assert_close("loss", loss.clone(), TOLERANCE);
        let grads = loss.backward();
        for (path, linear) in model.linears() {
            let Some(site) = &linear.adapter else {
                continue;
            };
            let key = |part: &str| format!("grad.base_model.model.{path}.{part}");
            let grad = |param: &Tensor<2>| param.grad(&grads).expect("a gradient").transpose();
            let [a, b] = [site.bank.a.val(), site.bank.b.val()];
            expected.assert_close(&key("lora_A.default.weight"), grad(&a), TOLERANCE);
            expected.assert_close(&key("lora_B.default.weight"), grad(&b), TOLERANCE);
            if let Some(magnitude) = &site.magnitude {
                let grad = magnitude.val().grad(&grads).expect("a gradient");
                let key = key("lora_magnitude_vector.default.weight");
                expected.assert_close(&key, grad, TOLERANCE);
            }
            compared += 1;
        }
    }
    assert!(compared > 0, "no adapted layer");
}

#[test]
fn golden_peft_base_generates_as_transformers_does() {
    let device = device();
    let (folder, _) = gradient_folder();
    let base = Decoder::from_folder(&folder.join("base"), &device).expect("the base");
    let tokens = expected(&folder, "generate").ints("greedy");
    let new = 16;
    let prompt = tokens[..tokens.len() - new]
        .iter()
        .map(|&token| token as usize);
    let input = DecoderInput::from_sequences(&[prompt.collect()], &device);
    let options = GenerateOptions {
        max_new_tokens: new,
        ..GenerateOptions::default()
    };
    let context = ForwardContext::new(input.mask.clone().float());
    let found = base
        .generate(&input, &options, &context)
        .expect("a valid prompt");
    let found: Vec<i64> = found[0].tokens.iter().map(|&token| token as i64).collect();
    assert_eq!(found, tokens[tokens.len() - new..]);
}

/// Rows of one batch that take different adapters: experts of one bank with a weight by row.
#[test]
fn golden_peft_mixed_batch() {
    let device = device();
    let (folder, _) = gradient_folder();
    let input = input(&expected(&folder, "inputs"), &device);
    let mut model = Decoder::from_folder(&folder.join("base"), &device).expect("the base");
    let adapters = ["lora_b", "lora"].map(|name| read(&folder.join(name), &model));
    attach_experts(&mut model, &adapters.each_ref()).expect("plain adapters");
    let wanted = expected(&folder, "mixed_batch_b_a.expected").tensor("logits", &device);
    crate::peft::world::route_rows(&mut model, 2, &device);
    let mut context = ForwardContext::new(input.mask.clone().float());
    context.guidance.labels = Some(Tensor::from_data([[1.0, 0.0], [0.0, 1.0]], &device));
    let hidden = model.forward(&input, &context).hidden;
    let actual = at_real_tokens(model.logits(hidden), &input.mask);
    let wanted = at_real_tokens(wanted, &input.mask);
    assert_close(actual, wanted, TOLERANCE, "mixed batch");
}

/// The method that PEFT ran for a tensor of the merging case, with its rank and density.
fn method(mode: &str) -> MergeMethod {
    let pruned = |join| {
        let sparsify = Sparsify::Largest { density: 0.5 };
        MergeMethod::Factors(Rule { sparsify, join })
    };
    match mode {
        "linear" => MergeMethod::LINEAR,
        "cat" => MergeMethod::Cat,
        "svd" => MergeMethod::Svd { rank: 4 },
        "ties" => pruned(Join::Mean(Sign::Total)),
        "magnitude_prune" => pruned(Join::Sum),
        other => panic!("no method {other}"),
    }
}

#[test]
fn golden_merges_of_adapters_equal_peft() {
    let device = device();
    let cases = golden::cases(&bundled("golden"), golden::MOLORA_GOLDEN);
    let cases = golden::of_kind(cases, "PEFT merge", |case| {
        case.tensors().has("logits_ties")
    });
    for case in cases {
        let expected = case.tensors();
        let model = base(&case, "a/adapter_config.json", &device);
        let input = input(&expected, &device);
        let names = PeftAdapter::open_all(&case.dir).expect("adapters in folders");
        let adapters: Vec<ResolvedAdapter> = names
            .iter()
            .map(|adapter| adapter.resolve(&model).expect("an adapter of the base"))
            .collect();
        let weights = expected.floats("weights").into_iter().map(f64::from);
        let parts: Vec<_> = adapters.iter().zip(weights).collect();
        for mode in ["linear", "cat", "svd", "ties", "magnitude_prune"] {
            let adapter = combine(&parts, method(mode)).expect("plain adapters");
            let mut merged = model.clone();
            merge_into(&mut merged, &adapter);
            let wanted = expected.tensor(&format!("logits_{mode}"), &device);
            check(&merged, &input, wanted, &format!("{} {mode}", case.name));
        }
    }
}

/// Arrow's routing with PEFT's directions, which fifteen power iterations leave near the singular
/// vectors that the bank computes.
#[test]
fn golden_peft_arrow() {
    let device = device();
    let (folder, _) = gradient_folder();
    let input = input(&expected(&folder, "inputs"), &device);
    let mut model = Decoder::from_folder(&folder.join("base"), &device).expect("the base");
    let adapters = ["lora", "lora_b"].map(|name| read(&folder.join(name), &model));
    attach_experts(&mut model, &adapters.each_ref()).expect("plain adapters");
    for top_k in [1, 2] {
        let expected = expected(&folder, &format!("arrow_top{top_k}.expected"));
        for (path, site) in model.sites_mut() {
            let key = format!("prototypes.base_model.model.{path}.lora_arrow.arrow_router");
            let prototypes: Tensor<2> = expected.tensor(&key, &device);
            let own = site.bank.directions();
            let cosines = (own * prototypes.clone()).sum_dim(1).abs().min();
            assert!(cosines.into_scalar::<f32>() > 0.9, "{path}: a direction");
            site.router = Some(crate::peft::world::arrow(prototypes, top_k, &device));
        }
        let wanted = expected.tensor("logits", &device);
        check(&model, &input, wanted, &format!("top {top_k}"));
    }
}

/// Every task of a PolyTropon adapter is a LoRA; which tasks the rows had, the folder does not say.
#[test]
fn golden_peft_poly() {
    let device = device();
    let (folder, _) = gradient_folder();
    let input = input(&expected(&folder, "inputs"), &device);
    let base = Decoder::from_folder(&folder.join("base"), &device).expect("the base");
    let tasks = open_poly(&folder.join("poly"), &base).expect("an adapter of the base");
    let wanted: Tensor<3> = expected(&folder, "poly.expected").tensor("logits", &device);
    let wanted = at_real_tokens(wanted, &input.mask);
    let mut worst = [f32::INFINITY; 2];
    for task in &tasks {
        let mut model = base.clone();
        merge_into(&mut model, task);
        let gap = (at_real_tokens(logits(&model, &input), &input.mask) - wanted.clone()).abs();
        for (row, worst) in worst.iter_mut().enumerate() {
            *worst = worst.min(gap.clone().narrow(0, row, 1).max().into_scalar());
        }
    }
    let largest: f32 = wanted.abs().max().into_scalar();
    assert!(
        worst.iter().all(|gap| *gap < TOLERANCE * largest),
        "{worst:?}"
    );
}
