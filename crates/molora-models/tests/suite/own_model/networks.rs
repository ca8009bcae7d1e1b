//! Two small networks that are neither encoders nor decoders, written against public names alone.

use burn::module::{Module, Param};
use burn::nn::LinearConfig;
use burn::tensor::module::unfold4d;
use burn::tensor::ops::UnfoldOptions;
use burn::tensor::{Device, Tensor, activation::relu, activation::sigmoid};
use molora_kernels::random::{Seed, uniform};
use molora_models::{
    Adaptable, BaseModel, BaseWeight, ForwardContext, MoLoraLinear, RouteTrace, TaskHead,
};

/// Classes of the task that the networks learn.
pub(super) const CLASSES: usize = 3;
const STATE: usize = 12;

/// What the tests ask of a network.
pub(super) trait Network: BaseModel + Module {
    /// The network with its pretrained weights, without adapters.
    fn new(device: &Device) -> Self;

    /// Images `[B, 1, 8, 8]` to logits `[B, classes]`, and the decisions of all routers.
    fn forward(&self, images: Tensor<4>, context: &ForwardContext) -> (Tensor<2>, Vec<RouteTrace>);

    /// Its new head.
    fn head_mut(&mut self) -> &mut TaskHead;
}

fn weight(name: &str, dims: [usize; 2], device: &Device) -> MoLoraLinear {
    let seed = Seed::new(5).child(name);
    let bias = uniform([dims[1]], 0.1, seed.child("bias"), device);
    let weight = uniform(dims, 1.0 / (dims[0] as f64).sqrt(), seed, device);
    MoLoraLinear::new(BaseWeight::of(weight), Some(bias))
}

fn head(width: usize, device: &Device) -> TaskHead {
    TaskHead::new(width, CLASSES, Seed::new(5).child("head"), device)
}

/// Two convolutions with 3 x 3 kernels, the second with stride 2: each has other positions.
#[derive(Module, Debug)]
pub(super) struct Convolutional {
    blocks: Vec<MoLoraLinear>,
    head: TaskHead,
}

impl Adaptable for Convolutional {
    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        let blocks = self.blocks.iter().enumerate();
        let name = |(index, block)| (format!("blocks.{index}.conv"), block);
        blocks.map(name).collect()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
        let blocks = self.blocks.iter_mut().enumerate();
        let name = |(index, block)| (format!("blocks.{index}.conv"), block);
        blocks.map(name).collect()
    }
}

impl BaseModel for Convolutional {}

impl Network for Convolutional {
    fn new(device: &Device) -> Self {
        Self {
            blocks: vec![
                weight("first", [9, 8], device),
                weight("second", [72, 8], device),
            ],
            head: head(8, device),
        }
    }

    fn forward(&self, images: Tensor<4>, context: &ForwardContext) -> (Tensor<2>, Vec<RouteTrace>) {
        let (mut x, mut routes) = (images, Vec::new());
        for (index, block) in self.blocks.iter().enumerate() {
            let stride = index + 1;
            let [batch, _, height, width] = x.dims();
            let (height, width) = (height / stride, width / stride);
            let options = UnfoldOptions::new([stride; 2], [1, 1], [1, 1]);
            let patches = unfold4d(x, [3, 3], options).swap_dims(1, 2);
            let context = ForwardContext {
                mask: Tensor::ones([batch, height * width], &patches.device()),
                ..context.clone()
            };
            let (y, route) = block.forward(patches, &context, None);
            routes.extend(route);
            let channels = block.dims().d_output;
            let y = y.swap_dims(1, 2);
            x = relu(y.reshape([batch, channels, height, width]));
        }
        let pooled = x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim(2);
        (self.head.forward(pooled), routes)
    }

    fn head_mut(&mut self) -> &mut TaskHead {
        &mut self.head
    }
}

/// A gated recurrent unit over the rows of an image, Cho et al., arXiv:1406.1078.
#[derive(Module, Debug)]
pub(super) struct Recurrent {
    input: MoLoraLinear,
    state: MoLoraLinear,
    head: TaskHead,
}

impl Adaptable for Recurrent {
    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        vec![
            ("gru.input".into(), &self.input),
            ("gru.state".into(), &self.state),
        ]
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
        vec![
            ("gru.input".into(), &mut self.input),
            ("gru.state".into(), &mut self.state),
        ]
    }
}

impl BaseModel for Recurrent {}

impl Network for Recurrent {
    fn new(device: &Device) -> Self {
        // Layers of burn are taken over as they are.
        let layer = |name: &str, dims: [usize; 2]| {
            let mut linear = LinearConfig::new(dims[0], dims[1]).init(device);
            let own = weight(name, dims, device);
            linear.weight = Param::from_tensor(own.weight.wide());
            linear.bias = own.bias;
            MoLoraLinear::from(linear)
        };
        Self {
            input: layer("input", [8, 3 * STATE]),
            state: layer("state", [STATE, 3 * STATE]),
            head: head(STATE, device),
        }
    }

    fn forward(&self, images: Tensor<4>, context: &ForwardContext) -> (Tensor<2>, Vec<RouteTrace>) {
        let ([batch, _, tokens, _], device) = (images.dims(), images.device());
        let rows = images.squeeze_dim::<3>(1);
        let mask = Tensor::<2>::ones([batch, tokens], &device);
        let of = |mask, dropout| ForwardContext {
            mask,
            dropout,
            ..context.clone()
        };
        let (from_input, route) =
            self.input
                .forward(rows, &of(mask.clone(), context.dropout), None);
        let mut routes = Vec::from_iter(route);
        let mut state = Tensor::<3>::zeros([batch, 1, STATE], &device);
        for step in 0..tokens {
            let dropout = context.dropout.map(|seed| seed.index(step as u64));
            let context = of(mask.clone().narrow(1, step, 1), dropout);
            let (from_state, route) = self.state.forward(state.clone(), &context, None);
            routes.extend(route);
            let gate = |gates: &Tensor<3>, number| gates.clone().narrow(2, number * STATE, STATE);
            let now = from_input.clone().narrow(1, step, 1);
            let reset = sigmoid(gate(&now, 0) + gate(&from_state, 0));
            let update = sigmoid(gate(&now, 1) + gate(&from_state, 1));
            let new = (gate(&now, 2) + reset * gate(&from_state, 2)).tanh();
            state = new.clone() + update * (state - new);
        }
        (self.head.forward(state.squeeze_dim(1)), routes)
    }

    fn head_mut(&mut self) -> &mut TaskHead {
        &mut self.head
    }
}
