//! Train, evaluate and compare mixtures of LoRA experts: recipes, data, loop, reports and the molora program.
