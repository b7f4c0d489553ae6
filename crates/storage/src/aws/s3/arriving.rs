//! A model that is used while it is fetched: which of its files are complete, told to whoever waits for one.
//!
//! The fetch is the same as any other, on a task of its own; what it completes is linked into the folder that becomes the
//! revision's at the end. Whoever reads there may meet a change of the bucket midway, which only the end tells: until
//! then, what was made of the files serves nobody.

use super::S3Models;
use super::folder::ModelFolder;
use super::listing::{Listing, Object};
use crate::model_store::{FetchProgress, ModelStoreError, Progress};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// How often it is looked whether the small files are here.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a fetch gives that does not wait for its end.
pub enum Fetched {
    /// All is here: the model's folder.
    Complete(PathBuf),
    /// All is here but weights.
    Arriving(Arriving),
}

/// A model whose weights are on their way. Cheap to clone; with the last clone the fetch ends, if it has not yet. What
/// came before is kept.
#[derive(Clone)]
pub struct Arriving {
    folder: PathBuf,
    names: Arc<Vec<String>>,
    arrivals: Arc<Arrivals>,
    _task: Arc<Task>,
}

/// A fetch that ends with this.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the fetch tells.
pub(super) struct Arrivals {
    place: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    progress: FetchProgress,
    begun: Option<Begun>,
    /// What was begun will not become complete: the bucket changed, or its folder can not have links.
    superseded: bool,
    ended: Option<Result<PathBuf, Arc<ModelStoreError>>>,
}

struct Begun {
    folder: PathBuf,
    names: Arc<Vec<String>>,
    /// Names of weights, and of what else there is, that are not here.
    missing: [BTreeSet<String>; 2],
}

impl S3Models {
    /// Begins to fetch the model `path`, and comes back when only weights are missing, or nothing.
    ///
    /// # Errors
    ///
    /// As [`crate::ModelStore::fetch`].
    pub async fn fetch_arriving(
        self: &Arc<Self>,
        path: &str,
        progress: &Progress<'_>,
    ) -> Result<Fetched, Arc<ModelStoreError>> {
        let place = format!("{}/{}", crate::ModelStore::name(&**self), path.trim_matches('/'));
        let arrivals = Arc::new(Arrivals { place, state: Mutex::default(), changed: Condvar::new() });
        let (store, path, of_fetch) = (self.clone(), path.to_owned(), Ending(arrivals.clone()));
        let fetch = tokio::spawn(async move {
            let tell = |progress| of_fetch.0.state().progress = progress;
            let outcome = store.fetch_model(&path, &tell, Some(&of_fetch.0)).await;
            of_fetch.0.end(outcome.map_err(Arc::new));
        });
        let task = Arc::new(Task(fetch.abort_handle()));
        let mut told = FetchProgress::default();
        loop {
            let now = {
                let state = arrivals.state();
                match (&state.ended, &state.begun) {
                    (Some(ended), _) => {
                        let (ended, last) = (ended.clone(), state.progress);
                        drop(state);
                        return ended.map(|folder| {
                            progress(last);
                            Fetched::Complete(folder)
                        });
                    }
                    (None, Some(Begun { folder, names, missing: [_, small] }))
                        if small.is_empty() && !state.superseded =>
                    {
                        let (folder, names) = (folder.clone(), names.clone());
                        drop(state);
                        return Ok(Fetched::Arriving(Arriving { folder, names, arrivals, _task: task }));
                    }
                    _ => state.progress,
                }
            };
            if now != told {
                told = now;
                progress(now);
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Arriving {
    /// The folder that the files are in, each once it is complete.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of all files in the folder, those that are missing included.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// How far the fetch is; `None` once it has ended.
    pub fn progress(&self) -> Option<FetchProgress> {
        let state = self.arrivals.state();
        state.ended.is_none().then_some(state.progress)
    }

    /// Blocks until a file is complete in the folder: for no longer than the fetch goes on, which gives up by itself.
    ///
    /// # Errors
    ///
    /// What ended the fetch, or that the file will not come, as the bucket changed.
    pub fn wait(&self, name: &str) -> Result<(), Arc<ModelStoreError>> {
        let mut state = self.arrivals.state();
        let mut told = false;
        loop {
            match (&state.ended, &state.begun) {
                (Some(Err(error)), _) => return Err(error.clone()),
                _ if state.superseded => return Err(self.superseded()),
                (_, Some(begun)) if !begun.missing.iter().any(|missing| missing.contains(name)) => return Ok(()),
                (Some(Ok(_)), _) | (None, None) => return Err(self.superseded()),
                (None, Some(_)) => {}
            }
            if !std::mem::replace(&mut told, true) {
                tracing::debug!(file = name, "waiting for a file that is on its way");
            }
            state = self.arrivals.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Blocks until the fetch has ended. Whether the folder is now the model's, complete and for good. If not, as the
    /// bucket changed meanwhile, the model is here as it is now: another fetch gives its folder.
    ///
    /// # Errors
    ///
    /// What ended the fetch.
    pub fn finished(&self) -> Result<bool, Arc<ModelStoreError>> {
        let mut state = self.arrivals.state();
        loop {
            match &state.ended {
                Some(Ok(folder)) => return Ok(!state.superseded && *folder == self.folder),
                Some(Err(error)) => return Err(error.clone()),
                None => state = self.arrivals.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn superseded(&self) -> Arc<ModelStoreError> {
        Arc::new(ModelStoreError::Superseded { place: self.arrivals.place.clone() })
    }
}

impl Arrivals {
    /// The revision's folder is there, empty.
    pub(super) fn begin(&self, folder: &Path, listing: &Listing) {
        let mut state = self.state();
        if state.begun.is_some() {
            state.superseded = true;
            return;
        }
        let names = |of: &dyn Fn(&Object) -> bool| {
            listing.objects.iter().filter(|object| of(object)).map(|object| object.name.clone()).collect()
        };
        let missing = [names(&Object::is_weights), names(&|object| !object.is_weights())];
        let names = Arc::new(listing.objects.iter().map(|object| object.name.clone()).collect());
        state.begun = Some(Begun { folder: folder.to_owned(), names, missing });
    }

    /// An object is complete. Blocks for a moment.
    pub(super) fn arrived(&self, folder: &ModelFolder, object: &Object) {
        let to = {
            let state = self.state();
            match &state.begun {
                Some(begun) if !state.superseded => begun.folder.clone(),
                _ => return,
            }
        };
        let linked = folder.link(&to, object);
        let mut state = self.state();
        match linked {
            Ok(()) => {
                if let Some(begun) = &mut state.begun {
                    for missing in &mut begun.missing {
                        missing.remove(&object.name);
                    }
                }
            }
            Err(error) => {
                tracing::debug!(folder = %to.display(), %error, "no links: a model is read when it is complete");
                state.superseded = true;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The bucket has something else now.
    pub(super) fn supersede(&self) {
        self.state().superseded = true;
        self.changed.notify_all();
    }

    fn end(&self, outcome: Result<PathBuf, Arc<ModelStoreError>>) {
        self.state().ended.get_or_insert(outcome);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever waits is told, however the fetch ends.
struct Ending(Arc<Arrivals>);

impl Drop for Ending {
    fn drop(&mut self) {
        let source = std::io::Error::other("the fetch was stopped before its end");
        self.0.end(Err(Arc::new(ModelStoreError::Io { place: self.0.place.clone(), source })));
    }
}
