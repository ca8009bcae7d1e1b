//! Families as they describe themselves.

use burn::tensor::Tensor;
use molora_kernels::random::Seed;
use molora_models::{Adaptable, Backbone, BaseDtype, Family, ModelError, Sizes};
use molora_testkit::device;
use serde_json::Value;

const SIZES: Sizes = Sizes {
    width: 32,
    inner: 40,
    layers: 2,
    heads: 4,
    vocabulary: 50,
    tokens: 16,
};

/// A model of a configuration with weights of a seed.
fn drawn(config: &Value, seed: u64) -> Result<Backbone, ModelError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).expect("writable");
    Backbone::with_random_weights(&path, Seed::new(seed), BaseDtype::F32, &device())
}

/// The configuration of a family: heads divide the keys' heads that some have where nothing is said.
fn config(family: &Family) -> Value {
    let mut config = family.config(&SIZES);
    if family
        .fields()
        .iter()
        .any(|field| field.name == "num_key_value_heads")
    {
        config["num_key_value_heads"] = 2.into();
    }
    config
}

#[test]
fn there_is_no_model_without_a_field_that_is_needed() {
    let mut names: Vec<&str> = Vec::new();
    for family in Family::all() {
        let name = family.about.model_type;
        assert!(!names.contains(&name), "{name} twice");
        names.push(name);
        let (config, fields) = (config(&family), family.fields());
        assert!(fields.is_sorted_by(|a, b| a.name < b.name), "{name}");
        for field in &fields {
            assert_ne!(field.expected, "", "{name}: {}", field.name);
            if !field.is_needed {
                continue;
            }
            let mut smaller = config.clone();
            smaller
                .as_object_mut()
                .expect("an object")
                .remove(&field.name);
            let error = drawn(&smaller, 1).expect_err(name).to_string();
            assert!(
                error.contains(&field.name),
                "{name}: {}: {error}",
                field.name
            );
        }
    }
    assert_eq!(names.len(), 28);
}

#[test]
fn limits_are_those_of_the_family() {
    let limits = |family: &str, name: &str| {
        let fields = Family::find(family).expect(family).fields();
        let field = fields.into_iter().find(|field| field.name == name);
        field
            .unwrap_or_else(|| panic!("{family} reads {name}"))
            .limits
    };
    let no_biases = "false or nothing: this family has no biases";
    assert_eq!(limits("mistral", "attention_bias"), [no_biases]);
    assert_eq!(limits("llama", "attention_bias"), [""; 0]);
    assert!(limits("llama", "sliding_window")[0].contains("this family has no other"));
    assert!(limits("opt", "word_embed_proj_dim")[0].contains("projected embeddings"));
    assert!(limits("llama", "rope_scaling")[0].starts_with("rope_type default, linear, llama3"));
    let foreign = |family| Family::find(family).expect(family).foreign_fields();
    assert!(foreign("llama").contains(&"num_experts") && foreign("bert").contains(&"alibi"));
    assert!(!foreign("qwen3_moe").contains(&"num_experts"));
}

/// Every tensor of every family is drawn, by its name.
#[test]
fn models_with_random_weights_have_the_sizes_that_were_asked_for() {
    for family in Family::all() {
        let config = config(&family);
        let draw = |seed| drawn(&config, seed).unwrap_or_else(|error| panic!("{config}: {error}"));
        let (model, other) = (draw(1), draw(2));
        assert_eq!(model.width(), SIZES.width, "{config}");
        assert_eq!(model.vocab_size(), SIZES.vocabulary, "{config}");
        let pairs = model.linears().into_iter().zip(other.linears());
        for ((path, linear), (_, of_other)) in pairs {
            let x = Tensor::ones([1, 1, linear.dims().d_input], &device());
            let [a, b] = [linear, of_other].map(|linear| linear.base(x.clone()).into_data());
            assert_ne!(a, b, "{path}");
        }
    }
}
