//! A linear probe: multinomial logistic or ridge regression on features that do not change.
//!
//! Features are centred by the mean of the training records and divided by
//! `sqrt(v_j + 1e-4 mean(v))`, where `v_j` is the variance of feature `j`: a feature that hardly
//! varies stays small. On these, with a column of ones for the bias, the probe minimises
//!
//! `1/n sum_i CE(W x_i, y_i) + l2/2 |W|^2` (the bias is not penalised)
//!
//! for classes, and `1/2n sum_i (w x_i - y_i)^2 + l2/2 |w|^2` for numbers,
//! by [`ITERATIONS`] full-batch steps of Nesterov's accelerated gradient method, from zero, with the
//! step `1 / (c lambda + l2)`, where `lambda` is the largest eigenvalue of `X^T X / n` and `c` is 1/2 for
//! classes (Boehning 1992: the Hessian of the loss is at most half of it) and 1 for numbers; momentum
//! begins anew when it points uphill (O'Donoghue and Candes, arXiv:1204.3982). Nothing is drawn at random.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::data::{Split, TaskKind, TokenizedTask};

/// The penalties that are tried, the strongest first; each fit starts from the one before it.
pub(crate) const PENALTIES: [f64; 4] = [1e-1, 1e-2, 1e-3, 1e-4];

/// Steps of the optimizer for each penalty.
pub(crate) const ITERATIONS: usize = 150;

/// Multiplications by which the largest eigenvalue is found.
const POWER_ITERATIONS: usize = 40;

/// What a probe learns to tell of each row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answers<'a> {
    /// A class below a number of classes.
    Classes(&'a [usize], usize),
    /// A number.
    Numbers(&'a [f64]),
}

/// A regression.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// Mean of the training features, `[1, D]`.
    mean: Tensor<2>,
    /// What features are divided by, `[1, D]`.
    scale: Tensor<2>,
    /// Weights, the last row for the bias, `[D + 1, C]`.
    weight: Tensor<2>,
}

impl Probe {
    /// One probe for each of [`PENALTIES`].
    ///
    /// # Shapes
    /// - `features`: `[n, D]`, one row for each of the answers, with at least one row
    pub(crate) fn fit(features: &Tensor<2>, answers: Answers<'_>) -> Vec<Self> {
        let device = features.device();
        let mean = features.clone().mean_dim(0);
        let variance = (features.clone() - mean.clone()).square().mean_dim(0);
        let floor = variance.clone().mean().mul_scalar(1e-4).add_scalar(1e-12);
        let scale = (variance + floor.unsqueeze()).sqrt();
        let outputs = match answers {
            Answers::Classes(_, count) => count,
            Answers::Numbers(_) => 1,
        };
        let start = Tensor::zeros([features.dims()[1] + 1, outputs], &device);
        let mut probe = Self {
            mean,
            scale,
            weight: start,
        };
        let problem = Problem::new(probe.standardised(features), answers);
        PENALTIES
            .map(|penalty| {
                probe.weight = problem.solve(probe.weight.clone(), penalty);
                probe.clone()
            })
            .into()
    }

    /// The class of the largest logit for each row of `[n, D]`.
    pub(crate) fn predict(&self, features: &Tensor<2>) -> Vec<usize> {
        let best = self.outputs(features).argmax(1).into_data();
        best.iter::<i64>().map(|class| class as usize).collect()
    }

    /// The number for each row of `[n, D]`.
    pub(crate) fn numbers(&self, features: &Tensor<2>) -> Vec<f64> {
        let outputs = self.outputs(features).into_data();
        outputs.iter::<f64>().collect()
    }

    /// Logits, or numbers, `[n, C]`.
    fn outputs(&self, features: &Tensor<2>) -> Tensor<2> {
        self.standardised(features).matmul(self.weight.clone())
    }

    /// Scaled features with a column of ones, `[n, D + 1]`.
    fn standardised(&self, features: &Tensor<2>) -> Tensor<2> {
        let scaled = (features.clone() - self.mean.clone()) / self.scale.clone();
        let ones = Tensor::ones([scaled.dims()[0], 1], &scaled.device());
        Tensor::cat(vec![scaled, ones], 1)
    }
}

/// A probe of a task, and how it was chosen.
pub(crate) struct Fitted {
    pub(crate) probe: Probe,
    /// The task's metric on the validation records; of equally good probes the first was taken.
    pub(crate) validation: f64,
    /// The penalty.
    pub(crate) l2: f64,
}

impl Fitted {
    /// Fits probes to training records and takes the one that does best on validation records; both are
    /// given as features `[n, D]` and the places of their records in the split.
    pub(crate) fn of(
        task: &TokenizedTask,
        (train, train_rows): (&Tensor<2>, &[usize]),
        (validation, validation_rows): (&Tensor<2>, &[usize]),
    ) -> Self {
        let (metric, count) = (&task.metric, task.labels.len());
        if task.kind == TaskKind::Regression {
            let right = |split, rows| pick(&task.numbers(split), rows);
            let probes = Probe::fit(train, Answers::Numbers(&right(Split::Train, train_rows)));
            let expected = right(Split::Validation, validation_rows);
            let score = |probe: &Probe| metric.score_numbers(&probe.numbers(validation), &expected);
            return best(probes, score);
        }
        let right = |split, rows| pick(&task.classes(split), rows);
        let classes = right(Split::Train, train_rows);
        let probes = Probe::fit(train, Answers::Classes(&classes, count));
        let expected = right(Split::Validation, validation_rows);
        best(probes, |probe| {
            metric.score(&probe.predict(validation), &expected, count)
        })
    }
}

fn pick<T: Copy>(values: &[T], rows: &[usize]) -> Vec<T> {
    rows.iter().map(|&row| values[row]).collect()
}

fn best(probes: Vec<Probe>, score: impl Fn(&Probe) -> f64) -> Fitted {
    let scored = probes.into_iter().zip(PENALTIES).map(|(probe, l2)| Fitted {
        validation: score(&probe),
        probe,
        l2,
    });
    let better = |best: Fitted, next: Fitted| match next.validation > best.validation {
        true => next,
        false => best,
    };
    scored.reduce(better).expect("there are penalties")
}

/// What is minimised.
struct Problem {
    /// Inputs with a column of ones, `[n, D + 1]`.
    inputs: Tensor<2>,
    /// One-hot classes, `[n, C]`, or numbers, `[n, 1]`.
    targets: Tensor<2>,
    is_logistic: bool,
    /// 1 for the rows that are penalised, 0 for the bias, `[D + 1, 1]`.
    penalised: Tensor<2>,
    /// Largest eigenvalue of `X^T X / n`, a little too large for safety.
    eigenvalue: f64,
}

impl Problem {
    fn new(inputs: Tensor<2>, answers: Answers<'_>) -> Self {
        let device = inputs.device();
        let [_, width] = inputs.dims();
        let mut penalised = vec![1.0_f32; width];
        penalised[width - 1] = 0.0;
        Self {
            targets: targets(answers, &device),
            is_logistic: matches!(answers, Answers::Classes(..)),
            penalised: Tensor::from_data(TensorData::new(penalised, [width, 1]), &device),
            eigenvalue: 1.05 * largest_eigenvalue(&inputs),
            inputs,
        }
    }

    /// The gradient of the loss at `weight`, of its shape.
    fn gradient(&self, weight: &Tensor<2>, penalty: f64) -> Tensor<2> {
        let rows = self.inputs.dims()[0] as f64;
        let logits = self.inputs.clone().matmul(weight.clone());
        let outputs = match self.is_logistic {
            true => log_softmax(logits, 1).exp(),
            false => logits,
        };
        let error = outputs - self.targets.clone();
        let data = self.inputs.clone().transpose().matmul(error);
        let shrink = weight.clone() * self.penalised.clone();
        data.div_scalar(rows) + shrink.mul_scalar(penalty)
    }

    fn solve(&self, start: Tensor<2>, penalty: f64) -> Tensor<2> {
        let share = if self.is_logistic { 0.5 } else { 1.0 };
        let rate = 1.0 / (share * self.eigenvalue + penalty);
        let (mut here, mut ahead, mut time) = (start.clone(), start, 1.0_f64);
        for _ in 0..ITERATIONS {
            let gradient = self.gradient(&ahead, penalty);
            let next = ahead.clone() - gradient.clone().mul_scalar(rate);
            let step = next.clone() - here;
            let uphill: f32 = (gradient * step.clone()).sum().into_scalar();
            if uphill > 0.0 {
                time = 1.0;
            }
            let later = (1.0 + (1.0 + 4.0 * time * time).sqrt()) / 2.0;
            ahead = next.clone() + step.mul_scalar((time - 1.0) / later);
            (here, time) = (next, later);
        }
        here
    }
}

fn targets(answers: Answers<'_>, device: &Device) -> Tensor<2> {
    let data = match answers {
        Answers::Numbers(numbers) => {
            let values: Vec<f32> = numbers.iter().map(|&number| number as f32).collect();
            TensorData::new(values, [numbers.len(), 1])
        }
        Answers::Classes(classes, count) => {
            let mut values = vec![0.0_f32; classes.len() * count];
            for (row, &class) in values.chunks_exact_mut(count).zip(classes) {
                row[class] = 1.0;
            }
            TensorData::new(values, [classes.len(), count])
        }
    };
    Tensor::from_data(data, device)
}

/// The largest eigenvalue of `X^T X / n`, by multiplying a vector with it again and again.
fn largest_eigenvalue(inputs: &Tensor<2>) -> f64 {
    let [rows, width] = inputs.dims();
    let gram = inputs.clone().transpose().matmul(inputs.clone());
    let gram = gram.div_scalar(rows as f64);
    // Not constant: no eigenvector of data is likely to stand at a right angle to it.
    let start = Tensor::<1, Int>::arange(0..width as i64, &inputs.device()).float();
    let mut vector = (start.mul_scalar(0.7).sin().add_scalar(1.5)).unsqueeze_dim::<2>(1);
    let mut norm = 1.0;
    for _ in 0..POWER_ITERATIONS {
        let next = gram.clone().matmul(vector);
        norm = f64::from(next.clone().square().sum().sqrt().into_scalar::<f32>()).max(1e-12);
        vector = next.div_scalar(norm);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(rows: &[[f32; 2]]) -> Tensor<2> {
        let values: Vec<f32> = rows.iter().flatten().copied().collect();
        let device = Device::flex();
        Tensor::from_data(TensorData::new(values, [rows.len(), 2]), &device)
    }

    /// Three clouds around the corners of a triangle, six points each.
    fn clouds() -> (Vec<[f32; 2]>, Vec<usize>) {
        let centres = [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]];
        let point = |index: usize| {
            let (class, turn) = (index % 3, index as f32 * 1.3);
            let [x, y] = centres[class];
            [x + turn.sin(), 100.0 * (y + turn.cos())]
        };
        (
            (0..18).map(point).collect(),
            (0..18).map(|i| i % 3).collect(),
        )
    }

    #[test]
    fn clouds_are_told_apart_however_features_are_scaled() {
        let (rows, classes) = clouds();
        let probes = Probe::fit(&features(&rows), Answers::Classes(&classes, 3));
        assert_eq!(probes.len(), PENALTIES.len());
        for probe in probes {
            assert_eq!(probe.predict(&features(&rows)), classes);
        }
    }

    #[test]
    fn the_gradient_vanishes_at_the_solution() {
        let (rows, classes) = clouds();
        let probe = &Probe::fit(&features(&rows), Answers::Classes(&classes, 3))[1];
        let problem = Problem::new(
            probe.standardised(&features(&rows)),
            Answers::Classes(&classes, 3),
        );
        let gradient = problem.gradient(&probe.weight, PENALTIES[1]);
        let largest: f32 = gradient.abs().max().into_scalar();
        assert!(largest < 1e-4, "{largest}");
    }

    #[test]
    fn numbers_that_lie_on_a_plane_are_told() {
        let (rows, _) = clouds();
        let numbers: Vec<f64> = rows
            .iter()
            .map(|[x, y]| f64::from(2.0 * x - 0.03 * y + 5.0))
            .collect();
        let probe = &Probe::fit(&features(&rows), Answers::Numbers(&numbers))[3];
        for (found, expected) in probe.numbers(&features(&rows)).iter().zip(&numbers) {
            assert!((found - expected).abs() < 1e-2, "{found} {expected}");
        }
    }

    #[test]
    fn the_eigenvalue_is_that_of_the_gram_matrix() {
        // X^T X / n = diag(8, 2) / 2.
        let inputs = features(&[[2.0, 1.0], [2.0, -1.0]]);
        assert!((largest_eigenvalue(&inputs) - 4.0).abs() < 1e-4);
    }

    #[test]
    fn a_feature_that_never_changes_is_harmless() {
        let rows = [[1.0, 7.0], [2.0, 7.0], [-1.0, 7.0], [-2.0, 7.0]];
        let probe = &Probe::fit(&features(&rows), Answers::Classes(&[0, 0, 1, 1], 2))[3];
        assert_eq!(probe.predict(&features(&[[3.0, 7.1], [-3.0, 6.9]])), [0, 1]);
    }

    #[test]
    fn one_record_of_one_class_is_enough_to_run() {
        let probes = Probe::fit(&features(&[[1.0, 2.0]]), Answers::Classes(&[1], 3));
        assert_eq!(probes[0].predict(&features(&[[5.0, 5.0]])), [1]);
    }
}
