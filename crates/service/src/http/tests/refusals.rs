//! What is answered when something is wrong: the status, the kind of problem, the place.

use super::{app, get, post, ready, send};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use nexus_engine::Models;
use serde_json::{Value, json};
use std::sync::Arc;

/// Every problem of the answer as `kind at/its/place`.
async fn problems(path: &str, body: impl Into<Body>) -> Vec<String> {
    let answer = post(&ready(), path, body).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text);
    let json = answer.json();
    let list = json["detail"].as_array().unwrap_or_else(|| panic!("{json}"));
    list.iter()
        .map(|problem| {
            assert!(problem["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{problem}");
            let steps: Vec<String> = problem["loc"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|step| step.as_str().map_or_else(|| step.to_string(), str::to_owned))
                .collect();
            format!("{} {}", problem["type"].as_str().unwrap_or_default(), steps.join("/"))
        })
        .collect()
}

#[tokio::test]
async fn wrong_embed_bodies() {
    for (body, expected) in [
        (json!({ "text": "x" }), vec!["missing body/control_id"]),
        (json!({}), vec!["missing body/control_id", "missing body/text"]),
        (json!({ "control_id": 1, "text": ["x"] }), vec!["string_type body/control_id", "string_type body/text"]),
        (json!({ "control_id": null, "text": null }), vec!["string_type body/control_id", "string_type body/text"]),
        (json!({ "control_id": "A", "text": "" }), vec!["string_too_short body/text"]),
        (json!({ "control_id": "A", "text": " \n\t" }), vec!["value_error body/text"]),
        (json!({ "control_id": "A", "text": "x", "dimensions": 0 }), vec!["greater_than_equal body/dimensions"]),
        (json!({ "control_id": "A", "text": "x", "dimensions": 5 }), vec!["less_than_equal body/dimensions"]),
        (json!({ "control_id": "A", "text": "x", "dimensions": "two" }), vec!["int_parsing body/dimensions"]),
        (json!({ "control_id": "A", "text": "x", "dimensions": "5" }), vec!["less_than_equal body/dimensions"]),
        (
            json!({ "control_id": "A", "text": "x", "encoding_format": "hex" }),
            vec!["literal_error body/encoding_format"],
        ),
        (json!({ "control_id": "A", "text": "x", "instruction": 1 }), vec!["string_type body/instruction"]),
        (json!([1]), vec!["model_attributes_type body"]),
        (json!("x"), vec!["model_attributes_type body"]),
        (json!({ "control_id": "A", "text": "invalid" }), vec!["value_error body/text"]),
    ] {
        assert_eq!(problems("/api/v1/embed", body.to_string()).await, expected, "{body}");
    }
}

#[tokio::test]
async fn wrong_batches_name_the_item() {
    let item = json!({ "control_id": "A", "text": "x" });
    for (body, expected) in [
        (json!({}), vec!["missing body/items"]),
        (json!({ "items": {} }), vec!["list_type body/items"]),
        (
            json!({ "items": [item, 3, {}] }),
            vec!["model_attributes_type body/items/1", "missing body/items/2/control_id", "missing body/items/2/text"],
        ),
        (json!({ "items": [item, { "control_id": "B", "text": "" }] }), vec!["string_too_short body/items/1/text"]),
        (json!({ "items": vec![&item; 9] }), vec!["too_long body/items"]),
        (json!({ "items": [item, item], "dimensions": 5 }), vec!["less_than_equal body/dimensions"]),
        (
            json!({ "items": [item, { "control_id": "B", "text": "x", "dimensions": 5 }] }),
            vec!["less_than_equal body/items/1/dimensions"],
        ),
        (json!({ "items": [item, { "control_id": "B", "text": "invalid" }] }), vec!["value_error body/items/1/text"]),
    ] {
        assert_eq!(problems("/api/v1/embed/batch", body.to_string()).await, expected, "{body}");
    }
}

#[tokio::test]
async fn wrong_reranks_name_the_candidate() {
    let candidate = json!({ "control_id": "A", "text": "x" });
    for (body, expected) in [
        (json!({}), vec!["missing body/source_text", "missing body/candidates"]),
        (json!({ "source_text": "", "candidates": [candidate] }), vec!["string_too_short body/source_text"]),
        (
            json!({ "source_text": "s", "candidates": [candidate, candidate, { "control_id": "B", "text": "" }] }),
            vec!["string_too_short body/candidates/2/text"],
        ),
        (json!({ "source_text": "s", "candidates": [], "top_n": 0 }), vec!["greater_than_equal body/top_n"]),
        (json!({ "source_text": "s", "candidates": [], "top_n": 1.5 }), vec!["int_from_float body/top_n"]),
        (json!({ "source_text": "invalid", "candidates": [candidate] }), vec!["value_error body/source_text"]),
        (
            json!({ "source_text": "s", "candidates": [candidate, { "control_id": "B", "text": "invalid" }] }),
            vec!["value_error body/candidates/1/text"],
        ),
    ] {
        assert_eq!(problems("/api/v1/rerank", body.to_string()).await, expected, "{body}");
    }
}

#[tokio::test]
async fn wrong_retrieves_name_the_place() {
    for (body, place) in [
        (r#"{"target_embeddings": []}"#, "body/source_embedding"),
        (r#"{"source_embedding": [1], "target_embeddings": [[1], [1, 2]]}"#, "body/target_embeddings/1"),
        (r#"{"source_embedding": [0], "target_embeddings": [[1]]}"#, "body/source_embedding"),
        (r#"{"source_embedding": [1], "target_embeddings": [[1], [0]]}"#, "body/target_embeddings/1"),
        (r#"{"source_embedding": [1e999], "target_embeddings": [[1]]}"#, "body/source_embedding/0"),
        (r#"{"source_embedding": [1], "target_embeddings": [["x"]]}"#, "body/target_embeddings/0/0"),
        (r#"{"source_embedding": [1], "target_embeddings": [[1]], "top_k": 0}"#, "body/top_k"),
        (r#"{"source_embedding": [1], "target_embeddings": [[1]], "top_k": 1e999}"#, "body/top_k"),
        (r#"{"source_embedding": [1], "target_embeddings": [[1]], "target_ids": []}"#, "body/target_ids"),
        (r"[1]", "body"),
    ] {
        let found = problems("/api/v1/retrieve", body).await;
        assert!(found.len() == 1 && found[0].ends_with(&format!(" {place}")), "{body}: {found:?}");
    }
}

#[tokio::test]
async fn what_is_no_json_is_refused_everywhere() {
    for path in ["/api/v1/embed", "/api/v1/embed/batch", "/api/v1/retrieve", "/api/v1/rerank"] {
        for body in
            [b"{".as_slice(), b"{\"text\": nul}", b"NaN", b"{\"a\": \"\xff\"}", b"{\"a\": \"\\ud800\"}", b"{} {}"]
        {
            let found = problems(path, body.to_vec()).await;
            assert!(found.len() == 1 && found[0].starts_with("json_invalid body/"), "{path} {body:?}: {found:?}");
        }
        for nothing in ["", "null", " null "] {
            assert_eq!(problems(path, nothing).await, ["missing body"], "{path} {nothing:?}");
        }
        assert!(problems(path, "[".repeat(4000)).await[0].contains("body"), "{path}");
    }
}

#[tokio::test]
async fn malformed_json_is_told_alike_everywhere() {
    for (body, at) in [
        ("  ", 2),
        ("{", 1),
        ("{\"ä\": nul}", 9),
        ("{\"ä\" 1}", 5),
        ("{} {}", 3),
        ("{\"ä\": [1,\n2,]}", 12),
        ("NaN", 0),
    ] {
        for path in ["/api/v1/embed", "/api/v1/embed/batch", "/api/v1/retrieve", "/api/v1/rerank"] {
            let answer = post(&ready(), path, body).await.json();
            let problem = &answer["detail"][0];
            let error = problem["ctx"]["error"].as_str().unwrap_or_default();
            assert!(!error.is_empty() && !error.contains(" at "), "{path} {body:?}: {problem}");
            let expected = json!({
                "type": "json_invalid", "loc": ["body", at], "msg": "JSON decode error", "input": {},
                "ctx": { "error": error },
            });
            assert_eq!(*problem, expected, "{path} {body:?}");
        }
    }
}

#[tokio::test]
async fn bodies_share_their_memory() {
    /// Of a body that `whole` makes, before the string.
    const PARSED: usize = 6;
    let app = ready();
    let whole = |bytes: usize| format!("{{\"a\":\"{}\"", "x".repeat(bytes - 7));
    // One body is on its way, and holds what has come of it.
    let (sender, chunks) = futures::channel::mpsc::unbounded();
    let slow = tokio::spawn({
        let app = Arc::clone(&app);
        async move { post(&app, "/api/v1/retrieve", Body::from_stream(chunks)).await }
    });
    sender.unbounded_send(Ok::<_, std::io::Error>(whole(9_000))).expect("the body is read");
    while app.bodies.held() == 0 {
        tokio::task::yield_now().await;
    }
    // Its first bytes are parsed already, and not held.
    let free = super::BODIES_BYTES_MAX - app.bodies.held();
    assert_eq!(free, super::BODIES_BYTES_MAX - 9_000 + PARSED);
    // A length that is told is enough where a body is read as a whole; else it shows when the bytes come.
    let announced = Request::post("/api/v1/rerank").header("content-length", free + 1).body(Body::empty());
    let answer = send(&app, announced.expect("a request")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let unannounced = Body::from_stream(futures::stream::iter([Ok::<_, std::io::Error>(whole(free + PARSED + 1))]));
    for body in [Body::from(whole(free + PARSED + 1)), unannounced] {
        let answer = post(&app, "/api/v1/retrieve", body).await;
        assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "1"));
        assert_eq!(
            answer.json(),
            json!({ "detail": "there are too many bytes of request bodies in flight; try again" })
        );
    }
    assert_eq!(post(&app, "/api/v1/retrieve", whole(free)).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    // All of it comes back, with an answer and with a client that leaves.
    assert_eq!(app.bodies.held(), super::BODIES_BYTES_MAX - free);
    drop(sender);
    assert_eq!(slow.await.expect("an answer").status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(app.bodies.held(), 0);
}

#[tokio::test]
async fn a_text_is_not_sent_back() {
    let answer = post(&ready(), "/api/v1/embed", json!({ "control_id": ["secret"], "text": "x" }).to_string()).await;
    assert!(!answer.text.contains("secret"), "{}", answer.text);
    let answer = post(&ready(), "/api/v1/embed", r#"{"control_id": 5, "text": "x"}"#).await;
    assert_eq!(answer.json()["detail"][0]["input"], 5);
}

#[tokio::test]
async fn statuses_in_the_frameworks_shape() {
    let app = ready();
    let post_as = |media_type: &str| {
        let body = r#"{"control_id": "A", "text": "x"}"#;
        Request::post("/api/v1/embed").header("content-type", media_type).body(Body::from(body)).expect("a request")
    };
    assert_eq!(send(&app, post_as("application/json; charset=utf-8")).await.status, StatusCode::OK);
    assert_eq!(send(&app, post_as("Application/Vnd.Api+JSON")).await.status, StatusCode::OK);
    let answer = send(&app, post_as("text/plain")).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(answer.json()["detail"].is_string());
    for coding in ["br", "deflate", "gzip, gzip", ""] {
        let mut coded = post_as("application/json");
        coded.headers_mut().insert("content-encoding", coding.parse().expect("a value"));
        assert_eq!(send(&app, coded).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{coding}");
    }

    let answer = get(&app, "/none").await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::NOT_FOUND, r#"{"detail":"Not Found"}"#));

    let answer = get(&app, "/api/v1/embed").await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!((answer.text.as_str(), answer.header("allow")), (r#"{"detail":"Method Not Allowed"}"#, "POST"));

    let answer = post(&app, "/api/v1/embed", vec![b' '; 5_001]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("5000")));
    let chunks = futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1000])));
    let answer = post(&app, "/api/v1/retrieve", Body::from_stream(chunks)).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn failures_of_the_engine() {
    let app = ready();
    for (text, status, detail, retry_after) in [
        ("overloaded", 503, "the queue is full; try again in 7 s", "7"),
        ("greedy", 429, "this client has too many tokens in the queue; try again in 1 s", "1"),
        ("stopping", 503, "the service is shutting down", "1"),
        ("broken", 500, "the model failed: component 3 is not finite", ""),
        ("panic", 500, "Internal Server Error", ""),
        ("hang", 504, "no answer within 500 ms", ""),
    ] {
        for (path, body) in [
            ("/api/v1/embed", json!({ "control_id": "A", "text": text })),
            ("/api/v1/rerank", json!({ "source_text": text, "candidates": [{ "control_id": "A", "text": "x" }] })),
        ] {
            let answer = post(&app, path, body.to_string()).await;
            assert_eq!(answer.status.as_u16(), status, "{path} {text}");
            assert_eq!(answer.json(), json!({ "detail": detail }));
            assert_eq!(answer.header("retry-after"), retry_after, "{path} {text}");
            assert!(!answer.header("x-request-id").is_empty());
        }
    }
    assert_eq!(get(&app, "/ready").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_client_may_give_a_request_less_time_and_never_more() {
    let app = ready();
    let ask = async |ms: &str, text: &str| {
        let body = json!({ "control_id": "A", "text": text }).to_string();
        let request = Request::post("/api/v1/embed").header("content-type", "application/json");
        let request = request.header("x-request-timeout-ms", ms).body(Body::from(body)).expect("a request");
        send(&app, request).await
    };
    for (ms, detail) in [("20", "no answer within 20 ms"), ("60000", "no answer within 500 ms")] {
        let answer = ask(ms, "hang").await;
        assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(answer.json(), json!({ "detail": detail }));
    }
    for wrong in ["0", "-1", "1.5", "soon", ""] {
        let answer = ask(wrong, "x").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{wrong:?}");
        assert!(answer.text.contains("X-Request-Timeout-Ms"), "{}", answer.text);
    }
    assert_eq!(ask("18446744073709551615", "x").await.status, StatusCode::OK);
}

#[tokio::test]
async fn models_that_are_not_there() {
    let app = app(Models::default());
    app.models.reranker.failed("/m/model.safetensors: truncated".to_owned());
    let answer = post(&app, "/api/v1/embed", r#"{"control_id": "A", "text": "x"}"#).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json(), json!({ "detail": "the retriever is loading: waiting" }));
    assert_eq!(answer.header("retry-after"), "2");
    let body = r#"{"source_text": "s", "candidates": []}"#;
    let answer = post(&app, "/api/v1/rerank", body).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json(), json!({ "detail": "the reranker failed to load: /m/model.safetensors: truncated" }));
    assert_eq!(answer.header("retry-after"), "");
}

#[tokio::test]
async fn the_specification_lists_the_statuses() {
    let document: Value = serde_json::from_str(&super::super::openapi_document()).expect("JSON");
    for path in ["/api/v1/embed", "/api/v1/embed/batch", "/api/v1/retrieve", "/api/v1/rerank"] {
        let responses = &document["paths"][path]["post"]["responses"];
        for status in ["200", "401", "413", "415", "422", "429", "500", "503", "504"] {
            assert!(responses[status]["content"]["application/json"]["schema"].is_object(), "{path} {status}");
        }
        assert!(responses["503"]["headers"]["Retry-After"].is_object(), "{path}");
    }
}
