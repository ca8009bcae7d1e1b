//! The rows of several decoders on one base within one pass.
//!
//! ```text
//! x  [B, T, D]     rows sorted by decoder
//! y  = x W + b     once for all rows, so that the weights are read once
//! y_g += delta_g(x_g)     for the rows of each decoder, by its adapter
//! ```
//!
//! What is a decoder's own beside its linear layers works as in a pass of its rows alone, which each group has:
//! routers of layers, decisions that are kept, tasks and labels.

use burn::tensor::Tensor;

use super::model::Decoder;
use super::pass::Pass;
use crate::MoLoraLinear;

/// Rows of one decoder.
pub(crate) struct Group<'a> {
    model: &'a Decoder,
    /// Its linear layers by their numbers.
    linears: Vec<&'a MoLoraLinear>,
    /// Its first row, and how many there are.
    start: usize,
    pub(super) rows: usize,
    /// The layer that is being computed.
    layer: usize,
    /// The pass of its rows.
    pub(super) pass: Pass<'a>,
}

impl<'a> Group<'a> {
    /// Rows from one of a number on.
    pub(super) fn new(model: &'a Decoder, (start, rows): (usize, usize), pass: Pass<'a>) -> Self {
        Self {
            linears: model.numbered(),
            model,
            start,
            rows,
            layer: 0,
            pass,
        }
    }

    /// Its own layer in the place of a layer of another decoder.
    fn own(&self, linear: &MoLoraLinear) -> &'a MoLoraLinear {
        self.linears[linear.number]
    }

    /// Its rows of all.
    fn of(&self, all: &Tensor<3>) -> Tensor<3> {
        match all.dims()[0] == self.rows {
            true => all.clone(),
            false => all.clone().narrow(0, self.start, self.rows),
        }
    }
}

impl Pass<'_> {
    /// See [`apply`](Self::apply).
    pub(super) fn apply_groups(&mut self, linear: &MoLoraLinear, x: Tensor<3>) -> Tensor<3> {
        let y = linear.base(x.clone());
        let mut groups = self.groups.iter();
        match groups.any(|group| group.own(linear).is_adapted()) {
            true => self.each(|group| {
                let own = group.own(linear);
                let y = own.product_of(group.of(&y));
                group.pass.adapt(own, y, group.of(&x))
            }),
            false => y,
        }
    }

    /// See [`beside`](Self::beside).
    pub(super) fn beside_groups(
        &mut self,
        last: &MoLoraLinear,
        y: Tensor<3>,
        x: Tensor<3>,
    ) -> Tensor<3> {
        let mut groups = self.groups.iter();
        let is_beside = |own: &MoLoraLinear| own.adapter.as_ref().is_some_and(|own| own.is_beside);
        match groups.any(|group| is_beside(group.own(last))) {
            true => self.each(|group| {
                let (y, x) = (group.of(&y), group.of(&x));
                group.pass.beside(group.own(last), y, x)
            }),
            false => y,
        }
    }

    /// Lets each decoder take its decisions for a layer by its input.
    pub(super) fn enter_groups(&mut self, index: usize, hidden: &Tensor<3>) {
        for group in &mut self.groups {
            let hidden = group.of(hidden);
            group.layer = index;
            group.model.enter(index, &hidden, &mut group.pass);
        }
    }

    /// Whether each decoder computes its next feed-forward part by itself: where one of them mixes whole parts or
    /// decides for one, or tokens go to experts of the base by themselves.
    pub(super) fn feeds_apart(&self, has_experts: bool) -> bool {
        let mut groups = self.groups.iter();
        groups.any(|group| has_experts || group.pass.feed_forward.is_some())
    }

    /// The feed-forward parts of all decoders.
    pub(super) fn feed_apart(&mut self, x: Tensor<3>) -> Tensor<3> {
        self.each(|group| {
            let layer = &group.model.layers[group.layer];
            layer.feed_forward.forward(group.of(&x), &mut group.pass)
        })
    }

    /// What is found for the rows of each decoder, in one.
    fn each(&mut self, of: impl FnMut(&mut Group<'_>) -> Tensor<3>) -> Tensor<3> {
        let mut found: Vec<_> = self.groups.iter_mut().map(of).collect();
        match found.len() {
            1 => found.remove(0),
            _ => Tensor::cat(found, 0),
        }
    }
}
