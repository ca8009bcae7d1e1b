//! Forward and backward of every operation of molora-kernels at the shapes of the bench's models,
//! fast path against portable definition.

use anyhow::Result;
use burn::tensor::{Device, Distribution, Int, Tensor};
use molora_kernels as fast;
use molora_kernels::random::Seed;
use molora_kernels::{AttentionOptions, portable};

use crate::World;
use crate::clock::{Measured, time};

const ROWS: usize = 16;
const TOKENS: usize = 64;
const WIDTH: usize = 384;
const INNER: usize = 1536;
const HEADS: usize = 12;

/// An operation with everything held but the input that is differentiated.
type Operation = Box<dyn Fn(Tensor<3>) -> Tensor<3>>;

/// An operation under its name, both ways, at an input of a shape.
struct Case {
    name: &'static str,
    input: [usize; 3],
    fast: fn(&Device) -> Operation,
    /// Absent where there is one definition only.
    portable: Option<fn(&Device) -> Operation>,
    flops: Option<usize>,
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// A case whose two ways differ in the module alone.
macro_rules! case {
    ($name:expr, $input:expr, $flops:expr, |$device:ident| $held:expr, |$op:ident, $h:ident, $x:ident| $run:expr) => {
        Case {
            name: $name,
            input: $input,
            flops: $flops,
            fast: |$device| {
                use fast as $op;
                let $h = $held;
                Box::new(move |$x| $run)
            },
            portable: Some(|$device| {
                use portable as $op;
                let $h = $held;
                Box::new(move |$x| $run)
            }),
        }
    };
}

/// Operations of a frozen linear layer, forward and for the input's gradient.
fn linear(input: usize, output: usize) -> Case {
    let flops = Some(4 * ROWS * TOKENS * input * output);
    let shape = [ROWS, TOKENS, input];
    match (input, output) {
        (WIDTH, WIDTH) => case!(
            "linear-384x384",
            shape,
            flops,
            |d| (random([WIDTH, WIDTH], d), random([WIDTH], d)),
            |op, held, x| op::linear(x, held.0.clone(), Some(held.1.clone()))
        ),
        (WIDTH, _) => case!(
            "linear-384x1536",
            shape,
            flops,
            |d| (random([WIDTH, INNER], d), random([INNER], d)),
            |op, held, x| op::linear(x, held.0.clone(), Some(held.1.clone()))
        ),
        _ => case!(
            "linear-1536x384",
            shape,
            flops,
            |d| (random([INNER, WIDTH], d), random([WIDTH], d)),
            |op, held, x| op::linear(x, held.0.clone(), Some(held.1.clone()))
        ),
    }
}

/// Scores and mixed values: two products forward, four backward.
fn attention_flops(rows: usize, tokens: usize) -> Option<usize> {
    Some(12 * rows * tokens * tokens * WIDTH)
}

fn attention_cases() -> Vec<Case> {
    vec![
        case!(
            "attention-64",
            [ROWS, TOKENS, WIDTH],
            attention_flops(ROWS, TOKENS),
            |_d| (),
            |op, _held, x| op::attention(x.clone(), x.clone(), x, None, HEADS)
        ),
        case!(
            "attention-512-causal",
            [2, 512, WIDTH],
            None,
            |_d| AttentionOptions::new(HEADS).with_causal(0),
            |op, held, x| op::attention_with(x.clone(), x.clone(), x, &held)
        ),
        case!(
            "attention-512-grouped",
            [2, 512, WIDTH],
            None,
            |_d| AttentionOptions::new(HEADS)
                .with_num_kv_heads(4)
                .with_causal(0),
            |op, held, x| {
                let keys = x.clone().narrow(2, 0, WIDTH / 3);
                op::attention_with(x, keys.clone(), keys, &held)
            }
        ),
    ]
}

fn rowwise_cases() -> Vec<Case> {
    let (wide, narrow) = ([ROWS, TOKENS, INNER], [ROWS, TOKENS, WIDTH]);
    vec![
        case!("gelu", wide, None, |_d| (), |op, _held, x| op::gelu(x)),
        case!("gelu-tanh", wide, None, |_d| (), |op, _held, x| {
            op::gelu_tanh(x)
        }),
        case!("soft-cap", wide, None, |_d| (), |op, _held, x| {
            op::soft_cap(x, 30.0)
        }),
        case!(
            "silu-gate",
            wide,
            None,
            |d| random([ROWS, TOKENS, INNER], d),
            |op, held, x| op::silu_gate(x, held.clone())
        ),
        case!(
            "layer-norm",
            narrow,
            None,
            |d| (random([WIDTH], d), random([WIDTH], d)),
            |op, held, x| op::layer_norm(x, held.0.clone(), held.1.clone(), 1e-12)
        ),
        case!(
            "rms-norm",
            narrow,
            None,
            |d| random([WIDTH], d),
            |op, held, x| op::rms_norm(x, held.clone(), 1e-6)
        ),
        Case {
            name: "dropout",
            input: narrow,
            fast: |_| Box::new(|x| fast::dropout(x, 0.05, Seed::new(1))),
            portable: None,
            flops: None,
        },
        case!(
            "cross-entropy-49152",
            [1, 256, 49_152],
            None,
            |d| Tensor::<1, Int>::arange(0..256, d).mul_scalar(40),
            |op, held, x| {
                let logits = x.reshape([256, 49_152]);
                op::softmax_cross_entropy(logits, held.clone()).reshape([1, 1, 256])
            }
        ),
    ]
}

fn all() -> Vec<Case> {
    let linears = [(WIDTH, WIDTH), (WIDTH, INNER), (INNER, WIDTH)];
    let mut cases: Vec<Case> = linears.map(|(i, o)| linear(i, o)).into();
    cases.extend(attention_cases());
    cases.extend(rowwise_cases());
    cases
}

pub(crate) fn cases() -> Vec<String> {
    let names = |case: Case| {
        let portable = case.portable.map(|_| format!("{}-portable", case.name));
        [Some(format!("{}-fast", case.name)), portable]
    };
    all().into_iter().flat_map(names).flatten().collect()
}

pub(crate) fn run(name: &str, world: &World) -> Option<Result<Measured>> {
    let (name, way) = name.rsplit_once('-')?;
    let case = all().into_iter().find(|case| case.name == name)?;
    let operation = match way {
        "fast" => case.fast,
        "portable" => case.portable?,
        _ => return None,
    };
    Some(measure(&case, operation(&world.device), world))
}

fn measure(case: &Case, operation: Operation, world: &World) -> Result<Measured> {
    let device = world.device.clone().autodiff();
    let x = random(case.input, &device).require_grad();
    let upstream = Tensor::ones(operation(x.clone()).shape(), &device);
    let measured = time(world.effort, &world.device, || {
        drop((operation(x.clone()) * upstream.clone()).sum().backward());
        Ok(())
    })?;
    Ok(Measured {
        flops: case.flops.map(|flops| flops as f64),
        ..measured
    })
}
