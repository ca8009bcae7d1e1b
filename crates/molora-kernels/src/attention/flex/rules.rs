//! Heads, scale and what may be attended to, as numbers on the host.

use std::ops::Range;
use std::sync::Arc;

use crate::AttentionOptions;

/// An [`AttentionOptions`] without its tensors on the device, cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::attention) struct Rules {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) scale: f32,
    /// Whether the bias tensor is one, rather than a stand-in.
    pub(super) has_bias: bool,
    pub(super) soft_cap: Option<f32>,
    is_causal: bool,
    query_offset: usize,
    /// `[B, S]`.
    mask: Option<Arc<[bool]>>,
    /// `[B, S]`.
    segments: Option<Arc<[i64]>>,
    window: Option<usize>,
    /// How many keys are open up to each position, `[B, S]`, where there are a window and a mask.
    places: Option<Arc<[usize]>>,
}

impl Rules {
    /// The rules of `options` for heads of a width whose factor on the scores is `scale`.
    pub(in crate::attention) fn new(options: &AttentionOptions, scale: f64) -> Self {
        let mask = options.mask.as_ref().map(|mask| mask.to_data());
        let mask: Option<Arc<[bool]>> = mask.map(|data| data.iter::<bool>().collect());
        let segments = options.segments.as_ref().map(|segments| segments.to_data());
        let places = mask.as_ref().filter(|_| options.window.is_some());
        let places = places.map(|mask| {
            let keys = options.mask.as_ref().map_or(0, |mask| mask.dims()[1]);
            open_keys(mask, keys)
        });
        Self {
            heads: options.num_heads,
            kv_heads: options.num_kv_heads,
            scale: scale as f32,
            has_bias: options.bias.is_some(),
            soft_cap: options.soft_cap.map(|cap| cap as f32),
            is_causal: options.is_causal,
            query_offset: options.query_offset,
            mask,
            segments: segments.map(|data| data.iter::<i64>().collect()),
            window: options.window,
            places,
        }
    }

    /// Query heads that share a key head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The rules of one batch item with `keys` keys.
    pub(super) fn item(&self, item: usize, keys: usize) -> ItemRules<'_> {
        let range = item * keys..(item + 1) * keys;
        ItemRules {
            keys,
            is_causal: self.is_causal,
            query_offset: self.query_offset,
            mask: self.mask.as_deref().map(|mask| &mask[range.clone()]),
            segments: self.segments.as_deref().map(|ids| &ids[range.clone()]),
            window: self.window,
            places: self.places.as_deref().map(|places| &places[range]),
        }
    }
}

/// How many keys are open up to each position of rows of `keys`.
fn open_keys(mask: &[bool], keys: usize) -> Arc<[usize]> {
    let counted = mask.chunks(keys.max(1)).flat_map(|row| {
        row.iter().scan(0, |count, &is_open| {
            *count += usize::from(is_open);
            Some(*count)
        })
    });
    counted.collect()
}

/// The keys that each query of one batch item may attend to.
#[derive(Debug, Clone, Copy)]
pub(super) struct ItemRules<'a> {
    keys: usize,
    is_causal: bool,
    query_offset: usize,
    mask: Option<&'a [bool]>,
    segments: Option<&'a [i64]>,
    window: Option<usize>,
    places: Option<&'a [usize]>,
}

impl ItemRules<'_> {
    /// The keys that the window leaves to a query at a position.
    fn near(&self, position: usize) -> Range<usize> {
        let Some(distance) = self.window else {
            return 0..self.keys;
        };
        let end_of = |place: usize| place.saturating_add(distance).saturating_add(1);
        match self.places {
            None => position.saturating_sub(distance)..self.keys.min(end_of(position)),
            Some(places) => {
                let (first, end) = (
                    places[position].saturating_sub(distance),
                    end_of(places[position]),
                );
                let start = places.partition_point(|&place| place < first);
                start..places.partition_point(|&place| place < end)
            }
        }
    }

    /// The smallest range of keys outside of which no query of `queries` may attend to any; if
    /// segments are not numbered in order, a range around it.
    pub(super) fn reach(&self, queries: Range<usize>) -> Range<usize> {
        let positions = self.query_offset + queries.start..self.query_offset + queries.end;
        let near = self.near(positions.start).start..self.near(positions.end - 1).end;
        let end = match self.is_causal {
            true => near.end.min(positions.end),
            false => near.end,
        };
        let own = self.segments.map(|ids| {
            let ids = ids[positions].iter().copied();
            ids.fold((i64::MAX, i64::MIN), |(low, high), id| {
                (low.min(id), high.max(id))
            })
        });
        let is_allowed = |&key: &usize| {
            let is_near =
                |ids: &[i64]| own.is_some_and(|(low, high)| (low..=high).contains(&ids[key]));
            self.mask.is_none_or(|mask| mask[key]) && self.segments.is_none_or(is_near)
        };
        let start = (near.start..end).find(is_allowed).unwrap_or(end);
        let last = (start..end).rfind(is_allowed);
        start..last.map_or(start, |last| last + 1)
    }

    /// Whether each query may attend to the same keys as the ones behind it, up to those that it [sees](Self::seen).
    pub(super) fn is_prefix(&self) -> bool {
        self.segments.is_none() && self.window.is_none()
    }

    /// How many of `keys` are not behind a query.
    #[inline(always)]
    pub(super) fn seen(&self, query: usize, keys: &Range<usize>) -> usize {
        match self.is_causal {
            true => (self.query_offset + query + 1).clamp(keys.start, keys.end) - keys.start,
            false => keys.len(),
        }
    }

    /// Writes 1 for each key of `keys` that `query` may attend to and 0 for the others, and 0 to
    /// what `keep` holds beyond.
    #[inline(always)]
    pub(super) fn write(&self, query: usize, keys: Range<usize>, keep: &mut [f32]) {
        let position = self.query_offset + query;
        let seen = self.seen(query, &keys);
        keep[seen..].fill(0.0);
        let keep = &mut keep[..seen];
        match self.mask {
            None => keep.fill(1.0),
            Some(mask) => {
                for (keep, &allowed) in keep.iter_mut().zip(&mask[keys.clone()]) {
                    *keep = f32::from(u8::from(allowed));
                }
            }
        }
        if let Some(segments) = self.segments {
            let own = segments[position];
            for (keep, &segment) in keep.iter_mut().zip(&segments[keys.clone()]) {
                *keep = if segment == own { *keep } else { 0.0 };
            }
        }
        if self.window.is_some() {
            let near = self.near(position);
            let within = |key: usize| (key.clamp(keys.start, keys.end) - keys.start).min(seen);
            keep[..within(near.start)].fill(0.0);
            keep[within(near.end)..].fill(0.0);
        }
    }
}
