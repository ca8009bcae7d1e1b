//! Merges of task vectors and of low-rank factors against golden vectors.

use burn::tensor::{Device, Tensor};
use molora_adapters::merge::{
    Join, LowRank, MergeMethod, Rule, Sign, Sparsify, TaskVector, agreeing, concrete_mask,
    keep_largest, merge, rescaled, singular_values, with_coefficients,
};
use molora_regularize::prediction_entropy;
use molora_testkit::golden::{Case, Tensors};
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device, device};

use crate::cases::cases;

/// The parameters of the cases' model, in the order in which it is flattened.
const NAMES: [&str; 4] = ["w1", "b1", "w2", "b2"];

/// A matrix, or a vector as one row.
fn matrix(expected: &Tensors, name: &str, device: &Device) -> Tensor<2> {
    match expected.shape(name).len() {
        1 => expected.tensor::<1>(name, device).unsqueeze(),
        _ => expected.tensor(name, device),
    }
}

/// One matrix for each task, from a stack of matrices or vectors.
fn stack(expected: &Tensors, name: &str, device: &Device) -> Vec<Tensor<2>> {
    let stack: Tensor<3> = match expected.shape(name).len() {
        2 => expected.tensor::<2>(name, device).unsqueeze_dim(1),
        _ => expected.tensor(name, device),
    };
    let task = |task| stack.clone().narrow(0, task, 1).squeeze_dim(0);
    (0..stack.dims()[0]).map(task).collect()
}

/// A number of the case, or of a variant where that has its own.
fn hyper(case: &Case, variant: &str, name: &str) -> f64 {
    let document = case.json("case.json").expect("a case");
    let own = document["variants"][variant]["hyper"][name].as_f64();
    own.unwrap_or_else(|| case.number("case.json", &["hyper", name]))
}

/// A two-layer model with task vectors.
struct Model {
    expected: Tensors,
    device: Device,
}

impl Model {
    fn read(case: &Case, device: Device) -> Self {
        Self {
            expected: case.tensors(),
            device,
        }
    }

    fn named(&self, prefix: &str) -> TaskVector {
        let own = |name: &str| {
            (
                name.to_owned(),
                matrix(&self.expected, &format!("{prefix}.{name}"), &self.device),
            )
        };
        TaskVector::new(NAMES.iter().map(|name| own(name)).collect())
    }

    /// A stack by task, as a vector for each.
    fn tasks(&self, prefix: &str) -> Vec<TaskVector> {
        let stacks =
            NAMES.map(|name| stack(&self.expected, &format!("{prefix}.{name}"), &self.device));
        let of = |task: usize| {
            let own = NAMES.iter().zip(&stacks);
            TaskVector::new(
                own.map(|(name, stack)| ((*name).into(), stack[task].clone()))
                    .collect(),
            )
        };
        (0..stacks[0].len()).map(of).collect()
    }

    fn weights(&self) -> Vec<f64> {
        let name = if self.expected.has("param.weights") {
            "param.weights"
        } else {
            "input.weights"
        };
        self.expected
            .floats(name)
            .into_iter()
            .map(f64::from)
            .collect()
    }

    /// `w2 silu(w1 x + b1) + b2` for the inputs of every task.
    fn forward(&self, parameters: &TaskVector, x: Tensor<3>) -> Tensor<3> {
        let get = |name: &str| parameters.get(name).expect("a parameter").clone();
        let linear = |x: Tensor<3>, w: &str, b: &str| {
            x.matmul(get(w).transpose().unsqueeze()) + get(b).unsqueeze()
        };
        let hidden = burn::tensor::activation::silu(linear(x, "w1", "b1"));
        linear(hidden, "w2", "b2")
    }

    /// The merged parameters and outputs of a variant.
    fn check(&self, variant: &str, merged: &TaskVector) {
        for (name, own) in merged.iter() {
            let name = format!("{variant}.output.merged.{name}");
            assert_close(
                own,
                matrix(&self.expected, &name, &self.device),
                FORWARD,
                &name,
            );
        }
        let x = self.expected.tensor("input.x", &self.device);
        let y = self.forward(merged, x);
        self.expected
            .assert_close(&format!("{variant}.output.y"), y.clone(), FORWARD);
        let cotangent: Tensor<3> = self.expected.tensor("input.cotangent", &self.device);
        if !self.expected.has(&format!("{variant}.aux.total")) {
            let objective = (y * cotangent).sum();
            self.expected
                .assert_close(&format!("{variant}.objective"), objective, FORWARD);
        }
    }

    /// The base plus a change.
    fn plus(&self, change: &TaskVector) -> TaskVector {
        self.named("param.base").map(|name, base| {
            base.clone() + change.get(name).expect("every parameter changes").clone()
        })
    }

    /// The base with the weighted vectors under a rule.
    fn merged(&self, vectors: &[TaskVector], weights: &[f64], rule: Rule) -> TaskVector {
        let parts: Vec<_> = vectors.iter().zip(weights.iter().copied()).collect();
        self.plus(&TaskVector::merge(&parts, rule).expect("a valid rule"))
    }
}

fn largest(density: f64, join: Join) -> Rule {
    let sparsify = Sparsify::Largest { density };
    Rule { sparsify, join }
}

fn joined(join: Join) -> Rule {
    let sparsify = Sparsify::Nothing;
    Rule { sparsify, join }
}

#[test]
fn golden_merge_task_arithmetic() {
    for case in cases("merge_task_arithmetic") {
        let model = Model::read(&case, autodiff_device());
        let vectors = model.tasks("param.task");
        model.check(
            "linear",
            &model.merged(&vectors, &model.weights(), Rule::default()),
        );
        let weights = model
            .expected
            .tensor::<1>("param.weights", &model.device)
            .require_grad();
        let merged = model.named("param.base").map(|name, base| {
            let deltas: Vec<Tensor<2>> = vectors
                .iter()
                .map(|v| v.get(name).expect("it").clone())
                .collect();
            with_coefficients(base.clone(), &deltas, weights.clone())
        });
        model.check("linear", &merged);
        let x = model
            .expected
            .tensor::<3>("input.x", &model.device)
            .require_grad();
        let cotangent: Tensor<3> = model.expected.tensor("input.cotangent", &model.device);
        let gradients = (model.forward(&merged, x.clone()) * cotangent)
            .sum()
            .backward();
        let expected = &model.expected;
        expected.assert_close(
            "linear.grad.weights",
            weights.grad(&gradients).expect("tracked"),
            GRADIENT,
        );
        expected.assert_close(
            "linear.grad.x",
            x.grad(&gradients).expect("tracked"),
            GRADIENT,
        );
    }
}

#[test]
fn golden_merge_magnitude() {
    for case in cases("merge_magnitude") {
        let model = Model::read(&case, device());
        let rule = largest(hyper(&case, "linear", "density"), Join::Sum);
        model.check(
            "linear",
            &model.merged(&model.tasks("param.task"), &model.weights(), rule),
        );
    }
}

#[test]
fn golden_merge_ties() {
    for case in cases("merge_ties") {
        let model = Model::read(&case, device());
        let vectors = model.tasks("param.task");
        for (variant, sign) in [
            ("peft_total", Sign::Total),
            ("peft_frequency", Sign::Frequency),
        ] {
            let rule = largest(hyper(&case, variant, "density"), Join::Mean(sign));
            model.check(variant, &model.merged(&vectors, &model.weights(), rule));
        }
        // The whole model is one matrix.
        let rule = largest(
            hyper(&case, "flat_sum", "density"),
            Join::Agreeing(Sign::Majority),
        );
        let lambda = hyper(&case, "flat_sum", "lambda");
        let rows: Vec<_> = vectors
            .iter()
            .map(|vector| (vector.flattened(), lambda))
            .collect();
        let change = vectors[0].with_flattened(&rule.apply("model", &rows));
        model.check("flat_sum", &model.plus(&change));
    }
}

#[test]
fn golden_merge_dare() {
    for case in cases("merge_dare") {
        let model = Model::read(&case, device());
        let density = 1.0 - hyper(&case, "linear", "p");
        let keep = model.tasks("input.keep");
        let pairs = model.tasks("param.task").into_iter().zip(&keep);
        let vectors: Vec<TaskVector> = pairs
            .map(|(vector, keep)| {
                vector.map(|name, m| rescaled(m, keep.get(name).expect("a mask").clone(), density))
            })
            .collect();
        for (variant, join) in [("linear", Join::Sum), ("ties", Join::Mean(Sign::Total))] {
            model.check(
                variant,
                &model.merged(&vectors, &model.weights(), joined(join)),
            );
        }
    }
}

#[test]
fn golden_merge_lora_factors() {
    for case in cases("merge_lora_factors") {
        let (expected, device) = (case.tensors(), device());
        // `[r, in]` and `[out, r]` in the file.
        let ours = |name: &str| {
            stack(&expected, name, &device)
                .into_iter()
                .map(Tensor::transpose)
        };
        let scales = expected.floats("input.scaling").into_iter().map(f64::from);
        let weights = expected.floats("input.weights").into_iter().map(f64::from);
        let parts: Vec<(LowRank, f64)> = ours("param.A")
            .zip(ours("param.B"))
            .zip(scales.zip(weights))
            .map(|((a, b), (scale, weight))| (LowRank { a, b, scale }, weight))
            .collect();
        let density = 1.0 - hyper(&case, "dare_linear", "p");
        let dropped = |(index, (part, weight)): (usize, &(LowRank, f64))| {
            let keep = |name| ours(name).nth(index).expect("a mask for each");
            let part = LowRank {
                a: rescaled(&part.a, keep("input.keep.A"), density),
                b: rescaled(&part.b, keep("input.keep.B"), density),
                scale: part.scale,
            };
            (part, *weight)
        };
        let dropped: Vec<(LowRank, f64)> = parts.iter().enumerate().map(dropped).collect();
        let rank = hyper(&case, "svd", "svd_rank") as usize;
        let pruned = |variant, join| largest(hyper(&case, variant, "density"), join);
        let mean = Join::Mean(Sign::Total);
        let products = MergeMethod::Products {
            rule: pruned("ties_svd", mean),
            rank,
        };
        for (variant, parts, method) in [
            ("linear", &parts, MergeMethod::LINEAR),
            ("cat", &parts, MergeMethod::Cat),
            ("svd", &parts, MergeMethod::Svd { rank }),
            ("ties", &parts, MergeMethod::Factors(pruned("ties", mean))),
            (
                "magnitude_prune",
                &parts,
                MergeMethod::Factors(pruned("magnitude_prune", Join::Sum)),
            ),
            ("dare_linear", &dropped, MergeMethod::LINEAR),
            ("dare_ties", &dropped, MergeMethod::Factors(joined(mean))),
            ("ties_svd", &parts, products),
        ] {
            let merged = merge("site", parts, method).expect("a valid method");
            assert_eq!(merged.scale, 1.0);
            let of = |name: &str| format!("{variant}.output.{name}");
            for (name, own) in [("A", &merged.a), ("B", &merged.b)] {
                if expected.has(&of(name)) {
                    expected.assert_close(&of(name), own.clone().transpose(), FORWARD);
                }
            }
            expected.assert_close(&of("product"), merged.delta().transpose(), FORWARD);
            let x: Tensor<2> = expected.tensor("input.x", &device);
            expected.assert_close(&of("y"), x.matmul(merged.delta()), FORWARD);
            if let MergeMethod::Svd { .. } | MergeMethod::Products { .. } = method {
                // Untruncated: of the largest rank that the product can have.
                let whole = match method {
                    MergeMethod::Products { rule, .. } => {
                        let deltas: Vec<_> = parts.iter().map(|(p, w)| (p.delta(), *w)).collect();
                        rule.apply("site", &deltas)
                    }
                    _ => merge("site", parts, MergeMethod::Cat)
                        .expect("valid")
                        .delta(),
                };
                let values: Vec<f32> = singular_values(&whole)
                    .into_iter()
                    .map(|s| s as f32)
                    .collect();
                let found = Tensor::<1>::from_floats(&values[..], &device);
                expected.assert_close(&of("singular_values"), found, FORWARD);
            }
        }
        let exact = merge("site", &parts, MergeMethod::Cat)
            .expect("valid")
            .delta();
        expected.assert_close("exact.output.product", exact.transpose(), FORWARD);
    }
}

/// What is learned by entropy, and what the gradients are checked of.
///
/// A graph is gone after its backward pass, so that each loss has one of its own.
struct Learned<'a> {
    model: &'a Model,
    variant: &'a str,
    merged: &'a dyn Fn() -> TaskVector,
    tracked: Vec<(String, Tensor<2>)>,
    x: Tensor<3>,
}

impl Learned<'_> {
    /// Outputs, entropy and all gradients of the objective and of the entropy alone.
    fn check(&self) {
        let (model, variant) = (self.model, self.variant);
        model.check(variant, &(self.merged)());
        let expected = &model.expected;
        let of = |name: &str| format!("{variant}.{name}");
        for kind in ["grad", "aux_grad"] {
            let y = model.forward(&(self.merged)(), self.x.clone());
            let [tasks, samples, classes] = y.dims();
            let entropies = prediction_entropy(y.clone().reshape([tasks * samples, classes]));
            let by_task = entropies.reshape([tasks, samples]).mean_dim(1);
            let by_task: Tensor<1> = by_task.squeeze_dim(1);
            let total = by_task.clone().sum();
            if expected.has(&of("output.entropy_per_task")) {
                expected.assert_close(&of("output.entropy_per_task"), by_task, FORWARD);
            }
            for name in ["aux.entropy", "aux.total"] {
                expected.assert_close(&of(name), total.clone(), FORWARD);
            }
            let cotangent: Tensor<3> = expected.tensor("input.cotangent", &model.device);
            let objective = (y * cotangent).sum() + total.clone();
            expected.assert_close(&of("objective"), objective.clone(), FORWARD);
            let loss = if kind == "grad" { objective } else { total };
            let gradients = loss.backward();
            let name = of(&format!("{kind}.x"));
            expected.assert_close(&name, self.x.grad(&gradients).expect("tracked"), GRADIENT);
            for (name, parameter) in &self.tracked {
                let name = of(&format!("{kind}.{name}"));
                let wanted = matrix(expected, &name, &model.device);
                let found = parameter.grad(&gradients).expect("tracked");
                assert_close(found, wanted, GRADIENT, &name);
            }
        }
    }
}

#[test]
fn golden_merge_adamerging() {
    for case in cases("merge_adamerging") {
        let document = case.json("case.json").expect("a case");
        for (variant, about) in document["variants"].as_object().expect("variants") {
            let model = Model::read(&case, autodiff_device());
            let coefficients = about["hyper"]["coefficients"].as_str().expect("a name");
            let is_filtered = about["hyper"]["plus_plus"].as_bool().expect("a choice");
            let vectors = model.tasks("param.task");
            let by_layer = coefficients == "lambda_layer";
            // `[tasks, tensors]` or one row `[1, tasks]`.
            let name = format!("param.{coefficients}");
            let lambda = matrix(&model.expected, &name, &model.device).require_grad();
            let density = hyper(&case, variant, "density");
            let merged = || {
                model.named("param.base").map(|name, base| {
                    let own = |vector: &TaskVector| vector.get(name).expect("it").clone();
                    let mut deltas: Vec<Tensor<2>> = vectors.iter().map(own).collect();
                    if is_filtered {
                        let trimmed: Vec<_> =
                            deltas.iter().map(|m| keep_largest(m, density)).collect();
                        deltas = agreeing(&trimmed, Sign::Total);
                    }
                    let own = match by_layer {
                        true => {
                            let layer = NAMES
                                .iter()
                                .position(|other| *other == name)
                                .expect("known");
                            lambda.clone().narrow(1, layer, 1).squeeze_dim(1)
                        }
                        false => lambda.clone().squeeze_dim(0),
                    };
                    with_coefficients(base.clone(), &deltas, own)
                })
            };
            Learned {
                x: model
                    .expected
                    .tensor::<3>("input.x", &model.device)
                    .require_grad(),
                model: &model,
                variant,
                merged: &merged,
                tracked: vec![(coefficients.into(), lambda.clone())],
            }
            .check();
        }
    }
}

#[test]
fn golden_merge_concrete() {
    for case in cases("merge_concrete") {
        let model = Model::read(&case, autodiff_device());
        let temperature = hyper(&case, "train", "temperature");
        let lambda = matrix(&model.expected, "param.lambda", &model.device).require_grad();
        let logits = model
            .named("param.logits")
            .map(|_, logits| logits.clone().require_grad());
        let noise = model.named("input.noise");
        let vectors = model.tasks("param.task");
        let merged = || {
            let mask = logits.map(|name, logits| {
                let mask = concrete_mask(
                    logits.clone(),
                    noise.get(name).expect("it").clone(),
                    temperature,
                );
                let name = format!("train.output.mask.{name}");
                assert_close(
                    &mask,
                    matrix(&model.expected, &name, &model.device),
                    FORWARD,
                    &name,
                );
                mask
            });
            model.named("param.base").map(|name, base| {
                let get = |vector: &TaskVector| vector.get(name).expect("it").clone();
                let deltas: Vec<_> = vectors.iter().map(|v| get(v) * get(&mask)).collect();
                with_coefficients(base.clone(), &deltas, lambda.clone().squeeze_dim(0))
            })
        };
        let mut tracked = vec![("lambda".to_owned(), lambda.clone())];
        tracked.extend(
            logits
                .iter()
                .map(|(name, t)| (format!("logits.{name}"), t.clone())),
        );
        Learned {
            x: model
                .expected
                .tensor::<3>("input.x", &model.device)
                .require_grad(),
            model: &model,
            variant: "train",
            merged: &merged,
            tracked,
        }
        .check();
    }
}
