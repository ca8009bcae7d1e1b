//! A model of one's own, by public names alone: attached, trained, kept, resumed, merged.

mod networks;

use std::path::Path;

use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor};
use molora_adapters::BankConfig;
use molora_kernels::random::{Seed, normal};
use molora_kernels::softmax_cross_entropy;
use molora_models::peft::{PeftAdapter, attach, detach, merge_into, static_mixture};
use molora_models::{
    Adaptable, AdapterSpec, Composition, ExpertCount, ForwardContext, ModelError, RouterScope,
    load_adapter, load_heads, save_adapter, save_heads, with_stable_ids,
};
use molora_regularize::{LoadBalance, ObjectiveConfig, Reduction, SiteView, TermConfig};
use molora_routing::{RouterConfig, Selection};
use molora_testkit::{FORWARD, assert_close, autodiff_device};

use networks::{CLASSES, Convolutional, Network, Recurrent};

const ROWS: usize = 12;
const EXPERTS: usize = 3;

/// A mixture with dropout, or one without a router.
fn spec(selection: Option<Selection>) -> AdapterSpec {
    AdapterSpec {
        targets: vec!["all-linear".into()],
        bank: BankConfig {
            num_experts: EXPERTS,
            rank: 2,
            dropout: 0.1,
            ..BankConfig::default()
        },
        router: selection.map(|selection| RouterConfig {
            selection,
            ..RouterConfig::default()
        }),
        ..AdapterSpec::default()
    }
}

/// One LoRA for each layer.
fn lora() -> AdapterSpec {
    let mut spec = spec(None);
    spec.bank.num_experts = 1;
    spec
}

/// Noisy images of stripes along one axis, along the other one, or of none.
fn batch(number: u64, device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let value = |pixel: usize| {
        let (class, y, x) = (pixel / 64 % CLASSES, pixel / 8 % 8, pixel % 8);
        [y % 2, x % 2, (x + y) % 2][class] as f32
    };
    let pixels: Vec<f32> = (0..ROWS * 64).map(value).collect();
    let images = Tensor::<1>::from_data(&pixels[..], device).reshape([ROWS, 1, 8, 8]);
    let noise = normal([ROWS, 1, 8, 8], 0.3, Seed::new(1).index(number), device);
    let classes: Vec<i64> = (0..ROWS).map(|row| (row % CLASSES) as i64).collect();
    (images + noise, Tensor::from_data(&classes[..], device))
}

fn made<N: Network>(spec: &AdapterSpec, device: &Device) -> N {
    let mut network = N::new(device);
    let sites = network.attach(spec, 0, Seed::new(0), device);
    assert_eq!(sites.expect("the specification fits").len(), 2);
    with_stable_ids(network)
}

fn context(device: &Device) -> ForwardContext {
    ForwardContext::new(Tensor::ones([ROWS, 1], device))
}

fn logits<N: Network>(network: &N, device: &Device) -> Tensor<2> {
    network.forward(batch(99, device).0, &context(device)).0
}

fn step<N: Network>(
    network: N,
    number: u64,
    optimizer: &mut ModuleOptimizer,
    device: &Device,
) -> (N, f32) {
    let (images, classes) = batch(number, device);
    let dropout = Some(Seed::new(0).child("dropout").index(number));
    let context = ForwardContext {
        dropout,
        ..context(device)
    };
    let (logits, routes) = network.forward(images, &context);
    let mut loss = softmax_cross_entropy(logits, classes).mean();
    let value = loss.clone().into_scalar::<f32>();
    let balance = TermConfig {
        term: LoadBalance.into(),
        weight: 0.01,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    };
    let terms = vec![balance];
    let sites = network.sites();
    let view = |route: &'_ molora_models::RouteTrace| sites[route.site].1;
    let views: Vec<_> = routes
        .iter()
        .map(|route| SiteView {
            routed: Some(&route.routed),
            ..SiteView::of_weights(&view(route).bank)
        })
        .collect();
    if let Some(total) = (ObjectiveConfig { terms }).evaluate(&views).total {
        loss = loss + total;
    }
    let gradients = GradientsParams::from_grads(loss.backward(), &network);
    (optimizer.step(1e-2, network, gradients), value)
}

/// Steps `from..to`, and the loss of each.
fn train<N: Network>(
    mut network: N,
    (from, to): (u64, u64),
    optimizer: &mut ModuleOptimizer,
    device: &Device,
) -> (N, Vec<f32>) {
    let mut losses = Vec::new();
    for number in from..to {
        let loss;
        (network, loss) = step(network, number, optimizer, device);
        losses.push(loss);
    }
    (network, losses)
}

fn save<N: Network>(network: &N, folder: &Path, spec: &AdapterSpec) {
    save_adapter(folder, network, spec, "own").expect("written");
    let head = network.clone().head_mut().clone();
    let path = folder.join("heads.safetensors");
    save_heads(&path, &["stripes".into()], &[Some(head)]).expect("written");
}

fn load<N: Network>(network: &mut N, folder: &Path, spec: &AdapterSpec) {
    load_adapter(folder, network, spec).expect("its own file");
    let mut heads = [Some(network.head_mut().clone())];
    let path = folder.join("heads.safetensors");
    load_heads(&path, &["stripes".into()], &mut heads).expect("its own file");
    let [head] = heads;
    *network.head_mut() = head.expect("read");
}

fn bits(tensor: Tensor<2>) -> Vec<u32> {
    let values = tensor.into_data().try_into_vec::<f32>().expect("f32");
    values.into_iter().map(f32::to_bits).collect()
}

fn learns_and_goes_on_bit_for_bit<N: Network>() {
    let device = autodiff_device();
    let spec = spec(Some(Selection::TopK(2)));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("optimizer.bpk");
    let frozen = |network: &N| {
        let linears = network.linears().into_iter();
        let weights = linears.map(|(_, linear)| bits(linear.weight.wide()));
        weights.collect::<Vec<_>>()
    };

    let network = made::<N>(&spec, &device);
    let base = frozen(&network);
    let mut optimizer = AdamWConfig::new().init();
    let (network, first) = train(network, (0, 20), &mut optimizer, &device);
    save(&network, folder.path(), &spec);
    optimizer.save(&state).expect("written");
    let half = bits(logits(&network, &device));
    let (network, second) = train(network, (20, 40), &mut optimizer, &device);
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (early, late) = (mean(&first[..5]), mean(&second[15..]));
    assert!(late < 0.7 * early, "the loss falls: {early} to {late}");
    assert_eq!(frozen(&network), base, "what was pretrained stays");

    let mut other = made::<N>(&spec, &device);
    load(&mut other, folder.path(), &spec);
    assert_eq!(
        bits(logits(&other, &device)),
        half,
        "read as it was written"
    );
    let mut optimizer = AdamWConfig::new().init().load(&state).expect("read");
    let (other, resumed) = train(other, (20, 40), &mut optimizer, &device);
    assert_eq!(resumed, second, "losses of a run that was resumed");
    let all = [&network, &other].map(|network| bits(logits(network, &device)));
    assert_eq!(all[0], all[1], "and its output");
}

fn is_the_same_when_merged<N: Network>() {
    let device = autodiff_device();
    for spec in [lora(), spec(None)] {
        let network = made::<N>(&spec, &device);
        let mut optimizer = AdamWConfig::new().init();
        let (network, _) = train(network, (0, 5), &mut optimizer, &device);
        let mixture = static_mixture(&network).expect("fixed weights");
        let mut merged = network.clone();
        detach(&mut merged);
        let base = logits(&merged, &device);
        merge_into(&mut merged, &mixture);
        let (found, expected) = (logits(&merged, &device), logits(&network, &device));
        let change = (expected.clone() - base).abs().max().into_scalar::<f32>();
        assert!(change > 1e-3, "the mixture does something: {change}");
        assert_close(found, expected, FORWARD, "merged");
    }
    let routed = made::<N>(&spec(Some(Selection::Dense)), &device);
    let error = static_mixture(&routed).expect_err("a router decides");
    assert!(error.to_string().contains("for each token"), "{error}");
}

fn selects_all_as_if_dense<N: Network>() {
    let device = autodiff_device();
    let of = |selection| {
        let network = made::<N>(&spec(Some(selection)), &device);
        let mut optimizer = AdamWConfig::new().init();
        let (network, _) = train(network, (0, 3), &mut optimizer, &device);
        logits(&network, &device)
    };
    let (all, dense) = (of(Selection::TopK(EXPERTS)), of(Selection::Dense));
    assert_close(all, dense, FORWARD, "K = E");
}

/// A LoRA goes through PEFT's files into a network of one's own.
fn reads_a_lora_of_peft<N: Network>() {
    let device = autodiff_device();
    let network = made::<N>(&lora(), &device);
    let mut optimizer = AdamWConfig::new().init();
    let (mut network, _) = train(network, (0, 5), &mut optimizer, &device);
    let folder = tempfile::tempdir().expect("a temporary folder");
    save_adapter(folder.path(), &network, &lora(), "own").expect("written");

    let mut other = N::new(&device);
    *other.head_mut() = network.head_mut().clone();
    let adapter = PeftAdapter::open(folder.path()).expect("PEFT's two files");
    let resolved = adapter.resolve(&other).expect("its own layers");
    assert_eq!(attach(&mut other, &resolved).len(), 2);
    let (found, expected) = (logits(&other, &device), logits(&network, &device));
    assert_close(found, expected, FORWARD, "by PEFT's files");
}

#[test]
fn a_convolutional_network_learns_and_goes_on_bit_for_bit() {
    learns_and_goes_on_bit_for_bit::<Convolutional>();
}

#[test]
fn a_recurrent_network_learns_and_goes_on_bit_for_bit() {
    learns_and_goes_on_bit_for_bit::<Recurrent>();
}

#[test]
fn a_mixture_of_fixed_weights_can_be_merged() {
    is_the_same_when_merged::<Convolutional>();
    is_the_same_when_merged::<Recurrent>();
}

#[test]
fn a_selection_of_all_experts_is_dense() {
    selects_all_as_if_dense::<Convolutional>();
    selects_all_as_if_dense::<Recurrent>();
}

#[test]
fn a_lora_of_peft_is_read_into_it() {
    reads_a_lora_of_peft::<Convolutional>();
    reads_a_lora_of_peft::<Recurrent>();
}

#[test]
fn layers_are_counted_by_the_numbers_in_paths() {
    let device = autodiff_device();
    let spec = AdapterSpec {
        experts: ExpertCount::ByLayer(vec![2, 4]),
        ..spec(Some(Selection::Dense))
    };
    let network = made::<Convolutional>(&spec, &device);
    let sites = network.sites();
    let counts: Vec<usize> = sites
        .iter()
        .map(|(_, site)| site.bank.num_experts())
        .collect();
    assert_eq!(counts, [2, 4]);
}

#[test]
fn what_the_network_has_no_place_for_is_refused_by_name() {
    let device = autodiff_device();
    let refused = |change: &dyn Fn(&mut AdapterSpec)| {
        let mut spec = spec(Some(Selection::Dense));
        change(&mut spec);
        let mut network = Convolutional::new(&device);
        let error = network.attach(&spec, 0, Seed::new(0), &device);
        assert!(network.sites().is_empty(), "and nothing is attached");
        error.expect_err("refused")
    };
    let place = refused(&|spec| spec.router_scope = RouterScope::Layer);
    assert!(matches!(place, ModelError::NoPlace { .. }), "{place}");
    assert_eq!(
        place.to_string(),
        "adapter.router_scope is layer, which this model has no place for: expected site"
    );
    let place = refused(&|spec| spec.composition = Composition::FeedForward);
    assert!(
        place
            .to_string()
            .starts_with("adapter.composition is feed_forward")
    );
    let rank = refused(&|spec| spec.bank.rank = 9);
    assert_eq!(
        rank.to_string(),
        "adapter.bank: rank 9 exceeds the smaller width 8 of a site, at blocks.0.conv"
    );
    let target = refused(&|spec| spec.targets = vec!["cnov".into()]);
    assert!(target.to_string().ends_with("near names: conv"), "{target}");
}

#[test]
#[should_panic(expected = "one entry of the mask for every token")]
fn a_mask_of_other_positions_is_told() {
    let device = autodiff_device();
    let network = made::<Convolutional>(&spec(Some(Selection::Dense)), &device);
    let (_, linear) = network.linears().remove(0);
    linear.forward(Tensor::ones([ROWS, 4, 9], &device), &context(&device), None);
}
