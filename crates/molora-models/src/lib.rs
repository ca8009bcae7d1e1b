//! Hugging Face models on burn with sites for mixtures of LoRA experts.
