//! Resident target sets on a GPU, if the settings give them memory there.

use super::devices;
use super::gpu::{self, GpuOptions};
use super::kernel_cache;
use crate::device_sets::DeviceSets;
use crate::settings::{HttpSettings, Settings};
use std::sync::Arc;

/// Opens the first of the GPUs that run the models a second time, in the background: with a stream of its own, so that a search
/// does not wait for a batch. Whatever stops that is logged, and the CPU searches.
pub fn open(http: &HttpSettings, settings: &Settings, sets: Arc<DeviceSets>) {
    let Some(bytes_max) = http.targets_device_bytes_max else { return };
    let options = GpuOptions { kernel_cache: kernel_cache(settings), graph_tokens_max: 0 };
    let engine = settings.engine.clone();
    let work = move || {
        let Some(ordinal) = devices::first_gpu(&engine) else {
            tracing::warn!("NEXUS_TARGETS_DEVICE_BYTES_MAX is set, and there is no GPU: the CPU searches target sets");
            return;
        };
        let opened = gpu::open(ordinal, &options).map_err(|error| error.to_string());
        match opened.and_then(|device| gpu::prove(&device).map(|()| device)) {
            Ok(device) => sets.open(device, bytes_max.get()),
            Err(error) => tracing::warn!(error, "target sets are searched on the CPU: no second hold of the GPU"),
        }
    };
    if let Err(error) = std::thread::Builder::new().name("open-search".into()).spawn(work) {
        tracing::warn!(%error, "target sets are searched on the CPU: no thread");
    }
}
