//! The contract of a place that models come from.

use futures::future::BoxFuture;
use std::io;
use std::path::PathBuf;

/// Makes model folders available on this machine.
pub trait ModelStore: Send + Sync + 'static {
    /// What this store is, for people: `folder /srv/models`, `s3://bucket`.
    fn name(&self) -> String;

    /// The local folder that holds the model `path` (`models/qwen-embedding-8b/`), complete when this returns.
    ///
    /// `progress` is called from time to time, first when the size of the work is known and last when it is done; a
    /// store with nothing to transfer calls it once.
    fn fetch<'a>(
        &'a self,
        path: &'a str,
        progress: &'a Progress<'a>,
    ) -> BoxFuture<'a, Result<PathBuf, ModelStoreError>>;
}

/// Told how far a fetch is.
pub type Progress<'a> = dyn Fn(FetchProgress) + Send + Sync + 'a;

/// How far a fetch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchProgress {
    /// Bytes that are here, those of earlier fetches included.
    pub bytes_done: u64,
    /// Bytes of the whole model.
    pub bytes_total: u64,
}

/// Why a model is not available. Each message names the full place and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelStoreError {
    /// There is nothing there.
    #[error("{place} does not exist: {advice}")]
    NotFound {
        /// The full path or URL.
        place: String,
        /// What to do.
        advice: String,
    },
    /// There is something there, but not a folder.
    #[error("{place} is not a folder: name the folder that holds the model's config.json")]
    NotADirectory {
        /// The full path.
        place: String,
    },
    /// There is a folder, but not a model in it.
    #[error("{place} has no {file}: a model folder holds config.json, tokenizer.json and *.safetensors")]
    NotAModel {
        /// The full path or URL.
        place: String,
        /// The file that is missing.
        file: &'static str,
    },
    /// The path leaves the store's root.
    #[error("{path:?} has a `..` in it: model paths stay inside {root}")]
    OutsideRoot {
        /// The path as configured.
        path: String,
        /// The store's root.
        root: String,
    },
    /// The place exists, as far as one can tell, but may not be read.
    #[error("access to {place} was denied: {advice}")]
    Denied {
        /// The full path or URL.
        place: String,
        /// What to do.
        advice: String,
    },
    /// Anything else that went wrong while reading.
    #[error("cannot read {place}")]
    Io {
        /// The full path or URL.
        place: String,
        /// What went wrong.
        source: io::Error,
    },
}
