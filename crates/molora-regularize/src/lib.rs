//! Routing losses and weight penalties for mixtures of LoRA experts.
