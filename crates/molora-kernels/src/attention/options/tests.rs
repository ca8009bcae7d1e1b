//! Attention with options against plain loops in f64.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use molora_testkit::{assert_close, device};
use proptest::prelude::*;

use super::super::{attention_with, portable};
use super::*;
use crate::testing::{Input, Oracle, moved, values};

/// Sizes and choices of a random case.
#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    queries: usize,
    keys: usize,
    kv_heads: usize,
    group: usize,
    width: usize,
    is_causal: bool,
    offset: usize,
    masked: bool,
    packed: bool,
    biased: bool,
    scaled: bool,
    capped: bool,
    window: Option<usize>,
    seed: u64,
}

/// Of scores of about the same size, so that it bends them.
const CAP: f64 = 2.0;

impl Case {
    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// The bias has one item for the whole batch in every second case.
    fn bias_shape(&self) -> [usize; 4] {
        let items = if self.seed.is_multiple_of(2) {
            1
        } else {
            self.batch
        };
        [items, self.heads(), self.queries, self.keys]
    }

    /// Runs of one to a few tokens, numbered.
    fn segments(&self) -> Vec<i32> {
        let draws = values(self.batch * self.keys, self.seed ^ 5);
        draws
            .iter()
            .scan(0, |segment, &draw| {
                *segment += i32::from(draw > 0.6);
                Some(*segment)
            })
            .collect()
    }

    fn options(
        &self,
        bias: Option<Tensor<4>>,
        mask: Option<Tensor<2, Bool>>,
        device: &Device,
    ) -> AttentionOptions {
        let segments = self.packed.then(|| {
            let data = TensorData::new(self.segments(), [self.batch, self.keys]);
            Tensor::<2, Int>::from_data(data, device)
        });
        let options = AttentionOptions {
            is_causal: self.is_causal,
            query_offset: self.offset,
            ..AttentionOptions::new(self.heads())
        };
        let options = options
            .with_num_kv_heads(self.kv_heads)
            .with_mask(mask)
            .with_segments(segments)
            .with_bias(bias)
            .with_window(self.window)
            .with_soft_cap(self.capped.then_some(CAP));
        match self.scaled {
            true => options.with_scale(0.7),
            false => options,
        }
    }

    fn inputs(&self, oracle: &mut Oracle, tracked: [bool; 4]) -> [Input; 4] {
        let (queries, keys) = (self.batch * self.queries, self.batch * self.keys);
        let (wide, narrow) = (self.heads() * self.width, self.kv_heads * self.width);
        let [items, heads, ..] = self.bias_shape();
        let bias = [items * heads * self.queries, self.keys];
        [
            oracle.tensor([queries, wide], 2.0, tracked[0]),
            oracle.tensor([keys, narrow], 1.0, tracked[1]),
            oracle.tensor([keys, narrow], 1.0, tracked[2]),
            oracle.tensor(bias, 2.0, self.biased && tracked[3]),
        ]
    }
}

/// Any combination of options; the queries end within the keys if there are segments or a window.
fn case() -> impl Strategy<Value = Case> {
    let sizes = (1usize..4, 1usize..90, 0usize..90, 1usize..4, 1usize..4);
    let window = prop::option::of(prop::sample::select(vec![0, 1, 3, 20, usize::MAX >> 1]));
    let choices = (
        any::<[bool; 6]>(),
        1usize..36,
        any::<u64>(),
        0usize..40,
        window,
    );
    (sizes, choices).prop_map(|((batch, queries, more, kv_heads, group), choices)| {
        let ([is_causal, masked, packed, biased, scaled, capped], width, seed, offset, window) =
            choices;
        let keys = match packed || window.is_some() {
            true => queries + offset + more,
            false => 1 + more,
        };
        Case {
            batch,
            queries,
            keys,
            kv_heads,
            group,
            width,
            is_causal,
            offset,
            masked,
            packed,
            biased,
            scaled,
            capped,
            window,
            seed,
        }
    })
}

/// Runs `attend` on flat inputs, with a flat output.
fn run(
    case: &Case,
    mask: Option<Tensor<2, Bool>>,
    attend: impl Fn(Tensor<3>, Tensor<3>, Tensor<3>, &AttentionOptions) -> Tensor<3>,
) -> impl Fn(&[Input]) -> Tensor<2> {
    let batch = case.batch as i32;
    move |inputs| {
        let item = |i: usize, width: usize| inputs[i].matrix().reshape([batch, -1, width as i32]);
        let wide = case.heads() * case.width;
        let narrow = case.kv_heads * case.width;
        let bias = case
            .biased
            .then(|| inputs[3].matrix().reshape(case.bias_shape()));
        let device = inputs[0].matrix().device();
        let mask = mask.as_ref().map(|mask| moved(mask, &device));
        let options = case.options(bias, mask, &device);
        attend(item(0, wide), item(1, narrow), item(2, narrow), &options)
            .reshape([case.batch * case.queries, wide])
    }
}

/// The output by loops over plain numbers.
fn by_loops(case: &Case, [query, key, value, bias]: [Vec<f32>; 4], mask: &[bool]) -> Vec<f32> {
    let (heads, width) = (case.heads(), case.width);
    let [items, ..] = case.bias_shape();
    let segments = case.segments();
    let rows = (0..case.batch * case.keys).step_by(case.keys.max(1));
    let places: Vec<usize> = rows
        .flat_map(|row| {
            let count = move |j: &usize| usize::from(!case.masked || mask[row + j]);
            (0..case.keys).scan(0, move |open, j| {
                *open += count(&j);
                Some(*open)
            })
        })
        .collect();
    let mut out = vec![0.0; query.len()];
    let scale = match case.scaled {
        true => 0.7,
        false => (width as f64).sqrt().recip(),
    };
    for (b, h, i) in (0..case.batch)
        .flat_map(|b| (0..heads).map(move |h| (b, h)))
        .flat_map(|(b, h)| (0..case.queries).map(move |i| (b, h, i)))
    {
        let row = ((b * case.queries + i) * heads + h) * width;
        let position = case.offset + i;
        let place = |at: usize| places[b * case.keys + at];
        let is_open = |j: usize| !case.masked || mask[b * case.keys + j];
        let kv = |j: usize| ((b * case.keys + j) * case.kv_heads + h / case.group) * width;
        let score = |j: usize| {
            let hidden = !is_open(j)
                || (case.is_causal && j > position)
                || case
                    .window
                    .is_some_and(|w| place(position).abs_diff(place(j)) > w)
                || (case.packed
                    && segments[b * case.keys + j] != segments[b * case.keys + position]);
            if hidden {
                return f64::NEG_INFINITY;
            }
            let dot = (0..width)
                .map(|w| f64::from(query[row + w]) * f64::from(key[kv(j) + w]))
                .sum::<f64>();
            let added = (((b % items) * heads + h) * case.queries + i) * case.keys + j;
            let added = if case.biased {
                f64::from(bias[added])
            } else {
                0.0
            };
            let score = dot * scale + added;
            match case.capped {
                true => CAP * (score / CAP).tanh(),
                false => score,
            }
        };
        let scores: Vec<f64> = (0..case.keys).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if largest == f64::NEG_INFINITY {
            continue;
        }
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for w in 0..width {
            let sum: f64 = (0..case.keys)
                .map(|j| weights[j] * f64::from(value[kv(j) + w]))
                .sum();
            out[row + w] = (sum / total) as f32;
        }
    }
    out
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

#[test]
fn a_causal_query_sees_itself_and_what_came_before() {
    let zeros = |rows| Tensor::<3>::zeros([1, rows, 1], &device());
    let value = Tensor::<3>::from_floats([[[2.0], [4.0], [9.0]]], &device());
    let options = AttentionOptions::new(1).with_causal(0);
    let out = attention_with(zeros(3), zeros(3), value.clone(), &options);
    assert_close(out, [[[2.0], [3.0], [5.0]]], 1e-6, "causal");
    let options = AttentionOptions::new(1).with_causal(1);
    let out = attention_with(zeros(1), zeros(3), value, &options);
    assert_close(out, [[[3.0]]], 1e-6, "after one cached key");
}

#[test]
fn a_cached_call_continues_the_whole_one() {
    let draw = |seed| {
        let data = TensorData::new(values(2 * 9 * 12, seed), [2, 9, 12]);
        Tensor::<3>::from_data(data, &device())
    };
    let [query, key, value] = [1, 2, 3].map(draw);
    let all = attention_with(
        query.clone(),
        key.clone(),
        value.clone(),
        &AttentionOptions::new(3).with_causal(0),
    );
    let options = AttentionOptions::new(3).with_causal(7);
    let last = attention_with(query.narrow(1, 7, 2), key, value, &options);
    assert_close(last, all.narrow(1, 7, 2), 1e-6, "last two queries");
}

#[test]
fn a_packed_row_equals_its_sequences_apart() {
    let draw = |seed| {
        let data = TensorData::new(values(8 * 6, seed), [1, 8, 6]);
        Tensor::<3>::from_data(data, &device())
    };
    let [query, key, value] = [1, 2, 3].map(draw);
    let segments = Tensor::<2, Int>::from_ints([[0, 0, 0, 1, 1, 1, 1, 1]], &device());
    let options = AttentionOptions::new(2).with_causal(0);
    let packed = options.clone().with_segments(Some(segments));
    let packed = attention_with(query.clone(), key.clone(), value.clone(), &packed);
    for (first, len) in [(0, 3), (3, 5)] {
        let part = |x: &Tensor<3>| x.clone().narrow(1, first, len);
        let alone = attention_with(part(&query), part(&key), part(&value), &options);
        assert_close(packed.clone().narrow(1, first, len), alone, 1e-6, "packed");
    }
}

#[test]
fn a_window_counts_open_keys() {
    let zeros = |rows| Tensor::<3>::zeros([1, rows, 1], &device());
    let value = Tensor::<3>::from_floats([[[2.0], [4.0], [7.0], [9.0]]], &device());
    let causal = AttentionOptions::new(1).with_causal(0);
    let options = causal.clone().with_window(Some(1));
    let out = attention_with(zeros(4), zeros(4), value.clone(), &options);
    assert_close(
        out,
        [[[2.0], [3.0], [5.5], [8.0]]],
        1e-6,
        "itself and the one before",
    );
    let mask = Tensor::<2, Bool>::from_data([[true, false, false, true]], &device());
    let options = options.with_mask(Some(mask));
    let out = attention_with(zeros(4), zeros(4), value.clone(), &options).narrow(1, 3, 1);
    assert_close(out, [[[5.5]]], 1e-6, "padding in between does not count");
    let options = AttentionOptions::new(1).with_window(Some(1));
    let out = attention_with(zeros(4), zeros(4), value, &options);
    let thirds = [3.0, 13.0 / 3.0, 20.0 / 3.0, 8.0].map(|mean| [mean]);
    assert_close(out, [thirds], 1e-6, "both sides");
}

#[test]
#[should_panic(expected = "queries up to position 3 and a window, but 2 keys")]
fn windows_of_queries_beyond_the_keys_are_refused() {
    let x = Tensor::<3>::ones([1, 2, 4], &device());
    let options = AttentionOptions::new(2).with_causal(1).with_window(Some(3));
    attention_with(x.clone(), x.clone(), x, &options);
}

#[test]
#[should_panic(expected = "2 key heads do not divide 3 heads")]
fn key_heads_that_do_not_divide_the_heads_are_refused() {
    let x = Tensor::<3>::ones([1, 2, 6], &device());
    let options = AttentionOptions::new(3).with_num_kv_heads(2);
    attention_with(x.clone(), x.clone(), x, &options);
}

#[test]
#[should_panic(expected = "queries up to position 3 but segments of 2")]
fn queries_beyond_the_segments_are_refused() {
    let x = Tensor::<3>::ones([1, 2, 4], &device());
    let segments = Tensor::<2, Int>::from_ints([[0, 0]], &device());
    let options = AttentionOptions::new(2).with_causal(1);
    attention_with(
        x.clone(),
        x.clone(),
        x,
        &options.with_segments(Some(segments)),
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_portable_definition_equals_plain_loops(case in case()) {
        let mut oracle = Oracle::new(case.seed);
        let inputs = case.inputs(&mut oracle, [false; 4]);
        let mask = oracle.mask(case.batch, case.keys);
        let allowed = mask.to_data().iter::<bool>().collect::<Vec<bool>>();
        let expected = by_loops(&case, inputs.each_ref().map(|i| numbers(i.matrix())), &allowed);
        let mask = case.masked.then_some(mask);
        let out = numbers(run(&case, mask, portable::attention_with)(&inputs));
        for (actual, expected) in out.iter().zip(&expected) {
            prop_assert!((actual - expected).abs() < 2e-5, "{actual}, expected {expected}");
        }
    }

    #[test]
    fn equals_the_portable_definition(case in case(), tracked: [bool; 4]) {
        let mut oracle = Oracle::new(case.seed);
        let inputs = case.inputs(&mut oracle, tracked);
        let mask = case.masked.then(|| oracle.mask(case.batch, case.keys));
        oracle.check(
            &inputs,
            run(&case, mask.clone(), attention_with),
            run(&case, mask, portable::attention_with),
        );
    }
}
