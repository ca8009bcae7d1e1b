//! Routers for mixtures of experts: scorers, selection and granularity on burn tensors.
