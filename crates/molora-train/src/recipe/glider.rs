//! GLIDER: PHATGOOSE's experts and gates, and a global score by the instructions of the tasks.
//! arXiv:2410.07172. Notes and differences from the released code: docs/methods/glider.md
use super::{About, InstructionConfig, QuerySource, StageConfig, Transform};
use super::{Recipe, phatgoose};
use crate::base::bundled;

const CITATION: &str = "Li et al., Glider: Global and Local Instruction-Driven Expert Router, \
                        EMNLP 2025, arXiv:2410.07172";

pub(super) const ABOUT: About = About {
    special: "PHATGOOSE and a global score by the tasks' instructions",
    parameters: "E R (D + O) + E D",
    step_time: Some(1.00),
};

pub(super) fn recipe() -> Recipe {
    let instructions = InstructionConfig {
        weight: 100.0,
        encoder: bundled::MODEL.into(),
        query: QuerySource::Task,
    };
    let mut stages = phatgoose::stages();
    let embed = Transform::EmbedInstructions(instructions);
    let embed = StageConfig::transform("instructions", embed);
    stages.push(embed);
    Recipe {
        stages,
        ..Recipe::new("glider", CITATION, phatgoose::adapter())
    }
}
