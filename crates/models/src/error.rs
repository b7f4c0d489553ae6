//! Why a model can not be loaded.

use nexus_compute::ComputeError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a model can not be loaded. Messages name the file, and the tensor or key where there is one.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file of the model could not be read.
    #[error("can not read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file that was on its way will not come.
    #[error("{file} did not arrive: {source}")]
    NotArrived {
        /// The file.
        file: String,
        /// What whoever brings it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file that every model of this kind has is not there.
    #[error("{folder} has no {file}: {hint}")]
    MissingFile {
        /// The model folder.
        folder: String,
        /// The file that is missing.
        file: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A file is there and can not be understood.
    #[error("{file}: {detail}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A configuration that this implementation does not compute.
    #[error("{file}: {key} is {value}; supported: {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// The configuration key.
        key: String,
        /// Its value.
        value: String,
        /// The values that are supported.
        supported: String,
    },
    /// A tensor that the configuration asks for is in none of the files.
    #[error("{file}: tensor {tensor} is missing")]
    MissingTensor {
        /// The file, or the index of a sharded model.
        file: String,
        /// Full name of the tensor.
        tensor: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{file}: tensor {tensor} has shape {found:?}; the configuration asks for {expected:?}")]
    Shape {
        /// The file.
        file: String,
        /// Full name of the tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor has an element type that is not computed with.
    #[error("{file}: tensor {tensor} is {found}; supported: F32, F16, BF16")]
    DType {
        /// The file.
        file: String,
        /// Full name of the tensor.
        tensor: String,
        /// Element type in the file.
        found: String,
    },
    /// A file holds a tensor of a layer that the configuration has no use for: the two do not belong together.
    #[error("{file}: tensor {tensor} has no place in the model that config.json describes")]
    UnusedTensor {
        /// The file.
        file: String,
        /// Full name of the tensor.
        tensor: String,
    },
    /// The device could not take the weights.
    #[error("preparing {tensor}: {source}")]
    Prepare {
        /// What was being prepared.
        tensor: String,
        /// What the device said.
        source: ComputeError,
    },
}

impl LoadError {
    pub(crate) fn malformed(file: impl Into<String>, detail: impl ToString) -> Self {
        Self::Malformed { file: file.into(), detail: detail.to_string() }
    }
}
