//! One tensor of a part: its name, its kind, and what its dimensions count.

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::ParameterKind;

/// What a dimension of a tensor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Experts.
    Expert,
    /// Down-projections that experts share.
    Slice,
    /// Groups of experts.
    Group,
    /// Tasks.
    Task,
    /// Coordinates of the low-rank code.
    Rank,
    /// Inputs of the adapted layer.
    Input,
    /// Outputs of the adapted layer.
    Output,
    /// What a router reads.
    Feature,
    /// Anything else, for example units of a small network inside the part.
    Unit,
}

impl Axis {
    /// So many of them.
    pub fn of(self, size: usize) -> Count {
        Count { axis: self, size }
    }
}

/// How many of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// What is counted.
    pub axis: Axis,
    /// How many there are.
    pub size: usize,
}

/// One tensor of a part, to be read or changed.
///
/// A dimension may count a product: the columns of a bank's `A` count experts times ranks, experts
/// outermost. In files such a dimension can be taken apart and turned, see
/// [`stored`](Self::stored).
#[derive(Debug)]
pub struct PartTensor<'a> {
    name: &'static str,
    kind: ParameterKind,
    counts: Vec<Count>,
    // Numbers of counts, dimension by dimension.
    stored: Vec<Vec<usize>>,
    is_up: bool,
    value: Value<'a>,
}

/// A parameter of one, two or three dimensions.
#[derive(Debug)]
enum Value<'a> {
    Vector(&'a mut Param<Tensor<1>>),
    Matrix(&'a mut Param<Tensor<2>>),
    Cube(&'a mut Param<Tensor<3>>),
}

impl<'a> PartTensor<'a> {
    /// A vector, for example a bias.
    ///
    /// # Panics
    /// If the counts do not multiply to its length.
    pub fn vector(
        name: &'static str,
        kind: ParameterKind,
        value: &'a mut Param<Tensor<1>>,
        counts: &[Count],
    ) -> Self {
        let shape = value.dims();
        Self::new(name, kind, Value::Vector(value), &shape, &[counts])
    }

    /// A matrix.
    ///
    /// # Panics
    /// If the counts do not multiply to its shape.
    pub fn matrix(
        name: &'static str,
        kind: ParameterKind,
        value: &'a mut Param<Tensor<2>>,
        rows: &[Count],
        columns: &[Count],
    ) -> Self {
        let shape = value.dims();
        Self::new(name, kind, Value::Matrix(value), &shape, &[rows, columns])
    }

    /// A stack of matrices.
    ///
    /// # Panics
    /// If the counts do not multiply to its shape.
    pub fn cube(
        name: &'static str,
        kind: ParameterKind,
        value: &'a mut Param<Tensor<3>>,
        counts: [&[Count]; 3],
    ) -> Self {
        let shape = value.dims();
        Self::new(name, kind, Value::Cube(value), &shape, &counts)
    }

    fn new(
        name: &'static str,
        kind: ParameterKind,
        value: Value<'a>,
        shape: &[usize],
        dims: &[&[Count]],
    ) -> Self {
        let sizes = dims.iter().map(|counts| product(counts.iter().copied()));
        let sizes: Vec<usize> = sizes.collect();
        assert_eq!(shape, sizes, "{name}: shape, and what it is said to count");
        let mut next = 0;
        let stored = dims.iter().map(|counts| {
            next += counts.len();
            (next - counts.len()..next).collect()
        });
        Self {
            name,
            kind,
            stored: stored.collect(),
            is_up: false,
            counts: dims.iter().flat_map(|counts| counts.to_vec()).collect(),
            value,
        }
    }

    /// The same tensor with another layout in files: a dimension for each of `order`, by the
    /// numbers of the counts, which are numbered from the first dimension on.
    ///
    /// A bank's `A` has the shape `[D, E*R]`, so its counts are inputs, experts and ranks; stored as
    /// `[1, 2, 0]` it is `[E, R, D]` in files.
    ///
    /// # Panics
    /// If `order` does not name every count once.
    pub fn stored(mut self, order: &[usize]) -> Self {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        let all: Vec<usize> = (0..self.counts.len()).collect();
        assert_eq!(sorted, all, "{}: every count once", self.name);
        self.stored = order.iter().map(|&count| vec![count]).collect();
        self
    }

    /// The same tensor as the up-projection of low-rank experts, for which LoRA+ (Hayou et al.,
    /// arXiv:2402.12354) has a learning rate of its own.
    pub fn up_projection(mut self) -> Self {
        self.is_up = true;
        self
    }

    /// Whether it is an up-projection.
    pub fn is_up_projection(&self) -> bool {
        self.is_up
    }

    /// The same tensor where what was listed as one count of `axis` is a product: `outer`, and so many
    /// of `axis` in each. It stays one dimension in files.
    ///
    /// A scorer that gives every group of ranks a logit for each expert has rows for groups times
    /// experts, groups outermost, and lists them as experts.
    ///
    /// # Panics
    /// If `outer` does not divide the count.
    pub fn split(mut self, axis: Axis, outer: Count) -> Self {
        if outer.size == 1 {
            return self;
        }
        let (mut counts, mut numbers) = (Vec::new(), Vec::new());
        for count in &self.counts {
            let start = counts.len();
            match count.axis == axis {
                true => {
                    assert!(count.size.is_multiple_of(outer.size), "{}", self.name);
                    counts.extend([outer, axis.of(count.size / outer.size)]);
                }
                false => counts.push(*count),
            }
            numbers.push(start..counts.len());
        }
        for dim in &mut self.stored {
            *dim = dim.iter().flat_map(|&old| numbers[old].clone()).collect();
        }
        self.counts = counts;
        self
    }

    /// The name in files, behind the path of the site.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What the tensor is for.
    pub fn kind(&self) -> ParameterKind {
        self.kind
    }

    /// What the dimensions count, from the outermost on.
    pub fn counts(&self) -> &[Count] {
        &self.counts
    }

    /// The parameter's number.
    pub fn id(&self) -> ParamId {
        match &self.value {
            Value::Vector(param) => param.id,
            Value::Matrix(param) => param.id,
            Value::Cube(param) => param.id,
        }
    }

    /// Shape in files.
    pub fn shape(&self) -> Vec<usize> {
        let size = |dim: &Vec<usize>| product(dim.iter().map(|&count| self.counts[count]));
        self.stored.iter().map(size).collect()
    }

    /// Values in the order of files.
    pub fn values(&self) -> Vec<f32> {
        let order: Vec<usize> = self.stored.iter().flatten().copied().collect();
        let sizes: Vec<usize> = self.counts.iter().map(|count| count.size).collect();
        let own = self.own_values();
        // A table of embeddings is long, and lies as it is stored.
        if order.is_sorted() {
            return own;
        }
        places(&sizes, &order).map(|place| own[place]).collect()
    }

    /// The gradient in the order of files; `None` where the backward pass did not reach the tensor.
    ///
    /// # Panics
    /// If gradients are not f32.
    pub fn gradient(&self, gradients: &Gradients) -> Option<Vec<f32>> {
        let own = match &self.value {
            Value::Vector(param) => param.val().grad(gradients)?.into_data(),
            Value::Matrix(param) => param.val().grad(gradients)?.into_data(),
            Value::Cube(param) => param.val().grad(gradients)?.into_data(),
        };
        let own = own.try_into_vec::<f32>().expect("gradients are f32");
        let order: Vec<usize> = self.stored.iter().flatten().copied().collect();
        let sizes: Vec<usize> = self.counts.iter().map(|count| count.size).collect();
        Some(places(&sizes, &order).map(|place| own[place]).collect())
    }

    /// Replaces the values by others in the order of files; the parameter's number stays, and so
    /// does whether it trains.
    ///
    /// # Panics
    /// If there are more or fewer values than the tensor has.
    pub fn set(&mut self, values: &[f32]) {
        let order: Vec<usize> = self.stored.iter().flatten().copied().collect();
        let sizes: Vec<usize> = self.counts.iter().map(|count| count.size).collect();
        let total: usize = sizes.iter().product();
        assert_eq!(values.len(), total, "{}: number of values", self.name);
        if order.is_sorted() {
            return self.set_own_values(values.to_vec());
        }
        let mut own = vec![0.0; total];
        for (place, &value) in places(&sizes, &order).zip(values) {
            own[place] = value;
        }
        self.set_own_values(own);
    }

    /// Values in the order of memory.
    pub(crate) fn own_values(&self) -> Vec<f32> {
        let data = match &self.value {
            Value::Vector(param) => param.val().into_data(),
            Value::Matrix(param) => param.val().into_data(),
            Value::Cube(param) => param.val().into_data(),
        };
        data.try_into_vec::<f32>().expect("parameters are f32")
    }

    pub(crate) fn set_own_values(&mut self, values: Vec<f32>) {
        match &mut self.value {
            Value::Vector(param) => replace(param, values),
            Value::Matrix(param) => replace(param, values),
            Value::Cube(param) => replace(param, values),
        }
    }
}

fn product(counts: impl Iterator<Item = Count>) -> usize {
    counts.map(|count| count.size).product()
}

/// Replaces a parameter by a fresh leaf without history.
fn replace<const D: usize>(param: &mut Param<Tensor<D>>, values: Vec<f32>) {
    let (shape, trains) = (param.dims(), param.is_require_grad());
    let device: Device = param.val().device();
    let value = Tensor::from_data(TensorData::new(values, shape), &device);
    *param = Param::initialized(param.id, value).set_require_grad(trains);
}

/// The places in memory of a tensor's values when its counts, whose sizes are given from the
/// outermost on, are gone through in another order.
fn places<'s>(sizes: &'s [usize], order: &'s [usize]) -> impl Iterator<Item = usize> + 's {
    let mut strides = vec![1; sizes.len()];
    for count in (1..sizes.len()).rev() {
        strides[count - 1] = strides[count] * sizes[count];
    }
    let total: usize = sizes.iter().product();
    (0..total).map(move |mut rest| {
        let mut place = 0;
        for &count in order.iter().rev() {
            place += rest % sizes[count] * strides[count];
            rest /= sizes[count];
        }
        place
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: ParameterKind = ParameterKind::Adapters;

    /// `[D, E*R]` with D 2, E 3, R 2, whose values say where they are: 100 d + 10 e + r.
    fn down() -> Param<Tensor<2>> {
        let value = |d: usize, column: usize| (100 * d + 10 * (column / 2) + column % 2) as f32;
        let values: Vec<f32> = (0..12).map(|at| value(at / 6, at % 6)).collect();
        Param::from_data(TensorData::new(values, [2, 6]), &Device::default())
    }

    fn listed(value: &mut Param<Tensor<2>>) -> PartTensor<'_> {
        let columns = [Axis::Expert.of(3), Axis::Rank.of(2)];
        PartTensor::matrix(
            "experts.lora_A",
            KIND,
            value,
            &[Axis::Input.of(2)],
            &columns,
        )
        .stored(&[1, 2, 0])
    }

    #[test]
    fn a_product_is_taken_apart_and_turned_in_files() {
        let mut value = down();
        let tensor = listed(&mut value);
        assert_eq!(tensor.shape(), [3, 2, 2]);
        let expected = [0, 100, 1, 101, 10, 110, 11, 111, 20, 120, 21, 121];
        assert_eq!(tensor.values(), expected.map(|value| value as f32));
    }

    #[test]
    fn values_that_were_read_are_those_that_were_written() {
        let (mut old, mut new) = (down(), down());
        new = Param::initialized(new.id, new.val().zeros_like()).set_require_grad(false);
        let id = new.id;
        listed(&mut new).set(&listed(&mut old).values());
        assert_eq!(new.val().into_data(), old.val().into_data());
        assert_eq!((new.id, new.is_require_grad()), (id, false));
    }

    #[test]
    fn a_count_is_split_and_stays_one_dimension_in_files() {
        let mut value = down();
        let columns = [Axis::Expert.of(6)];
        let tensor = PartTensor::matrix("rows", KIND, &mut value, &[Axis::Input.of(2)], &columns);
        let tensor = tensor.split(Axis::Expert, Axis::Group.of(3));
        let expected = [Axis::Input.of(2), Axis::Group.of(3), Axis::Expert.of(2)];
        assert_eq!(tensor.counts(), expected);
        assert_eq!(tensor.shape(), [2, 6]);
        assert_eq!(tensor.values()[..3], [0.0, 1.0, 10.0]);
    }

    #[test]
    fn without_a_layout_of_its_own_a_tensor_is_stored_as_it_is() {
        let mut value = Param::from_data([1.0, 2.0, 3.0, 4.0], &Device::default());
        let counts = [Axis::Expert.of(2), Axis::Rank.of(2)];
        let tensor = PartTensor::vector("experts.rank_scale", KIND, &mut value, &counts);
        assert_eq!(tensor.shape(), [4]);
        assert_eq!(tensor.values(), [1.0, 2.0, 3.0, 4.0]);
    }
}
