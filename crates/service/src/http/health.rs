//! `/health`: the process listens. `/ready`: it does its job.

use super::App;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nexus_engine::{ModelState, ModelStatus, Outcome, ReloadState, ReplicaState, ReplicaStatus};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// The process listens.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    #[schema(example = "ok")]
    status: &'static str,
}

/// Whether all endpoints answer, and if not, what is missing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    /// `loading`, `ready`, `failed` or `stopping`.
    #[schema(example = "ready")]
    status: &'static str,
    /// Both models, the retriever first.
    models: Vec<ModelReadiness>,
    /// What runs them, one a device; empty until the devices are open.
    replicas: Vec<ReplicaReadiness>,
    /// Why nothing can be computed any more; the process ends then, to be replaced.
    detail: Option<String>,
}

/// Where one replica stands. The service is ready while each model has one that serves it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReplicaReadiness {
    /// The device.
    #[schema(example = "cpu (avx512, 8 threads)")]
    device: String,
    /// `loading`; `serving`: it has each model that serves; `draining`: a model is being replaced on it; `failed`: it was taken
    /// out, and the others go on.
    #[schema(example = "serving")]
    status: &'static str,
    /// Why it was taken out.
    detail: Option<String>,
}

impl From<ReplicaStatus> for ReplicaReadiness {
    fn from(ReplicaStatus { device, state, .. }: ReplicaStatus) -> Self {
        let (status, detail) = match state {
            ReplicaState::Loading => ("loading", None),
            ReplicaState::Serving => ("serving", None),
            ReplicaState::Draining => ("draining", None),
            ReplicaState::Failed { reason } => ("failed", Some(reason)),
        };
        Self { device, status, detail }
    }
}

/// Where one model stands.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelReadiness {
    /// `retriever` or `reranker`.
    #[schema(example = "retriever")]
    role: &'static str,
    /// Where the model comes from: `built-in embedder` and `built-in reranker`, a folder, or an address (`s3://`, `hf://`).
    #[schema(example = "built-in embedder")]
    source: String,
    /// `loading`, `ready` or `failed`.
    #[schema(example = "ready")]
    status: &'static str,
    /// What is being done, while it loads.
    #[schema(example = "reading weights")]
    stage: Option<&'static str>,
    /// How far, while it loads and that is known.
    bytes_done: Option<u64>,
    /// Out of how many, while it loads and that is known.
    bytes_total: Option<u64>,
    /// What went wrong, when it failed.
    detail: Option<String>,
    /// Which revision of it answers: what `x-nexus-model-revision` says.
    #[schema(example = "9f86d081884c")]
    revision: Option<String>,
    /// How the last reload went, if there was one. Whatever it says, the revision that serves goes on serving.
    reload: Option<ReloadReadiness>,
}

/// Where the last reload of a model stands.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReloadReadiness {
    /// `loading`, `swapped`, `unchanged` or `failed`.
    #[schema(example = "swapped")]
    status: &'static str,
    /// What is being done, while it loads.
    #[schema(example = "preparing weights")]
    stage: Option<&'static str>,
    /// How far, while it loads and that is known.
    bytes_done: Option<u64>,
    /// Out of how many, while it loads and that is known.
    bytes_total: Option<u64>,
    /// What went wrong, when it failed.
    detail: Option<String>,
}

impl From<ModelStatus> for ModelReadiness {
    fn from(ModelStatus { role, source, state, revision, reload }: ModelStatus) -> Self {
        let blank = Self {
            role: role.name(),
            source,
            status: "ready",
            stage: None,
            bytes_done: None,
            bytes_total: None,
            detail: None,
            revision: revision.map(|revision| revision.to_string()),
            reload: reload.map(ReloadReadiness::from),
        };
        match state {
            ModelState::Ready => blank,
            ModelState::Failed { reason } => Self { status: "failed", detail: Some(reason), ..blank },
            ModelState::Loading { stage, bytes_done, bytes_total } => {
                let known = bytes_total > 0;
                Self {
                    status: "loading",
                    stage: Some(stage),
                    bytes_done: known.then_some(bytes_done),
                    bytes_total: known.then_some(bytes_total),
                    ..blank
                }
            }
        }
    }
}

impl From<ReloadState> for ReloadReadiness {
    fn from(state: ReloadState) -> Self {
        let ended = |outcome: Outcome, detail| Self {
            status: outcome.name(),
            stage: None,
            bytes_done: None,
            bytes_total: None,
            detail,
        };
        match state {
            ReloadState::Swapped => ended(Outcome::Swapped, None),
            ReloadState::Unchanged => ended(Outcome::Unchanged, None),
            ReloadState::Failed { reason } => ended(Outcome::Failed, Some(reason)),
            ReloadState::Loading { stage, bytes_done, bytes_total } => {
                let known = bytes_total > 0;
                Self {
                    status: "loading",
                    stage: Some(stage),
                    bytes_done: known.then_some(bytes_done),
                    bytes_total: known.then_some(bytes_total),
                    detail: None,
                }
            }
        }
    }
}

/// Liveness: 200 as soon as the process listens, whether models are there or not.
#[utoipa::path(
    get,
    path = "/health",
    tag = "service",
    security(()),
    operation_id = "health",
    responses((status = 200, description = "The process listens.", body = Health)),
)]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Readiness: 200 when both models are loaded; until then 503 with what is loading and how far, and 503 with the reason
/// when loading failed, or when no device is left. A device that fails is named in `replicas`, and the others go on. 503, too, from the moment when the process was told to stop.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "service",
    security(()),
    operation_id = "ready",
    responses(
        (status = 200, description = "All endpoints answer.", body = Readiness),
        (status = 503, description = "Models are loading, or failed to load, or the process is stopping.", body = Readiness),
    ),
)]
pub(super) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Readiness>) {
    let models: Vec<ModelReadiness> = app.models.status().into_iter().map(ModelReadiness::from).collect();
    let replicas = app.models.replicas.status().into_iter().map(ReplicaReadiness::from).collect();
    let (status, detail) = app.readiness();
    let code = if status == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Readiness { status, models, replicas, detail }))
}
