//! LoRAs as the experts of banks of one rank and one factor, as a specification has them.

use burn::tensor::Tensor;
use molora_adapters::{BankConfig, ExpertBank, Scaling, Slices};

use super::apply::attach_experts;
use super::resolve::ResolvedAdapter;
use crate::modules::BaseModel;
use crate::{Adaptable, Adapter, ModelError};

/// LoRAs that stand side by side at every layer that any of them changes. Ranks, scalings and targets may
/// differ; an expert is filled up with zeros to the largest rank of all layers.
#[derive(Debug, Clone)]
pub struct GivenExperts<M> {
    /// Banks whose ranks and factors may differ between layers.
    attached: M,
    count: usize,
}

impl<M: BaseModel + Adaptable> GivenExperts<M> {
    /// The experts for a base model, in their order.
    ///
    /// # Errors
    /// As [`attach_experts`].
    pub fn new(base: &M, adapters: &[&ResolvedAdapter]) -> Result<Self, ModelError> {
        let mut attached = base.clone();
        attach_experts(&mut attached, adapters)?;
        Ok(Self {
            attached,
            count: adapters.len(),
        })
    }

    /// The adapted layers with their paths, in the order of the forward pass.
    pub fn sites(&self) -> Vec<(String, &Adapter)> {
        self.attached.sites()
    }

    /// Paths of the adapted layers.
    pub fn paths(&self) -> Vec<String> {
        self.sites().into_iter().map(|(path, _)| path).collect()
    }

    /// The largest rank of an expert at any layer.
    pub fn rank(&self) -> usize {
        let sites = self.sites();
        let ranks = sites.iter().map(|(_, site)| site.bank.rank());
        ranks.max().unwrap_or(1)
    }

    /// The banks that [`fill`](Self::fill) expects.
    pub fn bank(&self) -> BankConfig {
        BankConfig {
            slices: Slices::Independent,
            num_experts: self.count,
            rank: self.rank(),
            scaling: match self.common_factor() {
                Some(factor) => Scaling::AlphaOverRank(factor * self.rank() as f64),
                None => Scaling::Unit,
            },
            ..BankConfig::default()
        }
    }

    /// The factor on the delta, where all layers have the same.
    fn common_factor(&self) -> Option<f64> {
        let sites = self.sites();
        let mut factors = sites.iter().map(|(_, site)| site.bank.factor());
        let first = factors.next().filter(|&factor| factor > 0.0)?;
        factors.all(|factor| factor == first).then_some(first)
    }

    /// Puts the experts into a model to which [`bank`](Self::bank) was attached at the same layers.
    pub fn fill(&self, mixture: &mut M) {
        let (rank, factor) = (self.rank(), self.common_factor());
        for ((_, site), (_, given)) in mixture.sites_mut().into_iter().zip(self.sites()) {
            site.bank = padded(&given.bank, rank, factor);
        }
    }
}

/// The bank with experts of a larger rank, whose new columns and rows are zeros; the factor becomes
/// that of the specification.
fn padded(bank: &ExpertBank, rank: usize, factor: Option<f64>) -> ExpertBank {
    let (a, b) = (bank.a_by_expert().detach(), bank.b_by_expert().detach());
    let b = match factor {
        Some(_) => b,
        None => b.mul_scalar(bank.factor()),
    };
    let ([experts, d_input, own], [_, _, d_output]) = (a.dims(), b.dims());
    let device = a.device();
    let (a, b) = match rank - own {
        0 => (a, b),
        more => {
            let zeros = |shape: [usize; 3]| Tensor::<3>::zeros(shape, &device);
            (
                Tensor::cat(vec![a, zeros([experts, d_input, more])], 2),
                Tensor::cat(vec![b, zeros([experts, more, d_output])], 1),
            )
        }
    };
    let a = a.swap_dims(0, 1).reshape([d_input, experts * rank]);
    let b = b.reshape([experts * rank, d_output]);
    let leaf = |tensor: Tensor<2>| Tensor::from_data(tensor.into_data(), &device);
    ExpertBank::of_matrices(leaf(a), leaf(b), experts, factor.unwrap_or(1.0))
}
