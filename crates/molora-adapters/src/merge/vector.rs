//! What a training has changed in a whole model.

use burn::tensor::Tensor;

use super::{Rule, keep_largest};
use crate::AdapterError;

/// `tau = theta - theta_0`: the change of every parameter of a model, by name. A parameter that is a
/// vector has one row, `[1, O]`.
#[derive(Debug, Clone, Default)]
pub struct TaskVector {
    tensors: Vec<(String, Tensor<2>)>,
}

impl TaskVector {
    /// The changes by name.
    pub fn new(tensors: Vec<(String, Tensor<2>)>) -> Self {
        Self { tensors }
    }

    /// The changes in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<2>)> {
        self.tensors
            .iter()
            .map(|(name, tensor)| (&name[..], tensor))
    }

    /// The change of a parameter.
    pub fn get(&self, name: &str) -> Option<&Tensor<2>> {
        let found = self.tensors.iter().find(|(own, _)| own == name);
        found.map(|(_, tensor)| tensor)
    }

    /// The same with each change made another by its name and value.
    pub fn map(&self, mut change: impl FnMut(&str, &Tensor<2>) -> Tensor<2>) -> Self {
        let tensors = self.tensors.iter();
        let tensors = tensors.map(|(name, tensor)| (name.clone(), change(name, tensor)));
        Self::new(tensors.collect())
    }

    /// Without the parameters that `leaves_out` names.
    #[must_use]
    pub fn without(&self, leaves_out: impl Fn(&str) -> bool) -> Self {
        let kept = self.tensors.iter().filter(|(name, _)| !leaves_out(name));
        Self::new(kept.cloned().collect())
    }

    /// All entries in one row, `[1, N]`.
    pub fn flattened(&self) -> Tensor<2> {
        let rows = self.tensors.iter().map(|(_, tensor)| {
            let count = tensor.dims().iter().product();
            tensor.clone().reshape([1, count])
        });
        Tensor::cat(rows.collect(), 1)
    }

    /// The parameters of this one with the entries of a row `[1, N]`.
    ///
    /// # Panics
    /// If their numbers differ.
    pub fn with_flattened(&self, row: &Tensor<2>) -> Self {
        let mut start = 0;
        self.map(|_, tensor| {
            let count: usize = tensor.dims().iter().product();
            let own = row.clone().narrow(1, start, count).reshape(tensor.dims());
            start += count;
            own
        })
    }

    /// The largest entries of the whole model, `density` times their number.
    #[must_use]
    pub fn largest_of_all(&self, density: f64) -> Self {
        self.with_flattened(&keep_largest(&self.flattened(), density))
    }

    /// One task vector from several with a weight each, parameter by parameter. One that some of them
    /// do not change is merged from the others.
    ///
    /// # Errors
    /// As [`Rule::validate`]; [`AdapterError::Zero`] if there is none; [`AdapterError::Unlike`] if
    /// shapes differ.
    pub fn merge(vectors: &[(&Self, f64)], rule: Rule) -> Result<Self, AdapterError> {
        rule.validate()?;
        if vectors.is_empty() {
            let field = "task vectors";
            return Err(AdapterError::Zero { field });
        }
        let mut merged = Self::default();
        for (name, tensor) in vectors.iter().flat_map(|(vector, _)| vector.iter()) {
            if merged.get(name).is_some() {
                continue;
            }
            let mut parts = Vec::new();
            for (index, (vector, weight)) in vectors.iter().enumerate() {
                let Some(own) = vector.get(name) else {
                    continue;
                };
                if own.dims() != tensor.dims() {
                    let (found, expected) = (own.dims(), tensor.dims());
                    return Err(AdapterError::Unlike {
                        index,
                        problem: format!("{name} is {found:?}, expected {expected:?}"),
                    });
                }
                parts.push((own.clone(), *weight));
            }
            merged.tensors.push((name.into(), rule.apply(name, &parts)));
        }
        Ok(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::{Join, Sign, Sparsify};
    use molora_testkit::{FORWARD, assert_close, device};

    fn vector(first: [f32; 3], second: [[f32; 1]; 2]) -> TaskVector {
        let device = device();
        TaskVector::new(vec![
            ("b".into(), Tensor::from_data([first], &device)),
            ("w".into(), Tensor::from_data(second, &device)),
        ])
    }

    #[test]
    fn a_row_of_all_entries_becomes_the_parameters_again() {
        let vector = vector([1.0, 2.0, 3.0], [[4.0], [5.0]]);
        let row = vector.flattened();
        assert_close(&row, [[1.0, 2.0, 3.0, 4.0, 5.0]], 0.0, "row");
        let again = vector.with_flattened(&row.mul_scalar(2.0));
        assert_close(again.get("w").expect("there"), [[8.0], [10.0]], 0.0, "w");
        let kept = vector.largest_of_all(0.4);
        assert_close(kept.get("b").expect("there"), [[0.0; 3]], 0.0, "b");
    }

    #[test]
    fn a_parameter_of_one_is_merged_from_that_one() {
        let one = vector([1.0, -2.0, 3.0], [[4.0], [5.0]]);
        let two = one
            .map(|_, tensor| tensor.clone().neg())
            .without(|name| name == "w");
        let rule = Rule::default();
        let merged = TaskVector::merge(&[(&one, 0.5), (&two, 0.25)], rule).expect("valid");
        assert_close(
            merged.get("b").expect("b"),
            [[0.25, -0.5, 0.75]],
            FORWARD,
            "b",
        );
        assert_close(merged.get("w").expect("w"), [[2.0], [2.5]], FORWARD, "w");
    }

    #[test]
    fn what_cannot_be_merged_is_named() {
        let one = vector([1.0; 3], [[1.0]; 2]);
        let narrow = one.map(|_, tensor| tensor.clone().narrow(1, 0, 1));
        let text = |vectors: &[(&TaskVector, f64)], rule| {
            let refused = TaskVector::merge(vectors, rule).expect_err("refused");
            refused.to_string()
        };
        assert_eq!(
            text(&[(&one, 1.0), (&narrow, 1.0)], Rule::default()),
            "expert 1: b is [1, 1], expected [1, 3]"
        );
        assert!(text(&[], Rule::default()).starts_with("task vectors is 0"));
        let rule = Rule {
            sparsify: Sparsify::Largest { density: -0.1 },
            join: Join::Mean(Sign::Total),
        };
        assert!(text(&[(&one, 1.0)], rule).starts_with("density is -0.1"));
    }
}
