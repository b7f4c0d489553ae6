//! `/` and `/status`: how the service does, for people. The page is one file without anything from elsewhere, and asks
//! `/status` every two seconds.

use super::App;
use super::error::ApiError;
use crate::monitor::{self, Failed, Point, model_name};
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use nexus_engine::{ModelState, ReplicaState};
use nexus_storage::{CacheStats, Circuit};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};

/// Nothing but what is in the page, and this service.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page, with its style and scripts put where it names them.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("status_page/page.html")
        .replace(
            r#"<link rel="stylesheet" href="page.css">"#,
            concat!("<style>\n", include_str!("status_page/page.css"), "</style>"),
        )
        .replace(
            r#"<script src="chart.js"></script>"#,
            concat!("<script>\n", include_str!("status_page/chart.js"), "</script>"),
        )
        .replace(
            r#"<script src="page.js"></script>"#,
            concat!("<script>\n", include_str!("status_page/page.js"), "</script>"),
        )
});

/// `GET /`.
pub(super) async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE.as_str())
}

/// How the service does: what the page at `/` shows. Not a contract: fields may come and go. `/metrics` is one.
#[utoipa::path(
    get,
    path = "/status",
    tag = "service",
    operation_id = "status",
    responses(
        (status = 200, description = "Models, devices, load, cache, recent errors, and the last minutes.", body = Object),
        (status = 401, description = "The service asks for API keys, and none came with the request, or a wrong one.", body = super::error::ErrorDetail),
    ),
)]
pub(super) async fn status(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    // It asks devices for their memory.
    tokio::task::spawn_blocking(move || Json(look(&app))).await.map_err(|_| ApiError::internal())
}

fn look(app: &App) -> Value {
    let (requests, failed, rejected, tokens) = app.monitor.totals();
    let (status, detail) = app.readiness();
    let queue = app.queue.as_ref();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": app.monitor.uptime().as_secs_f64(),
        "status": status,
        "detail": detail,
        "models": models(app),
        "replicas": replicas(app),
        "load": {
            "requests_in_flight": app.requests.held(),
            "requests_max": app.requests.max(),
            "queue_tokens": queue.map_or(0, |queue| queue.tokens()),
            "queue_tokens_max": queue.map_or(0, |queue| queue.tokens_max()),
            "bodies_bytes": app.bodies.held(),
            "bodies_bytes_max": app.bodies.max(),
            "connections": app.connections.open(),
            "connections_max": app.connections.max(),
        },
        "cache": app.cache.as_ref().map(|cache| cache_of(cache.name(), cache.stats())),
        "totals": { "requests": requests, "failed": failed, "rejected": rejected, "tokens": tokens },
        "errors": app.monitor.recent().iter().map(|failed| error(failed)).collect::<Vec<_>>(),
        "series": {
            "every_ms": monitor::EVERY.as_millis() as u64,
            "points": app.monitor.points().iter().map(point).collect::<Vec<_>>(),
        },
    })
}

fn models(app: &App) -> Vec<Value> {
    let model = |it: nexus_engine::ModelStatus| {
        let (status, detail, done, total) = match it.state {
            ModelState::Ready => ("ready", None, None, None),
            ModelState::Failed { reason } => ("failed", Some(reason), None, None),
            ModelState::Loading { stage, bytes_done, bytes_total } => {
                let known = bytes_total > 0;
                ("loading", Some(stage.to_owned()), known.then_some(bytes_done), known.then_some(bytes_total))
            }
        };
        json!({
            "kind": model_name(it.role),
            "name": it.source,
            "status": status,
            "detail": detail,
            "revision": it.revision.map(|revision| revision.to_string()),
            "loaded_bytes": done,
            "total_bytes": total,
        })
    };
    app.models.status().into_iter().map(model).collect()
}

fn replicas(app: &App) -> Vec<Value> {
    let replicas = &app.models.replicas;
    let (memory, status) = (replicas.memory(), replicas.status());
    let ratios = app.monitor.busy_ratios(status.iter().map(|it| it.busy).collect());
    let replica = |(n, it): (usize, nexus_engine::ReplicaStatus)| {
        let (status, detail) = match it.state {
            ReplicaState::Loading => ("opening", None),
            ReplicaState::Serving => ("up", None),
            ReplicaState::Draining => ("draining", None),
            ReplicaState::Failed { reason } => ("failed", Some(reason)),
        };
        let memory = memory.get(n).copied().flatten();
        json!({
            "name": it.device,
            "replica": n,
            "status": status,
            "detail": detail,
            "batches": it.batches,
            "tokens": it.tokens,
            "busy_ratio": ratios.get(n),
            "memory_bytes": memory.map(|memory| memory.bytes),
            "memory_free_bytes": memory.map(|memory| memory.bytes_free),
        })
    };
    status.into_iter().enumerate().map(replica).collect()
}

fn cache_of(name: String, stats: CacheStats) -> Value {
    let breaker = match (stats.reads, stats.writes) {
        (Circuit::Open, _) | (_, Circuit::Open) => "open",
        (Circuit::HalfOpen, _) | (_, Circuit::HalfOpen) => "half_open",
        _ => "closed",
    };
    json!({
        "name": name,
        "entries": stats.entries,
        "hits": stats.hits,
        "misses": stats.misses,
        "failures": stats.read_failures + stats.write_failures,
        "timeouts": stats.read_timeouts,
        "dropped": stats.dropped,
        "writes_waiting": stats.waiting,
        "breaker": breaker,
    })
}

fn error(failed: &Failed) -> Value {
    let Failed { at_ms, request_id, client, method, path, status, detail } = failed;
    json!({
        "at_ms": at_ms,
        "request_id": request_id,
        "client": client.as_deref(),
        "method": method,
        "path": path,
        "status": status,
        "detail": detail,
    })
}

fn point(point: &Point) -> impl Serialize + use<> {
    let Point { at_ms, requests_per_s, failed_per_s, tokens_per_s, p50_ms, p95_ms } = *point;
    json!({
        "at_ms": at_ms,
        "requests_per_s": requests_per_s,
        "failed_per_s": failed_per_s,
        "tokens_per_s": tokens_per_s,
        "p50_ms": p50_ms,
        "p95_ms": p95_ms,
    })
}
