//! Attaching adapters to a model's linear layers, whatever the model.

use burn::module::Param;
use burn::tensor::Device;
use molora_adapters::Site;
use molora_kernels::random::Seed;

use crate::peft::column_norms;
use crate::site::select_sites;
use crate::{AdapterSpec, LayerRouter, MoLoraLinear, ModelError};

/// A linear layer of a model, in the order of the forward pass.
pub(crate) struct Place<'a> {
    /// Its Hugging Face path.
    pub(crate) path: String,
    /// Number of the layer (block) that it is in.
    pub(crate) layer: usize,
    /// The linear layer.
    pub(crate) linear: &'a mut MoLoraLinear,
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

/// Attaches fresh adapters where the specification says; returns path and layer of every site.
///
/// # Errors
/// The first problem of the specification, a target that matches nothing, a rank that does not fit a
/// site, or more entries of `experts.by_layer` than layers.
pub(crate) fn attach_sites(
    mut places: Vec<Place<'_>>,
    spec: &AdapterSpec,
    to: &Attachment<'_>,
) -> Result<Vec<(String, usize)>, ModelError> {
    if let Some(problem) = spec.problems().into_iter().next() {
        return Err(problem);
    }
    if spec.reads_tasks() && to.num_tasks == 0 {
        let text = "the adapter depends on the task, and there are no tasks";
        return Err(ModelError::Inconsistent(text.into()));
    }
    spec.fits_layers(to.num_layers)?;
    let paths: Vec<String> = places.iter().map(|place| place.path.clone()).collect();
    let chosen = select_sites(&spec.targets, &paths)?;
    for &index in &chosen {
        let place = &places[index];
        let bank = spec.at_layer(place.layer, to.num_layers).bank;
        let fits = bank.validate_for(place.linear.dims());
        fits.map_err(|source| ModelError::Adapter {
            field: "adapter.bank",
            source,
        })?;
    }
    check_size(&places, &chosen, spec, to.num_layers)?;
    for place in &mut places {
        place.linear.detach();
    }
    let mut sites = Vec::new();
    for (site, &index) in chosen.iter().enumerate() {
        let place = &mut places[index];
        let seed = to.seed.child(&place.path);
        let spec = spec.at_layer(place.layer, to.num_layers);
        let weight = spec.bank.start.reads_weight();
        let weight = weight.then(|| place.linear.weight.wide());
        let at = Site {
            dims: place.linear.dims(),
            tasks: to.num_tasks,
            weight: weight.as_ref(),
        };
        let mut adapter = spec.init(at, site, seed, to.device);
        adapter.magnitude = spec.dora.then(|| {
            let norms = column_norms(place.linear.weight.wide());
            Param::from_data(norms.into_data(), to.device)
        });
        place.linear.adapter = Some(adapter);
        sites.push((place.path.clone(), place.layer));
    }
    Ok(sites)
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
        let (dims, layer) = (place.linear.dims(), spec.at_layer(place.layer, num_layers));
        let experts = layer.bank.num_experts as u128 * spec.bank.rank as u128;
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

/// Fresh routers of the layers that have a site, where routers belong to layers.
///
/// `sites` are those of [`attach_sites`], `width` is that of the layers' inputs, and `name` gives a
/// layer's path, on which its router's initial values depend.
pub(crate) fn layer_routers(
    spec: &AdapterSpec,
    to: &Attachment<'_>,
    sites: &[(String, usize)],
    width: usize,
    name: impl Fn(usize) -> String,
) -> Vec<Option<LayerRouter>> {
    let router = |index| {
        let site = sites.iter().position(|(_, layer)| *layer == index)?;
        let seed = to.seed.child(&name(index));
        let spec = spec.at_layer(index, to.num_layers);
        let router = spec.layer_router(width, to.num_tasks, seed, to.device)?;
        Some(LayerRouter { router, site })
    };
    (0..to.num_layers).map(router).collect()
}
