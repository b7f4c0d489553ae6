//! Where a model comes from.

use crate::{Arrival, Digests};
use nexus_models::ModelFiles;
use std::sync::Arc;

/// Any error that stops a model from loading; its chain is told to people.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Reports what is being done, how many bytes of it are done, and out of how many (0: not known).
pub type Progress<'a> = &'a (dyn Fn(&'static str, u64, u64) + Send + Sync);

/// Brings the files of a model, however long it takes. Called again for each reload, and then brings what is in the same
/// place at that time.
pub type OpenModel = Arc<dyn Fn(Progress<'_>) -> Result<OpenedModel, BoxError> + Send + Sync>;

/// Computes the digests of a model's files, however long it takes.
pub type ComputeDigests = Box<dyn FnOnce() -> Result<Digests, BoxError> + Send>;

/// Where a model comes from.
pub struct ModelSource {
    /// For people: `built-in`, a folder.
    pub name: String,
    /// Brings the files. Runs on a thread of its own.
    pub open: OpenModel,
}

/// The files of a model, and digests of what is in them.
pub struct OpenedModel {
    /// The files.
    pub files: ModelFiles,
    /// Computes the digests of what was loaded, or fails where the files changed meanwhile. At the first start it is
    /// called on a thread of its own while the weights are prepared, or after that where files are still on their way, so
    /// that it may wait for them; at a reload before, to see whether anything changed.
    pub digests: ComputeDigests,
    /// The transfer of files that are still on their way, if there are any. Until it has settled, what is made of them
    /// serves nobody.
    pub arrival: Option<Arc<dyn Arrival>>,
}
