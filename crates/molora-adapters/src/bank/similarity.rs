//! How alike the experts of a bank are.

use super::ExpertBank;

impl ExpertBank {
    /// Cosine of the weight changes `A_i core B_i` of each two experts (Frobenius), `[E][E]`, from -1 to
    /// 1; 0 where one of them is zero. A core that depends on tasks is that of an unknown one.
    ///
    /// With `G = A^T A` and `H = B B^T`, the product of two changes is `sum_rs G_ir,js H_ir,js`, so that
    /// nothing of shape `[D, O]` is made.
    pub fn cosines(&self) -> Vec<Vec<f64>> {
        let (experts, rank) = (self.num_experts, self.rank);
        let a = self.a_with_core(None);
        let width = a.dims()[1];
        let of_a: Vec<f64> = host(a.clone().transpose().matmul(a));
        let b = self.b_by_expert();
        let b = b.reshape([experts * rank, self.b.dims()[1]]);
        let of_b: Vec<f64> = host(b.clone().matmul(b.transpose()));
        let product = |i: usize, j: usize| -> f64 {
            let slices = [self.slice_of(i), self.slice_of(j)];
            let pairs = (0..rank).flat_map(|r| (0..rank).map(move |s| (r, s)));
            pairs
                .map(|(r, s)| {
                    let in_a = (slices[0] * rank + r) * width + slices[1] * rank + s;
                    let in_b = (i * rank + r) * experts * rank + j * rank + s;
                    of_a[in_a] * of_b[in_b]
                })
                .sum()
        };
        let sizes: Vec<f64> = (0..experts)
            .map(|i| product(i, i).max(0.0).sqrt())
            .collect();
        let cosine = |i: usize, j: usize| match sizes[i] * sizes[j] {
            size if size > 0.0 => (product(i, j) / size).clamp(-1.0, 1.0),
            _ => 0.0,
        };
        (0..experts)
            .map(|i| (0..experts).map(|j| cosine(i, j)).collect())
            .collect()
    }
}

fn host(matrix: burn::tensor::Tensor<2>) -> Vec<f64> {
    matrix.into_data().iter::<f64>().collect()
}
