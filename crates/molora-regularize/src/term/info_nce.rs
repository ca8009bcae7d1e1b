//! Contrast between the outputs of experts. MoELoRA, arXiv:2402.12851, and CoMoE, arXiv:2505.17553.
//!
//! The papers give the idea and no formula in what could be read; the form here is inferred. An anchor
//! is the output `o = B_e A_e x`, of length 1, of an expert that was selected for a token, and
//!
//! ```text
//! L = mean over anchors of -ln( P / (P + N) ),   P = sum over positives exp(<o, o'> / temperature)
//! ```

use burn::tensor::{Int, Tensor};
use molora_adapters::ExpertBank;
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// Smallest norm that an output is divided by.
const NORM_FLOOR: f64 = 1e-12;

/// What stands for minus infinity in sums of exponentials.
const NEVER: f32 = -1e9;

/// What an expert's output is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Contrast {
    /// Positives: the same expert on other tokens; negatives: other selected experts on any token
    /// (MoELoRA).
    #[default]
    SameExpert,
    /// Positives: the other selected experts on the token; negatives: those that were not (CoMoE).
    SelectedAgainstOthers,
}

/// See [`info_nce`]; needs a router of its own at every site, and decisions by token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InfoNce {
    /// What an output is compared with.
    pub contrast: Contrast,
    /// Cosines are divided by this.
    pub temperature: f64,
    /// Number of tokens, evenly spaced over the batch, whose outputs are compared; 0 for all. The
    /// comparison grows with its square.
    pub tokens: usize,
}

impl Default for InfoNce {
    fn default() -> Self {
        Self {
            contrast: Contrast::SameExpert,
            temperature: 0.5,
            tokens: 64,
        }
    }
}

impl TermNumbers for InfoNce {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router, Need::Codes]
    }

    fn problem(&self) -> Option<String> {
        let temperature = self.temperature;
        let is_valid = temperature.is_finite() && temperature > 0.0;
        let text = format!("temperature is {temperature}, expected a finite number above 0");
        (!is_valid).then_some(text)
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        let (routed, code) = (site.balanced()?, site.code.clone()?);
        // One decision for a whole sequence says nothing of its tokens.
        if routed.weights.dims()[1] != code.dims()[1] {
            return None;
        }
        Some(info_nce(site.bank, code, routed, *self, reduction))
    }
}

/// The contrast of experts' outputs at one site: the mean over anchors that have a positive, or their
/// sum. 0 if there are none.
///
/// # Shapes
/// - `code`: `[B, T, S*R]` from [`ExpertBank::down`]
/// - returns `[1]`
pub fn info_nce(
    bank: &ExpertBank,
    code: Tensor<3>,
    routed: &RouterOutput,
    config: InfoNce,
    reduction: Reduction,
) -> Tensor<1> {
    let [batch, tokens, experts] = routed.weights.dims();
    let all = batch * tokens;
    let count = if config.tokens == 0 {
        all
    } else {
        config.tokens.min(all)
    };
    let places: Vec<i64> = (0..count)
        .map(|place| (place * all / count) as i64)
        .collect();
    let places = Tensor::<1, Int>::from_data(places.as_slice(), &code.device());
    let width = code.dims()[2];
    let code = code.reshape([all, width]).select(0, places.clone());
    let outputs = unit(bank.outputs(code)).reshape([count * experts, bank.b.dims()[1]]);
    let counted = routed.counted.clone().reshape([all, 1]);
    let selected = match &routed.selected {
        Some(selected) => selected.clone().float().reshape([all, experts]),
        None => Tensor::ones([all, experts], &outputs.device()),
    };
    let (counted, selected) = (
        counted.select(0, places.clone()),
        selected.select(0, places),
    );
    let cosines = outputs.clone().matmul(outputs.transpose());
    let similar = cosines.div_scalar(config.temperature);
    let pairs = Pairs::new(selected.detach(), counted, config.contrast);
    let (positive, negative) = (pairs.sum(&similar, true), pairs.sum(&similar, false));
    let loss = softplus(negative - positive) * pairs.anchors.clone();
    match reduction {
        Reduction::Mean => loss.sum() / pairs.anchors.sum().clamp_min(1.0),
        Reduction::Sum => loss.sum(),
    }
}

/// Rows of length 1, `[N, E, O]`.
fn unit(outputs: Tensor<3>) -> Tensor<3> {
    let square = outputs.clone().square().sum_dim(2);
    outputs / square.clamp_min(NORM_FLOOR * NORM_FLOOR).sqrt()
}

/// `ln(1 + exp(x))` without overflow.
fn softplus(x: Tensor<1>) -> Tensor<1> {
    burn::tensor::activation::softplus(x, 1.0)
}

/// Which outputs, numbered token by token and expert by expert, are compared.
struct Pairs {
    /// 1 for an anchor that has a positive, `[N*E]`.
    anchors: Tensor<1>,
    /// 1 where the column is a positive of the row, `[N*E, N*E]`.
    positives: Tensor<2>,
    /// 1 where it is a negative.
    negatives: Tensor<2>,
}

impl Pairs {
    /// From the selected experts `[N, E]` and the tokens that count `[N, 1]`.
    fn new(selected: Tensor<2>, counted: Tensor<2>, contrast: Contrast) -> Self {
        let ([tokens, experts], device) = (selected.dims(), selected.device());
        let width = tokens * experts;
        let real = counted.expand([tokens, experts]).reshape([width, 1]);
        let selected = selected.reshape([width, 1]) * real.clone();
        let eye = |size| Tensor::<2>::eye(size, &device);
        let ones = |size| Tensor::<2>::ones([size, size], &device);
        let kron = |a: Tensor<2>, b: Tensor<2>| {
            let ([n, _], [m, _]) = (a.dims(), b.dims());
            let product = a.reshape([n, 1, n, 1]) * b.reshape([1, m, 1, m]);
            product.reshape([n * m, n * m])
        };
        let same_token = kron(eye(tokens), ones(experts));
        let same_expert = kron(ones(tokens), eye(experts));
        let other = eye(width).neg().add_scalar(1.0);
        let is_selected = selected.clone().transpose();
        let (positives, negatives) = match contrast {
            Contrast::SameExpert => (
                same_expert.clone() * other * is_selected.clone(),
                same_expert.neg().add_scalar(1.0) * is_selected,
            ),
            Contrast::SelectedAgainstOthers => {
                let left_out = real.transpose() - is_selected.clone();
                (
                    same_token.clone() * other * is_selected,
                    same_token * left_out,
                )
            }
        };
        let has_positive = positives.clone().sum_dim(1).greater_elem(0.5).float();
        Self {
            anchors: (selected * has_positive).reshape([width]),
            positives,
            negatives,
        }
    }

    /// Logarithm of the sum of exponentials over positives or negatives of each row.
    fn sum(&self, similar: &Tensor<2>, positive: bool) -> Tensor<1> {
        let pairs = if positive {
            &self.positives
        } else {
            &self.negatives
        };
        let taken = similar
            .clone()
            .mask_fill(pairs.clone().lower_elem(0.5), NEVER);
        let largest = taken.clone().detach().max_dim(1);
        let sum = (taken - largest.clone()).exp().sum_dim(1).log() + largest;
        let [rows, _] = sum.dims();
        sum.reshape([rows])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Param;
    use burn::tensor::Device;
    use molora_adapters::{BankConfig, SiteDims, Slices};
    use molora_kernels::random::Seed;
    use molora_routing::Weighed;
    use molora_testkit::{FORWARD, assert_close};

    /// Two experts with outputs (x0, 0) and (0, x1) for codes (x0, x1); the second token is turned.
    fn bank(device: &Device) -> ExpertBank {
        let config = BankConfig {
            slices: Slices::Shared,
            num_experts: 2,
            rank: 2,
            ..BankConfig::default()
        };
        let dims = SiteDims {
            d_input: 2,
            d_output: 2,
        };
        let mut bank = config.init(dims, Seed::new(0), device);
        bank.b = Param::from_data([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]], device);
        bank
    }

    fn routed(selected: [[[f32; 2]; 3]; 1], device: &Device) -> RouterOutput {
        let weights = Tensor::<3>::from_data(selected, device);
        let selected = weights.clone().greater_elem(0.5);
        // The third token is padding.
        let counted = Tensor::from_data([[1.0, 1.0, 0.0]], device);
        let weighed = Weighed::new(weights.clone(), Some(selected));
        RouterOutput::new(weights, weighed, counted)
    }

    fn loss(contrast: Contrast, selected: [[[f32; 2]; 3]; 1]) -> Tensor<1> {
        let device = molora_testkit::device();
        let code = Tensor::from_data([[[1.0, 2.0], [-3.0, 4.0], [7.0, 7.0]]], &device);
        let config = InfoNce {
            contrast,
            temperature: 1.0,
            tokens: 0,
        };
        let routed = routed(selected, &device);
        info_nce(&bank(&device), code, &routed, config, Reduction::Mean)
    }

    /// Outputs of unit length: e1 and -e1 of the first expert, e2 and e2 of the second.
    #[test]
    fn values_that_can_be_checked_by_hand() {
        let e = std::f32::consts::E;
        // Anchors of the first expert: positive at cosine -1, two negatives at 0. Of the second: +1.
        let first = -((1.0 / e) / (1.0 / e + 2.0)).ln();
        let second = -(e / (e + 2.0)).ln();
        let found = loss(Contrast::SameExpert, [[[1.0, 1.0]; 3]]);
        assert_close(found, [(first + second) / 2.0], FORWARD, "same expert");
        // One expert each: no anchor has a positive.
        let alone = [[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]];
        let found = loss(Contrast::SameExpert, alone);
        assert_close(found, [0.0], 0.0, "nothing to compare");
        // Both selected: positives at cosine 0, no negatives.
        let found = loss(Contrast::SelectedAgainstOthers, [[[1.0, 1.0]; 3]]);
        assert_close(found, [0.0], FORWARD, "selected against others");
    }

    #[test]
    fn a_temperature_of_zero_is_refused() {
        let term = InfoNce {
            temperature: 0.0,
            ..InfoNce::default()
        };
        let problem = term.problem().expect("zero");
        assert_eq!(
            problem,
            "temperature is 0, expected a finite number above 0"
        );
    }
}
