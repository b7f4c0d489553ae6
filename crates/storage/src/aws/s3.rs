//! Models in a bucket of S3: downloaded once, kept in a folder, used from there.
//!
//! | | |
//! |---|---|
//! | [`listing`] | which objects a model consists of |
//! | [`client`] | the requests, each pinned to the content that was listed and with its time limits |
//! | [`explain`] | what an error means to people, and whether it is worth another attempt |
//! | [`transfer`] | the ranges of all files, through one bounded pool |
//! | [`pace`] | drops a range that is too slow |
//! | [`part`] | a file on its way, and which ranges of it are there for certain |
//! | [`arriving`] | a model that is used while it is fetched |
//! | [`folder`] | what is kept on this machine: objects, and revisions made of them |
//!
//! The listing is taken before and after: a folder has all files as they were at one time, or there is none. What is here
//! already is reused, whatever ended the process that brought it. Without an answer from S3 nothing is served: an old
//! revision that is on the disk is not what was asked for.
//!
//! Deliberately absent: what is in the files. Checksums are verified where S3 has one of the whole object (SHA-256, SHA-1,
//! CRC; uploads of the last years have CRC-64 by default), over the file on the disk.

mod arriving;
mod client;
#[cfg(test)]
mod double;
mod explain;
mod folder;
mod listing;
mod pace;
mod part;
mod retry;
#[cfg(test)]
mod tests;
mod transfer;

use super::AwsConfig;
use crate::model_store::{FetchProgress, ModelStore, ModelStoreError, Progress};
use arriving::Arrivals;
pub use arriving::{Arriving, Fetched};
use client::Client;
use explain::{Fault, give_up};
use folder::{Locked, ModelFolder, Said};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use listing::{Listing, hex_digest};
use pace::Traffic;
use retry::{Tries, jittered};
use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use transfer::{Meter, Transfer, disk_error};

/// Times that the listing is taken again because the bucket changed.
const ROUNDS_MAX: u32 = 10;
/// Times that a file is fetched whose checksum is wrong.
const DAMAGED_MAX: u32 = 2;
/// How often somebody who waits for another process looks how far that is.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often somebody who has a folder says that it is at work.
const BEAT_EVERY: Duration = Duration::from_secs(5);

/// How a download is done.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Where downloads are kept.
    pub folder: PathBuf,
    /// Bytes of one request.
    pub range_bytes: u64,
    /// Requests under way at once, for one model.
    pub connections_max: usize,
    /// A range that arrives more slowly, and more slowly than others, is asked for again.
    pub bytes_per_s_min: u64,
    /// Over how long a time that is judged; also the time for a first byte.
    pub stall_window: Duration,
    /// Attempts that bring nothing before it is given up, if they took `patience` as well.
    pub attempts_max: u32,
    /// Time without any progress before it is given up.
    pub patience: Duration,
    /// Bytes after which what was written to a file is synced and noted, so that it counts after a crash. In the
    /// background: what arrives during a sync is noted with the next one.
    pub checkpoint_bytes: u64,
    /// Bytes of disk space that are left free.
    pub spare_bytes: u64,
}

impl S3Options {
    /// Downloads to `folder`, with values that suit a model of some gigabytes and a machine of a cloud.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            range_bytes: 16 << 20,
            connections_max: 32,
            bytes_per_s_min: 256 << 10,
            stall_window: Duration::from_secs(10),
            attempts_max: 8,
            patience: Duration::from_secs(60),
            checkpoint_bytes: 32 << 20,
            spare_bytes: 64 << 20,
        }
    }
}

/// Models under a prefix of a bucket.
pub struct S3Models {
    config: Shared<BoxFuture<'static, AwsConfig>>,
    bucket: String,
    prefix: String,
    options: S3Options,
}

impl S3Models {
    /// Models in `bucket`, under `prefix` (empty, or with its final slash). `config` is awaited with the first fetch.
    pub fn new(
        config: impl Future<Output = AwsConfig> + Send + 'static,
        bucket: impl Into<String>,
        prefix: impl Into<String>,
        options: S3Options,
    ) -> Self {
        let options = S3Options {
            range_bytes: options.range_bytes.max(1),
            connections_max: options.connections_max.max(1),
            attempts_max: options.attempts_max.max(1),
            ..options
        };
        Self { config: config.boxed().shared(), bucket: bucket.into(), prefix: prefix.into(), options }
    }

    /// The key that all of a model's keys begin with: empty, or with its final slash. Slashes at the ends and twice in a
    /// row mean nothing, as in a folder's path.
    fn model_prefix(&self, path: &str) -> Result<String, ModelStoreError> {
        let components = || path.split('/').filter(|component| !matches!(*component, "" | "."));
        if components().any(|component| component == "..") {
            return Err(ModelStoreError::OutsideRoot { path: path.to_owned(), root: self.name() });
        }
        Ok(components().fold(self.prefix.clone(), |prefix, component| format!("{prefix}{component}/")))
    }

    async fn fetch_model(
        &self,
        path: &str,
        progress: &Progress<'_>,
        arrivals: Option<&Arc<Arrivals>>,
    ) -> Result<PathBuf, ModelStoreError> {
        let prefix = self.model_prefix(path)?;
        let client = Client::new(&self.config.clone().await, &self.bucket);
        // First, so that what is wrong with the place is told at once, whoever else has the folder.
        let mut listing = self.list(&client, &prefix).await?;
        let folder = Arc::new(self.lock(&prefix, progress).await?);
        let meter = Meter::new(progress);
        let (mut rounds, mut damaged, mut begun) = (0, 0, None);
        loop {
            if let Some(found) = self.revision(&folder, &listing).await {
                let bytes = listing.bytes();
                progress(FetchProgress { bytes_done: bytes, bytes_total: bytes });
                return Ok(found);
            }
            if begun.as_ref() != Some(&listing) {
                self.begin(&folder, &listing, arrivals).await?;
                begun = Some(listing.clone());
            }
            let traffic = Traffic::default();
            let transfer =
                Transfer { client: &client, options: &self.options, folder: &folder, meter: &meter, traffic, arrivals };
            let outcome = tokio::select! {
                outcome = transfer.run(&listing) => outcome,
                never = beat(&folder) => match never {},
            };
            match outcome {
                Ok(()) => {}
                Err(Fault::Changed) => {}
                Err(Fault::Damaged { place, problem }) => {
                    damaged += 1;
                    if damaged >= DAMAGED_MAX {
                        return Err(ModelStoreError::Damaged { place, problem });
                    }
                }
                Err(fault) => return Err(self.give_up(&client, fault, &prefix)),
            }
            let before = std::mem::replace(&mut listing, self.list(&client, &prefix).await?);
            if before == listing {
                let complete = self.assemble(&folder, &listing, &prefix).await?;
                if let Some(found) = complete {
                    let bytes = listing.bytes();
                    progress(FetchProgress { bytes_done: bytes, bytes_total: bytes });
                    return Ok(found);
                }
            } else {
                if let Some(arrivals) = arrivals {
                    arrivals.supersede();
                }
                tracing::info!(
                    place = client.url(&prefix),
                    "the model changed while it was fetched: fetching what changed"
                );
            }
            rounds += 1;
            if rounds >= ROUNDS_MAX {
                return Err(ModelStoreError::Unsteady { place: client.url(&prefix) });
            }
            sleep(jittered(rounds)).await;
        }
    }

    async fn list(&self, client: &Client, prefix: &str) -> Result<Listing, ModelStoreError> {
        let mut tries = self.options.tries();
        loop {
            match listing::list(client, prefix).await {
                Ok(listing) => return Ok(listing),
                Err(fault) => {
                    let again = tries.wait(fault, &client.url(prefix)).await;
                    again.map_err(|fault| self.give_up(client, fault, prefix))?;
                }
            }
        }
    }

    fn give_up(&self, client: &Client, fault: Fault, prefix: &str) -> ModelStoreError {
        let tried = Tries::tried(self.options.attempts_max, self.options.patience);
        give_up(client, fault, &client.url(prefix), &tried)
    }

    /// Gets hold of the model's folder. Where another process has it, that one's progress is told, and waited for as long
    /// as there is any.
    async fn lock(&self, prefix: &str, progress: &Progress<'_>) -> Result<ModelFolder, ModelStoreError> {
        let root = self.options.folder.join(hex_digest(&[&self.bucket, prefix]));
        let mut seen = (Said::default(), Instant::now());
        loop {
            let path = root.clone();
            let locked = blocking(move || ModelFolder::lock(&path)).await;
            match locked.map_err(|error| disk_error(&root, 0, error))? {
                Locked::Ours(folder) => return Ok(folder),
                Locked::Theirs(said) if said != seen.0 => {
                    seen = (said, Instant::now());
                    progress(FetchProgress { bytes_done: said.done, bytes_total: said.total });
                }
                Locked::Theirs(_) if seen.1.elapsed() > self.options.patience * 2 => {
                    return Err(ModelStoreError::InUse { place: root.display().to_string() });
                }
                Locked::Theirs(_) => {}
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The revision, if it is here; older ones than the last two are removed then.
    async fn revision(&self, folder: &Arc<ModelFolder>, listing: &Listing) -> Option<PathBuf> {
        let (folder, listing) = (folder.clone(), listing.clone());
        blocking(move || folder.revision(&listing).inspect(|_| folder.prune(&listing))).await
    }

    /// Begins the revision's folder, and tells what of it is here.
    async fn begin(
        &self,
        folder: &Arc<ModelFolder>,
        listing: &Listing,
        arrivals: Option<&Arc<Arrivals>>,
    ) -> Result<(), ModelStoreError> {
        let (folder, listing, arrivals) = (folder.clone(), listing.clone(), arrivals.cloned());
        let begun = blocking(move || {
            let path = folder.begin(&listing).map_err(|error| disk_error(folder.root(), 0, error))?;
            if let Some(arrivals) = arrivals {
                arrivals.begin(&path, &listing);
                listing.objects.iter().filter(|object| folder.has(object)).for_each(|object| {
                    arrivals.arrived(&folder, object);
                });
            }
            Ok(())
        });
        begun.await
    }

    /// Completes the revision's folder, if all is here for it.
    async fn assemble(
        &self,
        folder: &Arc<ModelFolder>,
        listing: &Listing,
        prefix: &str,
    ) -> Result<Option<PathBuf>, ModelStoreError> {
        let (folder, listing, bucket, prefix) =
            (folder.clone(), listing.clone(), self.bucket.clone(), prefix.to_owned());
        let assembled = blocking(move || {
            if !listing.objects.iter().all(|object| folder.has(object)) {
                return Ok(None);
            }
            let made = folder.assemble(&listing, &bucket, &prefix);
            made.map(Some).map_err(|error| disk_error(folder.root(), 0, error))
        });
        assembled.await
    }
}

impl ModelStore for S3Models {
    fn name(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix).trim_end_matches('/').to_owned()
    }

    fn fetch<'a>(
        &'a self,
        path: &'a str,
        progress: &'a Progress<'a>,
    ) -> BoxFuture<'a, Result<PathBuf, ModelStoreError>> {
        self.fetch_model(path, progress, None).boxed()
    }
}

/// Tells those who wait for the folder that somebody is at work, for ever.
async fn beat(folder: &ModelFolder) -> Infallible {
    loop {
        sleep(BEAT_EVERY).await;
        folder.beat();
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends, and with it whoever waits for this.
        Err(_) => std::future::pending().await,
    }
}
