//! The binary `nexus`: configuration, wiring, HTTP, command line, telemetry, shutdown.
//!
//! This is the only crate that knows HTTP, JSON schemas, environment variables and concrete types: it reads settings,
//! builds models and cache from them (`wiring`), and puts endpoints in front.
//!
//! It is a library so that its parts can be tested in process; nothing outside this repository should depend on it.
//!
//! Deliberately absent: anything that computes (crates `nexus-engine`, `nexus-vectors`) or keeps (`nexus-storage`).

#![forbid(unsafe_code)]

pub mod api_keys;
mod builtin;
pub mod cli;
pub mod device_sets;
pub mod http;
mod limits;
pub mod monitor;
mod scheduling;
pub mod settings;
pub mod shutdown;
pub mod stats;
pub mod telemetry;
mod terminal;
pub mod traces;
mod watched;
pub mod wiring;
