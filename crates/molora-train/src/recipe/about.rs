//! What lists say of a recipe.

use super::{RECIPES, Recipe, Scope};

/// What is special about a method and what it costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct About {
    /// What sets it apart, in a few words.
    pub special: &'static str,
    /// Trained parameters, at a site where nothing else is said: D and O are its input and output
    /// width, R the rank, E the experts, T the tasks; the recipe's page says what other letters are.
    pub parameters: &'static str,
    /// Time of a training step, as a multiple of that of `lora` with as many parameters, where it has been
    /// measured on a processor: see `docs/benchmarks`.
    pub step_time: Option<f64>,
}

/// When experts and routing of a method are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Together.
    Joint,
    /// Experts first, each apart or with what belongs to it, and then what routes them.
    Staged,
    /// Experts alone; what routes them follows from them without training.
    RoutedAfterTraining,
}

impl Group {
    /// All groups, in the order of lists.
    pub const ALL: [Self; 3] = [Self::Joint, Self::Staged, Self::RoutedAfterTraining];

    /// The group of a recipe, by its stages.
    pub fn of(recipe: &Recipe) -> Self {
        let mut trained = recipe.stages.iter().filter(|s| s.transform.is_none());
        let alone = trained.clone().any(|stage| stage.trains_alone());
        let together = trained.any(|stage| stage.scope == Scope::Mixture);
        match (alone, together) {
            (false, _) => Self::Joint,
            (true, true) => Self::Staged,
            (true, false) => Self::RoutedAfterTraining,
        }
    }

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Joint => "joint: experts and routers train together",
            Self::Staged => "staged: experts train first, then what routes them",
            Self::RoutedAfterTraining => "routed after training: routing follows from the experts",
        }
    }
}

/// What is said of the recipe of that name, if there is one.
pub fn about(name: &str) -> Option<About> {
    let found = RECIPES.iter().find(|(known, ..)| *known == name);
    found.map(|(_, _, about)| *about)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{find, names};

    #[test]
    fn every_recipe_says_what_it_is_on_one_line() {
        for name in names() {
            let about = about(name).expect("listed");
            assert!((10..=70).contains(&about.special.len()), "{name}");
            assert!(about.parameters.contains('D') || about.parameters.contains('O'));
            assert!(about.step_time.is_none_or(|time| time > 0.0), "{name}");
        }
    }

    #[test]
    fn stages_say_when_routing_is_trained() {
        let group = |name: &str| Group::of(&find(name).expect("listed"));
        assert_eq!(group("samora"), Group::Joint);
        assert_eq!(group("moa"), Group::Staged);
        assert_eq!(group("phatgoose"), Group::RoutedAfterTraining);
        assert_eq!(group("arrow"), Group::RoutedAfterTraining);
    }
}
