//! Target sets that all replicas share: in S3, with copies on this machine's disk.
//!
//! S3 decides what is there. A set is one object, replaced as a whole, so that of two that are put at once the one that S3
//! took last is the set everywhere. What a replica knows of S3 is a second old at most while S3 answers ([`known`]); the
//! bytes of a set are fetched when it is first asked for ([`download`](mod@download)) and kept, with their ETag, until the
//! room is needed for others ([`TargetOptions::makes_room`]).
//!
//! A set that is put is complete on this disk first, then in S3 ([`upload`](mod@upload)), and only then in the index of
//! this folder: without S3's word nobody sees it.
//!
//! Deliberately absent: locks between replicas, versions of sets, any use of what others keep under the prefix, a bound on
//! what is in S3, and the removal of uploads that an ended process left (a lifecycle rule of the bucket does that).

mod bucket;
mod download;
mod known;
mod upload;

use super::AwsConfig;
use crate::targets::{
    Sealed, SetInfo, SetList, SetName, SetWriter, TargetError, TargetOptions, TargetSet, TargetSets, TargetStore,
    blocking,
};
use bucket::{Bucket, Fault, Remote, Said};
use download::{FetchFault, download};
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt as _, StreamExt as _, stream};
use known::{Known, Listing, WAIT_MAX};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tracing::Instrument as _;
use upload::upload;

/// Times that a set may be replaced while it is fetched.
const CHANGES_MAX: usize = 4;
/// Questions for sets that are listed for the first time, at once.
const QUESTIONS_AT_ONCE: usize = 16;
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// How sets travel.
#[derive(Clone, Debug)]
struct Transfers {
    part_bytes: u64,
    parts_at_once: usize,
    range_bytes: u64,
    connections: usize,
    /// Sets on the way at once, each way; others wait. With what is above: 128 MiB of memory each way at most.
    sets_at_once: usize,
}

impl Default for Transfers {
    fn default() -> Self {
        Self { part_bytes: 16 << 20, parts_at_once: 4, range_bytes: 8 << 20, connections: 8, sets_at_once: 2 }
    }
}

/// Target sets under a prefix of a bucket, with a folder of copies. A clone is another handle of the same.
#[derive(Clone)]
pub struct SharedTargets {
    inner: Arc<Inner>,
}

type Fetch = Shared<BoxFuture<'static, Result<Arc<TargetSet>, FetchFault>>>;

struct Inner {
    bucket: Bucket,
    known: Arc<Known>,
    local: TargetSets,
    transfers: Transfers,
    uploads: Semaphore,
    downloads: Semaphore,
    /// By name, with the ETag of what is fetched.
    fetches: Mutex<HashMap<String, (String, Fetch)>>,
}

impl SharedTargets {
    /// Opens the folder of copies for the sets under `prefix` of `bucket`; blocks on the disk, and asks S3 nothing yet.
    /// Everything in the folder has to be a copy: what S3 does not have is removed from it.
    ///
    /// # Errors
    ///
    /// As [`TargetSets::open`].
    pub fn open(
        config: &AwsConfig,
        bucket: &str,
        prefix: &str,
        folder: &Path,
        bytes_max: u64,
    ) -> Result<Self, TargetError> {
        let bucket = Bucket::new(config, bucket, prefix);
        Self::new(bucket, folder, bytes_max, Transfers::default())
    }

    fn new(bucket: Bucket, folder: &Path, bytes_max: u64, transfers: Transfers) -> Result<Self, TargetError> {
        let options = TargetOptions { bytes_max, makes_room: true, ..TargetOptions::default() };
        let local = TargetSets::open(folder, options)?;
        let known = Known::new(bucket.clone());
        for info in local.list() {
            let (name, set) = (info.name.clone(), local.get(&info.name));
            let etag = set.as_ref().and_then(|set| set.etag()).unwrap_or_default().to_owned();
            known.put(&name, Said::Present(Remote { etag, info, sha256: None }.into()));
        }
        let (uploads, downloads) = (Semaphore::new(transfers.sets_at_once), Semaphore::new(transfers.sets_at_once));
        let fetches = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { bucket, known, local, transfers, uploads, downloads, fetches }) })
    }

    /// Asks S3 for its sets, so that what is wrong with a setting is in the log from the start, and what is there is known.
    pub async fn greet(&self) {
        match self.inner.listed().await {
            Ok(found) => tracing::info!(place = self.inner.bucket.url(), sets = found, "target sets are shared"),
            Err(fault) => tracing::error!(reason = fault.message, "shared target sets can not be reached"),
        }
    }
}

impl TargetStore for SharedTargets {
    fn begin<'a>(&'a self, name: &'a SetName) -> BoxFuture<'a, Result<SetWriter, TargetError>> {
        async move {
            // Before a body is read for nothing.
            self.inner.bucket.head(name.as_str()).await?;
            let (local, name) = (self.inner.local.clone(), name.clone());
            blocking(move || local.begin(&name)).await
        }
        .boxed()
    }

    fn finish(&self, writer: SetWriter) -> BoxFuture<'_, Result<(SetInfo, bool), TargetError>> {
        let inner = Arc::clone(&self.inner);
        // A client that goes away does not leave half a set in S3.
        on_its_own(async move {
            let sealed = blocking(move || writer.seal()).await?;
            inner.put(sealed).await
        })
        .boxed()
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<TargetSet>>, TargetError>> {
        async move {
            match SetName::parse(name) {
                Ok(name) => self.inner.get(name.as_str()).await,
                Err(_) => Ok(None),
            }
        }
        .boxed()
    }

    fn info<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<SetInfo>, TargetError>> {
        async move {
            if SetName::parse(name).is_err() {
                return Ok(None);
            }
            match self.inner.known.of(name).await? {
                Said::Absent => Ok(None),
                Said::Present(remote) => Ok(Some(remote.info.clone())),
                Said::Foreign { damage, .. } => Err(self.inner.foreign(name, damage)),
            }
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<SetList, TargetError>> {
        async move {
            let listed = self.inner.list().await;
            let known = self.inner.known.all().into_iter();
            let mut sets: Vec<SetInfo> = known
                .filter_map(|(_, said)| match said {
                    Said::Present(remote) => Some(remote.info.clone()),
                    Said::Absent | Said::Foreign { .. } => None,
                })
                .collect();
            // The last list is better than none. A part of the first would look like all there is.
            if let Err(fault) = listed
                && !self.inner.known.is_complete()
            {
                return Err(fault.into());
            }
            sets.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            let bytes = sets.iter().map(|info| info.bytes).sum();
            Ok(SetList { sets, bytes, bytes_max: self.inner.local.bytes_max() })
        }
        .boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<bool, TargetError>> {
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        on_its_own(async move {
            if SetName::parse(&name).is_err() {
                return Ok(false);
            }
            let deleted = match inner.bucket.head(&name).await? {
                Said::Absent => false,
                Said::Present(_) | Said::Foreign { .. } => {
                    inner.bucket.delete(&name).await?;
                    true
                }
            };
            inner.known.deleted(&name);
            inner.forget(&name).await;
            Ok(deleted)
        })
        .boxed()
    }
}

impl Inner {
    async fn put(&self, sealed: Sealed) -> Result<(SetInfo, bool), TargetError> {
        let set = Arc::clone(sealed.set());
        let name = &set.info().name;
        let _place = self.uploads.acquire().await.map_err(ending)?;
        let replaced = !matches!(self.bucket.head(name).await?, Said::Absent);
        let Transfers { part_bytes, parts_at_once, .. } = self.transfers;
        let remote = upload(&self.bucket, &set, part_bytes, parts_at_once).await?;
        let (info, etag) = (remote.info.clone(), remote.etag.clone());
        // From here on the set is everybody's.
        let committed = blocking(move || sealed.commit(Some(&etag))).await;
        self.known.put(name, Said::Present(remote.into()));
        if let Err(error) = committed {
            tracing::warn!(%error, name, "a target set is in S3 and not on this disk; it is fetched when it is asked for");
        }
        Ok((info, replaced))
    }

    async fn get(self: &Arc<Self>, name: &str) -> Result<Option<Arc<TargetSet>>, TargetError> {
        let mut outcome = Err(FetchFault::Changed);
        for _ in 0..CHANGES_MAX {
            let remote = match self.known.of(name).await? {
                Said::Absent => {
                    self.forget(name).await;
                    return Ok(None);
                }
                Said::Foreign { damage, .. } => return Err(self.foreign(name, damage)),
                Said::Present(remote) => remote,
            };
            if let Some(set) = self.local.get(name)
                && set.etag().unwrap_or_default() == remote.etag
            {
                return Ok(Some(set));
            }
            outcome = self.fetch(name, &remote).await;
            if !matches!(outcome, Err(FetchFault::Changed)) {
                break;
            }
            self.known.outdated(name);
        }
        match (outcome, self.local.get(name)) {
            (Ok(set), _) => Ok(Some(set)),
            // The last state that this machine has is better than none.
            (Err(FetchFault::S3(fault)), Some(old)) => {
                self.known.trouble(&fault);
                Ok(Some(old))
            }
            (Err(FetchFault::Changed), Some(old)) => Ok(Some(old)),
            (Err(fault), _) => Err(fault.into()),
        }
    }

    /// Fetches a set, once for all who ask for it, to its end even if they go away.
    async fn fetch(self: &Arc<Self>, name: &str, remote: &Arc<Remote>) -> Result<Arc<TargetSet>, FetchFault> {
        let fetch = {
            let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
            match fetches.get(name) {
                Some((etag, fetch)) if *etag == remote.etag => fetch.clone(),
                _ => {
                    let fetch = self.start_fetch(remote);
                    fetches.insert(name.to_owned(), (remote.etag.clone(), fetch.clone()));
                    fetch
                }
            }
        };
        fetch.await
    }

    fn start_fetch(self: &Arc<Self>, remote: &Arc<Remote>) -> Fetch {
        let (inner, remote) = (Arc::clone(self), Arc::clone(remote));
        let fetching = tokio::spawn(
            async move {
                let outcome = inner.download(&remote).await;
                let mut fetches = inner.fetches.lock().unwrap_or_else(PoisonError::into_inner);
                if fetches.get(&remote.info.name).is_some_and(|(etag, _)| *etag == remote.etag) {
                    fetches.remove(&remote.info.name);
                }
                outcome
            }
            .in_current_span(),
        );
        let done = async move {
            fetching.await.unwrap_or_else(|error| {
                let reason = format!("the set was not fetched to its end: {error}");
                Err(TargetError::Unavailable { reason }.into())
            })
        };
        done.boxed().shared()
    }

    async fn download(&self, remote: &Arc<Remote>) -> Result<Arc<TargetSet>, FetchFault> {
        let _place = self.downloads.acquire().await.map_err(ending)?;
        let started = Instant::now();
        let Transfers { range_bytes, connections, .. } = self.transfers;
        let set = download(&self.bucket, &self.local, remote, range_bytes, connections).await?;
        let SetInfo { name, bytes, .. } = set.info();
        tracing::info!(name, bytes, elapsed_ms = started.elapsed().as_millis() as u64, "a target set was fetched");
        Ok(set)
    }

    /// Makes what is known what S3 lists, as far as S3 can be asked now.
    async fn list(self: &Arc<Self>) -> Result<(), Fault> {
        let inner = Arc::clone(self);
        let listing = async move { inner.listed().await.map(drop).inspect_err(|fault| inner.known.trouble(fault)) };
        match self.known.listing() {
            Listing::Not(fault) => Err(fault),
            Listing::Wait => listing.await,
            Listing::Glance => {
                // What comes late is known the next time.
                let listing = tokio::spawn(listing.in_current_span());
                let fault = |what: String| {
                    let message = format!("{}: {what}", self.bucket.url());
                    Err(Fault { trouble: super::Trouble::TimedOut, message })
                };
                match tokio::time::timeout(WAIT_MAX, listing).await {
                    Ok(listed) => listed.unwrap_or_else(|error| fault(format!("not listed to the end: {error}"))),
                    Err(_) => fault(format!("not listed in {WAIT_MAX:?}")),
                }
            }
        }
    }

    /// Lists the sets of S3, and asks for those that are new. How many there are.
    async fn listed(&self) -> Result<usize, Fault> {
        let listing = async {
            let asked = Instant::now();
            let found = self.bucket.list().await?;
            let found: Vec<_> = found.into_iter().map(|(name, etag)| (name.as_str().to_owned(), etag)).collect();
            let new = self.known.listed(asked, &found);
            let questions = new.into_iter().map(|name| async move { self.known.again(&name, asked).await });
            let mut answers = stream::iter(questions).buffer_unordered(QUESTIONS_AT_ONCE);
            while let Some(answer) = answers.next().await {
                answer?;
            }
            self.known.completed();
            Ok(found.len())
        };
        tokio::time::timeout(LIST_TIMEOUT, listing).await.unwrap_or_else(|_| {
            let message = format!("{}: not listed in {LIST_TIMEOUT:?}", self.bucket.url());
            Err(Fault { trouble: super::Trouble::TimedOut, message })
        })
    }

    /// Removes the copy of a set that S3 does not have.
    async fn forget(&self, name: &str) {
        if self.local.get(name).is_none() {
            return;
        }
        let (local, name) = (self.local.clone(), name.to_owned());
        if let Err(error) = blocking(move || local.delete(&name)).await {
            tracing::warn!(%error, "the copy of a target set that was deleted stays on this disk");
        }
    }

    fn foreign(&self, name: &str, damage: String) -> TargetError {
        TargetError::NotASet { place: self.bucket.place(name), damage }
    }
}

/// Work that goes on when nobody waits for it any more. A panic in it is one here.
async fn on_its_own<T: Send + 'static>(
    work: impl Future<Output = Result<T, TargetError>> + Send + 'static,
) -> Result<T, TargetError> {
    tokio::spawn(work.in_current_span()).await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Err(TargetError::Unavailable { reason: error.to_string() }),
    })
}

fn ending(_: tokio::sync::AcquireError) -> TargetError {
    TargetError::Unavailable { reason: "the service is ending".to_owned() }
}

#[cfg(test)]
mod tests;
