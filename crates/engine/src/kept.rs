//! Weights as a device prepared them, in a file beside a large model: the next start maps it at once.
//!
//! It spares time, and is never needed: whatever is wrong with it is logged, and the weights are prepared from the model.

use crate::{Digests, loader::Loader, replicas::Live};
use nexus_models::{ModelFiles, PackedFileError, PackedWeights, Weights};
use std::{sync::Weak, thread, time::Instant};

/// What is kept of a model that is being loaded.
pub(crate) struct Kept {
    weights: PackedWeights,
}

impl Loader {
    /// Where prepared weights of these files are kept, if they are large enough, in a folder, and for devices that can use
    /// such a file. All devices of a process are of one kind.
    pub(crate) fn packed_weights(&self, onto: &[Live], files: &ModelFiles) -> Option<Kept> {
        let bytes_min = self.options.packed_bytes_min?;
        let (folder, layout) = (files.path()?, onto.first()?.device.packed_layout()?);
        let bytes = Weights::open(files, &|_, _| {}).ok()?.bytes_expected()?;
        (bytes >= bytes_min).then(|| Kept { weights: PackedWeights::new(folder, &layout) })
    }
}

impl Kept {
    pub(crate) fn weights(&self) -> &PackedWeights {
        &self.weights
    }

    /// Whether there is a file that may be used.
    pub(crate) fn is_there(&self) -> bool {
        self.weights.path().exists()
    }

    /// Takes the weights from the file if it was made of those with these digests.
    pub(crate) fn look_for(&mut self, digests: &Digests) {
        let path = self.weights.path().display().to_string();
        match self.weights.map(&digests.model) {
            Ok(()) => tracing::info!(path, "mapped the packed weights"),
            Err(PackedFileError::Absent) => {}
            Err(error) => tracing::info!(path, %error, "packed weights are not used; the weights are packed anew"),
        }
    }

    /// Writes the file, on a thread of its own, unless the weights came from it. Stops when the model is `alive` no more.
    pub(crate) fn write(self, digests: &Digests, alive: Weak<()>) {
        let Some(writer) = self.weights.into_writer() else { return };
        let digest = digests.model;
        let write = move || {
            let (path, bytes, started) = (writer.path().display().to_string(), writer.bytes(), Instant::now());
            match writer.write(&digest, &|| alive.strong_count() > 0) {
                Ok(true) => {
                    let seconds = started.elapsed().as_secs();
                    tracing::info!(path, bytes, seconds, "wrote the packed weights: the next start maps them");
                }
                Ok(false) => tracing::debug!(path, "packed weights were not written"),
                Err(error) => {
                    tracing::info!(path, %error, "packed weights can not be kept; the next start packs them again");
                }
            }
        };
        // Without a thread there is no file, and that is all.
        let _ = thread::Builder::new().name("packed-weights".into()).spawn(write);
    }
}
