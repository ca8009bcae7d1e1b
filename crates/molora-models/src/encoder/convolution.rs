//! A convolution beside the first layer: He et al., DeBERTa, arXiv:2006.03654, appendix A.6 (the
//! n-gram induced encoding of its second version).

use burn::module::{Module, Param};
use burn::tensor::{Bool, Tensor};

use crate::LayerNorm;
use crate::layers::Activation;

/// `norm(y + activation(conv(x)))` for the input x and the output y of a layer.
#[derive(Module, Debug)]
pub(super) struct Convolution {
    /// One matrix for each of the neighbours that are read, one below the other, `[kernel * D, D]`.
    pub(super) weight: Param<Tensor<2>>,
    /// `[D]`.
    pub(super) bias: Param<Tensor<1>>,
    pub(super) norm: LayerNorm,
    #[module(skip)]
    pub(super) activation: Activation,
}

impl Convolution {
    /// `x` and `y` are `[B, T, D]`; what padding holds is not read.
    pub(super) fn forward(&self, x: Tensor<3>, y: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let kernel = self.weight.dims()[0] / width;
        let padding = mask.clone().bool_not().unsqueeze_dim::<3>(2);
        let padding = padding.expand([batch, tokens, width]);
        let edge = Tensor::zeros([batch, kernel / 2, width], &x.device());
        let x = x.mask_fill(padding.clone(), 0.0);
        let x = match kernel {
            1 => x,
            _ => Tensor::cat(vec![edge.clone(), x, edge], 1),
        };
        let neighbours = (0..kernel).map(|offset| x.clone().narrow(1, offset, tokens));
        let neighbours = Tensor::cat(neighbours.collect(), 2);
        let read = molora_kernels::linear(neighbours, self.weight.val(), Some(self.bias.val()));
        let read = self.activation.apply(read.mask_fill(padding, 0.0));
        self.norm.forward(y + read)
    }
}

/// The weight `[kernel * D, D]` of the values `[D, D / groups, kernel]` that files hold.
pub(super) fn unfolded(values: &[f32], width: usize, groups: usize, kernel: usize) -> Vec<f32> {
    let inputs = width / groups;
    let mut weight = vec![0.0; kernel * width * width];
    for (index, value) in values.iter().enumerate() {
        let (output, rest) = (index / (inputs * kernel), index % (inputs * kernel));
        let (input, offset) = (rest / kernel, rest % kernel);
        let input = output / (width / groups) * inputs + input;
        weight[(offset * width + input) * width + output] = *value;
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_do_not_see_each_other() {
        // Four channels in two groups, a kernel of one: value 10 * output + input within the group.
        let values: Vec<f32> = (0..8).map(|n| (10 * (n / 2) + n % 2) as f32).collect();
        let weight = unfolded(&values, 4, 2, 1);
        let expected = [
            [0.0, 10.0, 0.0, 0.0],
            [1.0, 11.0, 0.0, 0.0],
            [0.0, 0.0, 20.0, 30.0],
            [0.0, 0.0, 21.0, 31.0],
        ];
        assert_eq!(weight, expected.concat());
    }

    #[test]
    fn offsets_stand_below_each_other() {
        assert_eq!(unfolded(&[1.0, 2.0, 3.0], 1, 1, 3), [1.0, 2.0, 3.0]);
    }
}
