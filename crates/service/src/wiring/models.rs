//! Where models come from, by the settings.

use super::cache_folder;
use crate::builtin;
use crate::settings::{ModelSource as Place, Settings};
use nexus_engine::{BoxError, ModelSource, OpenedModel, Progress};
use nexus_models::ModelFiles;
use nexus_storage::{DigestMemo, LocalModels, ModelStore, digest_bytes};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::runtime::Handle;

const TOKENIZER_FILES: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];
const POOLING_FILE: &str = "1_Pooling/config.json";

/// The retriever's source and the reranker's.
pub(super) fn sources(settings: &Settings) -> (ModelSource, ModelSource) {
    let memo = Arc::new(digest_memo(settings));
    let paths = [&settings.models.retriever_model_path, &settings.models.reranker_model_path];
    let (retriever, reranker) = match settings.models.source() {
        Place::Folder(root) => {
            let [retriever, reranker] = paths.map(|path| local_model(&root, path, memo.clone()));
            (retriever, reranker)
        }
        Place::Bucket { bucket, prefix } => {
            let store = bucket_models(settings, &bucket, &prefix);
            let [retriever, reranker] = paths.map(|path| stored_model(store.clone(), path, memo.clone()));
            (retriever, reranker)
        }
        // Another source stops the start before this; the built-in models stand in for nothing else.
        Place::BuiltIn | Place::Hub => {
            (builtin_model("embedder", builtin::embedder), builtin_model("reranker", builtin::reranker))
        }
    };
    // A path that names a repository of a hub does so wherever the other model is.
    #[cfg(feature = "hub")]
    let [retriever, reranker] = {
        let [of_retriever, of_reranker] = paths.map(|path| super::hub::model(settings, path, &memo));
        [of_retriever.unwrap_or(retriever), of_reranker.unwrap_or(reranker)]
    };
    (retriever, reranker)
}

fn builtin_model(name: &str, files: fn() -> ModelFiles) -> ModelSource {
    ModelSource {
        name: format!("built-in {name}"),
        open: Box::new(move |_| {
            let files = files();
            let digest = |wanted: &dyn Fn(&str) -> bool| {
                let content = |name| files.get(name).map(|bytes| (name, bytes));
                let chosen: Vec<_> = files.names().filter(|name| wanted(name)).filter_map(content).collect();
                digest_bytes(&chosen)
            };
            let model_digest = digest(&|name| !TOKENIZER_FILES.contains(&name));
            let tokenizer_digest = digest(&|name| TOKENIZER_FILES.contains(&name));
            Ok(OpenedModel { files, model_digest, tokenizer_digest })
        }),
    }
}

fn local_model(root: &Path, path: &str, memo: Arc<DigestMemo>) -> ModelSource {
    let store = LocalModels::new(root);
    let path = path.to_owned();
    let runtime = Handle::current();
    ModelSource {
        name: root.join(path.trim_matches('/')).display().to_string(),
        open: Box::new(move |progress| {
            let folder = runtime.block_on(
                store.fetch(&path, &|fetched| progress("fetching", fetched.bytes_done, fetched.bytes_total)),
            )?;
            open_folder(&folder, &memo, progress)
        }),
    }
}

/// A model that is brought here first. Without a store, the model fails with the reason, and everything else serves.
fn stored_model(store: Result<Arc<dyn ModelStore>, String>, path: &str, memo: Arc<DigestMemo>) -> ModelSource {
    let path = path.to_owned();
    let runtime = Handle::current();
    let root = store.as_ref().map_or_else(|_| String::new(), |store| format!("{}/", store.name()));
    ModelSource {
        name: format!("{root}{}", path.trim_matches('/')),
        open: Box::new(move |progress| {
            let store = store?;
            let folder = runtime.block_on(
                store.fetch(&path, &|fetched| progress("fetching", fetched.bytes_done, fetched.bytes_total)),
            )?;
            open_folder(&folder, &memo, progress)
        }),
    }
}

/// The models of a bucket of S3, or why there can be none.
#[cfg(feature = "aws")]
fn bucket_models(settings: &Settings, bucket: &str, prefix: &str) -> Result<Arc<dyn ModelStore>, String> {
    use nexus_storage::{S3Models, S3Options, aws_config};
    let models = &settings.models;
    let folder = models.models_dir.clone().or_else(|| Some(cache_folder(&settings.cache)?.join("models")));
    let folder = folder.ok_or("there is no folder for downloaded models; NEXUS_MODELS_DIR names one")?;
    let options = S3Options {
        range_bytes: models.download_range_bytes.get(),
        connections_max: models.download_connections_max.get(),
        bytes_per_s_min: models.download_bytes_per_s_min.get(),
        ..S3Options::new(folder)
    };
    let region = models.aws_region.clone();
    Ok(Arc::new(S3Models::new(async move { aws_config(&region).await }, bucket, prefix, options)))
}

/// The settings' check stops the start before this.
#[cfg(not(feature = "aws"))]
fn bucket_models(_: &Settings, bucket: &str, _: &str) -> Result<Arc<dyn ModelStore>, String> {
    Err(format!("{bucket} is a bucket, and this program was built without AWS"))
}

pub(super) fn open_folder(folder: &Path, memo: &DigestMemo, progress: Progress<'_>) -> Result<OpenedModel, BoxError> {
    let before = file_states(folder)?;
    let files = ModelFiles::open(folder)?;
    progress("computing digests", 0, 0);
    let digest = |wanted: &dyn Fn(&str) -> bool| {
        let paths: Vec<PathBuf> = files.names().filter(|name| wanted(name)).map(|name| folder.join(name)).collect();
        memo.digest_files(&paths)
    };
    // Other files of the folder (training states, indexes of datasets) change no vector.
    let is_model = |name: &str| {
        name == "config.json" || name == POOLING_FILE || name.ends_with(".safetensors") || name.ends_with(".index.json")
    };
    let model_digest = digest(&is_model)?;
    let tokenizer_digest = digest(&|name| TOKENIZER_FILES.contains(&name))?;
    // Cached vectors would be filed under another model's digest for good.
    if file_states(folder)? != before {
        return Err(format!("{} changed while it was read; start again when it is complete", folder.display()).into());
    }
    Ok(OpenedModel { files, model_digest, tokenizer_digest })
}

/// Names, sizes and times of what is in a folder.
fn file_states(folder: &Path) -> std::io::Result<BTreeMap<OsString, (u64, SystemTime)>> {
    let state = |entry: std::io::Result<DirEntry>| {
        let entry = entry?;
        // Of a link's target: published folders are often full of links.
        let metadata = std::fs::metadata(entry.path())?;
        Ok((entry.file_name(), (metadata.len(), metadata.modified()?)))
    };
    std::fs::read_dir(folder)?.map(state).collect()
}

fn digest_memo(settings: &Settings) -> DigestMemo {
    match cache_folder(&settings.cache) {
        Some(folder) => DigestMemo::open(folder.join("digests")),
        None => DigestMemo::in_memory(),
    }
}
