//! PolyTropon's files: what is written is read again, one LoRA for each task.

use molora_adapters::combine::FactorsConfig;
use molora_adapters::{BankConfig, task_selector};
use molora_kernels::random::Seed;
use molora_models::peft::{PeftAbout, is_poly, mixture_for, open_poly, write_poly};
use molora_models::{Adaptable, AdapterSpec, Decoder};
use molora_routing::normaliser::SigmoidShareConfig;
use molora_routing::scorer::TableConfig;
use molora_routing::{Granularity, RouterConfig};
use molora_testkit::{FORWARD, assert_close, device};

use super::world::{bundled, randomize};

/// Three skills on two kinds of layers, for tasks with rows of their own.
pub(crate) fn skilled_spec(splits: usize) -> AdapterSpec {
    let table = TableConfig {
        bound: Some(2.0),
        ..TableConfig::default()
    };
    AdapterSpec {
        targets: vec!["q_proj".into(), "down_proj".into()],
        bank: BankConfig {
            combine: FactorsConfig { splits }.into(),
            num_experts: 3,
            rank: 2,
            ..BankConfig::default()
        },
        router: Some(RouterConfig {
            scorer: table.into(),
            granularity: Granularity::Task,
            normaliser: SigmoidShareConfig.into(),
            ..RouterConfig::default()
        }),
        ..AdapterSpec::default()
    }
}

fn skilled(splits: usize) -> Decoder {
    let device = device();
    let folder = bundled("golden").join("llama");
    let mut model = Decoder::from_folder(&folder, &device).expect("a bundled model");
    model
        .attach(&skilled_spec(splits), 2, Seed::new(3), &device)
        .expect("a valid specification");
    randomize(&mut model, &device);
    model
}

#[test]
fn every_task_is_the_lora_that_it_was() {
    for splits in [1, 2] {
        let (model, device) = (skilled(splits), device());
        assert!(is_poly(&model));
        let folder = tempfile::tempdir().expect("a folder");
        let about = PeftAbout {
            name: "default".into(),
            base_model: "base".into(),
            task_type: Some("CAUSAL_LM".into()),
        };
        write_poly(folder.path(), &model, &about).expect("writable");
        let read = open_poly(folder.path(), &model).expect("its own files");
        assert_eq!(read.len(), 2, "tasks");
        for (task, read) in read.iter().enumerate() {
            let selector = task_selector(&[Some(task)], 2, &device).expect("in range");
            let own = mixture_for(&model, Some(selector)).expect("a LoRA for a task");
            assert_eq!(read.loras.len(), own.loras.len());
            for lora in &own.loras {
                let found = read.lora(&lora.path).expect("the same modules");
                let delta = |lora: &molora_models::peft::ModuleLora| {
                    lora.a.clone().matmul(lora.b.clone()).mul_scalar(lora.scale)
                };
                let what = format!("{} with {splits} splits", lora.path);
                assert_close(delta(found), delta(lora), FORWARD, &what);
            }
        }
    }
}

#[test]
fn other_mixtures_are_no_skills() {
    let mut model = skilled(1);
    for (_, site) in model.sites_mut() {
        site.router = None;
    }
    assert!(!is_poly(&model));
    let folder = tempfile::tempdir().expect("a folder");
    let about = PeftAbout {
        name: "default".into(),
        base_model: "base".into(),
        task_type: None,
    };
    let error = write_poly(folder.path(), &model, &about).expect_err("no router");
    assert!(
        error
            .to_string()
            .contains("not mixed as PolyTropon's skills"),
        "{error}"
    );
}
