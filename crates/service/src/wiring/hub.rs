//! Models of a model hub, as the settings ask for them.

use super::models::open_folder;
use super::models_folder;
use crate::settings::{ModelSettings, Settings};
use nexus_engine::ModelSource;
use nexus_storage::{DigestMemo, HubModels, HubName, HubOptions, ModelStore as _};
use std::sync::Arc;
use tokio::runtime::Handle;

/// The hub that the settings name, or what is wrong with them; one line.
pub fn store(settings: &Settings) -> Result<HubModels, String> {
    let folder = models_folder(settings).ok_or("there is no folder for downloads; NEXUS_MODELS_DIR names one")?;
    let ModelSettings { hf_endpoint, hf_token, .. } = &settings.models;
    let options = HubOptions { endpoint: hf_endpoint.clone(), token: hf_token.clone(), ..HubOptions::new(folder) };
    HubModels::new(options).map_err(|error| error.to_string())
}

/// The source of the model `path`, if that is a repository of a hub.
pub(super) fn model(settings: &Settings, path: &str, memo: &Arc<DigestMemo>) -> Option<ModelSource> {
    let repository = settings.models.hub_name(path)?.to_owned();
    let name = HubName::parse(&repository).map_or_else(|_| repository.clone(), |name| name.to_string());
    let (settings, memo) = (settings.clone(), Arc::clone(memo));
    let runtime = Handle::current();
    let open = move |progress: nexus_engine::Progress<'_>| {
        let store = store(&settings)?;
        let fetch = async {
            let fetching = |fetched: nexus_storage::FetchProgress| {
                progress("fetching", fetched.bytes_done, fetched.bytes_total);
            };
            store.fetch(&repository, &fetching).await
        };
        let folder = runtime.block_on(fetch)?;
        open_folder(&folder, &memo)
    };
    Some(ModelSource { name, open: Arc::new(open) })
}
