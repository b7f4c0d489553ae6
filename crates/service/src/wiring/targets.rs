//! The resident target sets that the settings ask for.

use super::cache_folder;
use crate::http::Resident;
use crate::settings::{HttpSettings, Settings};
use nexus_storage::{TargetOptions, TargetSets, TargetStore, error_chain};
use std::path::PathBuf;
use std::sync::Arc;

/// Copies of shared sets, in the folder of resident sets: what is this machine's own is never taken for a copy.
#[cfg(feature = "aws")]
const SHARED_FOLDER: &str = "shared";

/// Opens the folder of resident target sets, beside the start. Without it, everything else works.
pub fn open(http: &HttpSettings, settings: &Settings, resident: Arc<Resident>) {
    let folder = http.targets_dir.clone().or_else(|| Some(cache_folder(&settings.cache)?.join("targets")));
    let Some(folder) = folder else {
        resident.opened(Err("there is no folder for them; NEXUS_TARGETS_DIR names one".to_owned()));
        return;
    };
    let bytes_max = http.targets_bytes_max.get();
    match http.targets_place() {
        None => drop(tokio::task::spawn_blocking(move || open_local(folder, bytes_max, &resident))),
        #[cfg(feature = "aws")]
        Some((bucket, prefix)) => {
            let region = settings.models.aws_region.clone();
            let folder = folder.join(SHARED_FOLDER).join(place_digits(&bucket, &prefix));
            drop(tokio::spawn(open_shared(region, bucket, prefix, folder, bytes_max, resident)));
        }
        // Refused when the settings were checked.
        #[cfg(not(feature = "aws"))]
        Some(_) => resident.opened(Err("S3 is not in this build".to_owned())),
    }
}

/// Names the folder of copies after where they come from: sets of one bucket never stand in for another's.
#[cfg(feature = "aws")]
fn place_digits(bucket: &str, prefix: &str) -> String {
    let digest = nexus_storage::digest_bytes(&[("bucket", bucket.as_bytes()), ("prefix", prefix.as_bytes())]);
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn open_local(folder: PathBuf, bytes_max: u64, resident: &Resident) {
    let options = TargetOptions { bytes_max, ..TargetOptions::default() };
    let opened = TargetSets::open(&folder, options).map_err(|error| unavailable(&error));
    resident.opened(opened.map(|sets| Arc::new(sets) as Arc<dyn TargetStore>));
}

/// Logs why there are no target sets, and answers it for those who will ask for one.
fn unavailable(error: &dyn std::error::Error) -> String {
    let reason = error_chain(error);
    tracing::warn!(reason, "resident target sets are not available; NEXUS_TARGETS_DIR names another folder");
    reason
}

#[cfg(feature = "aws")]
async fn open_shared(
    region: String,
    bucket: String,
    prefix: String,
    folder: PathBuf,
    bytes_max: u64,
    resident: Arc<Resident>,
) {
    let config = nexus_storage::aws_config(&region).await;
    let open = move || nexus_storage::SharedTargets::open(&config, &bucket, &prefix, &folder, bytes_max);
    let opened = match tokio::task::spawn_blocking(open).await {
        Ok(opened) => opened.map_err(|error| unavailable(&error)),
        Err(error) => Err(unavailable(&error)),
    };
    match opened {
        Ok(sets) => {
            resident.opened(Ok(Arc::new(sets.clone())));
            sets.greet().await;
        }
        Err(reason) => resident.opened(Err(reason)),
    }
}
