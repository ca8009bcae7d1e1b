//! Bounds of what a client can make the server hold or wait for.

use std::time::Duration;

/// Most bytes of a request's body.
pub(crate) const BODY_BYTES: usize = 8 << 20;
/// How long a request's body may take.
pub(crate) const BODY_TIME: Duration = Duration::from_secs(30);
/// How long a request's head may take, and how long a connection may stay without one.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(30);
/// Most bytes of a request's head.
pub(crate) const HEAD_BYTES: usize = 64 << 10;
/// Connections at the same time; others wait to be accepted.
pub(crate) const CONNECTIONS: usize = 1024;
/// Most texts of one request that texts are written for, or vectors or classes are found for.
pub(crate) const INPUTS: usize = 2048;
/// Most answers to one prompt.
pub(crate) const CHOICES: usize = 128;
/// Most texts that end an answer, and most bytes of one.
pub(crate) const STOPS: (usize, usize) = (16, 1024);
/// Most likeliest tokens in whose place log-probabilities are told.
pub(crate) const LIKELIEST: usize = 20;
