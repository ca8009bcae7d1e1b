//! Attaching adapters to a model's linear layers, whatever the model.

use std::collections::BTreeSet;

use burn::module::Param;
use burn::tensor::Device;
use molora_adapters::{Site, SiteDims};
use molora_kernels::random::Seed;

use crate::peft::column_norms;
use crate::pool::PoolPlan;
use crate::scope::Decides;
use crate::site::select_sites;
use crate::spec::PoolPlace;
use crate::{
    AdapterSpec, Composition, LayerRouter, MoLoraLinear, ModelError, ModelPart, RouterScope,
};

/// A linear layer of a model, in the order of the forward pass.
pub(crate) struct Place<'a> {
    /// Its Hugging Face path.
    pub(crate) path: String,
    /// Number of the layer (block) that it is in.
    pub(crate) layer: usize,
    /// Whether it is in the layer's feed-forward part.
    pub(crate) in_feed_forward: bool,
    /// Whether it gives the output of that part.
    pub(crate) ends_feed_forward: bool,
    /// The linear layer.
    pub(crate) linear: &'a mut MoLoraLinear,
}

impl Place<'_> {
    /// Widths of what an adapter reads and adds to.
    fn dims(&self, composition: Composition) -> SiteDims {
        let dims = self.linear.dims();
        match composition {
            // The part reads what it adds to.
            Composition::Block => SiteDims {
                d_input: dims.d_output,
                ..dims
            },
            _ => dims,
        }
    }
}

/// A linear layer that was adapted.
pub(crate) struct Attached {
    /// Its Hugging Face path.
    pub(crate) path: String,
    /// Number of its layer.
    pub(crate) layer: usize,
    /// Whether it is in the layer's feed-forward part.
    pub(crate) in_feed_forward: bool,
}

/// What an attached adapter depends on beside its specification and its site.
pub(crate) struct Attachment<'a> {
    /// Number of layers (blocks) of the model.
    pub(crate) num_layers: usize,
    /// Number of tasks, read by gates and by decisions per task.
    pub(crate) num_tasks: usize,
    /// Key of the initial values, which depend on it and each site's path alone.
    pub(crate) seed: Seed,
    /// Where the parameters are made.
    pub(crate) device: &'a Device,
}

/// Attaches fresh adapters where the specification says; returns every site, and what is to be made for
/// those whose experts are in a pool. `width` is that of the model's hidden states.
///
/// # Errors
/// The first problem of the specification, a target that matches nothing, a rank that does not fit a
/// site, or more entries of `experts.by_layer` than layers.
pub(crate) fn attach_sites(
    mut places: Vec<Place<'_>>,
    spec: &AdapterSpec,
    width: usize,
    to: &Attachment<'_>,
) -> Result<(Vec<Attached>, PoolPlan), ModelError> {
    if let Some(problem) = spec.problems().into_iter().next() {
        return Err(problem);
    }
    if spec.reads_tasks() && to.num_tasks == 0 {
        let text = "the adapter depends on the task, and there are no tasks";
        return Err(ModelError::Inconsistent(text.into()));
    }
    spec.fits_layers(to.num_layers)?;
    let paths: Vec<String> = places.iter().map(|place| place.path.clone()).collect();
    let mut chosen = select_sites(&spec.targets, &paths)?;
    if spec.composition == Composition::Block {
        chosen.retain(|&index| places[index].ends_feed_forward);
        if chosen.is_empty() {
            let text = "adapter.composition is block, and adapter.targets names none of the linear layers \
                        that end a feed-forward part";
            return Err(ModelError::Inconsistent(text.into()));
        }
    }
    for &index in &chosen {
        let place = &places[index];
        let bank = spec.at_layer(place.layer, to.num_layers).bank;
        let fits = bank.validate_for(place.dims(spec.composition));
        fits.map_err(|source| ModelError::Site {
            path: place.path.clone(),
            source,
        })?;
    }
    check_size(&places, &chosen, spec, to.num_layers)?;
    let mut mixed = chosen
        .iter()
        .filter(|&&index| places[index].in_feed_forward);
    if spec.composition.is_feed_forward() && mixed.next().is_none() {
        let text = "adapter.composition is in feed-forward parts, and adapter.targets names none of \
                    their linear layers";
        return Err(ModelError::Inconsistent(text.into()));
    }
    for place in &mut places {
        place.linear.detach();
    }
    let mut sites = Vec::new();
    let mut plan = PoolPlan::default();
    for (site, &index) in chosen.iter().enumerate() {
        let place = &mut places[index];
        let seed = to.seed.child(&place.path);
        let spec = spec.at_site(place.layer, to.num_layers, place.in_feed_forward);
        let dims = place.dims(spec.composition);
        sites.push(Attached {
            path: place.path.clone(),
            layer: place.layer,
            in_feed_forward: place.in_feed_forward,
        });
        if let Some(pool) = spec.composition.pool() {
            let number = plan.place(&place.path, dims);
            let at = PoolPlace { site, number, dims };
            let pooled = spec.pooled(pool, at, to.num_tasks, seed, to.device);
            place.linear.pooled = Some(pooled);
            continue;
        }
        let weight = spec.bank.start.reads_weight() && !spec.bank.is_blank;
        let weight = weight.then(|| place.linear.weight.wide());
        let at = Site {
            dims,
            tasks: to.num_tasks,
            weight: weight.as_ref(),
        };
        let mut adapter = spec.init(at, width, site, seed, to.device);
        adapter.magnitude = spec.dora.then(|| {
            let norms = column_norms(place.linear.weight.wide());
            Param::from_data(norms.into_data(), to.device)
        });
        place.linear.adapter = Some(adapter);
    }
    Ok((sites, plan))
}

/// Attaches fresh adapters to linear layers each of which decides for itself, and returns the paths of
/// the sites. `paths` are those that the model gives for reading.
///
/// # Errors
/// See [`Adaptable::attach`](crate::Adaptable::attach).
pub(crate) fn attach_by_site(
    linears: Vec<(String, &mut MoLoraLinear)>,
    paths: Vec<String>,
    spec: &AdapterSpec,
    num_tasks: usize,
    seed: Seed,
    device: &Device,
) -> Result<Vec<String>, ModelError> {
    decides_by_site(spec)?;
    check_paths(&linears, &paths)?;
    let layers: Vec<usize> = paths.iter().map(|path| layer_of(path)).collect();
    let to = Attachment {
        num_layers: layers.iter().max().map_or(0, |last| last + 1),
        num_tasks,
        seed,
        device,
    };
    let places = linears.into_iter().zip(layers);
    let places = places.map(|((path, linear), layer)| Place {
        path,
        layer,
        in_feed_forward: false,
        ends_feed_forward: false,
        linear,
    });
    // Only parts that the model has as a whole read its width.
    let (sites, _) = attach_sites(places.collect(), spec, 0, &to)?;
    Ok(sites.into_iter().map(|site| site.path).collect())
}

/// Refuses a specification that asks for more of a model than linear layers.
fn decides_by_site(spec: &AdapterSpec) -> Result<(), ModelError> {
    let expected = "site";
    if !spec.modules_to_save.is_empty() {
        return Err(ModelError::NoPlace {
            field: "adapter.modules_to_save",
            found: "tables",
            expected: "none",
        });
    }
    if !spec.composition.is_site() {
        return Err(ModelError::NoPlace {
            field: "adapter.composition",
            found: spec.composition.name(),
            expected,
        });
    }
    match spec.router.is_some() && spec.router_scope != RouterScope::Site {
        true => Err(ModelError::NoPlace {
            field: "adapter.router_scope",
            found: spec.router_scope.name(),
            expected,
        }),
        false => Ok(()),
    }
}

/// Refuses paths that files could not distinguish, or that are other ones for reading.
fn check_paths(
    linears: &[(String, &mut MoLoraLinear)],
    paths: &[String],
) -> Result<(), ModelError> {
    if !linears.iter().map(|(path, _)| path).eq(paths) {
        let text =
            "the model's linears and linears_mut list other paths, expected the same in one order";
        return Err(ModelError::Inconsistent(text.into()));
    }
    let mut seen = BTreeSet::new();
    match paths.iter().find(|path| !seen.insert(*path)) {
        Some(path) => Err(ModelError::Inconsistent(format!(
            "two of the model's linear layers have the path `{path}`, expected one"
        ))),
        None => Ok(()),
    }
}

/// The first number in a path, as 2 in `blocks.2.out`; 0 if there is none.
fn layer_of(path: &str) -> usize {
    path.split('.')
        .find_map(|part| part.parse().ok())
        .unwrap_or(0)
}

/// The most numbers of all experts together, 16 GiB of them.
const MAX_NUMBERS: u128 = 1 << 32;

/// Refuses experts that no memory would hold.
fn check_size(
    places: &[Place<'_>],
    chosen: &[usize],
    spec: &AdapterSpec,
    num_layers: usize,
) -> Result<(), ModelError> {
    let numbers = |&index: &usize| {
        let place = &places[index];
        let dims = place.linear.dims();
        let own = spec.at_site(place.layer, num_layers, place.in_feed_forward);
        let experts = own.bank.num_experts as u128 * spec.bank.rank as u128;
        experts * (dims.d_input + dims.d_output) as u128
    };
    let numbers: u128 = chosen.iter().map(numbers).sum();
    match numbers > MAX_NUMBERS {
        true => Err(ModelError::Inconsistent(format!(
            "the experts would have {numbers} numbers, expected at most {MAX_NUMBERS}: give fewer \
             adapter.bank.num_experts, a smaller adapter.bank.rank or fewer adapter.targets"
        ))),
        false => Ok(()),
    }
}

/// Fresh routers of the layers that have a site, where routers belong to layers or to their
/// feed-forward parts.
///
/// `sites` are those of [`attach_sites`], `width` is that of the layers' inputs, and `name` gives a
/// layer's path, on which its router's initial values depend.
pub(crate) fn layer_routers(
    spec: &AdapterSpec,
    to: &Attachment<'_>,
    sites: &[Attached],
    width: usize,
    name: impl Fn(usize) -> String,
) -> Vec<Option<LayerRouter>> {
    let decides = decides(spec.composition);
    let is_for = |site: &Attached| decides == Decides::Layer || site.in_feed_forward;
    let router = |index| {
        let mut own = sites.iter().enumerate();
        let (site, _) = own.find(|(_, site)| site.layer == index && is_for(site))?;
        let seed = to.seed.child(&name(index));
        let spec = spec.at_layer(index, to.num_layers);
        let router = spec.layer_router(width, to.num_tasks, seed, to.device)?;
        Some(LayerRouter {
            router,
            site,
            decides,
        })
    };
    (0..to.num_layers).map(router).collect()
}

fn decides(composition: Composition) -> Decides {
    match composition {
        Composition::Site | Composition::Block | Composition::Pool(_) => Decides::Layer,
        Composition::FeedForward => Decides::FeedForward,
        Composition::FeedForwardSites => Decides::FeedForwardSites,
    }
}

/// What the sites of a model with hidden states of a width share.
pub(crate) fn model_part(
    spec: &AdapterSpec,
    to: &Attachment<'_>,
    width: usize,
    plan: PoolPlan,
) -> Option<ModelPart> {
    let seed = to.seed.child(ModelPart::PATH);
    if let Some(pool) = spec.composition.pool() {
        return Some(ModelPart::Pool(
            plan.pool(pool, &spec.bank, seed, to.device),
        ));
    }
    match spec.router_scope {
        RouterScope::Model => {
            let router = spec.router_for(width, to.num_tasks, seed, to.device)?;
            Some(ModelPart::Router(LayerRouter {
                router,
                // Each feed-forward part reports under its own.
                site: 0,
                decides: decides(spec.composition),
            }))
        }
        RouterScope::FirstPass(first) => {
            spec.router.as_ref()?;
            let features = first.features(width);
            let router = (!first.layerwise)
                .then(|| spec.router_for(features, to.num_tasks, seed, to.device))
                .flatten();
            let part = first.init(width, router, seed.child("classifier"), to.device);
            Some(ModelPart::FirstPass(part))
        }
        RouterScope::Site | RouterScope::Layer => None,
    }
}
