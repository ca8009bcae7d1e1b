//! Low-rank experts: LoRA, banks of experts, scalings and task gates on burn tensors.
