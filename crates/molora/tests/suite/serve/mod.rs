//! The server, spoken to over HTTP on a loopback port.

mod alone;
mod client;
mod disturbed;
mod documented;
mod encoders;
mod refusal;
mod several;
mod texts;
