//! `/admin/reload`: new revisions of the models, for who has the token. Without a token in the settings there is no such
//! endpoint.
//!
//! Deliberately absent: users and roles. Whoever may not have the token is kept off by the network.

use super::error::{ApiError, ErrorDetail};
use super::{App, bearer};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router, routing::post};
use nexus_engine::{Outcome, ReloadRefused, Reloaded, Reloader};
use nexus_storage::digest_bytes;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// Where it is.
pub(super) const PATH: &str = "/admin/reload";

/// Time for a reload, instead of the time for one request: a large model from far away takes minutes. Beyond it the
/// answer is 504, and the reload goes on.
pub(super) const TIME_MAX: Duration = Duration::from_secs(3600);

/// After how long to ask again when a reload can not begin.
const RETRY_AFTER_S: u64 = 5;

/// Who may ask, and what they may ask for.
pub struct Admin {
    /// Of the token. Digests are of one length, and comparing them tells nothing of how much of a token is right.
    digest: [u8; 32],
    reloader: Reloader,
}

impl Admin {
    /// Lets who has `token` reload.
    pub fn new(token: &str, reloader: Reloader) -> Self {
        Self { digest: digest(token.trim().as_bytes()), reloader }
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        bearer::token(headers).is_some_and(|token| bearer::same(&digest(token), &self.digest))
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    digest_bytes(&[("admin token", token)])
}

/// The route, where `app` has an [`Admin`].
pub(super) fn routes(app: &App) -> Router<Arc<App>> {
    if app.admin.is_some() { Router::new().route(PATH, post(reload)) } else { Router::new() }
}

/// What came of a reload.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReloadResponse {
    /// Both models, the retriever first.
    models: Vec<ModelReload>,
}

/// What came of the reload of one model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelReload {
    /// `retriever` or `reranker`.
    #[schema(example = "retriever")]
    role: &'static str,
    /// `swapped`: a new revision answers. `unchanged`: the content is what it was. `failed`: what answered before still
    /// does.
    #[schema(example = "swapped")]
    outcome: &'static str,
    /// The revision that answers now, if one does.
    #[schema(example = "9f86d081884c")]
    revision: Option<String>,
    /// What went wrong, when it failed.
    detail: Option<String>,
}

impl From<Reloaded> for ModelReload {
    fn from(Reloaded { role, outcome, revision, detail }: Reloaded) -> Self {
        let revision = revision.map(|revision| revision.to_string());
        Self { role: role.name(), outcome: outcome.name(), revision, detail }
    }
}

/// Loads both models anew from where they came from, and puts new revisions in the place of the old ones without failing
/// a request. Answers when it is done. There only where NEXUS_ADMIN_TOKEN is set; SIGHUP does the same without a token.
#[utoipa::path(
    post,
    path = "/admin/reload",
    tag = "service",
    operation_id = "reload",
    security(("admin_token" = [])),
    responses(
        (status = 200, description = "Every model is swapped or unchanged.", body = ReloadResponse),
        (status = 401, description = "The token is missing or wrong.", body = ErrorDetail),
        (status = 404, description = "NEXUS_ADMIN_TOKEN is not set.", body = ErrorDetail),
        (status = 409, description = "A reload is running, or the first loading is not over.", body = ErrorDetail),
        (
            status = 500,
            description = "A model could not be reloaded; what answered before still does.",
            body = ReloadResponse,
        ),
        (status = 503, description = "The service is shutting down.", body = ErrorDetail),
        (status = 504, description = "It has taken an hour, and goes on; /ready tells how far it is.", body = ErrorDetail),
    ),
)]
pub(super) async fn reload(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let Some(admin) = &app.admin else { return Err(ApiError::refused(StatusCode::NOT_FOUND, "Not Found")) };
    if !admin.admits(&headers) {
        tracing::warn!("a reload was asked for without the right token");
        let detail = "Unauthorized: send `Authorization: Bearer` with the value of NEXUS_ADMIN_TOKEN";
        let mut response = ApiError::refused(StatusCode::UNAUTHORIZED, detail).into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return Ok(response);
    }
    let reload = admin.reloader.reload();
    let reloaded = tokio::select! {
        reloaded = reload => reloaded,
        // The process does not wait for a model that nobody will use.
        () = app.lifecycle.stopped() => Err(ReloadRefused::ShuttingDown),
    };
    let reloaded = reloaded.map_err(|refused| {
        let detail = refused.to_string();
        match refused {
            ReloadRefused::Running | ReloadRefused::Loading => ApiError::refused(StatusCode::CONFLICT, detail),
            ReloadRefused::ShuttingDown | ReloadRefused::NoThread(_) => ApiError::unavailable(detail, RETRY_AFTER_S),
        }
    })?;
    let failed = reloaded.iter().any(|model| model.outcome == Outcome::Failed);
    let status = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    Ok((status, Json(ReloadResponse { models: reloaded.map(ModelReload::from).into() })).into_response())
}
