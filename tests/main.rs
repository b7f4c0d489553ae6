//! Black-box tests: they start the real binary, with the models it carries, and speak HTTP to it as clients do.
//!
//! Every service listens on a port of its own and keeps its cache in a temporary folder, so that the tests can run at
//! the same time. One program for all of them, because each would link the models.

#![forbid(unsafe_code)]

mod bucket;
#[cfg(feature = "aws")]
mod cache;
#[cfg(target_os = "linux")]
mod devices;
mod docs;
mod errors;
mod health;
mod http;
#[cfg(feature = "hub")]
mod hub_server;
mod keys;
mod lifecycle;
mod map;
#[cfg(feature = "hub")]
mod pull;
mod readme;
mod reload;
mod revised;
mod revisions;
mod seen;
mod service;
mod settings;
mod stats;
mod support;
mod tls;
mod traces;
mod vectors;
