//! Banks from experts that were trained apart, and banks without one of their experts.

use burn::module::Param;
use burn::tensor::Tensor;
use molora_parts::{Axis, Origins, fill};

use crate::{AdapterError, ExpertBank, Slices};

impl ExpertBank {
    /// A bank of the experts of several banks, in their order; values are copied bit by bit.
    ///
    /// # Errors
    /// [`AdapterError::Unlike`] names the first bank whose width, rank, scaling or core differs from
    /// the first one's, or that has a shared `A` for several experts.
    ///
    /// # Panics
    /// If there is no bank.
    pub fn assemble(banks: &[&Self]) -> Result<Self, AdapterError> {
        let first = banks[0];
        for (index, bank) in banks.iter().enumerate() {
            if let Some(problem) = first.unlike(bank) {
                return Err(AdapterError::Unlike { index, problem });
            }
        }
        let total = banks.iter().map(|bank| bank.num_experts).sum();
        let mut whole = first.resized(Slices::Independent, total);
        let mut start = 0;
        for bank in banks {
            let experts = start..start + bank.num_experts;
            let own = |expert| experts.contains(&expert).then(|| expert - experts.start);
            let places: Vec<_> = (0..total).map(own).collect();
            // The only expert of a bank has an A of its own, shared or not.
            let mut bank = (*bank).clone();
            bank.slices = Slices::Independent;
            let origins = Origins::default().with(Axis::Expert, places);
            fill(whole.tensors(), &bank.tensors(), &origins);
            start = experts.end;
        }
        Ok(whole)
    }

    /// One expert of a bank as a bank of its own; values are copied bit by bit.
    ///
    /// # Panics
    /// If there is no such expert.
    pub fn expert(&self, index: usize) -> Self {
        assert!(
            index < self.num_experts,
            "expert {index} of {}",
            self.num_experts
        );
        let mut one = self.resized(self.slices, 1);
        let origins = Origins::default().with(Axis::Expert, vec![Some(index)]);
        fill(one.tensors(), &self.clone().tensors(), &origins);
        one
    }

    /// A bank for other experts, of the same rank, scaling and dropout; all values are zero.
    fn resized(&self, slices: Slices, num_experts: usize) -> Self {
        let device = self.a.device();
        let ([d_input, _], [rows, d_output]) = (self.a.dims(), self.b.dims());
        let count = slices.count(num_experts);
        let width = self.down.shared_width();
        let width = width.unwrap_or(count.size * self.rank);
        let zeros = |shape| Param::from_tensor(Tensor::zeros(shape, &device));
        Self {
            a: zeros([d_input, width]),
            b: zeros([num_experts * rows / self.num_experts, d_output]),
            down: self.down.resized(count),
            core: self.core.resized(count, num_experts),
            slices,
            num_experts,
            ..self.clone()
        }
    }

    /// In what another bank differs so that its experts cannot stand beside this one's.
    fn unlike(&self, other: &Self) -> Option<String> {
        let dims = |bank: &Self| (bank.a.dims()[0], bank.b.dims()[1]);
        let differ = |what: &str, found: String, expected: String| {
            Some(format!("{what} {found}, expected {expected}"))
        };
        if other.num_a() != other.num_experts {
            return differ(
                "its experts share one A: it has",
                format!("{} A for {} experts", other.num_a(), other.num_experts),
                "as many".into(),
            );
        }
        if other.down.shared_width().is_some() {
            return differ(
                "its A is",
                "shared in parts".into(),
                "an expert's own".into(),
            );
        }
        if other.core.is_common() {
            return differ(
                "its core is",
                "one for all experts".into(),
                "an expert's own".into(),
            );
        }
        if other.residual.is_some() {
            let found = "a part of the frozen weight".into();
            return differ("its start is", found, "one of its own".into());
        }
        if dims(self) != dims(other) {
            let text = |(input, output)| format!("{input} to {output}");
            return differ("its width is", text(dims(other)), text(dims(self)));
        }
        if self.rank != other.rank {
            return differ("its rank is", other.rank.to_string(), self.rank.to_string());
        }
        if self.factor != other.factor {
            let (found, expected) = (other.factor.to_string(), self.factor.to_string());
            return differ("its scaling factor is", found, expected);
        }
        if self.core.name() != other.core.name() {
            let (found, expected) = (other.core.name().into(), self.core.name().into());
            return differ("its core is", found, expected);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{CoreConfig, ScaleConfig};
    use crate::{BankConfig, Scaling, SiteDims};
    use molora_kernels::random::{Seed, uniform};
    use molora_testkit::assert_close;

    fn bank(config: BankConfig, seed: u64) -> ExpertBank {
        let dims = SiteDims {
            d_input: 5,
            d_output: 4,
        };
        let device = molora_testkit::device();
        let mut bank = config.init(dims, Seed::new(seed), &device);
        let shape = bank.b.dims();
        bank.b = Param::from_tensor(uniform(shape, 1.0, Seed::new(seed).child("b"), &device));
        bank
    }

    fn config(num_experts: usize, rank: usize) -> BankConfig {
        BankConfig {
            num_experts,
            rank,
            core: ScaleConfig.into(),
            ..BankConfig::default()
        }
    }

    #[test]
    fn taking_apart_and_assembling_changes_no_bit() {
        let whole = bank(config(3, 2), 1);
        let parts: Vec<_> = (0..3).map(|index| whole.expert(index)).collect();
        let again = ExpertBank::assemble(&parts.iter().collect::<Vec<_>>()).expect("alike");
        assert_eq!(again.num_experts(), 3);
        assert_close(again.a.val(), whole.a.val(), 0.0, "A");
        assert_close(again.b.val(), whole.b.val(), 0.0, "B");
    }

    #[test]
    fn one_expert_of_a_mixture_is_that_expert_alone() {
        let parts = [bank(config(1, 2), 1), bank(config(1, 2), 2)];
        let whole = ExpertBank::assemble(&[&parts[0], &parts[1]]).expect("alike");
        let device = molora_testkit::device();
        let x: Tensor<3> = uniform([2, 3, 5], 1.0, Seed::new(5), &device);
        let second = Tensor::from_data([[[0.0, 1.0]]], &device);
        let mixed = whole.up(whole.down(x.clone(), None), Some(second));
        let alone = parts[1].up(parts[1].down(x, None), None);
        assert_close(mixed, alone, 1e-6, "delta");
    }

    #[test]
    fn unlike_experts_are_refused() {
        let first = bank(config(1, 2), 1);
        let plain = BankConfig {
            core: CoreConfig::default(),
            ..config(1, 2)
        };
        let louder = BankConfig {
            scaling: Scaling::AlphaOverRank(4.0),
            ..config(1, 2)
        };
        for (other, expected) in [
            (config(1, 3), "expert 1: its rank is 3, expected 2"),
            (louder, "expert 1: its scaling factor is 2, expected 8"),
            (plain, "expert 1: its core is none, expected scale"),
        ] {
            let other = bank(other, 2);
            let error = ExpertBank::assemble(&[&first, &other]).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        }
    }
}
