//! A mixture of LoRA experts on a model of one's own, here a convolutional network: its specification, a
//! training loop with a balance term, and a checkpoint from which training goes on bit for bit.
//!
//! `cargo run --release -p molora-models --example own_model`
#![allow(clippy::print_stdout, reason = "an example shows what it computes")]

use std::error::Error;
use std::path::Path;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::module::unfold4d;
use burn::tensor::ops::UnfoldOptions;
use burn::tensor::{Device, Int, Tensor, activation::relu};
use molora_kernels::random::{Seed, normal};
use molora_kernels::softmax_cross_entropy;
use molora_models::{
    Adaptable, AdapterSpec, BaseWeight, ForwardContext, MoLoraLinear, RouteTrace, TaskHead,
    load_adapter, load_heads, save_adapter, save_heads, with_stable_ids,
};
use molora_regularize::{ObjectiveConfig, SiteView};

/// What is attached: four experts at every layer, of which each pixel takes two.
const SPEC: &str = r#"{
    "targets": ["all-linear"],
    "bank": { "num_experts": 4, "rank": 4, "dropout": 0.05 },
    "router": { "selection": { "top_k": 2 } }
}"#;
const OBJECTIVE: &str = r#"[{ "term": "load_balance", "weight": 0.01 }]"#;
const CLASSES: usize = 3;

/// A convolution as a linear layer on patches, which is what an adapter stands beside.
#[derive(Module, Debug)]
struct Convolution {
    patches: MoLoraLinear,
}

impl Convolution {
    /// The layer as pretraining left it: a 3 x 3 kernel, stride 1.
    fn new(conv: Conv2d) -> Self {
        let weight = conv.weight.val().flatten::<2>(1, 3).transpose().detach();
        let bias = conv.bias.map(|bias| bias.val().detach());
        Self {
            patches: MoLoraLinear::new(BaseWeight::of(weight), bias),
        }
    }

    /// `[B, C, H, W]` to `[B, O, H, W]`.
    fn forward(
        &self,
        x: Tensor<4>,
        context: &ForwardContext,
        routes: &mut Vec<RouteTrace>,
    ) -> Tensor<4> {
        let [batch, _, height, width] = x.dims();
        let patches = unfold4d(x, [3, 3], UnfoldOptions::new([1, 1], [1, 1], [1, 1]));
        let patches = patches.swap_dims(1, 2); // [B, H * W, C * 9]
        // The layer's positions are its pixels, all of them real.
        let mask = Tensor::ones([batch, height * width], &patches.device());
        let context = ForwardContext {
            mask,
            ..context.clone()
        };
        let (y, route) = self.patches.forward(patches, &context, None);
        routes.extend(route);
        y.swap_dims(1, 2)
            .reshape([batch as i32, -1, height as i32, width as i32])
    }
}

#[derive(Module, Debug)]
struct Network {
    first: Convolution,
    second: Convolution,
    head: TaskHead,
}

/// All that a model has to tell: its linear layers by name.
impl Adaptable for Network {
    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        let Self { first, second, .. } = self;
        vec![
            ("first".into(), &first.patches),
            ("second".into(), &second.patches),
        ]
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
        let Self { first, second, .. } = self;
        vec![
            ("first".into(), &mut first.patches),
            ("second".into(), &mut second.patches),
        ]
    }
}

impl Network {
    /// The pretrained network with fresh adapters and a fresh head.
    fn new(spec: &AdapterSpec, device: &Device) -> Result<Self, Box<dyn Error>> {
        device.seed(7); // A real one would read its weights from a file.
        let conv = |channels| {
            let config = Conv2dConfig::new(channels, [3, 3]);
            Convolution::new(config.init(device))
        };
        let mut network = Self {
            first: conv([1, 8]),
            second: conv([8, 8]),
            head: TaskHead::new(8, CLASSES, Seed::new(0).child("head"), device),
        };
        network.attach(spec, 0, Seed::new(0), device)?;
        Ok(with_stable_ids(network))
    }

    /// Images `[B, 1, H, W]` to logits `[B, classes]`, and what the routers decided.
    fn forward(&self, x: Tensor<4>, context: &ForwardContext) -> (Tensor<2>, Vec<RouteTrace>) {
        let mut routes = Vec::new();
        let x = relu(self.first.forward(x, context, &mut routes));
        let x = relu(self.second.forward(x, context, &mut routes));
        let pooled = x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim(2);
        (self.head.forward(pooled), routes)
    }

    /// One step of training, which depends on its number alone; returns the loss.
    fn step(
        self,
        number: u64,
        objective: &ObjectiveConfig,
        optimizer: &mut ModuleOptimizer,
        device: &Device,
    ) -> (Self, f32) {
        let (images, classes) = batch(number, device);
        let mut context = ForwardContext::new(Tensor::ones([1, 1], device));
        context.dropout = Some(Seed::new(0).child("dropout").index(number));
        let (logits, routes) = self.forward(images, &context);
        let loss = softmax_cross_entropy(logits, classes).mean();
        let sites = self.sites();
        let views: Vec<_> = routes
            .iter()
            .map(|route| SiteView {
                routed: Some(&route.routed),
                ..SiteView::of_weights(&sites[route.site].1.bank)
            })
            .collect();
        let value = loss.clone().into_scalar::<f32>();
        let loss = match objective.evaluate(&views).total {
            Some(terms) => loss + terms,
            None => loss,
        };
        let gradients = GradientsParams::from_grads(loss.backward(), &self);
        (optimizer.step(5e-3, self, gradients), value)
    }

    fn save(&self, folder: &Path, spec: &AdapterSpec) -> Result<(), Box<dyn Error>> {
        save_adapter(folder, self, spec, "my-network")?;
        let head = [Some(self.head.clone())];
        Ok(save_heads(
            &folder.join("heads.safetensors"),
            &["stripes".into()],
            &head,
        )?)
    }

    fn load(&mut self, folder: &Path, spec: &AdapterSpec) -> Result<(), Box<dyn Error>> {
        load_adapter(folder, self, spec)?;
        let mut head = [Some(self.head.clone())];
        load_heads(
            &folder.join("heads.safetensors"),
            &["stripes".into()],
            &mut head,
        )?;
        let [head] = head;
        self.head = head.ok_or("the file has no head")?;
        Ok(())
    }
}

/// Noisy images of 8 x 8: stripes along one axis, along the other one, or none.
fn batch(number: u64, device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let rows = 24;
    let value = |pixel: usize| {
        let (class, y, x) = (pixel / 64 % CLASSES, pixel / 8 % 8, pixel % 8);
        [y % 2, x % 2, (x + y) % 2][class] as f32
    };
    let pixels: Vec<f32> = (0..rows * 64).map(value).collect();
    let images = Tensor::<1>::from_data(&pixels[..], device).reshape([rows, 1, 8, 8]);
    let noise = normal([rows, 1, 8, 8], 0.5, Seed::new(1).index(number), device);
    let classes: Vec<i64> = (0..rows).map(|row| (row % CLASSES) as i64).collect();
    (images + noise, Tensor::from_data(&classes[..], device))
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::default().autodiff();
    let spec: AdapterSpec = serde_json::from_str(SPEC)?;
    let objective: ObjectiveConfig = serde_json::from_str(OBJECTIVE)?;
    let folder = tempfile::tempdir()?;
    let checkpoint = folder.path();
    let state = checkpoint.join("optimizer.bpk");

    let mut network = Network::new(&spec, &device)?;
    let mut optimizer = AdamWConfig::new().init();
    let mut losses = Vec::new();
    for number in 0..120 {
        let loss;
        (network, loss) = network.step(number, &objective, &mut optimizer, &device);
        losses.push(loss);
        if (number + 1) % 40 == 0 {
            println!("step {}: {loss:.4}", number + 1);
        }
        if number + 1 == 80 {
            network.save(checkpoint, &spec)?;
            optimizer.save(&state)?;
        }
    }

    // As another process would: from the pretrained network and the files.
    let mut network = Network::new(&spec, &device)?;
    network.load(checkpoint, &spec)?;
    let mut optimizer = AdamWConfig::new().init().load(&state)?;
    for number in 80..120 {
        let loss;
        (network, loss) = network.step(number, &objective, &mut optimizer, &device);
        assert_eq!(
            loss, losses[number as usize],
            "the same bits after the checkpoint"
        );
    }
    println!("resumed after step 80: the same losses");
    Ok(())
}
