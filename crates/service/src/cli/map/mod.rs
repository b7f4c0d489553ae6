//! `nexus map`: two catalogs in, the nearest controls of the second for each control of the first out.

mod catalog;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod mapping;
mod output;

use super::{Failure, ready};
use crate::settings::Settings;
use crate::shutdown::Signals;
use crate::{telemetry, wiring};
use clap::{Args, ValueEnum};
use nexus_engine::Unobserved;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::level_filters::LevelFilter;

#[derive(Args, Debug)]
pub(super) struct MapArgs {
    /// Catalog whose controls are mapped: JSON, or CSV with the columns control_id, title, text
    source: PathBuf,

    /// Catalog that they are mapped to
    target: PathBuf,

    /// Matches for each control
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least_one)]
    top_k: NonZeroUsize,

    /// Nearest controls that are reranked to find the matches
    #[arg(long, value_name = "N", default_value = "20", value_parser = at_least_one)]
    candidates: NonZeroUsize,

    /// Form of the result; if left out, by the ending of the output file's name, else a table
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Write to this file, in one step, instead of to standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,
}

/// Form of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Csv,
    Json,
}

impl Format {
    fn of(args: &MapArgs) -> Self {
        let by_name = |path: &Path| match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "json" => Some(Self::Json),
            _ => None,
        };
        args.format.or_else(|| by_name(args.output.as_deref()?)).unwrap_or(Self::Table)
    }
}

pub(super) fn run(args: &MapArgs) -> Result<(), Failure> {
    args.settings.check().map_err(Failure::Usage)?;
    // Lines in between would spoil the bar and say nothing that a user of this command wants to know.
    let level = args.settings.log.log_level.filter();
    telemetry::start(if level == LevelFilter::INFO { LevelFilter::WARN } else { level }, None);

    let source = catalog::read(&args.source).map_err(Failure::Run)?;
    let target = catalog::read(&args.target).map_err(Failure::Run)?;
    if let Some(path) = &args.output {
        // Now, and not after minutes of work.
        output::check_writable(path).map_err(Failure::Run)?;
    }

    let runtime = super::runtime()?;
    let result = runtime.block_on(async {
        let mut signals =
            Signals::register().map_err(|error| Failure::Run(format!("can not watch signals: {error}")))?;
        tokio::select! {
            matches = compute(args, &source, &target) => matches,
            _ = signals.next() => Err(Failure::Interrupted),
        }
    });
    runtime.shutdown_background();
    let matches = result?;

    let text = match Format::of(args) {
        Format::Table => output::table(&source, &target, &matches, output::width(args.output.is_some())),
        Format::Csv => output::csv(&source, &target, &matches).map_err(Failure::Run)?,
        Format::Json => output::json(&source, &target, &matches).map_err(Failure::Run)?,
    };
    match &args.output {
        Some(path) => output::write(path, text.as_bytes()).map_err(Failure::Run),
        None => super::print(&text),
    }
}

async fn compute(
    args: &MapArgs,
    source: &catalog::Catalog,
    target: &catalog::Catalog,
) -> Result<Vec<Vec<mapping::Match>>, Failure> {
    let running =
        wiring::start(&args.settings, Arc::new(Unobserved)).map_err(|error| Failure::Run(error.to_string()))?;
    ready::wait(&running.models).await?;
    let matches = mapping::compute(&running.models, source, target, args.top_k.get(), args.candidates.get()).await;
    running.shutdown().await;
    matches.map_err(Failure::Run)
}

fn at_least_one(s: &str) -> Result<NonZeroUsize, String> {
    s.parse().map_err(|_| "a whole number, at least 1".to_owned())
}
