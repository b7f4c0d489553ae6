//! Builds models, engine and cache from settings: the one place that knows all concrete types.

use crate::{
    builtin,
    http::Resident,
    settings::{CacheKind, CacheSettings, Device, HttpSettings, ModelSource as Place, Settings},
};
use etcetera::BaseStrategy;
use nexus_compute::cpu::{Cpu, CpuOptions};
use nexus_engine::{BoxError, Engine, EngineOptions, ModelSource, Models, OpenedModel, Progress};
use nexus_models::ModelFiles;
use nexus_storage::{
    DigestMemo, EmbeddingCache, LocalModels, MemoryCache, ModelStore, NoCache, RedbCache, RedbOptions, TargetOptions,
    TargetSets, TieredCache, digest_bytes,
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::DirEntry,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};
use thiserror::Error;
use tokio::runtime::Handle;

const TOKENIZER_FILES: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];
const POOLING_FILE: &str = "1_Pooling/config.json";

/// What runs behind the endpoints.
pub struct Running {
    /// Both models, ready or on the way.
    pub models: Arc<Models>,
    /// The embedding cache.
    pub cache: Arc<dyn EmbeddingCache>,
    engine: Engine,
}

/// Why nothing could be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The device is not usable.
    #[error("the device can not be used: {0}")]
    Device(#[from] nexus_compute::ComputeError),
    /// The operating system gives no threads.
    #[error("can not start threads: {0}")]
    Threads(#[from] std::io::Error),
}

impl Running {
    /// Refuses new work, and waits until the cache is written.
    pub async fn shutdown(&self) {
        self.engine.close();
        self.cache.flush().await;
    }
}

/// Starts the engine, and the loading of both models in the background; returns at once. To be called on a runtime.
pub fn start(settings: &Settings) -> Result<Running, StartError> {
    let (Device::Auto | Device::Cpu) = settings.engine.device;
    let threads = Some(settings.engine.cpu_threads).filter(|&threads| threads > 0);
    let backend = Arc::new(Cpu::new(CpuOptions { isa: None, threads })?);
    let options = EngineOptions {
        batch_tokens_max: settings.engine.batch_tokens_max.get(),
        queue_tokens_max: settings.engine.queue_tokens_max.get(),
        text_tokens_max: settings.engine.text_tokens_max,
        numeric_format: "f32",
    };
    let cache = cache(&settings.cache);
    let (retriever, reranker) = match settings.models.source() {
        Place::Folder(root) => {
            let memo = Arc::new(digest_memo(&settings.cache));
            let paths = [&settings.models.retriever_model_path, &settings.models.reranker_model_path];
            let [retriever, reranker] = paths.map(|path| local_model(&root, path, memo.clone()));
            (retriever, reranker)
        }
        // A bucket's name stops the start before this; the built-in models stand in for nothing else.
        Place::BuiltIn | Place::Bucket(_) => {
            (builtin_model("embedder", builtin::embedder), builtin_model("reranker", builtin::reranker))
        }
    };
    let engine = Engine::start(backend, options, cache.clone(), retriever, reranker)?;
    Ok(Running { models: engine.models().clone(), cache, engine })
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

fn open_folder(folder: &Path, memo: &DigestMemo, progress: Progress<'_>) -> Result<OpenedModel, BoxError> {
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

/// The cache that the settings ask for. A store that can not be used costs its hits, never the service; one that takes
/// long to open (it is repaired after a crash) does not hold the start up.
fn cache(settings: &CacheSettings) -> Arc<dyn EmbeddingCache> {
    if settings.kind == CacheKind::Off {
        return Arc::new(NoCache::new());
    }
    let cache = Arc::new(TieredCache::new(MemoryCache::new(settings.memory_bytes_max.as_usize()), None));
    if settings.kind == CacheKind::Redb
        && let Some(folder) = cache_folder(settings)
    {
        let options = RedbOptions { bytes_max: settings.store_bytes_max.get(), ..RedbOptions::default() };
        let tiers = cache.clone();
        tokio::task::spawn_blocking(move || match RedbCache::open(folder.join("embeddings.redb"), options) {
            Ok(store) => {
                tracing::info!(store = store.name(), "embeddings are kept");
                tiers.attach(Arc::new(store));
            }
            Err(error) => tracing::warn!(%error, "embeddings are kept in memory only"),
        });
    }
    cache
}

/// Opens the folder of resident target sets, beside the start. Without it, everything else works.
pub fn open_targets(http: &HttpSettings, cache: &CacheSettings, resident: Arc<Resident>) {
    let folder = http.targets_dir.clone().or_else(|| Some(cache_folder(cache)?.join("targets")));
    let options = TargetOptions { bytes_max: http.targets_bytes_max.get(), ..TargetOptions::default() };
    tokio::task::spawn_blocking(move || {
        let Some(folder) = folder else {
            resident.opened(Err("there is no folder for them; NEXUS_TARGETS_DIR names one".to_owned()));
            return;
        };
        let opened = TargetSets::open(&folder, options).inspect_err(|error| {
            tracing::warn!(error = error as &dyn std::error::Error, "resident target sets are not available");
        });
        resident.opened(opened.map_err(|error| error.to_string()));
    });
}

fn cache_folder(settings: &CacheSettings) -> Option<PathBuf> {
    let home_cache = || match etcetera::choose_base_strategy() {
        Ok(strategy) => Some(strategy.cache_dir().join("nexus")),
        Err(error) => {
            tracing::warn!(%error, "no cache folder: embeddings are kept in memory only; NEXUS_CACHE_DIR names one");
            None
        }
    };
    settings.dir.clone().or_else(home_cache)
}

fn digest_memo(settings: &CacheSettings) -> DigestMemo {
    match cache_folder(settings) {
        Some(folder) => DigestMemo::open(folder.join("digests")),
        None => DigestMemo::in_memory(),
    }
}
