//! Models of a bucket of S3, as the settings ask for them.

use super::models::open_folder;
use super::models_folder;
use crate::settings::Settings;
use nexus_engine::{ModelSource, Progress};
use nexus_storage::{DigestMemo, FetchProgress, ModelStore as _, S3Models, S3Options, aws_config};
use std::sync::Arc;
use tokio::runtime::Handle;

/// The models of a bucket, or what is wrong with the settings; one line.
pub fn store(settings: &Settings, bucket: &str, prefix: &str) -> Result<S3Models, String> {
    let models = &settings.models;
    let folder = models_folder(settings).ok_or("there is no folder for downloads; NEXUS_MODELS_DIR names one")?;
    let options = S3Options {
        range_bytes: models.download_range_bytes.get(),
        connections_max: models.download_connections_max.get(),
        bytes_per_s_min: models.download_bytes_per_s_min.get(),
        ..S3Options::new(folder)
    };
    let region = models.aws_region.clone();
    Ok(S3Models::new(async move { aws_config(&region).await }, bucket, prefix, options))
}

/// A model that is brought here first. Without a store, the model fails with the reason, and everything else serves.
pub(super) fn model(store: Result<Arc<S3Models>, String>, path: &str, memo: Arc<DigestMemo>) -> ModelSource {
    let path = path.to_owned();
    let runtime = Handle::current();
    let root = store.as_ref().map_or_else(|_| String::new(), |store| format!("{}/", store.name()));
    let name = format!("{root}{}", path.trim_matches('/'));
    let open = move |progress: Progress<'_>| {
        let store = store.clone()?;
        let fetching = |fetched: FetchProgress| progress("fetching", fetched.bytes_done, fetched.bytes_total);
        let folder = runtime.block_on(store.fetch(&path, &fetching))?;
        open_folder(&folder, &memo)
    };
    ModelSource { name, open: Arc::new(open) }
}
