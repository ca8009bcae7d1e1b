//! Information about whole sequences, beside their features.

use burn::tensor::{Device, Int, Tensor, TensorData};

use molora_kernels::random::{Seed, uniform};
use molora_kernels::{cosines, top_k_mask};

use crate::RoutingError;
use crate::normaliser::Weighed;

/// Smallest norm of a text vector, PyTorch's default for cosines.
const TEXT_EPSILON: f64 = 1e-8;

/// What is known of each sequence from outside: preferences, bans and decisions.
#[derive(Debug, Clone, Default)]
pub struct Guidance {
    /// Added to the logits of all of a sequence's decisions after the temperature, `[B, E]`, or
    /// `[B, G*E]` with one for each of G groups.
    ///
    /// It comes with its weight: GLIDER (arXiv:2410.07172) gives `alpha_g` times the
    /// [`text_cosines`]. Minus infinity bars an expert; each row needs one that is not barred.
    pub bias: Option<Tensor<2>>,
    /// How similar each sequence is to what every expert of every group represents, `[B, G*E]` for G groups,
    /// read by a normaliser that blends it in (MoR1E, arXiv:2404.08985).
    pub similarities: Option<Tensor<2>>,
    /// Rows from [`expert_labels`] that replace the selection, `[B, E]`: one-hot for a decided
    /// sequence, zeros for one that the router decides.
    ///
    /// Mixture-of-LoRAs (arXiv:2403.03432) trains with the domain label of each sequence; the
    /// choice of a prompt is kept in the same way while its answer is generated.
    pub labels: Option<Tensor<2>>,
    /// 1 for the tokens that a decision per sequence reads, `[B, T]`: those of the prompt while its
    /// answer is learned, so that the same decision is taken when there is no answer yet. All real
    /// tokens where absent.
    pub prompt: Option<Tensor<2>>,
    /// Rows that pick each sequence's cluster, `[B, clusters]`, one-hot, for routers that decide by
    /// cluster (MoCLE, arXiv:2312.12379). Sequences without one take the mean over clusters, and so do
    /// all where it is absent.
    pub clusters: Option<Tensor<2>>,
    /// Whether each decision of a training pass is for one expert that is drawn at random, whatever the
    /// router scores: this trains experts that can replace one another (Duo-LLM,
    /// arXiv:2410.10846). Labels come first.
    pub random: bool,
}

impl Guidance {
    /// What is known of the sequences of several batches, given with their number of sequences B, as of one
    /// batch in the same order. A batch without a bias, labels or clusters has zeros there, which say the
    /// same.
    ///
    /// # Panics
    /// If batches are guided in different ways that zeros cannot express: similarities, masks of prompts
    /// or random decisions in only some of them.
    pub fn cat(batches: &[(&Self, usize)]) -> Self {
        let same =
            |of: fn(&Self) -> bool| batches.iter().all(|(one, _)| of(one) == of(batches[0].0));
        assert!(
            same(|one| one.similarities.is_some()),
            "similarities of all sequences"
        );
        assert!(same(|one| one.prompt.is_some()), "masks of all prompts");
        assert!(same(|one| one.random), "random decisions for all sequences");
        let rows = |of: fn(&Self) -> &Option<Tensor<2>>| {
            let known = batches.iter().find_map(|(one, _)| of(one).as_ref())?;
            let (width, device) = (known.dims()[1], known.device());
            let rows = batches.iter().map(|(one, count)| match of(one) {
                Some(rows) => rows.clone(),
                None => Tensor::zeros([*count, width], &device),
            });
            Some(Tensor::cat(rows.collect(), 0))
        };
        Self {
            bias: rows(|one| &one.bias),
            similarities: rows(|one| &one.similarities),
            labels: rows(|one| &one.labels),
            prompt: rows(|one| &one.prompt),
            clusters: rows(|one| &one.clusters),
            random: batches.first().is_some_and(|(one, _)| one.random),
        }
    }

    /// What is known of some rows of a batch, by their numbers `[R]`, each of which is one token: there is no
    /// prompt apart from it.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn of_tokens(&self, rows: &Tensor<1, Int>) -> Self {
        let pick = |of: &Option<Tensor<2>>| of.clone().map(|of| of.select(0, rows.clone()));
        Self {
            bias: pick(&self.bias),
            similarities: pick(&self.similarities),
            labels: pick(&self.labels),
            prompt: None,
            clusters: pick(&self.clusters),
            random: self.random,
        }
    }

    /// Logits `[B, T', G*E]` of so many groups with the bias.
    pub(crate) fn biased(&self, logits: Tensor<3>, groups: usize) -> Tensor<3> {
        let Some(bias) = &self.bias else {
            return logits;
        };
        let bias = match bias.dims()[1] == logits.dims()[2] {
            true => bias.clone(),
            false => bias.clone().repeat_dim(1, groups),
        };
        logits + bias.unsqueeze_dim(1)
    }

    /// One expert for each decision, drawn from the key, where decisions are random.
    pub(crate) fn drawn(&self, weighed: Weighed, key: Option<Seed>) -> Weighed {
        let Some(key) = key.filter(|_| self.random) else {
            return weighed;
        };
        let (shape, device) = (weighed.weights.dims(), weighed.weights.device());
        let scores = uniform(shape, 1.0, key.child("random"), &device);
        let selected = top_k_mask(scores, 1);
        Weighed {
            weights: selected.clone().float(),
            selected: Some(selected),
            learned: weighed.learned,
        }
    }

    /// Weights and selection with those of labelled sequences replaced.
    pub(crate) fn decided(&self, weighed: Weighed) -> Weighed {
        let Some(labels) = &self.labels else {
            return weighed;
        };
        let Weighed {
            weights,
            selected,
            learned,
        } = weighed;
        let shape = weights.dims();
        let labels = labels.clone().unsqueeze_dim::<3>(1);
        let labelled = labels.clone().sum_dim(2).greater_elem(0.5).expand(shape);
        let labels = labels.expand(shape);
        let own = selected.unwrap_or_else(|| labels.clone().greater_equal_elem(0.0));
        let selected = own.mask_where(labelled.clone(), labels.clone().greater_elem(0.5));
        Weighed {
            weights: weights.mask_where(labelled, labels),
            selected: Some(selected),
            learned,
        }
    }
}

/// One-hot rows `[B, E]` from the expert of each sequence; zeros where it is `None`.
///
/// # Errors
/// [`RoutingError::Label`] names the first row whose expert does not exist.
pub fn expert_labels(
    labels: &[Option<usize>],
    num_experts: usize,
    device: &Device,
) -> Result<Tensor<2>, RoutingError> {
    let mut rows = vec![0.0_f32; labels.len() * num_experts];
    for (row, label) in labels.iter().enumerate() {
        match *label {
            Some(label) if label >= num_experts => {
                return Err(RoutingError::Label {
                    row,
                    label,
                    num_experts,
                });
            }
            Some(label) => rows[row * num_experts + label] = 1.0,
            None => {}
        }
    }
    let data = TensorData::new(rows, [labels.len(), num_experts]);
    Ok(Tensor::from_data(data, device))
}

/// Cosines of each sequence's text vector with each expert's: GLIDER's global score, before its
/// weight. arXiv:2410.07172, section 3.
///
/// A vector of norm 0 has cosine 0 with every other.
///
/// # Shapes
/// - `queries`: `[B, V]`
/// - `experts`: `[E, V]`
/// - returns `[B, E]`
pub fn text_cosines(queries: Tensor<2>, experts: Tensor<2>) -> Tensor<2> {
    cosines(queries, experts, TEXT_EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn cosines_of_the_worked_example() {
        let device = molora_testkit::device();
        let experts = [
            [1.0, 0.0, 0.0],
            [0.6, 0.8, 0.0],
            [0.0, 0.0, 1.0],
            [0.0, 1.0, 0.0],
        ];
        let queries = Tensor::from_data([[0.3, 0.9, 0.1], [0.0; 3]], &device);
        let found = text_cosines(queries, Tensor::from_data(experts, &device));
        let expected = [[0.314485, 0.943456, 0.104828, 0.943456], [0.0; 4]];
        assert_close(found, expected, FORWARD, "cosines");
    }

    #[test]
    fn sequences_without_guidance_have_zeros() {
        let device = molora_testkit::device();
        let labelled = Guidance {
            labels: Some(Tensor::from_data([[0.0, 1.0]], &device)),
            ..Guidance::default()
        };
        let free = Guidance::default();
        let all = Guidance::cat(&[(&free, 2), (&labelled, 1)]);
        let labels = all.labels.expect("one has labels");
        assert_close(labels, [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]], 0.0, "labels");
        assert!(all.bias.is_none() && all.clusters.is_none());
    }

    #[test]
    fn labels_become_one_hot_rows() {
        let device = molora_testkit::device();
        let rows = expert_labels(&[Some(2), None], 3, &device).expect("in range");
        assert_close(rows, [[0.0, 0.0, 1.0], [0.0; 3]], 0.0, "rows");
        let error = expert_labels(&[None, Some(3)], 3, &device).expect_err("out of range");
        assert_eq!(
            error.to_string(),
            "row 1 has label 3, but there are 3 experts"
        );
    }
}
