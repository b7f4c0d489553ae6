//! Where models come from, by the settings.

use super::cache_folder;
use crate::builtin;
use crate::settings::{ModelSource as Place, Settings};
use nexus_engine::{BoxError, Digests, ModelSource, OpenedModel};
use nexus_models::ModelFiles;
use nexus_storage::{DigestMemo, LocalModels, ModelStore, digest_bytes};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::DirEntry;
use std::io;
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
    let builtin = || [builtin_model("embedder", builtin::embedder), builtin_model("reranker", builtin::reranker)];
    let [retriever, reranker] = match settings.models.source() {
        Place::Folder(root) => paths.map(|path| local_model(&root, path, memo.clone())),
        #[cfg(feature = "aws")]
        Place::Bucket { bucket, prefix } => {
            let store = super::bucket::store(settings, &bucket, &prefix).map(Arc::new);
            paths.map(|path| super::bucket::model(store.clone(), path, memo.clone()))
        }
        // The settings' check stops a start without what a source needs; the built-in models stand in for nothing.
        #[cfg(not(feature = "aws"))]
        Place::Bucket { .. } => builtin(),
        Place::BuiltIn | Place::Hub => builtin(),
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
        open: Arc::new(move |_| {
            let files = files();
            let digest = |wanted: &dyn Fn(&str) -> bool| {
                let content = |name| files.get(name).map(|bytes| (name, bytes));
                let chosen: Vec<_> = files.names().filter(|name| wanted(name)).filter_map(content).collect();
                digest_bytes(&chosen)
            };
            let digests = Digests {
                model: digest(&|name| !TOKENIZER_FILES.contains(&name)),
                tokenizer: digest(&|name| TOKENIZER_FILES.contains(&name)),
            };
            Ok(OpenedModel { files, digests: Box::new(move || Ok(digests)), arrival: None })
        }),
    }
}

fn local_model(root: &Path, path: &str, memo: Arc<DigestMemo>) -> ModelSource {
    let store = LocalModels::new(root);
    let path = path.to_owned();
    let runtime = Handle::current();
    ModelSource {
        name: root.join(path.trim_matches('/')).display().to_string(),
        open: Arc::new(move |progress| {
            let folder = runtime.block_on(
                store.fetch(&path, &|fetched| progress("fetching", fetched.bytes_done, fetched.bytes_total)),
            )?;
            open_folder(&folder, &memo)
        }),
    }
}

/// Maps a complete folder. The digests are those of what was mapped, or an error where files came or went meanwhile.
pub(super) fn open_folder(folder: &Path, memo: &Arc<DigestMemo>) -> Result<OpenedModel, BoxError> {
    let before = file_states(folder)?;
    let files = ModelFiles::open(folder)?;
    let compute = digests_of(folder, &files, memo);
    let folder = folder.to_owned();
    let digests = move || {
        let digests = compute()?;
        // Cached vectors would be filed under another model's digest for good.
        if file_states(&folder)? != before {
            let place = folder.display();
            return Err(format!("{place} changed while it was read; start or reload when it is complete").into());
        }
        Ok(digests)
    };
    Ok(OpenedModel { files, digests: Box::new(digests), arrival: None })
}

/// Computes the digests of the files of a folder, once they are all there.
pub(super) fn digests_of(
    folder: &Path,
    files: &ModelFiles,
    memo: &Arc<DigestMemo>,
) -> impl FnOnce() -> io::Result<Digests> + Send + 'static {
    // Other files of the folder (training states, indexes of datasets) change no vector.
    let is_model = |name: &str| {
        name == "config.json" || name == POOLING_FILE || name.ends_with(".safetensors") || name.ends_with(".index.json")
    };
    let paths = |wanted: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        files.names().filter(|name| wanted(name)).map(|name| folder.join(name)).collect()
    };
    let (model, tokenizer) = (paths(&is_model), paths(&|name| TOKENIZER_FILES.contains(&name)));
    let memo = Arc::clone(memo);
    move || Ok(Digests { model: memo.digest_files(&model)?, tokenizer: memo.digest_files(&tokenizer)? })
}

/// Names, sizes and times of what is in a folder, without what begins with a dot: packed weights are written beside a model
/// while others load it.
fn file_states(folder: &Path) -> io::Result<BTreeMap<OsString, (u64, SystemTime)>> {
    let state = |entry: io::Result<DirEntry>| {
        let entry = entry?;
        // Of a link's target: published folders are often full of links.
        let metadata = std::fs::metadata(entry.path())?;
        Ok((entry.file_name(), (metadata.len(), metadata.modified()?)))
    };
    let is_model = |entry: &io::Result<DirEntry>| {
        !entry.as_ref().is_ok_and(|entry| entry.file_name().as_encoded_bytes().starts_with(b"."))
    };
    std::fs::read_dir(folder)?.filter(is_model).map(state).collect()
}

fn digest_memo(settings: &Settings) -> DigestMemo {
    match cache_folder(&settings.cache) {
        Some(folder) => DigestMemo::open(folder.join("digests")),
        None => DigestMemo::in_memory(),
    }
}
