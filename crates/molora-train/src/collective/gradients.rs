//! Gradients of a model that several ranks have parts of.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Tensor, TensorData};
use molora_models::TaskModel;

use super::{Collective, CollectiveError, Node, TreeSum, share};

/// Two gradients as one.
pub(crate) fn add(
    model: &TaskModel,
    left: GradientsParams,
    right: GradientsParams,
) -> GradientsParams {
    let mut sum = GradientsAccumulator::new();
    sum.accumulate(model, left);
    sum.accumulate(model, right);
    sum.grads()
}

/// The sum of the gradients of all ranks, and what every rank gave along with its own, by rank.
///
/// Gradients go through the host's memory as slices: every rank adds one slice for all of them, and sends the others
/// what it found. A parameter that has no gradient anywhere gets none.
///
/// # Errors
/// If the ranks cannot exchange data.
pub(crate) fn summed(
    collective: &dyn Collective,
    model: &TaskModel,
    own: TreeSum<GradientsParams>,
    note: &[u8],
) -> Result<(GradientsParams, Vec<Vec<u8>>), CollectiveError> {
    if collective.world_size() == 1 {
        let sum = own.total(|left, right| add(model, left, right));
        return Ok((sum.unwrap_or_default(), vec![note.to_vec()]));
    }
    let layout = Layout::of(model);
    let nodes = own.into_nodes().into_iter().map(|node| Node {
        level: node.level,
        index: node.index,
        value: layout.read(model, node.value),
    });
    let nodes: Vec<Node<Slice>> = nodes.collect();
    let (rank, ranks) = (collective.rank(), collective.world_size());
    let mut parts = Vec::new();
    for to in 0..ranks {
        let range = share(layout.len(), to, ranks);
        let mut bytes = Vec::new();
        for node in &nodes {
            write_node(&mut bytes, node, range.clone());
        }
        parts.push(bytes);
    }
    let range = share(layout.len(), rank, ranks);
    let mut sum = TreeSum::default();
    for (from, bytes) in collective.exchange(parts)?.into_iter().enumerate() {
        let mut reader = Reader {
            from,
            bytes: &bytes,
        };
        while !reader.bytes.is_empty() {
            let node = reader.node(layout.ids.len(), range.len())?;
            sum.push(node, |left, right| layout.add(range.start, left, right));
        }
    }
    let found = sum.total(|left, right| layout.add(range.start, left, right));
    let found = found.unwrap_or_else(|| layout.nothing(range.len()));
    let mut bytes = Vec::new();
    write_slice(&mut bytes, &found, 0..range.len());
    bytes.extend_from_slice(note);
    let (mut whole, mut notes) = (layout.nothing(0), Vec::new());
    for (from, bytes) in collective.gather(bytes)?.into_iter().enumerate() {
        let mut reader = Reader {
            from,
            bytes: &bytes,
        };
        let length = share(layout.len(), from, ranks).len();
        let slice = reader.slice(layout.ids.len(), length)?;
        whole.values.extend(slice.values);
        for (has, found) in whole.has.iter_mut().zip(slice.has) {
            *has |= found;
        }
        notes.push(reader.bytes.to_vec());
    }
    Ok((layout.write(model, &whole), notes))
}

/// The place of each trained parameter among the numbers of all.
struct Layout {
    ids: Vec<ParamId>,
    /// Where each begins, and where the last one ends.
    starts: Vec<usize>,
}

/// Some of the numbers of a gradient, and which parameters have one.
#[derive(Debug, Clone, PartialEq)]
struct Slice {
    has: Vec<bool>,
    values: Vec<f32>,
}

impl Layout {
    fn of(model: &TaskModel) -> Self {
        let mut layout = Self {
            ids: Vec::new(),
            starts: vec![0],
        };
        model.visit(&mut layout);
        layout
    }

    fn len(&self) -> usize {
        self.starts[self.ids.len()]
    }

    fn nothing(&self, length: usize) -> Slice {
        Slice {
            has: vec![false; self.ids.len()],
            values: vec![0.0; length],
        }
    }

    fn read(&self, model: &TaskModel, gradients: GradientsParams) -> Slice {
        let mut read = Read {
            gradients,
            slice: self.nothing(0),
            next: 0,
        };
        model.visit(&mut read);
        read.slice
    }

    fn write(&self, model: &TaskModel, whole: &Slice) -> GradientsParams {
        let mut write = Write {
            layout: self,
            whole,
            next: 0,
            gradients: GradientsParams::new(),
        };
        model.visit(&mut write);
        write.gradients
    }

    /// Adds two slices that begin at the number `start`. What has no gradient on one side is taken from the other, to
    /// the bit.
    fn add(&self, start: usize, mut left: Slice, right: Slice) -> Slice {
        let end = start + left.values.len();
        for (place, has) in left.has.iter_mut().enumerate() {
            let within = |number: usize| number.clamp(start, end) - start;
            let range = within(self.starts[place])..within(self.starts[place + 1]);
            let (into, from) = (&mut left.values[range.clone()], &right.values[range]);
            match (*has, right.has[place]) {
                (true, true) => into.iter_mut().zip(from).for_each(|(a, b)| *a += b),
                (false, true) => into.copy_from_slice(from),
                (_, false) => {}
            }
            *has |= right.has[place];
        }
        left
    }
}

impl ModuleVisitor for Layout {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.is_require_grad() {
            let end = self.len() + param.shape().num_elements();
            self.ids.push(param.id);
            self.starts.push(end);
        }
    }
}

struct Read {
    gradients: GradientsParams,
    slice: Slice,
    next: usize,
}

impl ModuleVisitor for Read {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad() {
            return;
        }
        let length = param.shape().num_elements();
        let values = &mut self.slice.values;
        match self.gradients.remove::<D>(param.id) {
            Some(gradient) => {
                self.slice.has[self.next] = true;
                values.extend(gradient.into_data().iter::<f32>());
            }
            None => values.resize(values.len() + length, 0.0),
        }
        self.next += 1;
    }
}

struct Write<'a> {
    layout: &'a Layout,
    whole: &'a Slice,
    next: usize,
    gradients: GradientsParams,
}

impl ModuleVisitor for Write<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad() {
            return;
        }
        let place = self.next;
        self.next += 1;
        if self.whole.has[place] {
            let range = self.layout.starts[place]..self.layout.starts[place + 1];
            let data = TensorData::new(self.whole.values[range].to_vec(), param.shape());
            let device = param.val().inner().device();
            let gradient = Tensor::<D>::from_data(data, &device);
            self.gradients.register(param.id, gradient);
        }
    }
}

fn write_node(bytes: &mut Vec<u8>, node: &Node<Slice>, range: std::ops::Range<usize>) {
    bytes.extend((node.level as u64).to_le_bytes());
    bytes.extend((node.index as u64).to_le_bytes());
    write_slice(bytes, &node.value, range);
}

fn write_slice(bytes: &mut Vec<u8>, slice: &Slice, range: std::ops::Range<usize>) {
    bytes.extend(slice.has.iter().map(|&has| u8::from(has)));
    bytes.extend(
        slice.values[range]
            .iter()
            .flat_map(|value| value.to_le_bytes()),
    );
}

/// What came from a rank.
struct Reader<'a> {
    from: usize,
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], CollectiveError> {
        let (taken, rest) =
            self.bytes
                .split_at_checked(count)
                .ok_or_else(|| CollectiveError::Garbled {
                    rank: self.from,
                    problem: format!("{} bytes, expected {count}", self.bytes.len()),
                })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, CollectiveError> {
        let bytes = self.take(8)?.try_into().expect("eight bytes");
        Ok(u64::from_le_bytes(bytes))
    }

    fn node(&mut self, params: usize, length: usize) -> Result<Node<Slice>, CollectiveError> {
        Ok(Node {
            level: self.number()? as u32,
            index: self.number()? as usize,
            value: self.slice(params, length)?,
        })
    }

    fn slice(&mut self, params: usize, length: usize) -> Result<Slice, CollectiveError> {
        let has = self.take(params)?.iter().map(|&has| has != 0).collect();
        let values = self.take(4 * length)?.chunks_exact(4);
        let values = values.map(|value| f32::from_le_bytes(value.try_into().expect("four bytes")));
        Ok(Slice {
            has,
            values: values.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_does_not_have_is_taken_from_the_other() {
        let layout = Layout {
            ids: vec![ParamId::from(1), ParamId::from(2), ParamId::from(3)],
            starts: vec![0, 2, 3, 5],
        };
        // The numbers from 1 to before 4: one of each parameter.
        let slice = |has: [bool; 3], values: [f32; 3]| Slice {
            has: has.to_vec(),
            values: values.to_vec(),
        };
        let left = slice([true, false, true], [1.0, 0.0, -0.0]);
        let right = slice([true, true, false], [10.0, -0.0, 0.0]);
        let sum = layout.add(1, left, right);
        assert_eq!(sum.has, [true; 3]);
        let bits: Vec<u32> = sum.values.iter().map(|value| value.to_bits()).collect();
        assert_eq!(bits, [11.0_f32, -0.0, -0.0].map(f32::to_bits));
    }
}
