//! The contract of a place for target sets, and a folder of this machine as one.

use super::{SetInfo, SetName, SetWriter, TargetError, TargetSet, TargetSets};
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Where target sets are kept by name.
///
/// - A set is replaced as a whole: whoever asks gets the old one or the new one.
/// - A set that was handed out stays as it is for as long as it is held.
pub trait TargetStore: Send + Sync + 'static {
    /// Starts a set, new or in place of the one that has the name. Nobody sees it before [`TargetStore::finish`].
    fn begin<'a>(&'a self, name: &'a SetName) -> BoxFuture<'a, Result<SetWriter, TargetError>>;

    /// Puts a set that [`TargetStore::begin`] of the same store has started in its place, durably. What is known of it,
    /// and whether it replaced another.
    fn finish(&self, writer: SetWriter) -> BoxFuture<'_, Result<(SetInfo, bool), TargetError>>;

    /// The set of this name. Any text may be asked for; what is no name has no set.
    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<TargetSet>>, TargetError>>;

    /// What is known of the set of this name. Fetches no rows.
    fn info<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<SetInfo>, TargetError>>;

    /// All sets.
    fn list(&self) -> BoxFuture<'_, Result<SetList, TargetError>>;

    /// Removes the set of this name. Whether there was one.
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<bool, TargetError>>;
}

/// All sets of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetList {
    /// By name.
    pub sets: Vec<SetInfo>,
    /// Bytes of all their files.
    pub bytes: u64,
    /// Bytes that may lie on this machine.
    pub bytes_max: u64,
}

impl TargetStore for TargetSets {
    fn begin<'a>(&'a self, name: &'a SetName) -> BoxFuture<'a, Result<SetWriter, TargetError>> {
        let (sets, name) = (self.clone(), name.clone());
        blocking(move || sets.begin(&name)).boxed()
    }

    fn finish(&self, writer: SetWriter) -> BoxFuture<'_, Result<(SetInfo, bool), TargetError>> {
        blocking(move || writer.finish()).boxed()
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<TargetSet>>, TargetError>> {
        ready(Ok(TargetSets::get(self, name))).boxed()
    }

    fn info<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<SetInfo>, TargetError>> {
        ready(Ok(TargetSets::get(self, name).map(|set| set.info().clone()))).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<SetList, TargetError>> {
        let sets = TargetSets::list(self);
        ready(Ok(SetList { sets, bytes: self.bytes(), bytes_max: self.bytes_max() })).boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<bool, TargetError>> {
        let (sets, name) = (self.clone(), name.to_owned());
        blocking(move || sets.delete(&name)).boxed()
    }
}

/// Work on the disk, on a thread for such work. A panic there is one here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TargetError> + Send + 'static,
) -> Result<T, TargetError> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await.unwrap_or_else(|error| {
        match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The process is ending.
            Err(error) => Err(TargetError::io("finish work on", Path::new("a target set"), io::Error::other(error))),
        }
    })
}
