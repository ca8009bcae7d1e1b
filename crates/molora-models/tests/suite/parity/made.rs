//! What PEFT wrote computes here what it computes there.

use std::path::{Path, PathBuf};

use molora_kernels::random::Seed;
use molora_models::peft::{
    ArrowFolder, GivenExperts, Lily, PeftAdapter, Poly, XLora, attach_experts, merge_into,
    open_poly,
};
use molora_models::{Adaptable, AdapterSpec, Decoder, ModelError, shortest_names};
use molora_routing::scorer::ArrowConfig;
use molora_routing::{RouterConfig, Selection};
use molora_testkit::{assert_close, device};

use super::{TOLERANCE, base, cases, copy_folder, expected, logits, peft_folder};
use crate::peft::world::{read_file, write_file};

#[test]
fn golden_poly_of_peft() {
    for case in cases("poly") {
        let base = base();
        let folder = peft_folder().join(&case).join("adapter");
        let tasks = open_poly(&folder, &base).expect("an adapter of the base");
        assert_eq!(tasks.len(), 3, "{case}");
        let (poly, mut skilled) = (Poly::open(&folder).expect("as before"), base.clone());
        let spec = poly.spec(&base).expect("of the base");
        let attached = skilled.attach(&spec, poly.num_tasks(), Seed::new(0), &device());
        attached.expect("a valid specification");
        poly.fill(&mut skilled).expect("all values");
        for (task, adapter) in tasks.iter().enumerate() {
            let mut model = base.clone();
            merge_into(&mut model, adapter);
            let name = format!("task {task}");
            let wanted = expected(&case).tensor::<3>(&name, &device());
            let what = format!("{case} {name}");
            assert_close(logits(&model, None), wanted.clone(), TOLERANCE, &what);
            let found = logits(&skilled, Some((task, 3)));
            assert_close(found, wanted, TOLERANCE, &format!("{what} of skills"));
        }
    }
}

/// The base with an X-LoRA of a folder.
pub(super) fn with_xlora(folder: &Path) -> Result<Decoder, ModelError> {
    let (mut model, device) = (base(), device());
    let xlora = XLora::open(folder)?;
    let mut adapters = Vec::new();
    for folder in xlora.expert_folders()? {
        adapters.push(PeftAdapter::open(&folder)?.resolve(&model)?);
    }
    let experts = GivenExperts::new(&model, &adapters.iter().collect::<Vec<_>>())?;
    let linears: Vec<String> = model.linears().into_iter().map(|(path, _)| path).collect();
    let spec = AdapterSpec {
        targets: shortest_names(&experts.paths(), &linears),
        bank: experts.bank(),
        router: Some(xlora.router().clone()),
        router_scope: xlora.scope(),
        ..AdapterSpec::default()
    };
    model.attach(&spec, 0, Seed::new(0), &device)?;
    experts.fill(&mut model);
    xlora.fill(&mut model)?;
    Ok(model)
}

#[test]
fn golden_xlora_of_peft() {
    for case in cases("xlora") {
        let folder = peft_folder().join(&case).join("adapter");
        let model = with_xlora(&folder).unwrap_or_else(|error| panic!("{case}: {error}"));
        let wanted = expected(&case).tensor::<3>("logits", &device());
        assert_close(logits(&model, None), wanted, TOLERANCE, &case);
    }
}

/// PEFT's `save_pretrained` leaves layers of the LoRAs out, which only their own folders have.
#[test]
fn golden_xlora_experts_that_peft_lost_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(&peft_folder().join("xlora/adapter"), folder.path());
    let error = with_xlora(folder.path()).expect_err("without the LoRAs' folders");
    let text = error.to_string();
    assert!(text.contains("0/adapter_model.safetensors"), "{text}");
    assert!(
        text.contains("the folder that the LoRA came from"),
        "{text}"
    );
}

/// The base with a Lily of a folder.
pub(super) fn with_lily(folder: &Path) -> Result<Decoder, ModelError> {
    let (mut model, device) = (base(), device());
    let lily = Lily::open(folder)?;
    model.attach(&lily.spec(&model)?, 0, Seed::new(0), &device)?;
    lily.fill(&mut model)?;
    Ok(model)
}

#[test]
fn golden_lily_of_peft() {
    let folder = peft_folder().join("lily/adapter");
    let model = with_lily(&folder).expect("an adapter of the base");
    let wanted = expected("lily").tensor::<3>("logits", &device());
    assert_close(logits(&model, None), wanted, TOLERANCE, "lily");
}

/// Layers that share experts here have to share them in the file.
#[test]
fn golden_lily_of_other_groups_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(&peft_folder().join("lily/adapter"), folder.path());
    let path = folder.path().join("adapter_model.safetensors");
    let mut tensors = read_file(&path);
    let name = "base_model.model.model.layers.1.self_attn.q_proj.lily_A.weight";
    tensors.get_mut(name).expect("a layer").1[0] += 1.0;
    write_file(&path, &tensors);
    let text = with_lily(folder.path()).expect_err("another A").to_string();
    assert!(text.contains("layers.1.self_attn.q_proj.lily_A"), "{text}");
    assert!(text.contains("target_modules"), "{text}");
}

/// The base with the experts of folders, routed by their directions.
pub(super) fn with_arrow(folders: &[PathBuf], top_k: usize, temperature: f64) -> Decoder {
    let (mut model, device) = (base(), device());
    let read = |folder: &PathBuf| PeftAdapter::open(folder).and_then(|a| a.resolve(&model));
    let adapters: Vec<_> = folders
        .iter()
        .map(|folder| read(folder).expect("a LoRA"))
        .collect();
    attach_experts(&mut model, &adapters.iter().collect::<Vec<_>>()).expect("plain LoRAs");
    for (_, site) in model.sites_mut() {
        let rows = site.bank.directions();
        let router = RouterConfig {
            scorer: ArrowConfig.into(),
            selection: Selection::TopK(top_k),
            temperature,
            ..RouterConfig::default()
        };
        let [experts, width] = rows.dims();
        let mut router = router.init(width, experts, 0, Seed::new(0), &device);
        router.set_rows(rows);
        site.router = Some(router);
    }
    model
}

#[test]
fn golden_arrow_of_peft() {
    let folder = peft_folder().join("arrow/adapter");
    assert!(ArrowFolder::is_in(&folder));
    let arrow = ArrowFolder::open(&folder).expect("what PEFT saved");
    assert_eq!((arrow.top_k, arrow.temperature), (2, 0.5));
    let (names, folders): (Vec<_>, Vec<_>) = arrow.experts.into_iter().unzip();
    assert_eq!(names, ["task_0", "task_1", "task_2"]);
    let model = with_arrow(&folders, 2, 0.5);
    let wanted = expected("arrow").tensor::<3>("logits", &device());
    assert_close(logits(&model, None), wanted, TOLERANCE, "arrow");
}
