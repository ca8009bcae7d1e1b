//! How a mixture whose experts were trained together gets one more task.

use super::{AdapterSpec, ExpertCount};

/// What a mixture gets for one more task, beside what every task has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// An expert at every site that has several.
    Expert,
    /// Nothing: each task weighs the experts by itself, and a new one those that are there.
    Task,
}

impl AdapterSpec {
    /// What the mixture gets for one more task. An expert joins the others everywhere, unless
    /// decisions are made for tasks apart: then the others' decisions stay what they are.
    ///
    /// # Errors
    /// Why the method has no place for one more, in its own terms.
    pub fn growth(&self) -> Result<Growth, &'static str> {
        let most = self.experts.by_layer().iter().max();
        let is_one = *most.unwrap_or(&self.bank.num_experts) == 1;
        if is_one && self.router.is_none() && !self.has_expert_per_task() {
            return Err(
                "it has one expert, and no router that could choose another; `molora train --init` begins \
                 another run with its weights",
            );
        }
        if self.bank.start.reads_weight() {
            return Err("its experts began as parts of the frozen weight, all of which are taken");
        }
        if let Some(reason) = self.bank.combine.is_full() {
            return Err(reason);
        }
        if self.num_clusters().is_some() {
            return Err(
                "its router knows the clusters of the texts that it was trained with, and none of a new task",
            );
        }
        let Some(router) = &self.router else {
            return Ok(Growth::Expert);
        };
        if let Some(reason) = router.scorer.is_full() {
            return Err(reason);
        }
        match router.is_apart_by_task() && !self.has_expert_per_task() {
            true => Ok(Growth::Task),
            false => Ok(Growth::Expert),
        }
    }

    /// The same mixture with a place for one more task; where each task has an expert, the number of
    /// tasks says that already.
    pub fn grown(&self, growth: Growth) -> Self {
        let mut grown = self.clone();
        if growth == Growth::Expert {
            match &mut grown.experts {
                ExpertCount::Same => grown.bank.num_experts += 1,
                ExpertCount::ByLayer(counts) => counts.iter_mut().for_each(|count| *count += 1),
                ExpertCount::PerTask => {}
            }
        }
        grown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_routing::RouterConfig;
    use molora_routing::scorer::{TableConfig, UniformConfig};

    fn mixture() -> AdapterSpec {
        let mut spec = AdapterSpec {
            router: Some(RouterConfig::default()),
            ..AdapterSpec::default()
        };
        spec.bank.num_experts = 3;
        spec
    }

    #[test]
    fn one_more_expert_joins_at_every_layer() {
        assert_eq!(mixture().grown(Growth::Expert).bank.num_experts, 4);
        let layers = AdapterSpec {
            experts: ExpertCount::ByLayer(vec![2, 4]),
            ..mixture()
        };
        let grown = layers.grown(Growth::Expert);
        assert_eq!(grown.experts, ExpertCount::ByLayer(vec![3, 5]));
        assert_eq!(grown.bank, layers.bank);
    }

    #[test]
    fn a_task_that_decides_for_itself_needs_no_expert() {
        let mut spec = mixture();
        let router = spec.router.as_mut().expect("a router");
        router.scorer = TableConfig::default().into();
        assert_eq!(spec.growth(), Ok(Growth::Task));
        assert_eq!(spec.grown(Growth::Task), spec);
        spec.experts = ExpertCount::PerTask;
        assert_eq!(spec.growth(), Ok(Growth::Expert));
    }

    #[test]
    fn what_has_no_place_says_why() {
        let one = AdapterSpec::default().growth().expect_err("one expert");
        assert!(one.contains("--init"), "{one}");
        let mut spec = mixture();
        let router = spec.router.as_mut().expect("a router");
        router.scorer = UniformConfig.into();
        let uniform = spec.growth().expect_err("all weigh the same");
        assert!(uniform.contains("weigh the same"), "{uniform}");
    }
}
