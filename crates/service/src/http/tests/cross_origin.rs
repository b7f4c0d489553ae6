//! Web pages of other origins.

use super::{Answer, app, send};
use crate::http::{App, Origins};
use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode};
use nexus_engine::Models;
use std::sync::Arc;

fn with(origins: Origins) -> Arc<App> {
    let mut app = app(Models::default());
    Arc::get_mut(&mut app).expect("nobody else has it").origins = origins;
    app
}

async fn ask(app: &Arc<App>, method: &str, origin: &str) -> Answer {
    let request = Request::builder().method(method).uri("/api/v1/embed").header("origin", origin);
    let request = request
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    send(app, request.body(Body::empty()).expect("a request")).await
}

#[tokio::test]
async fn no_page_of_another_origin_may_ask_unless_it_is_named() {
    let (ours, other) = ("https://console.example.com", "https://evil.example");
    let allowed = |answer: &Answer| answer.header("access-control-allow-origin").to_owned();

    let none = ask(&with(Origins::None), "OPTIONS", ours).await;
    assert_eq!((none.status, allowed(&none).as_str()), (StatusCode::METHOD_NOT_ALLOWED, ""));

    let app = with(Origins::These(vec![HeaderValue::from_static("https://console.example.com")]));
    let asked = ask(&app, "OPTIONS", ours).await;
    assert_eq!((asked.status, allowed(&asked).as_str()), (StatusCode::OK, ours));
    assert!(asked.header("access-control-allow-headers").contains("authorization"));
    assert_eq!(asked.header("access-control-allow-credentials"), "");
    assert_eq!(allowed(&ask(&app, "OPTIONS", other).await), "");
    assert_eq!(allowed(&ask(&app, "POST", other).await), "");
    // Errors can be read, too.
    let error = ask(&app, "POST", ours).await;
    assert!(error.status.is_client_error() && allowed(&error) == ours);
    assert!(error.header("access-control-expose-headers").contains("x-request-id"));

    assert_eq!(allowed(&ask(&with(Origins::Any), "POST", other).await), "*");
}
