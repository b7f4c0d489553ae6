//! What is answered when all is well.

use super::{app, fakes, get, post, ready, send};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use nexus_engine::{Models, ReloadState};
use serde_json::{Value, json};
use std::sync::Arc;

#[tokio::test]
async fn embed_has_exactly_its_keys() {
    let app = ready();
    let answer = post(&app, "/api/v1/embed", r#"{"control_id": "A\n\"1\"", "text": "abc", "unknown": [1]}"#).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.text, r#"{"control_id":"A\n\"1\"","embedding":[3.0,0.0,0.1,4.0],"cache_hit":false}"#);
    assert_eq!(answer.header("content-type"), "application/json");
    let answer = post(&app, "/api/v1/embed", r#"{"control_id": "", "text": "hit"}"#).await;
    assert_eq!(answer.json()["cache_hit"], true);
}

#[tokio::test]
async fn embed_options() {
    for (options, expected) in [
        (json!({ "instruction": "find" }), json!([1.0, 4.0, 0.1, 4.0])),
        (json!({ "instruction": "" }), json!([1.0, 0.0, 0.1, 4.0])),
        (json!({ "instruction": null, "dimensions": null, "encoding_format": null }), json!([1.0, 0.0, 0.1, 4.0])),
        (json!({ "dimensions": 2 }), json!([1.0, 0.0])),
        (json!({ "dimensions": 2, "encoding_format": "float" }), json!([1.0, 0.0])),
        (json!({ "dimensions": 2, "encoding_format": "base64" }), json!("AACAPwAAAAA=")),
    ] {
        let mut body = options;
        body["control_id"] = json!("A");
        body["text"] = json!("x");
        let answer = post(&ready(), "/api/v1/embed", body.to_string()).await;
        assert_eq!(answer.json()["embedding"], expected, "{body}");
    }
}

#[tokio::test]
async fn a_batch_keeps_its_order_and_an_items_own_options_win() {
    let body = json!({
        "items": [
            { "control_id": "A", "text": "aaa" },
            { "control_id": "B", "text": "hit", "dimensions": 1, "encoding_format": "float" },
            { "control_id": "C", "text": "c", "instruction": "find" },
        ],
        "dimensions": 2,
        "encoding_format": "base64",
    });
    let answer = post(&ready(), "/api/v1/embed/batch", body.to_string()).await;
    assert_eq!(
        answer.json(),
        json!({ "results": [
            { "control_id": "A", "embedding": "AABAQAAAAAA=", "cache_hit": false },
            { "control_id": "B", "embedding": [3.0], "cache_hit": true },
            { "control_id": "C", "embedding": "AACAPwAAgEA=", "cache_hit": false },
        ] })
    );
    let answer = post(&ready(), "/api/v1/embed/batch", r#"{"items": []}"#).await;
    assert_eq!(answer.text, r#"{"results":[]}"#);
}

#[tokio::test]
async fn rerank_sorts_stably() {
    let candidates: Vec<Value> = [("A", "10"), ("B", "93"), ("C", "10"), ("D", "50")]
        .map(|(id, text)| json!({ "control_id": id, "text": text }))
        .into();
    let mut body = json!({ "source_text": "s", "candidates": candidates });
    let answer = post(&ready(), "/api/v1/rerank", body.to_string()).await;
    assert_eq!(
        answer.text,
        concat!(
            r#"{"rankings":[{"control_id":"B","score":0.93},{"control_id":"D","score":0.5},"#,
            r#"{"control_id":"A","score":0.1},{"control_id":"C","score":0.1}]}"#
        )
    );
    body["top_n"] = json!(1);
    let answer = post(&ready(), "/api/v1/rerank", body.to_string()).await;
    assert_eq!(answer.text, r#"{"rankings":[{"control_id":"B","score":0.93}]}"#);
    let answer = post(&ready(), "/api/v1/rerank", r#"{"source_text": "s", "candidates": []}"#).await;
    assert_eq!(answer.text, r#"{"rankings":[]}"#);
}

#[tokio::test]
async fn retrieve_needs_no_model() {
    let app = app(Models::default());
    let mut body = json!({ "source_embedding": [2, 0], "target_embeddings": [[0, 1], [3, 0], [1, 0], [1, 1]] });
    let answer = post(&app, "/api/v1/retrieve", body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let ids: Vec<Value> =
        answer.json()["candidates"].as_array().expect("a list").iter().map(|c| c["control_id"].clone()).collect();
    assert_eq!(ids, ["1", "2", "3", "0"]);
    body["target_ids"] = json!(["a", "b", "c", "d"]);
    body["top_k"] = json!(2);
    let answer = post(&app, "/api/v1/retrieve", body.to_string()).await;
    assert_eq!(
        answer.text,
        r#"{"candidates":[{"control_id":"b","similarity":1.0},{"control_id":"c","similarity":1.0}]}"#
    );
    let answer = post(&app, "/api/v1/retrieve", r#"{"source_embedding": [1], "target_embeddings": []}"#).await;
    assert_eq!(answer.text, r#"{"candidates":[]}"#);
}

#[tokio::test]
async fn ready_tells_what_is_missing() {
    let models = Models { retriever_source: "built-in embedder".to_owned(), ..Models::default() };
    models.retriever.loading("reading weights", 12, 40);
    let app = app(models);
    assert_eq!(get(&app, "/health").await.text, r#"{"status":"ok"}"#);
    let answer = get(&app, "/ready").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json()["status"], "loading");
    assert_eq!(
        answer.json()["models"][0],
        json!({
            "role": "retriever", "source": "built-in embedder", "status": "loading", "stage": "reading weights",
            "bytes_done": 12, "bytes_total": 40, "detail": null, "revision": null, "reload": null,
        })
    );

    app.models.reranker.failed("/m/config.json: no such file".to_owned());
    let answer = get(&app, "/ready").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json()["status"], "failed");
    assert_eq!(answer.json()["models"][1]["detail"], "/m/config.json: no such file");
}

#[tokio::test]
async fn a_reload_shows_and_does_not_make_unready() {
    let app = ready();
    let empty = json!({ "stage": null, "bytes_done": null, "bytes_total": null, "detail": null });
    let reason = "tensor norm.weight is missing".to_owned();
    for (state, changed) in [
        (
            ReloadState::Loading { stage: "fetching", bytes_done: 1, bytes_total: 2 },
            json!({ "status": "loading", "stage": "fetching", "bytes_done": 1, "bytes_total": 2 }),
        ),
        (ReloadState::Failed { reason: reason.clone() }, json!({ "status": "failed", "detail": reason })),
        (ReloadState::Unchanged, json!({ "status": "unchanged" })),
        (ReloadState::Swapped, json!({ "status": "swapped" })),
    ] {
        let mut expected = empty.clone();
        expected.as_object_mut().expect("an object").extend(changed.as_object().expect("an object").clone());
        app.models.retriever.reloading(state);
        let answer = get(&app, "/ready").await;
        assert_eq!((answer.status, answer.json()["models"][0]["status"].as_str()), (StatusCode::OK, Some("ready")));
        assert_eq!(answer.json()["models"][0]["reload"], expected);
    }
}

#[tokio::test]
async fn ready_says_no_once_stopping() {
    let app = ready();
    let answer = get(&app, "/ready").await;
    assert_eq!((answer.status, answer.json()["status"].as_str()), (StatusCode::OK, Some("ready")));
    app.lifecycle.stop();
    let answer = get(&app, "/ready").await;
    assert_eq!((answer.status, answer.json()["status"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("stopping")));
    assert_eq!(answer.header("connection"), "close");
    assert_eq!(get(&app, "/health").await.status, StatusCode::OK);
}

#[tokio::test]
async fn every_response_has_a_request_id() {
    let app = ready();
    let own = get(&app, "/health").await;
    let other = get(&app, "/none").await;
    assert!(!own.header("x-request-id").is_empty());
    assert_ne!(own.header("x-request-id"), other.header("x-request-id"));
    for (sent, kept) in [("abc-123", true), ("two words", false), (&"x".repeat(129), false)] {
        let request = Request::get("/health").header("x-request-id", sent).body(Body::empty()).expect("a request");
        let answer = send(&app, request).await;
        assert_eq!(answer.header("x-request-id") == sent, kept, "{sent}");
    }
}

#[tokio::test]
async fn the_examples_of_the_specification_are_answered() {
    let app = ready();
    let document: Value = serde_json::from_str(&super::super::openapi_document()).expect("JSON");
    for (path, schema) in [
        ("/api/v1/embed", "EmbedRequest"),
        ("/api/v1/embed/batch", "EmbedBatchRequest"),
        ("/api/v1/retrieve", "RetrieveBody"),
        ("/api/v1/rerank", "RerankRequest"),
    ] {
        let example = &document["components"]["schemas"][schema]["example"];
        let answer = post(&app, path, example.to_string()).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    }
    // There is nobody who may reload this one's models.
    let all = document["paths"].as_object().expect("paths").keys();
    for path in all.filter(|path| *path != "/admin/reload") {
        let answer = post(&app, path, "").await;
        assert_ne!(answer.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let answer = send(&ready(), Request::head("/health").body(Body::empty()).expect("a request")).await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, ""));
}

#[tokio::test]
async fn a_dropped_request_leaves_nothing_in_flight() {
    let app = ready();
    let hanging = tokio::spawn({
        let app = Arc::clone(&app);
        async move { post(&app, "/api/v1/embed", r#"{"control_id": "A", "text": "hang"}"#).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!hanging.is_finished());
    hanging.abort();
    let _ = hanging.await;
    app.lifecycle.idle().await;
}

#[tokio::test]
async fn what_a_model_answers_names_its_revision() {
    let app = ready();
    let (retriever, reranker) = (fakes::revision(1).to_string(), fakes::revision(2).to_string());
    assert_ne!(retriever, reranker);
    for (path, body, revision) in [
        ("/api/v1/embed", r#"{"control_id": "A", "text": "miss"}"#, &retriever),
        ("/api/v1/embed", r#"{"control_id": "A", "text": "hit"}"#, &retriever),
        ("/api/v1/embed/batch", r#"{"items": [{"control_id": "A", "text": "x"}]}"#, &retriever),
        ("/api/v1/embed/batch", r#"{"items": []}"#, &retriever),
        ("/api/v1/rerank", r#"{"source_text": "s", "candidates": []}"#, &reranker),
        ("/api/v1/retrieve", r#"{"source_embedding": [1], "target_embeddings": [[1]]}"#, &String::new()),
    ] {
        let answer = post(&app, path, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        assert_eq!(answer.header("x-nexus-model-revision"), revision, "{path}");
    }
    let answer = get(&app, "/ready").await.json();
    assert_eq!(answer["models"][0]["revision"], retriever);
    assert_eq!(answer["models"][1]["revision"], reranker);
    assert_eq!(answer["models"][0]["reload"], Value::Null);
}
