//! A set's way from S3 onto this disk: ranges in parallel, all of one state of the object, checked as a whole.

use super::bucket::{Bucket, Fault, Remote, TRIES, retried};
use crate::aws::Trouble;
use crate::targets::{SetName, TargetError, TargetSet, TargetSets, blocking};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a set was not fetched. Can be told to everybody who waited for it.
#[derive(Clone, Debug)]
pub(super) enum FetchFault {
    /// There is another set by now, or none.
    Changed,
    S3(Fault),
    Store(Arc<TargetError>),
}

impl From<TargetError> for FetchFault {
    fn from(error: TargetError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<Fault> for FetchFault {
    fn from(fault: Fault) -> Self {
        match fault.trouble {
            Trouble::PreconditionFailed | Trouble::NotFound => Self::Changed,
            _ => Self::S3(fault),
        }
    }
}

impl From<FetchFault> for TargetError {
    fn from(fault: FetchFault) -> Self {
        match fault {
            FetchFault::Changed => {
                Self::Unavailable { reason: "the set is replaced again and again; try again".to_owned() }
            }
            FetchFault::S3(fault) => fault.into(),
            FetchFault::Store(error) => Arc::try_unwrap(error).unwrap_or_else(|shared| again(&shared)),
        }
    }
}

/// The same error, for one more who waited. Those that the caller tells apart stay what they are.
fn again(error: &TargetError) -> TargetError {
    match error {
        TargetError::TooLarge { needed_bytes, free_bytes, limit_bytes } => {
            let (needed_bytes, free_bytes, limit_bytes) = (*needed_bytes, *free_bytes, *limit_bytes);
            TargetError::TooLarge { needed_bytes, free_bytes, limit_bytes }
        }
        TargetError::TooMany { limit } => TargetError::TooMany { limit: *limit },
        TargetError::DiskFull { path, source } => {
            TargetError::DiskFull { path: path.clone(), source: io::Error::new(source.kind(), source.to_string()) }
        }
        TargetError::NotASet { place, damage } => TargetError::NotASet { place: place.clone(), damage: damage.clone() },
        other => TargetError::Io { doing: "fetch", path: PathBuf::new(), source: io::Error::other(other.to_string()) },
    }
}

/// Fetches a set in ranges of `range_bytes`, of which `connections` are under way, and puts it in its place.
pub(super) async fn download(
    bucket: &Bucket,
    local: &TargetSets,
    remote: &Arc<Remote>,
    range_bytes: u64,
    connections: usize,
) -> Result<Arc<TargetSet>, FetchFault> {
    let (name, bytes) = (&remote.info.name, remote.info.bytes);
    let place = bucket.place(name);
    let parsed = SetName::parse(name)
        .map_err(|error| TargetError::NotASet { place: place.clone(), damage: error.to_string() })?;
    let incoming = {
        let local = local.clone();
        blocking(move || local.begin_file(&parsed, bytes)).await?
    };
    let incoming = Arc::new(incoming);
    let fetch = |at: u64| {
        let incoming = Arc::clone(&incoming);
        async move {
            let range = at..(at + range_bytes).min(bytes);
            let piece = retried(TRIES, || bucket.range(remote, &range)).await?;
            blocking(move || incoming.write_at(at, &piece)).await.map_err(FetchFault::from)
        }
    };
    let ranges = (0..bytes.div_ceil(range_bytes)).map(|i| i * range_bytes);
    let fetched = stream::iter(ranges).map(fetch).buffer_unordered(connections).try_collect::<()>().await;
    // What was given up is removed where that may take its time.
    let (sha256, etag, local) = (remote.sha256, remote.etag.clone(), local.clone());
    let name = name.clone();
    let sealing = move || {
        if let Err(fault) = fetched {
            return Ok(Err(fault));
        }
        // Every write has ended, and was the last to hold its handle.
        let Some(incoming) = Arc::into_inner(incoming) else {
            return Err(TargetError::Unavailable { reason: format!("{place}: a piece is still being written") });
        };
        let sealed = incoming.seal(&place, sha256)?;
        let set = Arc::clone(sealed.set());
        sealed.commit(Some(&etag))?;
        // It may have had to make room for another already; who asked for it gets it all the same.
        Ok(Ok(local.get(&name).filter(|kept| kept.etag() == Some(&etag)).unwrap_or(set)))
    };
    blocking(sealing).await?
}
