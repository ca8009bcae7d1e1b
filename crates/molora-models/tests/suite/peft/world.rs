//! What tests of PEFT files share.

#![allow(dead_code, reason = "each test file uses its part")]

use molora_routing::scorer::{ArrowConfig, ArrowScorer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{Bool, Device, Tensor};
use molora_kernels::random::{Seed, normal};
use molora_models::{Adaptable, Decoder, DecoderInput, ForwardContext};
use molora_routing::{Granularity, Router, RouterConfig, Scorer, Selection};
use safetensors::tensor::{TensorView, serialize};
use safetensors::{Dtype, SafeTensors};

pub(crate) fn logits(model: &Decoder, input: &DecoderInput) -> Tensor<3> {
    let context = ForwardContext::new(input.mask.clone().float());
    model.logits(model.forward(input, &context).hidden)
}

/// Zeros at padded positions, where a model may hold anything.
pub(crate) fn at_real_tokens(values: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<3> {
    let padding = mask.clone().bool_not().unsqueeze_dim::<3>(2);
    let padding = padding.expand(values.dims());
    values.mask_fill(padding, 0.0)
}

/// Gives every site a router per sequence, which labels overrule.
pub(crate) fn route_rows(model: &mut Decoder, num_experts: usize, device: &Device) {
    let config = RouterConfig {
        granularity: Granularity::Sequence,
        ..RouterConfig::default()
    };
    for (path, site) in model.sites_mut() {
        let seed = Seed::new(0).child(&path);
        let width = site.bank.a.dims()[0];
        site.router = Some(config.init(width, num_experts, 1, seed, device));
    }
}

/// A router per token by given directions.
pub(crate) fn arrow(prototypes: Tensor<2>, top_k: usize, device: &Device) -> Router {
    let config = RouterConfig {
        scorer: ArrowConfig.into(),
        selection: Selection::TopK(top_k),
        ..RouterConfig::default()
    };
    let [experts, width] = prototypes.dims();
    let mut router = config.init(width, experts, 1, Seed::new(0), device);
    let prototypes = Param::from_tensor(prototypes);
    router.scorer = Scorer::Arrow(ArrowScorer { prototypes });
    router
}

/// Tensors of f32 by name.
pub(crate) type File = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub(crate) fn read_file(path: &Path) -> File {
    let bytes = std::fs::read(path).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let number = |four: &[u8]| f32::from_le_bytes(four.try_into().expect("four bytes"));
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let values = view.data().chunks(4).map(number).collect();
        (name, (view.shape().to_vec(), values))
    });
    tensors.collect()
}

pub(crate) fn write_file(path: &Path, tensors: &File) {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name]);
        (name, view.expect("a valid view"))
    });
    std::fs::write(path, serialize(views, None).expect("serialisable")).expect("writable");
}

/// A folder of the crate's golden vectors.
pub(crate) fn bundled(folder: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).join(folder)
}

/// Random values for both factors of every site.
pub(crate) fn randomize(model: &mut Decoder, device: &Device) {
    for (path, site) in model.sites_mut() {
        let seed = Seed::new(7).child(&path);
        let values = |param: &Param<Tensor<2>>, name| {
            let values: Tensor<2> = normal(param.dims(), 0.2, seed.child(name), device);
            Param::from_tensor(values)
        };
        site.bank.a = values(&site.bank.a, "a");
        site.bank.b = values(&site.bank.b, "b");
    }
}

/// A batch for a vocabulary of at least 40.
pub(crate) fn batch(device: &Device) -> DecoderInput {
    let rows = [vec![3, 17, 5, 39, 21, 8], vec![11, 2, 30]];
    DecoderInput::from_sequences(&rows, device)
}
