//! What operators see: `/metrics`, `/status`, `/`.

use super::{app, get, post, ready};
use crate::api_keys::{ApiKey, ApiKeys, digest_of};
use axum::http::StatusCode;
use nexus_engine::Models;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The value of a series.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().expect("a number")
}

#[tokio::test]
async fn requests_are_counted_by_route_method_and_status() {
    let app = ready();
    let embed = |text: &str| json!({ "control_id": "A", "text": text }).to_string();
    for text in ["x", "y", "overloaded", "broken"] {
        post(&app, "/api/v1/embed", embed(text)).await;
    }
    post(&app, "/api/v1/targets/a-name", "").await;
    get(&app, "/no/such/thing").await;
    super::method(&app, "BREW", "/api/v1/embed", "").await;
    let metrics = get(&app, "/metrics").await;
    assert_eq!(metrics.status, StatusCode::OK);
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    let text = metrics.text;
    let requests = |endpoint: &str, method: &str, status: u16| {
        let series =
            format!("nexus_http_requests_total{{endpoint=\"{endpoint}\",method=\"{method}\",status=\"{status}\"}}");
        value(&text, &series)
    };
    assert_eq!(requests("/api/v1/embed", "POST", 200), 2.0);
    assert_eq!(requests("/api/v1/embed", "POST", 503), 1.0);
    assert_eq!(requests("/api/v1/embed", "POST", 500), 1.0);
    assert_eq!(requests("/api/v1/embed", "other", 405), 1.0);
    assert_eq!(requests("/api/v1/targets/{name}", "POST", 405), 1.0, "names of clients are no labels");
    assert_eq!(requests("other", "GET", 404), 1.0);
    assert_eq!(value(&text, "nexus_http_request_duration_seconds_count{endpoint=\"/api/v1/embed\"}"), 5.0);
    assert_eq!(value(&text, "nexus_requests_rejected_total{reason=\"tokens\"}"), 1.0);
    assert_eq!(value(&text, "nexus_requests_rejected_total{reason=\"requests\"}"), 0.0);
    let serialized = "nexus_stage_duration_seconds_count{stage=\"serialize\",model=\"embedder\"}";
    assert_eq!(value(&text, serialized), 2.0);
    assert!(value(&text, "nexus_http_requests_in_flight_max") > 0.0);
    assert!(text.ends_with("# EOF\n"));

    // Every name is one of this service's, is declared once, and says what it is.
    let of = |what: &str| -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix(what)?.strip_prefix(' ')?.split(' ').next()).collect()
    };
    let (types, helps) = (of("# TYPE"), of("# HELP"));
    assert_eq!(types, helps);
    assert_eq!(types.len(), types.iter().collect::<BTreeSet<_>>().len());
    assert!(types.iter().all(|name| name.starts_with("nexus_")), "{types:?}");
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere_and_what_it_shows_comes_with_a_key() {
    let mut app = app(Models::default());
    let keys = ApiKeys::open(&[ApiKey { name: "ann".into(), digest: digest_of(b"a") }], None);
    Arc::get_mut(&mut app).expect("nobody else has it").keys = Some(Arc::new(keys.expect("no file").expect("keys")));
    let page = get(&app, "/").await;
    assert_eq!((page.status, page.header("content-type")), (StatusCode::OK, "text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    for elsewhere in ["http://", "https://", "src=\"//", "@import"] {
        let found = page.text.match_indices(elsewhere).map(|(at, _)| &page.text[at..(at + 60).min(page.text.len())]);
        // A namespace is a name, and asked for by nobody.
        let asked: Vec<_> = found.filter(|found| !found.contains("www.w3.org/2000/svg")).collect();
        assert!(asked.is_empty(), "{asked:?}");
    }
    for path in ["/status", "/metrics"] {
        assert_eq!(get(&app, path).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
}

#[tokio::test]
async fn the_status_has_what_went_wrong() {
    let app = ready();
    let embed = |text: &str| json!({ "control_id": "A", "text": text }).to_string();
    for text in ["x", "broken", "invalid", "overloaded"] {
        post(&app, "/api/v1/embed", embed(text)).await;
    }
    let status = get(&app, "/status").await.json();
    assert_eq!(status["status"], "ready");
    assert_eq!(status["totals"], json!({ "requests": 4, "failed": 2, "rejected": 1, "tokens": 0 }));
    let errors = status["errors"].as_array().expect("a list");
    let told: Vec<_> = errors.iter().map(|it| (it["status"].as_u64(), it["path"].as_str())).collect();
    // A wrong request is its client's business.
    assert_eq!(told, [(Some(503), Some("/api/v1/embed")), (Some(500), Some("/api/v1/embed"))]);
    assert!(errors[1]["detail"].as_str().is_some_and(|detail| detail.contains("component 3")), "{errors:?}");
    assert!(errors.iter().all(|it| it["request_id"].as_str().is_some_and(|id| !id.is_empty())));
}
