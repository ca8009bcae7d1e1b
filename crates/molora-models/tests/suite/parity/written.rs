//! What molora writes, for PEFT to load: `xtask/parity/check.py` compares.

use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::Tensor;
use molora_adapters::{BankConfig, GeneralExpert, Slices};
use molora_kernels::random::{Seed, normal};
use molora_models::peft::{
    PeftAbout, merge_into, open_poly, why_no_arrow, why_no_lily, why_no_xlora, write_arrow,
    write_lily, write_poly, write_xlora,
};
use molora_models::{
    Adaptable, AdapterSpec, Composition, Decoder, FirstPassConfig, PoolConfig, PoolWeights,
    RouterScope,
};
use molora_routing::normaliser::{
    IdentityConfig, ProbabilityConfig, SigmoidConfig, SoftmaxConfig, SoftmaxTwiceConfig,
};
use molora_routing::scorer::{ArrowConfig, LinearConfig};
use molora_routing::{NormaliserConfig, RouteFrom, RouterConfig, Selection};
use molora_testkit::{assert_close, device};
use tempfile::TempDir;

use super::made::{with_arrow, with_lily, with_xlora};
use super::{TOLERANCE, base, copy_folder, logits, peft_folder};
use crate::peft::poly::skilled_spec;
use crate::peft::world::{File, bundled, write_file};

/// A folder with a case for PEFT: `base`, `adapter`, `case.json` and `expected.safetensors`.
struct Case {
    folder: PathBuf,
    /// Where nobody wants to see it.
    _temporary: Option<TempDir>,
    expected: File,
}

impl Case {
    fn new(name: &str) -> Self {
        let (folder, temporary) = match std::env::var_os("MOLORA_PARITY") {
            Some(root) => (Path::new(&root).join(name), None),
            None => {
                let temporary = tempfile::tempdir().expect("a folder");
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        copy_folder(&peft_folder().join("base"), &folder.join("base"));
        std::fs::create_dir_all(folder.join("adapter")).expect("writable");
        Self {
            folder,
            _temporary: temporary,
            expected: File::new(),
        }
    }

    fn adapter(&self) -> PathBuf {
        self.folder.join("adapter")
    }

    fn expect(&mut self, name: &str, logits: &Tensor<3>) {
        let values = logits.clone().into_data().iter::<f32>().collect();
        let value = (logits.dims().to_vec(), values);
        self.expected.insert(name.into(), value);
    }

    /// Writes what the check reads beside the adapter; `more` are numbers of the method.
    fn close(&self, method: &str, more: &str) {
        let ids = super::IDS;
        let text = format!(
            "{{\"kind\": \"causal\", \"method\": \"{method}\", \"input_ids\": {ids:?}{more}}}\n"
        );
        std::fs::write(self.folder.join("case.json"), text).expect("writable");
        write_file(&self.folder.join("expected.safetensors"), &self.expected);
    }
}

fn about() -> PeftAbout {
    PeftAbout {
        name: "default".into(),
        base_model: "base".into(),
        task_type: Some("CAUSAL_LM".into()),
    }
}

/// A base with adapters whose every tensor has values at which it counts.
fn adapted(spec: &AdapterSpec, num_tasks: usize) -> Decoder {
    let (mut model, device) = (base(), device());
    model
        .attach(spec, num_tasks, Seed::new(3), &device)
        .expect("a valid specification");
    let mut draws = 0;
    let fill = model.visit_tensors(|path, mut tensor| {
        draws += 1;
        let count = tensor.shape().iter().product();
        let seed = Seed::new(7).child(path).index(draws);
        let values: Tensor<1> = normal([count], 0.4, seed, &device);
        tensor.set(&values.into_data().iter::<f32>().collect::<Vec<f32>>());
        Ok::<(), std::convert::Infallible>(())
    });
    fill.expect("cannot fail");
    model
}

#[test]
fn poly() {
    for splits in [1, 2] {
        let model = adapted(&skilled_spec(splits), 2);
        let mut case = Case::new(&format!("poly-{splits}"));
        write_poly(&case.adapter(), &model, &about()).expect("writable");
        let read = open_poly(&case.adapter(), &model).expect("its own files");
        for (task, adapter) in read.iter().enumerate() {
            let (name, found) = (format!("task {task}"), logits(&model, Some((task, 2))));
            let mut merged = base();
            merge_into(&mut merged, adapter);
            assert_close(logits(&merged, None), found.clone(), TOLERANCE, &name);
            case.expect(&name, &found);
        }
        case.close("poly", "");
    }
}

/// Three experts that a classifier on the last hidden state of a first pass weighs.
fn xlora_spec(first: FirstPassConfig, router: RouterConfig) -> AdapterSpec {
    AdapterSpec {
        targets: vec!["regex:.*(_proj)".into()],
        bank: BankConfig {
            num_experts: 3,
            rank: 2,
            ..BankConfig::default()
        },
        router_scope: RouterScope::FirstPass(first),
        router: Some(RouterConfig {
            scorer: LinearConfig { bias: true }.into(),
            ..router
        }),
        ..AdapterSpec::default()
    }
}

#[test]
fn xlora() {
    let first = FirstPassConfig {
        width: 10,
        ..FirstPassConfig::default()
    };
    let plain = RouterConfig::default();
    let top_k = |normaliser: NormaliserConfig| RouterConfig {
        selection: Selection::TopK(2),
        temperature: 0.6,
        normaliser,
        ..RouterConfig::default()
    };
    for (name, first, router) in [
        ("shared", first, plain.clone()),
        (
            "layerwise",
            FirstPassConfig {
                layerwise: true,
                depth: 2,
                global_weight: 1.5,
                ..first
            },
            plain.clone(),
        ),
        (
            "deep",
            FirstPassConfig {
                depth: 4,
                dropout: 0.0,
                scaling_pass_value: 0.2,
                global_weight: 0.7,
                ..first
            },
            RouterConfig {
                temperature: 0.4,
                ..plain
            },
        ),
        ("softmax", first, top_k(SoftmaxConfig.into())),
        (
            "probability",
            first,
            top_k(ProbabilityConfig::default().into()),
        ),
        ("twice", first, top_k(SoftmaxTwiceConfig.into())),
        ("identity", first, top_k(IdentityConfig.into())),
    ] {
        let spec = xlora_spec(first, router);
        let model = adapted(&spec, 0);
        let mut case = Case::new(&format!("xlora-{name}"));
        let folder = case.adapter();
        write_xlora(&folder, &folder, &model, &spec, &about()).expect("writable");
        let found = logits(&model, None);
        let again = with_xlora(&folder).expect("its own files");
        assert_close(logits(&again, None), found.clone(), TOLERANCE, name);
        case.expect("logits", &found);
        case.close("xlora", "");
    }
}

/// Names of more than ten LoRAs are in another order by their letters than by their numbers.
#[test]
fn xlora_of_many_experts() {
    let mut spec = xlora_spec(FirstPassConfig::default(), RouterConfig::default());
    spec.bank.num_experts = 12;
    let model = adapted(&spec, 0);
    let mut case = Case::new("xlora-many");
    let folder = case.adapter();
    write_xlora(&folder, &folder, &model, &spec, &about()).expect("writable");
    let found = logits(&model, None);
    let again = with_xlora(&folder).expect("its own files");
    assert_close(logits(&again, None), found.clone(), TOLERANCE, "many");
    case.expect("logits", &found);
    case.close("xlora", "");
}

/// PEFT looks for layers below `model`, and would look forever in another model.
#[test]
fn xlora_of_another_model_is_refused() {
    let spec = xlora_spec(FirstPassConfig::default(), RouterConfig::default());
    let spec = AdapterSpec {
        targets: vec!["c_proj".into()],
        ..spec
    };
    let mut model =
        Decoder::from_folder(&bundled("golden").join("gpt2"), &device()).expect("a bundled model");
    model
        .attach(&spec, 0, Seed::new(3), &device())
        .expect("a valid specification");
    let folder = tempfile::tempdir().expect("a folder");
    let error = write_xlora(folder.path(), folder.path(), &model, &spec, &about());
    let text = error.expect_err("a GPT-2").to_string();
    assert!(
        text.contains("only for models whose layers are named model.layers"),
        "{text}"
    );
}

#[test]
fn what_is_no_xlora_of_peft_says_why() {
    let reason = |change: &dyn Fn(&mut AdapterSpec)| {
        let mut spec = xlora_spec(FirstPassConfig::default(), RouterConfig::default());
        assert_eq!(why_no_xlora(&spec), None);
        change(&mut spec);
        why_no_xlora(&spec).expect("not PEFT's")
    };
    let router = |change: fn(&mut RouterConfig)| {
        reason(&|spec| change(spec.router.as_mut().expect("a classifier")))
    };
    let text = router(|router| router.normaliser = SigmoidConfig.into());
    assert!(text.contains("no normaliser sigmoid"), "{text}");
    let text = router(|router| router.selection = Selection::TopP(0.5));
    assert!(text.contains("top-k alone"), "{text}");
    let text = reason(&|spec| spec.router_scope = RouterScope::Site);
    assert!(text.contains("no first pass"), "{text}");
    let text = reason(&|spec| spec.dora = true);
    assert!(text.contains("more than LoRAs"), "{text}");
    let text = reason(&|spec| {
        spec.router.as_mut().expect("a classifier").selection = Selection::TopK(2);
        spec.router_scope = RouterScope::FirstPass(FirstPassConfig {
            scaling_pass_value: 0.5,
            ..FirstPassConfig::default()
        });
    });
    assert!(text.contains("scaling_pass_value"), "{text}");
}

fn lily_spec(weights: PoolWeights) -> AdapterSpec {
    AdapterSpec {
        targets: vec!["q_proj".into(), "k_proj".into(), "up_proj".into()],
        composition: Composition::Pool(PoolConfig { stride: 2, weights }),
        bank: BankConfig {
            slices: Slices::Shared,
            num_experts: 2,
            rank: 3,
            ..BankConfig::default()
        },
        router: Some(RouterConfig {
            scorer: LinearConfig { bias: false }.into(),
            route_from: RouteFrom::LowRank,
            temperature: 0.7,
            ..RouterConfig::default()
        }),
        ..AdapterSpec::default()
    }
}

#[test]
fn lily() {
    let spec = lily_spec(PoolWeights::Released);
    let model = adapted(&spec, 0);
    let mut case = Case::new("lily");
    write_lily(&case.adapter(), &model, &spec, &about()).expect("writable");
    let found = logits(&model, None);
    let again = with_lily(&case.adapter()).expect("its own files");
    assert_close(logits(&again, None), found.clone(), TOLERANCE, "lily");
    case.expect("logits", &found);
    case.close("lily", "");
}

#[test]
fn what_is_no_lily_of_peft_says_why() {
    for (weights, words) in [
        (PoolWeights::PerToken, "per_token, expected released"),
        (
            PoolWeights::SummedLogits,
            "summed_logits, expected released",
        ),
    ] {
        let why = why_no_lily(&lily_spec(weights)).expect("PEFT mixes otherwise");
        assert!(
            why.contains("the mean over all tokens of the batch"),
            "{why}"
        );
        assert!(why.contains(words), "{why}");
    }
    // A name that not all layers have is a group of other layers in PEFT.
    let spec = AdapterSpec {
        targets: [0, 2]
            .map(|layer| format!("layers.{layer}.self_attn.q_proj"))
            .into(),
        ..lily_spec(PoolWeights::Released)
    };
    let model = adapted(&spec, 0);
    let folder = tempfile::tempdir().expect("a folder");
    let error =
        write_lily(folder.path(), &model, &spec, &about()).expect_err("two of three layers");
    let text = error.to_string();
    assert!(
        text.contains("no end of their names by which PEFT could tell them from others"),
        "{text}"
    );
}

fn arrow_spec() -> AdapterSpec {
    AdapterSpec {
        targets: vec!["q_proj".into(), "down_proj".into()],
        bank: BankConfig {
            num_experts: 3,
            rank: 2,
            ..BankConfig::default()
        },
        router: Some(RouterConfig {
            scorer: ArrowConfig.into(),
            selection: Selection::TopK(2),
            temperature: 0.8,
            ..RouterConfig::default()
        }),
        ..AdapterSpec::default()
    }
}

#[test]
fn arrow() {
    let spec = arrow_spec();
    let mut model = adapted(&spec, 0);
    for (_, site) in model.sites_mut() {
        // One direction much stronger than the other, which PEFT's power iterations find.
        let rows = Tensor::<2>::from_data([[1.0, 0.05, 1.0, 0.05, 1.0, 0.05]], &device());
        site.bank.a = Param::from_tensor(site.bank.a.val() * rows);
        let directions = site.bank.directions();
        site.router.as_mut().expect("attached").set_rows(directions);
    }
    let mut case = Case::new("arrow");
    let names = ["law", "med", "tax.v2"].map(String::from);
    write_arrow(&case.adapter(), &model, &spec, &names, &about()).expect("writable");
    let found = logits(&model, None);
    let folders = names.clone().map(|name| case.adapter().join(name));
    let again = with_arrow(&folders, 2, 0.8);
    assert_close(logits(&again, None), found.clone(), TOLERANCE, "arrow");
    case.expect("logits", &found);
    let more = format!(
        ", \"experts\": {names:?}, \"arrow\": {{\"top_k\": 2, \"router_temperature\": 0.8}}"
    );
    case.close("arrow", &more);
    let readme = std::fs::read_to_string(case.adapter().join("README.md")).expect("written");
    let line = "ArrowConfig(top_k=2, router_temperature=0.8)";
    assert!(
        readme.contains(line) && readme.contains("THIS_FOLDER/tax.v2"),
        "{readme}"
    );
}

#[test]
fn what_is_no_arrow_of_peft_says_why() {
    assert_eq!(why_no_arrow(&arrow_spec()), None);
    let general = AdapterSpec {
        general: Some(GeneralExpert::Rest),
        ..arrow_spec()
    };
    let why = why_no_arrow(&general).expect("PEFT subtracts");
    assert!(
        why.contains("adapter.general") && why.contains("GenKnowSub"),
        "{why}"
    );
    let mut other = arrow_spec();
    other.router.as_mut().expect("set").selection = Selection::TopP(0.5);
    let why = why_no_arrow(&other).expect("PEFT has top-k");
    assert!(why.contains("top-k alone"), "{why}");
}
