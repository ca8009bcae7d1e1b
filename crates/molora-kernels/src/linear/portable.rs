//! The affine map in burn's tensor operations.

use burn::tensor::Tensor;

/// The definition by `burn`'s own linear map, in the type of `x`.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let weight = in_type_of(weight, &x);
    burn::tensor::module::linear(x, weight, bias)
}

/// The definition by a matrix product, in the type of `x`.
pub fn linear_transposed<const D: usize>(
    x: Tensor<D>,
    table: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let table = in_type_of(table, &x);
    let mut shape = x.dims();
    let rows = shape[..D - 1].iter().product::<usize>();
    let x = x.reshape([rows, shape[D - 1]]);
    shape[D - 1] = table.dims()[0];
    let out = x.matmul(table.transpose()).reshape(shape);
    match bias {
        Some(bias) => out + bias.unsqueeze(),
        None => out,
    }
}

/// The weight with the numbers of `x`'s type.
fn in_type_of<const D: usize>(weight: Tensor<2>, x: &Tensor<D>) -> Tensor<2> {
    if weight.dtype() == x.dtype() {
        weight
    } else {
        weight.cast(x.dtype())
    }
}
