//! Adapter files of the scorers that the cases cover: what is written is read again.

use molora_routing::scorer::{GroupedConfig, PrototypeConfig, WithinGroup, WithinScorer};
use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;
use molora_adapters::BankConfig;
use molora_kernels::random::{Seed, uniform};
use molora_models::{Adaptable, AdapterSpec, Bert, Weights, load_adapter, save_adapter};
use molora_routing::{RouterConfig, Scorer, ScorerConfig};
use molora_testkit::{assert_close, device};

const WIDTH: usize = 384;

#[test]
fn scorers_survive_their_files() {
    let grouped = |within| {
        ScorerConfig::Grouped(GroupedConfig {
            groups: vec![vec![2, 0], vec![1]],
            within,
            group_temperature: 1.0,
            within_temperature: 1.0,
            ..GroupedConfig::default()
        })
    };
    let prototypes = ("router.prototypes", vec![3, WIDTH]);
    survives(PrototypeConfig.into(), &[prototypes]);
    let group = || ("router.group", vec![2, WIDTH]);
    let within = |shape| [group(), ("router.within", shape)];
    survives(grouped(WithinGroup::Static), &within(vec![3]));
    survives(grouped(WithinGroup::Token), &within(vec![3, WIDTH]));
}

/// Writes a site with this scorer, checks the names and shapes in the file, and reads it again.
fn survives(scorer: ScorerConfig, tensors: &[(&str, Vec<usize>)]) {
    let spec = AdapterSpec {
        targets: vec!["0.attention.self.query".into()],
        bank: BankConfig {
            num_experts: 3,
            ..BankConfig::default()
        },
        router: Some(RouterConfig {
            scorer,
            ..RouterConfig::default()
        }),
        ..AdapterSpec::default()
    };
    let mut written = model(&spec, 1);
    let (path, adapter) = written.sites_mut().remove(0);
    perturb(&mut adapter.router.as_mut().expect("a router").scorer);
    let folder = tempfile::tempdir().expect("a temporary folder");
    save_adapter(folder.path(), &written, &spec, "a base").expect("writable");
    let file = Weights::open(&folder.path().join("adapter_model.safetensors")).expect("a file");
    for (tensor, shape) in tensors {
        let suffix = format!("{path}.{tensor}");
        let name = file.names().iter().find(|name| name.ends_with(&suffix));
        let name = name.unwrap_or_else(|| panic!("no {tensor} in {:?}", file.names()));
        file.values(name, shape).expect("this shape");
    }

    let mut read = model(&spec, 2);
    load_adapter(folder.path(), &mut read, &spec).expect("its own file");
    let features: Tensor<2> = uniform([5, WIDTH], 1.0, Seed::new(3), &device());
    let scores = |model: &Bert| {
        let (_, adapter) = model.sites().remove(0);
        let router = adapter.router.as_ref().expect("a router");
        router.scorer.score(features.clone())
    };
    let expected = scores(&written);
    let spread = expected.clone().max() - expected.clone().min();
    assert!(spread.into_scalar::<f32>() > 0.1, "nothing to tell apart");
    assert_close(scores(&read), expected, 0.0, "scores");
}

fn model(spec: &AdapterSpec, seed: u64) -> Bert {
    let bundled = "../../datasets/models/all-MiniLM-L6-v2";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(bundled);
    let mut model = Bert::from_folder(&folder, &device()).expect("the bundled model");
    let attached = model.attach(spec, 0, Seed::new(seed), &device());
    attached.expect("a valid specification");
    model
}

/// Moves the parameters away from zero, where they all start.
fn perturb(scorer: &mut Scorer) {
    let draw = |rows: usize| uniform([rows, WIDTH], 1.0, Seed::new(4), &device());
    match scorer {
        Scorer::Prototype(scorer) => scorer.prototypes = Param::from_tensor(draw(3)),
        Scorer::Grouped(scorer) => {
            scorer.group = Param::from_tensor(draw(2));
            scorer.within = match &scorer.within {
                WithinScorer::Static(_) => {
                    WithinScorer::Static(Param::from_data([0.5, -1.0, 2.0], &device()))
                }
                WithinScorer::Token(_) => WithinScorer::Token(Param::from_tensor(draw(3))),
            };
        }
        other => panic!("no scorer of these cases: {other:?}"),
    }
}
