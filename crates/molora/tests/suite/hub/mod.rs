//! Models from a hub on loopback that speaks the hub's file API, with everything that can go wrong.

mod cache;
mod connection;
mod hostile;
mod installed;
mod model;
mod program;
mod refusal;
mod server;
mod token;
