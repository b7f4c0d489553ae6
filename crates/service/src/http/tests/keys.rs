//! API keys at the endpoints.

use super::{Answer, app, send};
use crate::api_keys::{ApiKey, ApiKeys, digest_of};
use crate::http::App;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use nexus_engine::Models;
use std::sync::Arc;

fn guarded() -> Arc<App> {
    let keys = [("ann", "a"), ("robot", "r")]
        .map(|(name, key)| ApiKey { name: name.into(), digest: digest_of(key.as_bytes()) });
    let keys = ApiKeys::open(&keys, None).expect("no file").expect("keys");
    let mut app = app(Models::default());
    Arc::get_mut(&mut app).expect("nobody else has it").keys = Some(Arc::new(keys));
    app
}

async fn ask(app: &Arc<App>, path: &str, authorization: Option<&str>) -> Answer {
    let mut request = Request::get(path);
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    send(app, request.body(Body::empty()).expect("a request")).await
}

#[tokio::test]
async fn nothing_but_probes_is_answered_without_a_key() {
    let app = guarded();
    for path in ["/api/v1/targets", "/api/v1/embed", "/openapi.json", "/docs", "/nowhere", "/health/", "//health"] {
        for (wrong, says) in
            [(None, "asks for an API key"), (Some("Bearer b"), "not one of"), (Some("Basic a"), "asks for")]
        {
            let answer = ask(&app, path, wrong).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path} {wrong:?}");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            assert!(answer.json()["detail"].as_str().expect("a sentence").contains(says), "{}", answer.text);
            assert!(!answer.header("x-request-id").is_empty());
        }
    }
    assert_eq!(ask(&app, "/health", None).await.status, StatusCode::OK);
    assert_eq!(ask(&app, "/ready", None).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn every_key_opens_every_endpoint() {
    let app = guarded();
    for key in ["Bearer a", "bearer r"] {
        assert_eq!(ask(&app, "/openapi.json", Some(key)).await.status, StatusCode::OK);
        assert_eq!(ask(&app, "/nowhere", Some(key)).await.status, StatusCode::NOT_FOUND);
    }
}
