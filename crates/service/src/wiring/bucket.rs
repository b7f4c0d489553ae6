//! Models of a bucket of S3, as the settings ask for them.

use super::models::{digests_of, open_folder};
use super::models_folder;
use crate::settings::Settings;
use nexus_engine::{Arrival, BoxError, ModelSource, OpenedModel, Progress};
use nexus_models::{ModelFiles, WaitForFile};
use nexus_storage::{
    Arriving, DigestMemo, FetchProgress, Fetched, ModelStore as _, ModelStoreError, S3Models, S3Options, aws_config,
};
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

/// A model that is brought here, and loaded as it arrives. Without a store, the model fails with the reason, and everything
/// else serves.
pub(super) fn model(store: Result<Arc<S3Models>, String>, path: &str, memo: Arc<DigestMemo>) -> ModelSource {
    let path = path.to_owned();
    let runtime = Handle::current();
    let root = store.as_ref().map_or_else(|_| String::new(), |store| format!("{}/", store.name()));
    let name = format!("{root}{}", path.trim_matches('/'));
    let open = move |progress: Progress<'_>| {
        let store = store.clone()?;
        let fetching = |fetched: FetchProgress| progress("fetching", fetched.bytes_done, fetched.bytes_total);
        match runtime.block_on(store.fetch_arriving(&path, &fetching))? {
            Fetched::Complete(folder) => open_folder(&folder, &memo),
            Fetched::Arriving(arriving) => open_arriving(arriving, &memo),
        }
    };
    ModelSource { name, open: Arc::new(open) }
}

/// A model of which only weights are missing. Its digests are those of the complete folder.
fn open_arriving(arriving: Arriving, memo: &Arc<DigestMemo>) -> Result<OpenedModel, BoxError> {
    let on_its_way = arriving.clone();
    let wait: WaitForFile = Arc::new(move |name| Ok(on_its_way.wait(name)?));
    let files = ModelFiles::arriving(arriving.folder(), arriving.names(), &wait)?;
    let compute = digests_of(arriving.folder(), &files, memo);
    let on_its_way = arriving.clone();
    let digests = move || {
        if !on_its_way.finished()? {
            let place = on_its_way.folder().display().to_string();
            return Err(ModelStoreError::Superseded { place }.into());
        }
        Ok(compute()?)
    };
    Ok(OpenedModel { files, digests: Box::new(digests), arrival: Some(Arc::new(Transfer(arriving))) })
}

/// The transfer, as the engine looks at it.
struct Transfer(Arriving);

impl Arrival for Transfer {
    fn bytes(&self) -> Option<(u64, u64)> {
        self.0.progress().map(|fetched| (fetched.bytes_done, fetched.bytes_total))
    }

    fn settle(&self) -> Result<bool, BoxError> {
        Ok(self.0.finished()?)
    }
}
