//! Up-projections whose weak directions are orthogonal. mtLoRA, arXiv:2603.01526.

use burn::tensor::Tensor;
use molora_adapters::ExpertBank;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SiteView, TermNumbers};
use crate::Reduction;

/// What is orthogonal to what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpectralForm {
    /// The columns of one `B`, as released.
    #[default]
    Within,
    /// The `B` of each two experts, as the paper has it; what is held constant is inferred.
    Pairs,
}

/// See [`spectral`]. It reads singular values on the host, so that it is due on some steps alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Spectral {
    /// What is orthogonal to what.
    pub form: SpectralForm,
    /// It is added on every so many steps of a stage.
    pub every: usize,
}

impl Default for Spectral {
    fn default() -> Self {
        Self {
            form: SpectralForm::Within,
            every: 500,
        }
    }
}

impl TermNumbers for Spectral {
    fn at(&self, site: &SiteView<'_>, _reduction: Reduction) -> Option<Tensor<1>> {
        match self.form {
            SpectralForm::Pairs if site.bank.num_experts() < 2 => None,
            form => Some(spectral(site.bank, form)),
        }
    }

    fn problem(&self) -> Option<String> {
        (self.every == 0).then(|| "every is 0, expected at least 1".into())
    }

    fn every(&self) -> usize {
        self.every
    }
}

/// With `sigma` the singular values of an up-projection and `v = exp(-sigma / mean sigma)`, small where a
/// direction is strong:
///
/// ```text
/// within   mean over e of sum_ij (v_i v_j (B_e^T B_e - q I)_ij)^2,   q = |B_e|^2 / R
/// pairs    sum over e < f of |B'_e^T B'_f|^2,   B' = U diag(v sigma) V^T
/// ```
///
/// `v`, `q` and the directions V carry no gradient. Within, `v_i` weighs row i whatever direction it
/// belongs to, as released.
///
/// # Shapes
/// - returns `[1]`
pub fn spectral(bank: &ExpertBank, form: SpectralForm) -> Tensor<1> {
    let b_ero = bank.b_by_expert();
    let [experts, rank, d_output] = b_ero.dims();
    let (sigma_er, vectors_err) = bank.up_spectrum();
    let mean = sigma_er
        .clone()
        .mean_dim(1)
        .clamp_min(f64::from(f32::MIN_POSITIVE));
    let weights_er = (sigma_er / mean).neg().exp();
    match form {
        SpectralForm::Within => {
            let gram = b_ero.clone().matmul(b_ero.swap_dims(1, 2));
            let eye = Tensor::<2>::eye(rank, &gram.device()).unsqueeze::<3>();
            let trace = (gram.clone().detach() * eye.clone()).sum_dim(2).sum_dim(1);
            let rest = gram - eye * trace.div_scalar(rank as f64);
            let rows = weights_er.clone().unsqueeze_dim::<3>(2);
            let columns = weights_er.unsqueeze_dim::<3>(1);
            let total = (rest * rows * columns).square().sum();
            total.div_scalar(experts as f64)
        }
        SpectralForm::Pairs => {
            let turned = vectors_err.clone() * weights_er.unsqueeze_dim::<3>(1);
            let weak_err = turned.matmul(vectors_err.swap_dims(1, 2));
            let b = weak_err.matmul(b_ero).reshape([experts * rank, d_output]);
            let gram = b.clone().matmul(b.transpose()).square();
            let blocks = gram.reshape([experts, rank, experts, rank]);
            let blocks: Tensor<2> = blocks.sum_dim(3).sum_dim(1).reshape([experts, experts]);
            let others = Tensor::<2>::eye(experts, &blocks.device()).neg() + 1.0;
            (blocks * others).sum().div_scalar(2.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Param;
    use molora_adapters::{BankConfig, SiteDims, Slices};
    use molora_kernels::random::Seed;
    use molora_testkit::{FORWARD, assert_close};

    fn bank(b: [[f32; 3]; 4]) -> ExpertBank {
        let config = BankConfig {
            slices: Slices::Shared,
            num_experts: 2,
            rank: 2,
            ..BankConfig::default()
        };
        let dims = SiteDims {
            d_input: 3,
            d_output: 3,
        };
        let device = molora_testkit::device();
        let mut bank = config.init(dims, Seed::new(0), &device);
        bank.b = Param::from_data(b, &device);
        bank
    }

    /// Columns of equal length that are orthogonal cost nothing; rows in common do, between experts.
    #[test]
    fn orthogonal_columns_of_one_length_cost_nothing() {
        let same = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]];
        let bank = bank([same[0], same[1], same[0], same[1]]);
        assert_close(spectral(&bank, SpectralForm::Within), [0.0], 1e-6, "within");
        // B' = B / e for both, so that the squared product is 2 / e^4.
        let expected = 2.0 * (-4.0_f32).exp();
        let found = spectral(&bank, SpectralForm::Pairs);
        assert_close(found, [expected], FORWARD, "pairs");
    }

    #[test]
    fn fresh_experts_have_no_direction() {
        let bank = bank([[0.0; 3]; 4]);
        for form in [SpectralForm::Within, SpectralForm::Pairs] {
            assert_close(spectral(&bank, form), [0.0], 0.0, "term");
        }
    }
}
