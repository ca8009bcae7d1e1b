//! Encoders of every family: adapters, configurations and files.

mod adapters;
mod config;
mod files;
mod world;
