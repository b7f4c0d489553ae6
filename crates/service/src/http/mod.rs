//! The HTTP interface: one file for each endpoint, and what all of them share.
//!
//! Handlers read a body, check it, call the engine or `nexus-vectors`, and write the answer; nothing is computed here.
//!
//! Deliberately absent: what is counted (`crate::monitor`), and keys (`crate::api_keys`).

mod admin;
mod admission;
mod bearer;
mod body;
mod budget;
mod coding;
mod connections;
mod cross_origin;
mod docs;
mod embed;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod health;
mod held;
mod ingest;
mod keys;
mod metrics;
mod observe;
mod openapi;
mod parts;
mod rerank;
mod retrieve;
mod revision;
pub mod server;
mod status;
mod targets;
pub mod tls;
mod validate;

#[cfg(test)]
mod tests;

pub use admin::Admin;
pub use budget::Budget;
pub use connections::Connections;
pub use cross_origin::Origins;
pub use error::Rejection;
pub use openapi::document as openapi_document;
pub use targets::Resident;

use crate::api_keys::ApiKeys;
use crate::device_sets::DeviceSets;
use crate::monitor::Monitor;
use crate::settings::HttpSettings;
use crate::shutdown::Lifecycle;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Router, middleware};
use error::ApiError;
use nexus_engine::{ModelState, Models, QueueView, Reranker, Retriever, Role};
use nexus_storage::EmbeddingCache;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

/// Smaller responses are sent as they are.
const COMPRESSED_BYTES_MIN: u16 = 1024;

/// What handlers need.
pub struct App {
    /// The models, ready or on the way.
    pub models: Arc<Models>,
    /// Whether the end is near.
    pub lifecycle: Lifecycle,
    /// What a request may ask for.
    pub limits: Limits,
    /// The requests that are worked on.
    pub requests: Budget,
    /// The memory for bodies that are being read.
    pub bodies: Budget,
    /// The connections that are open.
    pub connections: Connections,
    /// What is counted.
    pub monitor: Arc<Monitor>,
    /// What waits for devices, where there are any.
    pub queue: Option<QueueView>,
    /// Where embeddings are kept.
    pub cache: Option<Arc<dyn EmbeddingCache>>,
    /// Target sets that clients have sent to be kept.
    pub targets: Arc<Resident>,
    /// Those of them that are on a GPU.
    pub device_sets: Arc<DeviceSets>,
    /// Who may reload the models; nobody where there is no token.
    pub admin: Option<Admin>,
    /// Who may ask for anything else; everybody where there are no keys.
    pub keys: Option<Arc<ApiKeys>>,
    /// Web pages of which other origins may ask.
    pub origins: Origins,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What a request may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes in the body of a retrieve request.
    pub body_bytes_max: usize,
    /// Bytes in any other body.
    pub text_body_bytes_max: usize,
    /// Items of a batch, candidates of a rerank.
    pub batch_items_max: usize,
    /// Time for one request.
    pub request_timeout: Duration,
}

impl From<&HttpSettings> for Limits {
    fn from(settings: &HttpSettings) -> Self {
        Self {
            body_bytes_max: settings.body_bytes_max.as_usize(),
            text_body_bytes_max: settings.text_body_bytes_max.as_usize(),
            batch_items_max: settings.batch_items_max.get(),
            request_timeout: settings.request_timeout(),
        }
    }
}

impl App {
    /// In one word, and with the reason where it is known: `ready`, `loading`, `failed` or `stopping`.
    fn readiness(&self) -> (&'static str, Option<String>) {
        let failure = self.models.replicas.failure();
        let states = || self.models.status().into_iter().map(|model| model.state);
        let status = if failure.is_some() {
            "failed"
        } else if self.lifecycle.is_stopping() {
            "stopping"
        } else if states().any(|state| matches!(state, ModelState::Failed { .. })) {
            "failed"
        } else if states().any(|state| matches!(state, ModelState::Loading { .. })) {
            "loading"
        } else {
            "ready"
        };
        (status, failure)
    }

    fn retriever(&self) -> Result<Arc<dyn Retriever>, ApiError> {
        self.models.retriever.get().map_err(|state| ApiError::not_ready(Role::Retriever, state))
    }

    fn reranker(&self) -> Result<Arc<dyn Reranker>, ApiError> {
        self.models.reranker.get().map_err(|state| ApiError::not_ready(Role::Reranker, state))
    }
}

/// All endpoints.
pub fn router(app: Arc<App>) -> Router {
    let work = Router::new()
        .route("/api/v1/embed", post(embed::single))
        .route("/api/v1/embed/batch", post(embed::batch))
        .route("/api/v1/retrieve", post(retrieve::retrieve))
        .route("/api/v1/rerank", post(rerank::rerank))
        .route("/api/v1/targets", get(targets::list))
        .route("/api/v1/targets/{name}", get(targets::get).put(targets::put).delete(targets::delete))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&app), admission::admit));
    let routes = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/", get(status::page))
        .route("/status", get(status::status))
        .route("/metrics", get(metrics::metrics))
        .merge(work)
        .merge(admin::routes(&app))
        .merge(docs::routes())
        .fallback(async || ApiError::refused(StatusCode::NOT_FOUND, "Not Found"))
        .method_not_allowed_fallback(async || ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"))
        .with_state(Arc::clone(&app))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), keys::ask));
    let origins = app.origins.clone();
    // Outermost, so that a page may read every refusal.
    origins.allow(observed(routes, app))
}

/// `routes` with what happens around every request: an id, a log line, a time limit, a net under panics, and compression
/// for who asks for it.
pub fn observed(routes: Router, app: Arc<App>) -> Router {
    routes.layer(compression()).layer(middleware::from_fn_with_state(app, observe::observe))
}

/// Responses are compressed for clients that ask for it, fast rather than well: what is large is numbers, which do not
/// shrink much.
fn compression() -> CompressionLayer<SizeAbove> {
    CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(SizeAbove::new(COMPRESSED_BYTES_MIN))
}
