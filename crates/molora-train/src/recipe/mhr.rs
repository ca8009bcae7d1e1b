//! Multi-head routing: Polytropon whose blocks of inputs and outputs mix skills for themselves. Caccia et
//! al., arXiv:2211.03831. Notes: docs/methods/mhr.md
use super::{About, Recipe, poly};

const CITATION: &str = "Caccia et al., Multi-Head Adapter Routing for Cross-Task Generalization, NeurIPS 2023, \
                        arXiv:2211.03831";

pub(super) const ABOUT: About = About {
    special: "Poly with several heads of skills",
    parameters: "S R (D + O) + T S H",
    step_time: Some(0.99),
};

pub(super) fn recipe() -> Recipe {
    Recipe::new("mhr", CITATION, poly::adapter(4))
}
