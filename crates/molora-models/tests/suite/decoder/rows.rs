//! Rows that join and leave between tokens are what they are alone.

use burn::tensor::Tensor;
use molora_adapters::task_selector;
use molora_kernels::random::Seed;
use molora_models::{
    AdapterSpec, Composition, Decoder, DecoderInput, Decoders, DecodersCache, ForwardContext,
    KvCache, PoolConfig, PoolWeights, SavedModule, choose,
};
use molora_routing::{Granularity, Guidance, LayerRule, RouterConfig, Selection, expert_labels};
use molora_testkit::device;
use proptest::prelude::*;

use super::adapters::{adapted_for, routers, spec};
use super::world::{gpt2, llama, model, sequence};

const TASKS: usize = 2;
/// Scores agree up to the order of sums.
const ROUNDING: f32 = 1e-5;

/// A row: which model writes it, what it reads, what is known of it, and what it wrote with which scores.
#[derive(Clone)]
struct Row {
    model: usize,
    prompt: Vec<usize>,
    count: usize,
    context: ForwardContext,
    written: Vec<(usize, Vec<f32>)>,
}

impl Row {
    fn new(number: u64, length: usize, count: usize, label: Option<usize>) -> Self {
        let task = (number as usize)
            .checked_rem(TASKS + 1)
            .filter(|&task| task < TASKS);
        let mut context = ForwardContext::new(Tensor::ones([1, 1], &device()));
        context.tasks = Some(task_selector(&[task], TASKS, &device()).expect("a task"));
        context.guidance = Guidance {
            labels: label.map(|label| expert_labels(&[Some(label)], 3, &device()).expect("one")),
            ..Guidance::default()
        };
        Self {
            model: 0,
            prompt: sequence(length, number),
            count,
            context,
            written: Vec::new(),
        }
    }

    fn is_done(&self) -> bool {
        self.written.len() >= self.count
    }

    /// Reads the prompt, in pieces of so many tokens.
    fn read(&mut self, model: &Decoder, piece: usize) -> KvCache {
        let mut cache = model.cache();
        let mut last = Vec::new();
        for piece in self.prompt.chunks(piece) {
            last = step(model, &mut cache, &[piece.to_vec()], &self.context);
        }
        self.write(last.remove(0));
        cache
    }

    fn write(&mut self, logits: Vec<f32>) {
        self.written
            .push((choose(&logits, None, Seed::new(0)), logits));
    }

    fn newest(&self) -> usize {
        self.written.last().expect("the prompt was read").0
    }
}

/// The scores of each row's next token.
fn step(
    model: &Decoder,
    cache: &mut KvCache,
    rows: &[Vec<usize>],
    context: &ForwardContext,
) -> Vec<Vec<f32>> {
    let input = DecoderInput::from_sequences(rows, &device());
    let context = ForwardContext {
        mask: input.mask.clone().float(),
        ..context.clone()
    };
    let hidden = model.forward_cached(&input, cache, &context).hidden;
    let [batch, tokens, _] = hidden.dims();
    let logits = model.logits(hidden.narrow(1, tokens - 1, 1));
    let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
    logits
        .chunks(logits.len() / batch)
        .map(<[f32]>::to_vec)
        .collect()
}

fn alone(model: &Decoder, row: &Row) -> Row {
    let mut row = row.clone();
    let mut cache = row.read(model, usize::MAX);
    while !row.is_done() {
        let newest = vec![row.newest()];
        let logits = step(model, &mut cache, &[newest], &row.context).remove(0);
        row.write(logits);
    }
    row
}

/// All rows, each of which joins after so many steps from the one before it; those of one model stand side by side.
fn together(models: &[&Decoder], rows: &[Row], waits: &[usize], piece: usize) -> Vec<Row> {
    let mut rows = rows.to_vec();
    let decoders = Decoders::new(models.to_vec());
    let (mut cache, mut inside) = (decoders.cache(), Vec::<usize>::new());
    let (mut next, mut waited) = (0, 0);
    while next < rows.len() || !inside.is_empty() {
        while next < rows.len() && (waited >= waits[next] || inside.is_empty()) {
            let number = rows[next].model;
            let piece = match models[number].reads_prompts_whole() {
                true => usize::MAX,
                false => piece,
            };
            let own = rows[next].read(models[number], piece);
            cache.join(number, own);
            let place = inside.partition_point(|&row| rows[row].model <= number);
            inside.insert(place, next);
            (next, waited) = (next + 1, 0);
        }
        let stays = |place: &usize| !rows[inside[*place]].is_done();
        let kept: Vec<usize> = (0..inside.len()).filter(stays).collect();
        if kept.len() < inside.len() {
            inside = kept.iter().map(|&place| inside[place]).collect();
            cache.select(&kept);
        }
        assert_eq!(cache.num_rows(), inside.len());
        if inside.is_empty() {
            continue;
        }
        let longest = inside
            .iter()
            .map(|&row| rows[row].prompt.len() + rows[row].written.len() - 1);
        assert_eq!(
            cache.num_tokens(),
            longest.max().expect("a row"),
            "no column for nobody"
        );
        write_one(&decoders, &mut cache, &mut rows, &inside);
        waited += 1;
    }
    rows
}

/// Writes a token of every row that is inside.
fn write_one(
    decoders: &Decoders<'_>,
    cache: &mut DecodersCache,
    rows: &mut [Row],
    inside: &[usize],
) {
    let groups: Vec<_> = inside
        .chunk_by(|&a, &b| rows[a].model == rows[b].model)
        .map(|group| {
            let contexts: Vec<_> = group.iter().map(|&row| &rows[row].context).collect();
            (rows[group[0]].model, ForwardContext::cat(&contexts))
        })
        .collect();
    let newest: Vec<_> = inside.iter().map(|&row| vec![rows[row].newest()]).collect();
    let input = DecoderInput::from_sequences(&newest, &device());
    let (hidden, routes) = decoders.forward_cached(&input, cache, &groups);
    assert_eq!(routes.len(), groups.len());
    let counts: Vec<_> = groups
        .iter()
        .map(|(model, context)| (*model, context.mask.dims()[0]))
        .collect();
    let scores = decoders.logits(hidden, &counts).into_data();
    let scores: Vec<f32> = scores.iter::<f32>().collect();
    for (&row, scores) in inside
        .iter()
        .zip(scores.chunks(scores.len() / inside.len()))
    {
        rows[row].write(scores.to_vec());
    }
}

/// Rows that are written together get what they get alone.
fn are_alike(
    models: &[&Decoder],
    rows: &[Row],
    waits: &[usize],
    piece: usize,
) -> Result<(), TestCaseError> {
    let beside = together(models, rows, waits, piece);
    for (row, beside) in rows.iter().zip(&beside) {
        let alone = alone(models[row.model], row);
        for ((token, scores), (other, others)) in alone.written.iter().zip(&beside.written) {
            let far = scores.iter().zip(others).map(|(a, b)| (a - b).abs());
            let far = far.fold(0.0, f32::max);
            prop_assert!(far <= ROUNDING, "{far}: model {}", row.model);
            prop_assert_eq!(token, other, "model {}", row.model);
        }
        prop_assert_eq!(alone.written.len(), beside.written.len());
    }
    Ok(())
}

/// The mixtures of the suite, and one that is gated by task.
fn specs() -> Vec<AdapterSpec> {
    let gated = AdapterSpec {
        gate: Some(Default::default()),
        ..spec(&llama(), Some(RouterConfig::default()))
    };
    routers().into_iter().chain([gated]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn a_row_does_not_depend_on_those_beside_it(
        sizes in prop::collection::vec((1..9usize, 1..8usize, 0..4usize), 2..6), piece in 1..5usize,
        start in 0..100u64,
    ) {
        for spec in specs() {
            let model = adapted_for(&llama(), &spec, TASKS);
            prop_assert!(!model.mixes_rows());
            let piece = if model.reads_prompts_whole() { usize::MAX } else { piece };
            let has_router = spec.router.is_some();
            let row = |(number, &(length, count, wait)): (u64, &(usize, usize, usize))| {
                let label = (has_router && wait == 3).then_some(length % 3);
                Row::new(start + number, length, count, label)
            };
            let rows: Vec<Row> = (0..).zip(&sizes).map(row).collect();
            let waits: Vec<usize> = sizes.iter().map(|&(_, _, wait)| wait).collect();
            are_alike(&[&model], &rows, &waits, piece)?;
        }
    }

    /// The base, every mixture of the suite, and tables that trained, in one pass.
    #[test]
    fn rows_of_several_models_do_not_depend_on_those_beside_them(
        sizes in prop::collection::vec((1..9usize, 1..8usize, 0..3usize, any::<usize>()), 4..12),
        piece in 1..5usize, start in 0..100u64,
    ) {
        let saved = |module| AdapterSpec {
            modules_to_save: vec![module],
            ..spec(&llama(), None)
        };
        let tables = [SavedModule::Embeddings, SavedModule::Head].map(saved);
        let specs = specs().into_iter().chain(tables);
        let adapted = specs.map(|spec| adapted_for(&llama(), &spec, TASKS));
        let models: Vec<Decoder> = [model(&llama(), 1)].into_iter().chain(adapted).collect();
        check_several(&models, &sizes, piece, start)?;
    }

    /// Biases, and magnitudes of the sum of the weight and what is added.
    #[test]
    fn rows_of_several_models_with_biases_do_not_depend_on_those_beside_them(
        sizes in prop::collection::vec((1..9usize, 1..8usize, 0..3usize, any::<usize>()), 2..6),
        piece in 1..5usize, start in 0..100u64,
    ) {
        let dora = |router| AdapterSpec {
            dora: true,
            ..spec(&gpt2(), router)
        };
        let specs = [dora(None), spec(&gpt2(), None), dora(Some(RouterConfig::default()))];
        let models = specs.map(|spec| adapted_for(&gpt2(), &spec, TASKS));
        check_several(&models, &sizes, piece, start)?;
    }
}

/// Rows of the sizes: length of the prompt, tokens to write, steps to wait, and a number that says which model writes.
fn check_several(
    models: &[Decoder],
    sizes: &[(usize, usize, usize, usize)],
    piece: usize,
    start: u64,
) -> Result<(), TestCaseError> {
    let row = |(number, &(length, count, _, model)): (u64, &(usize, usize, usize, usize))| Row {
        model: model % models.len(),
        ..Row::new(start + number, length, count, None)
    };
    let rows: Vec<Row> = (0..).zip(sizes).map(row).collect();
    let waits: Vec<usize> = sizes.iter().map(|&(_, _, wait, _)| wait).collect();
    are_alike(&models.iter().collect::<Vec<_>>(), &rows, &waits, piece)
}

#[test]
fn what_reads_prompts_whole_and_what_mixes_rows_is_known() {
    let by = |granularity| RouterConfig {
        granularity,
        ..Default::default()
    };
    let model = |spec: &AdapterSpec| adapted_for(&llama(), spec, TASKS);
    let token = model(&spec(&llama(), Some(by(Granularity::Token))));
    assert!(!token.reads_prompts_whole());
    assert!(model(&spec(&llama(), Some(by(Granularity::Sequence)))).reads_prompts_whole());
    let vote = AdapterSpec {
        router_scope: molora_models::RouterScope::Layer,
        layer_rule: LayerRule::Vote,
        ..spec(
            &llama(),
            Some(RouterConfig {
                selection: Selection::Argmax,
                ..by(Granularity::Sequence)
            }),
        )
    };
    assert!(model(&vote).reads_prompts_whole());
    for (weights, mixes) in [
        (PoolWeights::PerToken, false),
        (PoolWeights::SummedLogits, false),
        (PoolWeights::Released, true),
    ] {
        let pool = PoolConfig {
            weights,
            ..PoolConfig::default()
        };
        let mut pooled = AdapterSpec {
            composition: Composition::Pool(pool),
            ..spec(&llama(), Some(RouterConfig::default()))
        };
        pooled.bank.slices = molora_adapters::Slices::Shared;
        let model = model(&pooled);
        assert_eq!(model.mixes_rows(), mixes, "{weights:?}");
        assert_eq!(
            model.reads_prompts_whole(),
            weights != PoolWeights::PerToken,
            "{weights:?}"
        );
    }
    // 2 layers, keys and values of 2 heads of 4 numbers.
    assert_eq!(token.cache_bytes_per_token(), 2 * 2 * 2 * 4 * 4);
}
