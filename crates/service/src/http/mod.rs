//! The HTTP interface: one file for each endpoint, and what all of them share.
//!
//! Handlers read a body, check it, call the engine or `nexus-vectors`, and write the answer; nothing is computed here.
//!
//! Deliberately absent: TLS, metrics, limits for each client.

mod admin;
mod bearer;
mod body;
mod budget;
mod coding;
mod docs;
mod embed;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod health;
mod ingest;
mod keys;
mod observe;
mod openapi;
mod parts;
mod rerank;
mod retrieve;
mod revision;
pub mod server;
mod targets;
mod validate;

#[cfg(test)]
mod tests;

pub use admin::Admin;
pub use budget::Budget;
pub use openapi::document as openapi_document;
pub use targets::Resident;

use crate::api_keys::ApiKeys;
use crate::device_sets::DeviceSets;
use crate::settings::HttpSettings;
use crate::shutdown::Lifecycle;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Router, middleware};
use error::ApiError;
use nexus_engine::{Models, Reranker, Retriever, Role};
use std::sync::Arc;
use std::time::Duration;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

/// Smaller responses are sent as they are.
const COMPRESSED_BYTES_MIN: u16 = 1024;

/// What handlers need.
#[derive(Debug)]
pub struct App {
    /// The models, ready or on the way.
    pub models: Arc<Models>,
    /// Whether the end is near.
    pub lifecycle: Lifecycle,
    /// What a request may ask for.
    pub limits: Limits,
    /// The memory for bodies that are being read.
    pub bodies: Budget,
    /// Target sets that clients have sent to be kept.
    pub targets: Arc<Resident>,
    /// Those of them that are on a GPU.
    pub device_sets: Arc<DeviceSets>,
    /// Who may reload the models; nobody where there is no token.
    pub admin: Option<Admin>,
    /// Who may ask for anything else; everybody where there are no keys.
    pub keys: Option<Arc<ApiKeys>>,
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
    fn retriever(&self) -> Result<Arc<dyn Retriever>, ApiError> {
        self.models.retriever.get().map_err(|state| ApiError::not_ready(Role::Retriever, state))
    }

    fn reranker(&self) -> Result<Arc<dyn Reranker>, ApiError> {
        self.models.reranker.get().map_err(|state| ApiError::not_ready(Role::Reranker, state))
    }
}

/// All endpoints.
pub fn router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/api/v1/embed", post(embed::single))
        .route("/api/v1/embed/batch", post(embed::batch))
        .route("/api/v1/retrieve", post(retrieve::retrieve))
        .route("/api/v1/rerank", post(rerank::rerank))
        .route("/api/v1/targets", get(targets::list))
        .route("/api/v1/targets/{name}", get(targets::get).put(targets::put).delete(targets::delete))
        .merge(admin::routes(&app))
        .merge(docs::routes())
        .fallback(async || ApiError::refused(StatusCode::NOT_FOUND, "Not Found"))
        .method_not_allowed_fallback(async || ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"))
        .with_state(Arc::clone(&app))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), keys::ask));
    observed(routes, app)
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
