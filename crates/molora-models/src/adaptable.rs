//! What all models have in common: linear layers with paths, and what is attached to them.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;

use molora_parts::PartTensor;
use molora_routing::Router;

use crate::attach::attach_by_site;
use crate::saved::table_tensor;
use crate::scope::route_names;
use crate::{Adapter, AdapterSpec, LayerRouter, MoLoraLinear, ModelError, ModelPart, PooledSite};

/// A model whose linear layers can be adapted.
///
/// A model of one's own lists its [`MoLoraLinear`]s, once to be read and once to be changed; the rest
/// has defaults. They serve mixtures in which every site decides for itself; models whose layers have
/// routers, or whose sites share experts, as those of this crate can, override more of the methods. With an
/// empty `impl` of [`BaseModel`](crate::BaseModel) beside this one the functions of [`peft`](crate::peft)
/// merge its mixtures and read LoRAs into it.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::LinearConfig;
/// use burn::tensor::{Device, Tensor};
/// use molora_kernels::random::Seed;
/// use molora_models::{Adaptable, AdapterSpec, ForwardContext, MoLoraLinear, RouteTrace};
///
/// #[derive(Module, Debug)]
/// struct Perceptron {
///     inner: MoLoraLinear,
///     outer: MoLoraLinear,
/// }
///
/// impl Adaptable for Perceptron {
///     fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
///         vec![("inner".into(), &self.inner), ("outer".into(), &self.outer)]
///     }
///
///     fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
///         vec![("inner".into(), &mut self.inner), ("outer".into(), &mut self.outer)]
///     }
/// }
///
/// # fn main() -> Result<(), molora_models::ModelError> {
/// let device = Device::default();
/// let mut model = Perceptron {
///     inner: LinearConfig::new(16, 32).init(&device).into(),
///     outer: LinearConfig::new(32, 8).init(&device).into(),
/// };
/// let spec = AdapterSpec { targets: vec!["all-linear".into()], ..AdapterSpec::default() };
/// assert_eq!(model.attach(&spec, 0, Seed::new(0), &device)?, ["inner", "outer"]);
///
/// let context = ForwardContext::new(Tensor::ones([2, 5], &device));
/// let (hidden, _) = model.inner.forward(Tensor::ones([2, 5, 16], &device), &context, None);
/// assert_eq!(hidden.dims(), [2, 5, 32]);
/// # Ok(())
/// # }
/// ```
pub trait Adaptable: Clone {
    /// Every linear layer but a decoder's head, with its path in files, in the order of the
    /// forward pass.
    ///
    /// Paths are dotted names of modules, each one once: [`AdapterSpec::targets`] chooses by them, and
    /// adapter files name tensors by them.
    fn linears(&self) -> Vec<(String, &MoLoraLinear)>;

    /// The same linear layers in the same order, to be changed.
    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)>;

    /// The adapted layers with their paths, to be changed.
    fn sites_mut(&mut self) -> Vec<(String, &mut Adapter)> {
        let linears = self.linears_mut().into_iter();
        linears
            .filter_map(|(path, linear)| Some((path, linear.adapter.as_mut()?)))
            .collect()
    }

    /// The routers of layers with the layers' paths, in the order of the forward pass.
    fn layer_routers(&self) -> Vec<(String, &LayerRouter)> {
        Vec::new()
    }

    /// The routers of layers with the layers' paths, to be changed.
    fn layer_routers_mut(&mut self) -> Vec<(String, &mut LayerRouter)> {
        Vec::new()
    }

    /// The sites whose experts are in a pool with their paths, to be changed.
    fn pooled_mut(&mut self) -> Vec<(String, &mut PooledSite)> {
        let linears = self.linears_mut().into_iter();
        linears
            .filter_map(|(path, linear)| Some((path, linear.pooled.as_mut()?)))
            .collect()
    }

    /// What the sites share, if the method has such a part.
    fn part(&self) -> Option<&ModelPart> {
        None
    }

    /// What the sites share, to be changed.
    fn part_mut(&mut self) -> Option<&mut ModelPart> {
        None
    }

    /// The tables that are trained whole in the place of the model's own, with the paths of those in files.
    fn saved_mut(&mut self) -> Vec<(String, &mut Param<Tensor<2>>)> {
        Vec::new()
    }

    /// Whether several modules of the files read a table as one, of which another program that replaces a
    /// module by its path replaces one alone.
    fn is_shared_table(&self, _path: &str) -> bool {
        false
    }

    /// Attaches fresh adapters where the specification says, and returns the paths of the sites.
    ///
    /// Initial values depend on `seed` and each site's path alone. By default a layer's number, by which
    /// `experts.by_layer` counts, is the first number in the paths of its linear layers, as 2 in
    /// `blocks.2.out`; those without a number are in layer 0.
    ///
    /// # Errors
    /// The first problem of the specification, or a target that matches nothing, or a rank that does
    /// not fit a site, or more entries of `experts.by_layer` than layers; for an encoder-decoder
    /// also if routers belong to layers: a layer of its decoder reads two texts. By default also
    /// [`ModelError::NoPlace`] for a specification whose sites do not each decide for themselves or that
    /// trains tables of the model, and
    /// [`ModelError::Inconsistent`] for two linear layers of one path, or if
    /// [`linears`](Self::linears) and [`linears_mut`](Self::linears_mut) differ.
    fn attach(
        &mut self,
        spec: &AdapterSpec,
        num_tasks: usize,
        seed: Seed,
        device: &Device,
    ) -> Result<Vec<String>, ModelError> {
        let paths = self.linears().into_iter().map(|(path, _)| path).collect();
        attach_by_site(self.linears_mut(), paths, spec, num_tasks, seed, device)
    }

    /// What PEFT calls the use of such a model, for example `CAUSAL_LM`.
    fn task_type(&self) -> &'static str {
        "FEATURE_EXTRACTION"
    }

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
    /// with the path of its site or layer, and the tables that are trained whole.
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
        for (path, table) in self.saved_mut() {
            visit(&path, table_tensor(table))?;
        }
        Ok(())
    }

    /// The path under which the decisions of a site's or layer's router are reported, by the number
    /// of the site.
    fn route_names(&self) -> Vec<String> {
        route_names(self.site_paths(), self.layer_routers())
    }
}
