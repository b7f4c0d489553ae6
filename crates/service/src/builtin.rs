//! The two small models that the binary carries (see `models/` and its model cards), unless it was built without the
//! feature `builtin`: the settings' check then stops a start that would need them.

use nexus_models::ModelFiles;

type StaticFiles = &'static [(&'static str, &'static [u8])];

#[cfg(feature = "builtin")]
macro_rules! model_file {
    ($folder:literal, $name:literal) => {
        ($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/", $folder, "/", $name)).as_slice())
    };
}

#[cfg(feature = "builtin")]
macro_rules! files {
    ($folder:literal) => {
        &[
            model_file!($folder, "config.json"),
            model_file!($folder, "model.safetensors"),
            model_file!($folder, "tokenizer.json"),
            model_file!($folder, "tokenizer_config.json"),
        ]
    };
}

#[cfg(not(feature = "builtin"))]
macro_rules! files {
    ($folder:literal) => {
        &[]
    };
}

static EMBEDDER: StaticFiles = files!("embedder");
static RERANKER: StaticFiles = files!("reranker");

/// The embedder: Qwen3 architecture.
pub(crate) fn embedder() -> ModelFiles {
    ModelFiles::from_static("built-in/embedder", EMBEDDER)
}

/// The cross-encoder: ModernBERT architecture.
pub(crate) fn reranker() -> ModelFiles {
    ModelFiles::from_static("built-in/reranker", RERANKER)
}
