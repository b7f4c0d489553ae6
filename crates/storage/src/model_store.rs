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
    /// The bucket is in another region than the one that was asked.
    #[error("{place} is not there: {advice}")]
    WrongRegion {
        /// The bucket.
        place: String,
        /// What to do.
        advice: String,
    },
    /// Nobody vouches for this process, or whoever does is not believed.
    #[error("cannot read {place}: {problem}: {advice}")]
    Credentials {
        /// The full URL.
        place: String,
        /// What is wrong with them.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// Whoever has the model does not answer, or not now. What came before is kept.
    #[error("cannot read {place}: {problem}; {tried}")]
    Unavailable {
        /// The full URL.
        place: String,
        /// What was the matter the last time.
        problem: String,
        /// How much was tried.
        tried: String,
    },
    /// There is no space for the model on this machine. What came before is kept.
    #[error(
        "no space is left in {place}: {needed_bytes} bytes are needed, and {free_bytes} are free; free some, or name          another folder with NEXUS_MODELS_DIR"
    )]
    DiskFull {
        /// The folder.
        place: String,
        /// Bytes that are still to be written, as far as that is known.
        needed_bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
        /// What the system said, if it was asked to write.
        source: Option<io::Error>,
    },
    /// The model changed each time while it was fetched.
    #[error("{place} changed again and again while it was fetched: start again when its upload is complete")]
    Unsteady {
        /// The full URL.
        place: String,
    },
    /// The model changed while it was used on its way here: what came of it must not serve.
    #[error("{place} changed while it was fetched: open it again")]
    Superseded {
        /// The full URL.
        place: String,
    },
    /// What arrives is not what its checksum says.
    #[error("{place} arrives damaged, twice: {problem}; upload it again if that does not change")]
    Damaged {
        /// The full URL.
        place: String,
        /// What differs.
        problem: String,
    },
    /// Another process holds the folder and does not get on.
    #[error(
        "{place} is in use by another process that does not get on: end it, or name another folder with NEXUS_MODELS_DIR"
    )]
    InUse {
        /// The folder.
        place: String,
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
