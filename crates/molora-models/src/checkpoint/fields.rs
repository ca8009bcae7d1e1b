//! The parameters of an adapter by their names and layouts in a file.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use molora_routing::{Router, Scorer, WithinScorer};

use crate::{Adapter, AdapterSpec};

/// How a parameter of ours is laid out in the file.
#[derive(Clone, Copy)]
pub(super) enum Layout {
    /// As it is.
    Same,
    /// `[columns, rows]`.
    Transposed,
    /// `[D, count * R]` as `[count, R, D]`.
    StackedColumns(usize),
    /// `[count * R, O]` as `[count, O, R]`.
    StackedRows(usize),
}

/// A parameter to be written or read.
pub(super) enum Field<'a> {
    Vector(&'a mut Param<Tensor<1>>),
    Matrix(&'a mut Param<Tensor<2>>, Layout),
}

/// Every parameter of a site with its name behind the site's path.
pub(super) fn fields<'a>(
    adapter: &'a mut Adapter,
    spec: &AdapterSpec,
) -> Vec<(&'static str, Field<'a>)> {
    let (experts, num_a) = (adapter.bank.num_experts(), adapter.bank.num_a());
    let bank = &mut adapter.bank;
    let mut fields = if spec.is_plain_lora() {
        vec![
            (
                "lora_A.weight",
                Field::Matrix(&mut bank.a, Layout::Transposed),
            ),
            (
                "lora_B.weight",
                Field::Matrix(&mut bank.b, Layout::Transposed),
            ),
        ]
    } else {
        vec![
            (
                "experts.lora_A",
                Field::Matrix(&mut bank.a, Layout::StackedColumns(num_a)),
            ),
            (
                "experts.lora_B",
                Field::Matrix(&mut bank.b, Layout::StackedRows(experts)),
            ),
        ]
    };
    fields.extend(
        bank.rank_scale
            .iter_mut()
            .map(|p| ("experts.rank_scale", Field::Vector(p))),
    );
    fields.extend(adapter.router.iter_mut().flat_map(router_fields));
    if let Some(gate) = &mut adapter.gate {
        fields.push((
            "gate.task_embedding",
            Field::Matrix(&mut gate.embedding, Layout::Same),
        ));
        fields.push(("gate.weight", Field::Matrix(&mut gate.weight, Layout::Same)));
        fields.extend(
            gate.bias
                .iter_mut()
                .map(|p| ("gate.bias", Field::Vector(p))),
        );
    }
    fields
}

pub(super) fn router_fields(router: &mut Router) -> Vec<(&'static str, Field<'_>)> {
    let mut fields = match &mut router.scorer {
        Scorer::Linear(scorer) => {
            let weight = Field::Matrix(&mut scorer.weight, Layout::Same);
            let bias = scorer
                .bias
                .iter_mut()
                .map(|bias| ("router.bias", Field::Vector(bias)));
            std::iter::once(("router.weight", weight))
                .chain(bias)
                .collect()
        }
        Scorer::Cosine(scorer) => {
            vec![("router.keys", Field::Matrix(&mut scorer.keys, Layout::Same))]
        }
        Scorer::Prototype(scorer) => {
            let prototypes = Field::Matrix(&mut scorer.prototypes, Layout::Same);
            vec![("router.prototypes", prototypes)]
        }
        Scorer::Arrow(scorer) => {
            let prototypes = Field::Matrix(&mut scorer.prototypes, Layout::Same);
            vec![("router.prototypes", prototypes)]
        }
        Scorer::Uniform(_) => Vec::new(),
        Scorer::Grouped(scorer) => {
            let within = match &mut scorer.within {
                WithinScorer::Static(scores) => Field::Vector(scores),
                WithinScorer::Token(weight) => Field::Matrix(weight, Layout::Same),
            };
            let group = Field::Matrix(&mut scorer.group, Layout::Same);
            vec![("router.group", group), ("router.within", within)]
        }
        _ => unreachable!("every scorer of this version is listed"),
    };
    let table = router.task_embedding.iter_mut();
    fields.extend(table.map(|p| ("router.task_embedding", Field::Matrix(p, Layout::Same))));
    fields
}

impl Field<'_> {
    /// Shape in the file.
    pub(super) fn shape(&self) -> Vec<usize> {
        match self {
            Self::Vector(param) => param.dims().to_vec(),
            Self::Matrix(param, layout) => {
                let [rows, columns] = param.dims();
                match *layout {
                    Layout::Same => vec![rows, columns],
                    Layout::Transposed => vec![columns, rows],
                    Layout::StackedColumns(count) => vec![count, columns / count, rows],
                    Layout::StackedRows(count) => vec![count, columns, rows / count],
                }
            }
        }
    }

    /// Values in the file's order.
    pub(super) fn values(&self) -> Vec<f32> {
        let data = match self {
            Self::Vector(param) => param.val().into_data(),
            Self::Matrix(param, layout) => {
                let [rows, columns] = param.dims();
                let value = param.val();
                match *layout {
                    Layout::Same => value.into_data(),
                    Layout::Transposed | Layout::StackedColumns(_) => value.transpose().into_data(),
                    Layout::StackedRows(count) => value
                        .reshape([count, rows / count, columns])
                        .swap_dims(1, 2)
                        .into_data(),
                }
            }
        };
        data.try_into_vec::<f32>().expect("parameters are f32")
    }

    /// Replaces the parameter's value by one in the file's order; its number and whether it trains
    /// stay.
    pub(super) fn set(self, values: Vec<f32>) {
        let shape = self.shape();
        match self {
            Self::Vector(param) => {
                replace(param, |device| {
                    Tensor::from_data(TensorData::new(values, shape), device)
                });
            }
            Self::Matrix(param, layout) => {
                let dims = param.dims();
                replace(param, |device| {
                    let data = TensorData::new(values, shape);
                    match layout {
                        Layout::Same => Tensor::from_data(data, device),
                        Layout::Transposed => Tensor::<2>::from_data(data, device).transpose(),
                        Layout::StackedColumns(_) => Tensor::<3>::from_data(data, device)
                            .permute([2, 0, 1])
                            .reshape(dims),
                        Layout::StackedRows(_) => Tensor::<3>::from_data(data, device)
                            .swap_dims(1, 2)
                            .reshape(dims),
                    }
                });
            }
        }
    }
}

fn replace<const D: usize>(
    param: &mut Param<Tensor<D>>,
    value: impl FnOnce(&burn::tensor::Device) -> Tensor<D>,
) {
    let (old, trains) = (param.val(), param.is_require_grad());
    // A fresh leaf without history, with the old parameter's number.
    let value = Tensor::from_data(value(&old.device()).into_data(), &old.device());
    *param = Param::initialized(param.id, value).set_require_grad(trains);
}
