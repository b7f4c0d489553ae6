//! How many requests are worked on, and whose.

use super::{Answer, REQUESTS_MAX, app, get, ready, send};
use crate::api_keys::{ApiKey, ApiKeys, digest_of};
use crate::http::{App, router};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures::channel::mpsc::{UnboundedSender, unbounded};
use nexus_engine::Models;
use std::io;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

type Chunks = UnboundedSender<io::Result<String>>;

/// A request whose body does not come, and what would send it.
fn begin(app: &Arc<App>, key: Option<&str>) -> (Chunks, JoinHandle<Answer>) {
    let (sender, chunks) = unbounded();
    let mut request = Request::post("/api/v1/embed").header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let (request, app) = (request.body(Body::from_stream(chunks)).expect("a request"), Arc::clone(app));
    (sender, tokio::spawn(async move { send(&app, request).await }))
}

async fn held(app: &App, expected: usize) {
    let came = async {
        while app.requests.held() != expected {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    let came = tokio::time::timeout(std::time::Duration::from_secs(20), came).await;
    assert!(came.is_ok(), "{} for {expected}", app.requests.held());
}

#[tokio::test]
async fn what_is_beyond_is_refused_and_a_place_comes_back_however_a_request_ends() {
    let app = ready();
    let mut begun: Vec<_> = (0..REQUESTS_MAX).map(|_| begin(&app, None)).collect();
    held(&app, REQUESTS_MAX).await;
    let (_sender, refused) = begin(&app, None);
    let refused = refused.await.expect("an answer");
    assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "1"));
    assert!(refused.json()["detail"].as_str().is_some_and(|detail| detail.contains("too many requests")));
    // Who looks on is outside.
    for path in ["/health", "/ready", "/metrics", "/status", "/"] {
        assert_eq!(get(&app, path).await.status, StatusCode::OK, "{path}");
    }

    // A client that leaves, one whose body comes, and one whose body is wrong.
    let (_, leaver) = begun.pop().expect("one");
    leaver.abort();
    let (sender, answer) = begun.pop().expect("one");
    sender.unbounded_send(Ok(r#"{"control_id": "A", "text": "x"}"#.to_owned())).expect("read");
    drop(sender);
    assert_eq!(answer.await.expect("an answer").status, StatusCode::OK);
    let (sender, answer) = begun.pop().expect("one");
    sender.unbounded_send(Ok("nonsense".to_owned())).expect("read");
    drop(sender);
    assert_eq!(answer.await.expect("an answer").status, StatusCode::UNPROCESSABLE_ENTITY);
    held(&app, REQUESTS_MAX - 3).await;
    drop(begun);
    held(&app, 0).await;
}

#[tokio::test]
async fn a_response_that_is_not_read_holds_its_place() {
    let app = ready();
    let request = || Request::post("/api/v1/embed").body(Body::from(r#"{"control_id": "A", "text": "x"}"#));
    let response = router(Arc::clone(&app)).oneshot(request().expect("a request")).await.expect("an answer");
    assert_eq!((response.status(), app.requests.held()), (StatusCode::OK, 1));
    drop(response);
    assert_eq!(app.requests.held(), 0);
    let response = router(Arc::clone(&app)).oneshot(request().expect("a request")).await.expect("an answer");
    let _all = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("a body");
    assert_eq!(app.requests.held(), 0);
}

#[tokio::test]
async fn a_client_with_its_part_of_the_places_is_told_so_and_others_find_room() {
    let keys = [("ann", "a"), ("robot", "r")]
        .map(|(name, key)| ApiKey { name: name.into(), digest: digest_of(key.as_bytes()) });
    let keys = ApiKeys::open(&keys, None).expect("no file").expect("keys");
    let mut app = app(Models::default());
    Arc::get_mut(&mut app).expect("nobody else has it").keys = Some(Arc::new(keys));
    let _robots: Vec<_> = (0..REQUESTS_MAX / 2).map(|_| begin(&app, Some("r"))).collect();
    held(&app, REQUESTS_MAX / 2).await;
    let (_sender, refused) = begin(&app, Some("r"));
    let refused = refused.await.expect("an answer");
    assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "1"));
    assert!(refused.json()["detail"].as_str().is_some_and(|detail| detail.contains("this client")));
    let _ann = begin(&app, Some("a"));
    held(&app, REQUESTS_MAX / 2 + 1).await;
    // Without a key, nobody gets as far as a place.
    let (_sender, stranger) = begin(&app, None);
    assert_eq!(stranger.await.expect("an answer").status, StatusCode::UNAUTHORIZED);
    assert_eq!(app.monitor.recent()[0].client.as_deref(), Some("robot"));
}
