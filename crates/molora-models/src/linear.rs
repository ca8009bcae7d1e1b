//! A frozen linear layer with an optional mixture of experts: the heart of the project.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Int, Tensor};
use molora_adapters::SiteDims;
use molora_kernels::random::Seed;
use molora_routing::{Guidance, RouterOutput};

use crate::layers::frozen;
use crate::peft::column_norms;
use crate::{Adapter, BaseWeight, EmbeddingNoise, FirstPassStates, Pool, PooledSite};

/// What every site of a forward pass reads beside its input.
///
/// Where layers of a model see other positions than its input, as those of a convolution or a step of a
/// recurrence do, each gets a context of its own: `ForwardContext { mask, ..context.clone() }`, with
/// another [`dropout`](Self::dropout) key for every step.
#[derive(Debug, Clone)]
pub struct ForwardContext {
    /// 1 for real tokens, 0 for padding, `[B, T]`.
    pub mask: Tensor<2>,
    /// Rows that pick each sequence's task, `[B, tasks]`, from
    /// [`task_selector`](molora_adapters::task_selector).
    pub tasks: Option<Tensor<2>>,
    /// Key of this step's dropout masks; `None` in evaluation.
    pub dropout: Option<Seed>,
    /// Noise on the embedded tokens; `None` in evaluation.
    pub embedding_noise: Option<EmbeddingNoise>,
    /// Information for the routers about whole sequences, beside their features.
    pub guidance: Guidance,
    /// Whether the decisions of sites' routers come with the sites' low-rank codes, from which terms
    /// of an objective compute experts' outputs.
    pub keeps_codes: bool,
    /// What sites know of a first pass that decides for all of them; made by the model.
    pub first_pass: Option<FirstPassStates>,
    /// The experts that sites share; put there by the model.
    pub pool: Option<Pool>,
}

impl ForwardContext {
    /// The context of an evaluation without tasks or guidance, for a mask `[B, T]`.
    pub fn new(mask: Tensor<2>) -> Self {
        Self {
            mask,
            tasks: None,
            dropout: None,
            embedding_noise: None,
            guidance: Guidance::default(),
            keeps_codes: false,
            first_pass: None,
            pool: None,
        }
    }

    /// The context of so many rows that are no tokens of a text.
    fn undecided(&self, rows: usize) -> Self {
        let alike = |tasks: &Tensor<2>| {
            let count = tasks.dims()[1];
            Tensor::full([1, count], 1.0 / count as f64, &tasks.device())
        };
        Self {
            tasks: self.tasks.as_ref().map(alike),
            dropout: self.dropout,
            pool: self.pool.clone(),
            ..Self::new(Tensor::ones([1, rows], &self.mask.device()))
        }
    }

    /// The contexts of several batches, whose masks have the same width, as that of one batch in the same
    /// order, in evaluation.
    ///
    /// # Panics
    /// If there is none, only some have tasks, or as [`Guidance::cat`].
    pub fn cat(batches: &[&Self]) -> Self {
        let has_tasks = batches[0].tasks.is_some();
        let tasks = batches.iter().map(|one| one.tasks.clone());
        assert!(
            tasks.clone().all(|tasks| tasks.is_some() == has_tasks),
            "tasks of all sequences"
        );
        let guidance: Vec<_> = batches
            .iter()
            .map(|one| (&one.guidance, one.mask.dims()[0]))
            .collect();
        Self {
            tasks: has_tasks.then(|| Tensor::cat(tasks.flatten().collect(), 0)),
            guidance: Guidance::cat(&guidance),
            ..Self::new(Tensor::cat(
                batches.iter().map(|one| one.mask.clone()).collect(),
                0,
            ))
        }
    }
}

/// The decisions of one router in one forward pass.
#[derive(Debug, Clone)]
pub struct RouteTrace {
    /// Number of the site whose router it is; of the first site in the layer for a layer's router.
    pub site: usize,
    /// What was decided.
    pub routed: RouterOutput,
    /// The site's low-rank code behind the core but for its scale, `[B, T, S*R]`, if the pass keeps
    /// codes and the router is the site's own.
    pub code: Option<Tensor<3>>,
    /// The row of the batch that each row of the decisions and the code is of, `[N]`, where those are single tokens
    /// of several rows, as at the experts of a base; else they are the batch's own.
    pub rows: Option<Tensor<1, Int>>,
}

impl RouteTrace {
    /// Decisions for the rows of a batch, without a code.
    pub fn new(site: usize, routed: RouterOutput) -> Self {
        Self {
            site,
            routed,
            code: None,
            rows: None,
        }
    }

    /// What is known of each row of the batch, `[B, N]`, for each row of the decisions.
    pub fn of_rows(&self, known: Tensor<2>) -> Tensor<2> {
        match &self.rows {
            Some(rows) => known.select(0, rows.clone()),
            None => known,
        }
    }
}

/// `y = x W + b + delta(x)`, with `W` and `b` frozen and `delta` from the adapter, if any.
///
/// With magnitudes `m` (DoRA, Liu et al., arXiv:2402.09353, eq. 5) it is
/// `y = (x W + delta(x)) m / n + b`, where `n` are the norms of the columns of `W` plus the delta of
/// all experts, without a gradient (section 4.3). Where a router weighs the experts, that is the mean
/// of their deltas: a norm for every token would need a weight for every token.
#[derive(Module, Debug)]
pub struct MoLoraLinear {
    /// Frozen weight, `[D, O]`, in the type of the base.
    pub weight: BaseWeight,
    /// Frozen bias, `[O]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The trainable part.
    pub adapter: Option<Adapter>,
    /// In place of an adapter, where the experts are in a pool.
    pub pooled: Option<PooledSite>,
    /// Which of a decoder's linear layers it is, by which those of other decoders on the same base are found.
    pub(crate) number: usize,
}

impl From<Linear> for MoLoraLinear {
    /// The layer as pretraining left it, frozen and without an adapter.
    fn from(linear: Linear) -> Self {
        let weight = BaseWeight::of(linear.weight.val().detach());
        Self::new(weight, linear.bias.map(|bias| bias.val().detach()))
    }
}

impl MoLoraLinear {
    /// A layer without an adapter. Weight and bias are frozen.
    pub fn new(weight: BaseWeight, bias: Option<Tensor<1>>) -> Self {
        Self {
            weight,
            bias: bias.map(frozen),
            adapter: None,
            pooled: None,
            number: 0,
        }
    }

    /// Whether something is attached to it that acts on the layer's own output.
    pub(crate) fn is_adapted(&self) -> bool {
        let adapter = self.adapter.as_ref();
        adapter.is_some_and(|adapter| !adapter.is_beside) || self.pooled.is_some()
    }

    /// Removes what was attached.
    pub(crate) fn detach(&mut self) {
        self.adapter = None;
        self.pooled = None;
    }

    /// Input and output width.
    pub fn dims(&self) -> SiteDims {
        let [d_input, d_output] = self.weight.dims();
        SiteDims { d_input, d_output }
    }

    /// `x W + b` without the adapter, `[B, T, D]` to `[B, T, O]`.
    pub fn base(&self, x: Tensor<3>) -> Tensor<3> {
        let bias = self.bias.as_ref().map(Param::val);
        self.weight.times(x, bias)
    }

    /// As [`forward`](Self::forward) with the same weight for every expert: 0 is the
    /// [`base`](Self::base).
    pub fn with_weight(&self, x: Tensor<3>, weight: f64) -> Tensor<3> {
        match &self.adapter {
            Some(adapter) if weight != 0.0 && !adapter.is_beside => {
                let y = adapter.add_fixed(self.before(x.clone(), adapter), x, weight);
                self.rescaled(y, adapter, true)
            }
            _ => self.base(x),
        }
    }

    /// The output `y` of the feed-forward part that the layer ends with what its adapter adds for the part's
    /// input `x`, both `[B, T, D]`, and the decisions of the adapter's router; `y` itself where no adapter
    /// stands beside the part.
    pub(crate) fn beside(
        &self,
        y: Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
    ) -> (Tensor<3>, Option<RouteTrace>) {
        let Some(adapter) = self.adapter.as_ref().filter(|adapter| adapter.is_beside) else {
            return (y, None);
        };
        let (y, routed, code) = adapter.add_delta(y, x, context, None);
        let site = adapter.site();
        let trace = |routed| RouteTrace {
            code,
            ..RouteTrace::new(site, routed)
        };
        (y, routed.map(trace))
    }

    /// `[B, T, D]` to `[B, T, O]`, and the routing decisions if the adapter has a router of its own;
    /// `shared` are those of the layer's router for an adapter that has none.
    ///
    /// # Panics
    /// If the adapter reads tasks, a first pass or a pool, and the context has none.
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: &ForwardContext,
        shared: Option<&RouterOutput>,
    ) -> (Tensor<3>, Option<RouteTrace>) {
        let y = self.product(x.clone());
        self.adapt(y, x, context, shared)
    }

    /// What the adapter adds to: [`base`](Self::base), or without the bias where the sum is rescaled.
    pub(crate) fn product(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.adapter {
            Some(adapter) if !adapter.is_beside => self.before(x, adapter),
            _ => self.base(x),
        }
    }

    /// The [`product`](Self::product) from the output `y` of [`base`](Self::base).
    pub(crate) fn product_of(&self, y: Tensor<3>) -> Tensor<3> {
        let magnitude = self.adapter.as_ref().and_then(|own| own.magnitude.as_ref());
        match (magnitude, &self.bias) {
            (Some(_), Some(bias)) => y - bias.val().unsqueeze(),
            _ => y,
        }
    }

    /// As [`forward`](Self::forward) for the [`product`](Self::product) `y` `[B, T, O]` of `x`.
    pub(crate) fn adapt(
        &self,
        y: Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
        shared: Option<&RouterOutput>,
    ) -> (Tensor<3>, Option<RouteTrace>) {
        let here = self.adapter.as_ref().filter(|adapter| !adapter.is_beside);
        let Some(adapter) = here else {
            return match &self.pooled {
                Some(pooled) => pooled.add_delta(y, x, context),
                None => (y, None),
            };
        };
        let (y, routed, code) = adapter.add_delta(y, x, context, shared);
        let y = self.rescaled(y, adapter, routed.is_some() || shared.is_some());
        (
            y,
            routed.map(|routed| RouteTrace {
                code,
                ..RouteTrace::new(adapter.site(), routed)
            }),
        )
    }

    /// As [`adapt`](Self::adapt) under decisions `[B, 1, E]` of the site's router that were taken before.
    pub(crate) fn adapt_decided(
        &self,
        y: Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
        adapter: &Adapter,
        decided: &RouterOutput,
    ) -> Tensor<3> {
        let y = adapter.add_decided(y, x, context, decided);
        self.rescaled(y, adapter, true)
    }

    /// As [`forward`](Self::forward) for rows `[1, N, D]` that are no tokens of a text, so that no
    /// decision is for them: where routers weigh the experts, all weigh the same. Where tasks do
    /// something, these rows are of all alike.
    pub(crate) fn forward_undecided(
        &self,
        rows: Tensor<3>,
        context: &ForwardContext,
        is_routed: bool,
    ) -> Tensor<3> {
        let context = &context.undecided(rows.dims()[1]);
        match (&self.adapter, &self.pooled) {
            (Some(adapter), _) => {
                let is_routed = is_routed || adapter.router.is_some();
                let y = self.before(rows.clone(), adapter);
                let y = adapter.add_undecided(y, rows, context, is_routed);
                self.rescaled(y, adapter, is_routed)
            }
            (None, Some(pooled)) => {
                pooled.add_undecided(self.base(rows.clone()), rows, context, is_routed)
            }
            (None, None) => self.base(rows),
        }
    }

    /// What the delta is added to: without the bias where the sum is rescaled.
    fn before(&self, x: Tensor<3>, adapter: &Adapter) -> Tensor<3> {
        match &adapter.magnitude {
            None => self.base(x),
            Some(_) => self.weight.times(x, None),
        }
    }

    /// `y m / n + b` for `y = x W + delta(x)`, where the adapter has magnitudes.
    fn rescaled(&self, y: Tensor<3>, adapter: &Adapter, is_routed: bool) -> Tensor<3> {
        let Some(magnitude) = &adapter.magnitude else {
            return y;
        };
        let weight = self.weight.wide();
        let experts = adapter.bank.choices();
        let share = match is_routed {
            true => 1.0 / experts as f64,
            false => 1.0,
        };
        let weights = Tensor::full([experts], share, &weight.device());
        let sum = weight + adapter.bank.weight_delta(weights);
        let norms = column_norms(sum.detach());
        let y = y * (magnitude.val() / norms).unsqueeze();
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }
}
