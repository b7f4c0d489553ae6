//! The resident target sets that the settings ask for.

use super::cache_folder;
use crate::http::Resident;
use crate::settings::{CacheSettings, HttpSettings};
use nexus_storage::{TargetOptions, TargetSets};
use std::sync::Arc;

/// Opens the folder of resident target sets, beside the start. Without it, everything else works.
pub fn open(http: &HttpSettings, cache: &CacheSettings, resident: Arc<Resident>) {
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
