//! The endpoints over fakes of both models, without a socket.

mod admission;
mod compact;
mod cross_origin;
mod fakes;
mod hits;
mod keys;
mod refusals;
mod seen;
mod shape;
mod target_sets;

use super::{App, Budget, Connections, Limits, Origins, router};
use crate::shutdown::Lifecycle;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use nexus_engine::Models;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt as _;

/// Requests that are worked on at once.
const REQUESTS_MAX: usize = 8;

/// Room for one of the largest bodies, and a part of another.
const BODIES_BYTES_MAX: usize = 13_000;

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

fn app(models: Models) -> Arc<App> {
    Arc::new(App {
        models: Arc::new(models),
        lifecycle: Lifecycle::default(),
        limits: Limits {
            body_bytes_max: 10_000,
            text_body_bytes_max: 5_000,
            batch_items_max: 8,
            request_timeout: Duration::from_millis(500),
        },
        requests: Budget::new(REQUESTS_MAX),
        bodies: Budget::new(BODIES_BYTES_MAX),
        connections: Connections::new(1),
        monitor: Arc::default(),
        queue: None,
        cache: None,
        origins: Origins::default(),
        targets: Arc::default(),
        device_sets: Arc::default(),
        admin: None,
        keys: None,
    })
}

fn ready() -> Arc<App> {
    let models = Models::default();
    models.retriever.ready(Arc::new(fakes::Retriever::default()));
    models.reranker.ready(Arc::new(fakes::Reranker::default()));
    app(models)
}

async fn send(app: &Arc<App>, request: Request<Body>) -> Answer {
    let response = router(Arc::clone(app)).oneshot(request).await.expect("the router never fails");
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.expect("a body");
    Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).expect("UTF-8") }
}

async fn method(app: &Arc<App>, method: &str, path: &str, body: impl Into<Body>) -> Answer {
    send(app, Request::builder().method(method).uri(path).body(body.into()).expect("a request")).await
}

async fn get(app: &Arc<App>, path: &str) -> Answer {
    send(app, Request::get(path).body(Body::empty()).expect("a request")).await
}

async fn post(app: &Arc<App>, path: &str, body: impl Into<Body>) -> Answer {
    let request = Request::post(path).header("content-type", "application/json").body(body.into());
    send(app, request.expect("a request")).await
}
