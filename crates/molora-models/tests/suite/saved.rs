//! Tables that train whole beside an adapter, on models of every family.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Gradients, Int, Tensor};
use molora_kernels::random::{Seed, normal};
use molora_models::peft::{
    MergedDtype, PeftAbout, PeftAdapter, ResolvedAdapter, attach, detach, merge_into, save_merged,
    static_mixture, write_adapter,
};
use molora_models::{
    Adaptable, AdapterSpec, Backbone, BaseDtype, BaseModel, DecoderInput, EncoderInput,
    ForwardContext, ParameterKind, PartMut, SavedModule, load_adapter, save_adapter,
};
use molora_testkit::{assert_close, autodiff_device, device};
use serde_json::Value;

const TOLERANCE: f32 = 1e-5;

const FAMILIES: [&str; 6] = [
    "bert",
    "llama",
    "llama_tied_scaled_rope",
    "gpt2",
    "t5",
    "t5_v1_1",
];

fn golden(name: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    Path::new(root).join(name)
}

/// A LoRA on all layers with both tables, or the only one that an encoder has.
fn spec(family: &str) -> AdapterSpec {
    use SavedModule::{Embeddings, Head};
    let both = [Embeddings, Head];
    AdapterSpec {
        targets: vec!["all-linear".into()],
        modules_to_save: both[..if family == "bert" { 1 } else { 2 }].to_vec(),
        ..AdapterSpec::default().one_expert(false)
    }
}

fn attached(family: &str, spec: &AdapterSpec, dtype: BaseDtype, device: &Device) -> Backbone {
    let folder = golden(family);
    let mut model = Backbone::from_folder_as(&folder, dtype, device).expect("a golden model");
    let seed = Seed::new(1);
    model.attach(spec, 1, seed, device).expect("it fits");
    model
}

/// Random values for the up-projections, and noise on the tables.
fn changed(mut model: Backbone, device: &Device) -> Backbone {
    let visited = model.visit_tensors(|path, mut tensor| {
        let drawn = tensor.name() == "experts.lora_B" || tensor.kind() == ParameterKind::Saved;
        if drawn {
            let shape = [tensor.shape().iter().product()];
            let noise: Tensor<1> = normal(shape, 0.05, Seed::new(2).child(path), device);
            let noise: Vec<f32> = noise.into_data().iter::<f32>().collect();
            let values = tensor.values();
            let sum: Vec<f32> = values.iter().zip(&noise).map(|(a, b)| a + b).collect();
            tensor.set(&sum);
        }
        Ok::<_, Infallible>(())
    });
    let Ok(()) = visited;
    model
}

/// Scores, or the hidden states of an encoder.
fn output(model: &Backbone, device: &Device) -> Tensor<3> {
    let ids: Tensor<2, Int> = Tensor::from_data([[3, 17, 5, 21], [11, 2, 9, 4]], device);
    let text = |ids: Tensor<2, Int>| DecoderInput {
        mask: Tensor::full(ids.dims(), true, device),
        ids,
        segments: None,
    };
    let read = text(ids.clone());
    let context = ForwardContext::new(read.mask.clone().float());
    match model {
        Backbone::Encoder(model) => {
            let input = EncoderInput {
                type_ids: Tensor::zeros(ids.dims(), device),
                ids,
                mask: read.mask,
            };
            model.forward(&input, &context).hidden
        }
        Backbone::Decoder(model) => model.logits(model.forward(&read, &context).hidden),
        Backbone::EncoderDecoder(model) => {
            let target = text(Tensor::from_data([[0, 7], [0, 12]], device));
            let encoded = model.encode(&read, &context);
            model.logits(model.decode(&target, &encoded, &context).hidden)
        }
    }
}

fn lora(model: &Backbone) -> ResolvedAdapter {
    static_mixture(model).expect("one expert")
}

#[test]
fn fresh_tables_compute_what_the_base_does() {
    for family in FAMILIES {
        for dtype in [BaseDtype::F32, BaseDtype::Bf16] {
            let with = attached(family, &spec(family), dtype, &device());
            let mut spec = spec(family);
            spec.modules_to_save.clear();
            let without = attached(family, &spec, dtype, &device());
            // Scores by a table in bf16 are rounded otherwise than those by its numbers in f32.
            let tolerance = if dtype == BaseDtype::F32 {
                TOLERANCE
            } else {
                2e-2
            };
            let (with, without) = (output(&with, &device()), output(&without, &device()));
            assert_close(with, without, tolerance, family);
        }
    }
}

#[test]
fn merged_equals_unmerged_and_the_other_of_tied_tables_stays() {
    for family in FAMILIES {
        let of_spec = spec(family);
        for modules in [&of_spec.modules_to_save[..], &of_spec.modules_to_save[..1]] {
            let spec = AdapterSpec {
                modules_to_save: modules.to_vec(),
                ..of_spec.clone()
            };
            let model = attached(family, &spec, BaseDtype::F32, &device());
            let model = changed(model, &device());
            let expected = output(&model, &device());
            let adapter = lora(&model);
            assert_eq!(adapter.full.len(), modules.len(), "{family}");
            let mut merged = Backbone::from_folder(&golden(family), &device()).expect("a model");
            merge_into(&mut merged, &adapter);
            assert_close(
                output(&merged, &device()),
                expected.clone(),
                TOLERANCE,
                family,
            );
            let out = tempfile::tempdir().expect("a folder");
            let dtype = MergedDtype::Float32;
            save_merged(&merged, &golden(family), out.path(), dtype).expect("writable");
            let read = Backbone::from_folder(out.path(), &device()).expect("a whole model");
            assert_close(output(&read, &device()), expected, TOLERANCE, family);
            if family != "bert" {
                let text = std::fs::read_to_string(out.path().join("config.json"));
                let config: Value = serde_json::from_str(&text.expect("there")).expect("JSON");
                assert_eq!(config["tie_word_embeddings"], false, "{family}");
            }
        }
    }
}

/// The gradient of every table, and that no other parameter of the base has one.
struct Check<'a> {
    gradients: &'a Gradients,
    trained: Vec<Vec<usize>>,
}

impl ModuleVisitor for Check<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(self.gradients);
        assert_eq!(gradient.is_some(), param.is_require_grad());
        if let Some(gradient) = gradient {
            assert_eq!(param.dtype(), DType::F32);
            let largest = gradient.abs().max().into_scalar::<f32>();
            // Up-projections are zero, so that nothing reaches the down-projections.
            if largest > 0.0 {
                self.trained.push(param.dims().to_vec());
            }
        }
    }
}

#[test]
fn gradients_reach_the_tables_and_no_frozen_weight() {
    let device = autodiff_device();
    for family in FAMILIES {
        for dtype in BaseDtype::ALL {
            let spec = spec(family);
            let mut model = attached(family, &spec, dtype, &device);
            let tables: Vec<Vec<usize>> = model
                .saved_mut()
                .into_iter()
                .map(|(_, table)| table.dims().to_vec())
                .collect();
            assert_eq!(tables.len(), spec.modules_to_save.len(), "{family}");
            let loss = output(&model, &device).powi_scalar(2).mean();
            let mut check = Check {
                gradients: &loss.backward(),
                trained: Vec::new(),
            };
            model.visit(&mut check);
            let found = check.trained.iter().filter(|dims| **dims == tables[0]);
            assert_eq!(found.count(), tables.len(), "{family} in {dtype}");
        }
    }
}

fn write(model: &Backbone, folder: &Path) -> Result<PathBuf, molora_models::ModelError> {
    let about = PeftAbout {
        name: "default".into(),
        base_model: "base".into(),
        task_type: Some(model.task_type().into()),
    };
    write_adapter(folder, model, &lora(model), &about)
}

#[test]
fn files_of_peft_hold_the_tables_and_are_read_again() {
    for family in FAMILIES {
        let model = attached(family, &spec(family), BaseDtype::F32, &device());
        let model = changed(model, &device());
        let out = tempfile::tempdir().expect("a folder");
        let mut base = Backbone::from_folder(&golden(family), &device()).expect("a model");
        if family.starts_with("t5") {
            let error = write(&model, out.path()).expect_err("two modules read the table");
            let expected =
                "the adapter holds shared whole, and PEFT would replace that module alone";
            assert!(error.to_string().starts_with(expected), "{error}");
            continue;
        }
        write(&model, out.path()).expect("writable");
        let text = std::fs::read_to_string(out.path().join("adapter_config.json"));
        let config: Value = serde_json::from_str(&text.expect("there")).expect("JSON");
        let paths: Vec<String> = lora(&model)
            .full
            .into_iter()
            .map(|full| full.path)
            .collect();
        let mut listed: Vec<&str> = paths.iter().map(String::as_str).collect();
        listed.sort_unstable();
        assert_eq!(config["modules_to_save"], serde_json::json!(listed));
        let adapter = PeftAdapter::open(out.path()).expect("an adapter");
        let adapter = adapter.resolve(&base).expect("of this model");
        attach(&mut base, &adapter);
        let (found, expected) = (output(&base, &device()), output(&model, &device()));
        assert_close(found, expected, TOLERANCE, family);
    }
}

/// An encoder-decoder's head alone is a module of its own.
#[test]
fn the_head_of_an_encoder_decoder_is_exported() {
    let spec = AdapterSpec {
        modules_to_save: vec![SavedModule::Head],
        ..spec("t5")
    };
    let model = changed(attached("t5", &spec, BaseDtype::F32, &device()), &device());
    let out = tempfile::tempdir().expect("a folder");
    write(&model, out.path()).expect("writable");
    let mut base = Backbone::from_folder(&golden("t5"), &device()).expect("a model");
    let adapter = PeftAdapter::open(out.path()).expect("an adapter");
    let adapter = adapter.resolve(&base).expect("of this model");
    attach(&mut base, &adapter);
    let (found, expected) = (output(&base, &device()), output(&model, &device()));
    assert_close(found, expected, TOLERANCE, "t5");
}

#[test]
fn own_files_are_read_again_bit_for_bit() {
    for family in FAMILIES {
        let spec = spec(family);
        let model = attached(family, &spec, BaseDtype::F32, &device());
        let model = changed(model, &device());
        let out = tempfile::tempdir().expect("a folder");
        save_adapter(out.path(), &model, &spec, "base").expect("writable");
        let mut read = attached(family, &spec.to_be_filled(), BaseDtype::F32, &device());
        load_adapter(out.path(), &mut read, &spec).expect("its own file");
        let [found, expected] = [&read, &model].map(|model| output(model, &device()).into_data());
        assert_eq!(found, expected, "{family}");
        let text = std::fs::read_to_string(out.path().join("adapter_config.json"));
        let config: Value = serde_json::from_str(&text.expect("there")).expect("JSON");
        // What PEFT would read otherwise has a type that it refuses.
        let expected = match family {
            "gpt2" | "t5" | "t5_v1_1" => "MOLORA",
            _ => "LORA",
        };
        assert_eq!(config["peft_type"], expected, "{family}");
        let mut detached = model;
        detach(&mut detached);
        let base = Backbone::from_folder(&golden(family), &device()).expect("a model");
        let [found, expected] = [&detached, &base].map(|m| output(m, &device()).into_data());
        assert_eq!(found, expected, "{family}");
    }
}

#[test]
fn what_cannot_be_is_named() {
    let folder = golden("bert");
    let mut model = Backbone::from_folder(&folder, &device()).expect("a model");
    let spec = AdapterSpec {
        modules_to_save: vec![SavedModule::Head],
        ..spec("bert")
    };
    let error = model.attach(&spec, 1, Seed::new(1), &device());
    let error = error.expect_err("an encoder has no head").to_string();
    assert!(
        error.starts_with("adapter.modules_to_save has head"),
        "{error}"
    );
    let out = tempfile::tempdir().expect("a folder");
    let mut model = attached("llama", &self::spec("llama"), BaseDtype::F32, &device());
    for module in model.modules_mut() {
        if let PartMut::Linear(parts, _) = module.part {
            parts.into_iter().for_each(|part| part.adapter = None);
        }
    }
    let dtype = MergedDtype::Float32;
    let error = save_merged(&model, &golden("llama"), out.path(), dtype);
    let error = error.expect_err("unmerged").to_string();
    let expected = "a trained table is in the place of model.embed_tokens: merge it first";
    assert_eq!(error, expected);
}
