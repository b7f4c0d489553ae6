//! `nexus pull`: a model onto this machine, without serving it.
//!
//! Downloads go where `nexus serve` looks for them. With a folder named, the files are put there, too, as plain files:
//! for `MODEL_BUCKET`, for another machine, for a bucket. Deliberately absent: how models are fetched (`nexus-storage`).

mod place;

use super::Failure;
use crate::settings::{HUB_SCHEME, Settings, is_bucket_name};
use crate::shutdown::Signals;
use crate::{telemetry, terminal};
use clap::Args;
use indicatif::HumanBytes;
use nexus_storage::{FetchProgress, ModelStore, error_chain};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// Where standard error is no terminal, a line says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// The settings that a download has; `nexus pull --help` is silent about others, which change nothing here.
const SETTINGS: [&str; 11] = [
    "model",
    "into",
    "aws_region",
    "models_dir",
    "hf_endpoint",
    "hf_token",
    "download_range_bytes",
    "download_connections_max",
    "download_bytes_per_s_min",
    // Of the cache: where downloads are, unless `models_dir` says so.
    "dir",
    "log_level",
];

#[derive(Args, Debug)]
#[command(mut_args(|arg| if SETTINGS.contains(&arg.get_id().as_str()) { arg } else { arg.hide(true) }))]
pub(super) struct PullArgs {
    /// hf://owner/name, hf://owner/name@revision or s3://bucket/path
    model: String,

    /// Folder to put the files into; it may hold the same files already, and nothing else
    #[arg(value_name = "DIR")]
    into: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: &PullArgs) -> Result<(), Failure> {
    // Lines in between would say nothing that a user of this command wants to know.
    let level = args.settings.log.log_level.filter();
    telemetry::start(if level == LevelFilter::INFO { LevelFilter::WARN } else { level }, None);
    let (store, path) = store(args)?;
    if let Some(dir) = &args.into {
        // Now, and not after gigabytes.
        place::check(dir).map_err(Failure::Run)?;
    }
    let runtime = super::runtime()?;
    let result = runtime.block_on(async {
        let mut signals =
            Signals::register().map_err(|error| Failure::Run(format!("can not watch signals: {error}")))?;
        tokio::select! {
            folder = pull(args, store.as_ref(), &path) => folder,
            _ = signals.next() => Err(Failure::Interrupted),
        }
    });
    terminal::clear();
    runtime.shutdown_background();
    super::print(&format!("{}\n", result?.display()))
}

/// Where the model comes from, and what it is called there.
fn store(args: &PullArgs) -> Result<(Box<dyn ModelStore>, String), Failure> {
    let PullArgs { model, settings, .. } = args;
    if model.starts_with(HUB_SCHEME) {
        return Ok((hub_store(settings, model)?, model.clone()));
    }
    match model.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
        Some((bucket, path)) if is_bucket_name(bucket) && !path.trim_matches('/').is_empty() => {
            Ok((s3_store(settings, bucket)?, path.to_owned()))
        }
        _ => Err(Failure::Usage(format!(
            "{model:?}: expected hf://owner/name, hf://owner/name@revision or s3://bucket/path (letters, digits, dots and \
             hyphens, at least 3)"
        ))),
    }
}

#[cfg(feature = "hub")]
fn hub_store(settings: &Settings, model: &str) -> Result<Box<dyn ModelStore>, Failure> {
    if nexus_storage::HubName::parse(model).is_err() {
        return Err(Failure::Usage(format!("{model:?}: expected hf://owner/name or hf://owner/name@revision")));
    }
    Ok(Box::new(crate::wiring::hub::store(settings).map_err(Failure::Run)?))
}

#[cfg(not(feature = "hub"))]
fn hub_store(_settings: &Settings, model: &str) -> Result<Box<dyn ModelStore>, Failure> {
    Err(Failure::Run(format!("{model}: this build has no model hub (the feature `hub`)")))
}

#[cfg(feature = "aws")]
fn s3_store(settings: &Settings, bucket: &str) -> Result<Box<dyn ModelStore>, Failure> {
    Ok(Box::new(crate::wiring::bucket::store(settings, bucket, "").map_err(Failure::Run)?))
}

#[cfg(not(feature = "aws"))]
fn s3_store(_settings: &Settings, bucket: &str) -> Result<Box<dyn ModelStore>, Failure> {
    Err(Failure::Run(format!("s3://{bucket}: this build has no S3 (the feature `aws`)")))
}

/// Fetches the model; the folder that it is in.
async fn pull(args: &PullArgs, store: &dyn ModelStore, path: &str) -> Result<PathBuf, Failure> {
    let far = Mutex::new(FetchProgress::default());
    let bar =
        terminal::bar(args.model.clone(), 0, "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    let progress = |now: FetchProgress| {
        bar.set_length(now.bytes_total);
        bar.set_position(now.bytes_done);
        *far.lock().unwrap_or_else(PoisonError::into_inner) = now;
    };
    let telling = async {
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            let FetchProgress { bytes_done, bytes_total } = *far.lock().unwrap_or_else(PoisonError::into_inner);
            if bytes_total > 0 && !std::io::stderr().is_terminal() {
                eprintln!("{}: {} of {}", args.model, HumanBytes(bytes_done), HumanBytes(bytes_total));
            }
        }
    };
    let fetched = tokio::select! {
        fetched = store.fetch(path, &progress) => fetched,
        () = telling => return Err(Failure::Interrupted),
    };
    bar.finish_and_clear();
    let folder = fetched.map_err(|error| Failure::Run(error_chain(&error)))?;
    let Some(dir) = args.into.clone() else { return Ok(folder) };
    let placed = tokio::task::spawn_blocking(move || place::place(&folder, &dir).map(|()| dir));
    placed.await.map_err(|error| Failure::Run(error.to_string()))?.map_err(Failure::Run)
}
