//! What all models have in common: linear layers with paths, and what is attached to them.

use burn::tensor::Device;
use molora_kernels::random::Seed;

use molora_parts::PartTensor;
use molora_routing::Router;

use crate::scope::route_names;
use crate::{Adapter, AdapterSpec, LayerRouter, MoLoraLinear, ModelError, ModelPart, PooledSite};

/// A model whose linear layers can be adapted.
pub trait Adaptable: Clone {
    /// Every linear layer but a decoder's head, with its Hugging Face path, in the order of the
    /// forward pass.
    fn linears(&self) -> Vec<(String, &MoLoraLinear)>;

    /// The adapted layers with their paths, to be changed.
    fn sites_mut(&mut self) -> Vec<(String, &mut Adapter)>;

    /// The routers of layers with the layers' paths, in the order of the forward pass.
    fn layer_routers(&self) -> Vec<(String, &LayerRouter)>;

    /// The routers of layers with the layers' paths, to be changed.
    fn layer_routers_mut(&mut self) -> Vec<(String, &mut LayerRouter)>;

    /// The sites whose experts are in a pool with their paths, to be changed.
    fn pooled_mut(&mut self) -> Vec<(String, &mut PooledSite)>;

    /// What the sites share, if the method has such a part.
    fn part(&self) -> Option<&ModelPart>;

    /// What the sites share, to be changed.
    fn part_mut(&mut self) -> Option<&mut ModelPart>;

    /// Attaches fresh adapters where the specification says, and returns the paths of the sites.
    ///
    /// Initial values depend on `seed` and each site's path alone.
    ///
    /// # Errors
    /// The first problem of the specification, or a target that matches nothing, or a rank that does
    /// not fit a site, or more entries of `experts.by_layer` than layers; for an encoder-decoder
    /// also if routers belong to layers: a layer of its decoder reads two texts.
    fn attach(
        &mut self,
        spec: &AdapterSpec,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Result<Vec<String>, ModelError>;

    /// What PEFT calls the use of such a model, for example `CAUSAL_LM`.
    fn task_type(&self) -> &'static str;

    /// Whether a linear layer is a part of one that the files hold as a whole, so that other programs
    /// do not know its path.
    fn is_part(&self, _path: &str) -> bool {
        false
    }

    /// The adapted layers with their paths, in the order of the forward pass.
    fn sites(&self) -> Vec<(String, &Adapter)> {
        self.linears()
            .into_iter()
            .filter_map(|(path, linear)| linear.adapter.as_ref().map(|adapter| (path, adapter)))
            .collect()
    }

    /// The paths of all adapted layers, in the order of the forward pass: those with experts of their
    /// own, and those whose experts are in a pool.
    fn site_paths(&self) -> Vec<String> {
        let is_site = |linear: &MoLoraLinear| linear.adapter.is_some() || linear.pooled.is_some();
        let linears = self.linears().into_iter();
        linears
            .filter_map(|(path, linear)| is_site(linear).then_some(path))
            .collect()
    }

    /// Hands out every tensor of the sites, of the layers' routers and of what the model's sites share,
    /// with the path of its site or layer.
    ///
    /// # Errors
    /// The first one of `visit`.
    fn visit_tensors<E>(
        &mut self,
        mut visit: impl FnMut(&str, PartTensor<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (path, adapter) in self.sites_mut() {
            adapter
                .tensors()
                .into_iter()
                .try_for_each(|t| visit(&path, t))?;
        }
        for (path, layer) in self.layer_routers_mut() {
            let tensors = layer.router.tensors();
            tensors.into_iter().try_for_each(|t| visit(&path, t))?;
        }
        for (path, pooled) in self.pooled_mut() {
            let tensors = pooled.router.iter_mut().flat_map(Router::tensors);
            tensors.into_iter().try_for_each(|t| visit(&path, t))?;
        }
        for (path, tensors) in self.part_mut().into_iter().flat_map(ModelPart::tensors) {
            tensors.into_iter().try_for_each(|t| visit(&path, t))?;
        }
        Ok(())
    }

    /// The path under which the decisions of a site's or layer's router are reported, by the number
    /// of the site.
    fn route_names(&self) -> Vec<String> {
        route_names(self.site_paths(), self.layer_routers())
    }
}
