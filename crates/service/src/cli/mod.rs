//! The command line: one file for each command.
//!
//! Deliberately absent: exit statuses (`main`), and settings (`settings`, where each is declared once).

#[cfg(feature = "bench")]
mod bench;
#[cfg(feature = "aws")]
mod cache;
mod health;
mod key;
mod map;
mod openapi;
mod parse;
mod pull;
mod ready;
mod serve;
mod settings;

#[cfg(feature = "fuzz")]
pub use map::fuzz;

use crate::scheduling::wait_for_turn;
use crate::settings::{HttpSettings, Settings};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::io::{self, Write as _};

/// Why a command ended without having done its work.
#[derive(Debug)]
pub enum Failure {
    /// What was asked for makes no sense; one line.
    Usage(String),
    /// It could not be done; one line.
    Run(String),
    /// The user stopped it.
    Interrupted,
}

/// Compliance control mapping: embed a control, find its nearest controls, rerank the candidates.
#[derive(Debug, Parser)]
#[command(name = "nexus", version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve embedding, retrieval and reranking over HTTP
    Serve(Box<ServeArgs>),
    /// Map the controls of one catalog to those of another
    Map(Box<map::MapArgs>),
    /// Download a model, to serve it later or elsewhere
    Pull(Box<pull::PullArgs>),
    /// Ask a running service whether it lives, or is ready
    Health(health::HealthArgs),
    /// Make an API key
    Key(key::KeyArgs),
    /// Create, look at or purge the DynamoDB table of embeddings
    #[cfg(feature = "aws")]
    Cache(cache::CacheArgs),
    /// Check a device against references, and measure it
    #[cfg(feature = "bench")]
    Bench(bench::BenchArgs),
    /// Print the OpenAPI specification
    Openapi,
    /// Print all settings, with their variables and defaults
    Settings(settings::SettingsArgs),
}

#[derive(Args, Debug)]
struct ServeArgs {
    #[command(flatten)]
    http: HttpSettings,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command that `args` (with the program's name first) asks for.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let Some(Cli { command }) = parse::parse(args.into_iter().collect())? else { return Ok(()) };
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Map(args) => map::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Key(args) => key::run(&args),
        #[cfg(feature = "aws")]
        Command::Cache(args) => cache::run(&args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::run(&args),
        Command::Openapi => openapi::run(),
        Command::Settings(args) => settings::run(&args),
    }
}

/// Writes to standard output. A reader that has seen enough, as `head` does, is not an error.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Run(format!("can not write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// The runtime that a command runs on.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(wait_for_turn)
        .build()
        .map_err(|error| Failure::Run(format!("can not start threads: {error}")))
}
