//! Bodies that are wrong, over a real connection: each gets its answer quickly, and the service lives on.

use crate::support::Service;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Far above what a refusal takes, far below what computing or recursion would.
const QUICK: Duration = Duration::from_secs(2);

/// The one problem that `body` is refused with.
fn refused(service: &Service, path: &str, body: Vec<u8>) -> Value {
    let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
    let started = Instant::now();
    let response = service.post(path, body);
    assert!(started.elapsed() < QUICK, "{path} {shown}: {:?}", started.elapsed());
    assert_eq!(response.status(), 422, "{path} {shown}");
    let answer: Value = response.json().expect("JSON");
    assert_eq!(answer["detail"].as_array().map(Vec::len), Some(1), "{path} {shown}: {answer}");
    let problem = &answer["detail"][0];
    assert!(problem["msg"].is_string(), "{path} {shown}: {answer}");
    problem.clone()
}

#[test]
fn whatever_is_wrong_in_a_body_is_a_422_that_names_the_place() {
    let service = Service::start(&[]).ready();
    // The place is below `body`.
    for (path, body, kind, place) in [
        ("embed", r#"{"text": "x"}"#, "missing", json!(["control_id"])),
        ("embed", r#"{"control_id": "A", "text": ""}"#, "string_too_short", json!(["text"])),
        ("embed", r#"{"control_id": "A", "text": 5}"#, "string_type", json!(["text"])),
        (
            "embed",
            r#"{"control_id": "A", "text": "x", "dimensions": 100000}"#,
            "less_than_equal",
            json!(["dimensions"]),
        ),
        (
            "embed",
            r#"{"control_id": "A", "text": "x", "dimensions": "0"}"#,
            "greater_than_equal",
            json!(["dimensions"]),
        ),
        (
            "embed/batch",
            r#"{"items": [{"control_id": "A", "text": ""}]}"#,
            "string_too_short",
            json!(["items", 0, "text"]),
        ),
        ("rerank", r#"{"source_text": "", "candidates": []}"#, "string_too_short", json!(["source_text"])),
        ("rerank", r#"{"source_text": "s", "candidates": [], "top_n": 0}"#, "greater_than_equal", json!(["top_n"])),
        (
            "rerank",
            r#"{"source_text": "s", "candidates": [{"control_id": "A", "text": "x"}, {"control_id": "B", "text": ""}]}"#,
            "string_too_short",
            json!(["candidates", 1, "text"]),
        ),
    ] {
        check(&service, path, body, kind, &place);
    }
    let source = |components: &str| format!(r#"{{"source_embedding": [{components}], "target_embeddings": [[1, 2]]}}"#);
    let target = |row: &str| format!(r#"{{"source_embedding": [1, 2], "target_embeddings": [[1, 2], [{row}]]}}"#);
    let top_k = |top_k: &str| format!(r#"{{"source_embedding": [1], "target_embeddings": [[1]], "top_k": {top_k}}}"#);
    for (body, kind, place) in [
        (target("1"), "value_error", json!(["target_embeddings", 1])),
        (target("0, 0"), "value_error", json!(["target_embeddings", 1])),
        (target("1, NaN"), "finite_number", json!(["target_embeddings", 1, 1])),
        (target("-Infinity, 1"), "finite_number", json!(["target_embeddings", 1, 0])),
        (target("1, -1e999"), "finite_number", json!(["target_embeddings", 1, 1])),
        (source("0, 0"), "value_error", json!(["source_embedding"])),
        (source("NaN, 1"), "finite_number", json!(["source_embedding", 0])),
        (source("1, Infinity"), "finite_number", json!(["source_embedding", 1])),
        (source("1, 1e999"), "finite_number", json!(["source_embedding", 1])),
        (source("1, null"), "float_type", json!(["source_embedding", 1])),
        (top_k("0"), "greater_than_equal", json!(["top_k"])),
        (top_k("-1"), "greater_than_equal", json!(["top_k"])),
        (top_k("1.5"), "int_from_float", json!(["top_k"])),
        (top_k("1e999"), "finite_number", json!(["top_k"])),
        (top_k("NaN"), "finite_number", json!(["top_k"])),
    ] {
        check(&service, "retrieve", &body, kind, &place);
    }
    for path in ["embed", "embed/batch", "retrieve", "rerank"] {
        for nothing in ["", "null"] {
            check(&service, path, nothing, "missing", &json!([]));
        }
        check(&service, path, "{", "json_invalid", &json!([1]));
        check(&service, path, "{\"a\": nul}", "json_invalid", &json!([9]));
        for body in [
            b"{\"control_id\": \"A\", \"text\": \"\xff\xfe\"}".to_vec(),
            b"{\"control_id\": \"\\ud800\"}".to_vec(),
            "[".repeat(1_000_000).into_bytes(),
            "{\"a\":".repeat(1_000_000).into_bytes(),
        ] {
            let problem = refused(&service, &format!("/api/v1/{path}"), body);
            assert_eq!((&problem["type"], &problem["loc"][0]), (&json!("json_invalid"), &json!("body")), "{problem}");
            assert!(problem["loc"][1].is_u64() && problem["ctx"]["error"].is_string(), "{problem}");
        }
    }
    assert_eq!(service.get("/ready").status(), 200);
}

fn check(service: &Service, path: &str, body: &str, kind: &str, place: &Value) {
    let problem = refused(service, &format!("/api/v1/{path}"), body.as_bytes().to_vec());
    let loc: Vec<Value> =
        [json!("body")].into_iter().chain(place.as_array().expect("a list").iter().cloned()).collect();
    assert_eq!((&problem["type"], &problem["loc"]), (&json!(kind), &json!(loc)), "{path} {body}");
}

#[test]
fn other_errors_have_the_frameworks_shape() {
    let service = Service::start(&[("NEXUS_TEXT_BODY_BYTES_MAX", "1MiB")]);
    let detail = |response: reqwest::blocking::Response| {
        assert!(response.headers().contains_key("x-request-id"));
        let status = response.status().as_u16();
        let answer: Value = response.json().expect("JSON");
        (status, answer["detail"].as_str().expect("a sentence").to_owned())
    };
    assert_eq!(detail(service.get("/nothing")), (404, "Not Found".to_owned()));
    assert_eq!(detail(service.get("/api/v1/embed")), (405, "Method Not Allowed".to_owned()));
    let plain = service.client.post(format!("{}/api/v1/embed", service.url)).header("content-type", "text/plain");
    assert_eq!(detail(plain.body("{}").send().expect("an answer")).0, 415);
    let (status, sentence) = detail(service.post("/api/v1/embed", vec![b' '; 3 << 20]));
    assert_eq!(status, 413);
    assert!(sentence.contains("1048576"), "{sentence}");
}

#[test]
fn a_body_that_is_announced_too_large_is_refused_unread() {
    let service = Service::start(&[("NEXUS_BODY_BYTES_MAX", "1KiB")]);
    let mut stream = TcpStream::connect(service.url.trim_start_matches("http://")).expect("a connection");
    stream.set_read_timeout(Some(QUICK)).expect("a timeout");
    let head = "POST /api/v1/retrieve HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9999999999\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    let mut start = [0; 12];
    stream.read_exact(&mut start).expect("an answer before any body was sent");
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[test]
fn clients_that_leave_do_no_harm() {
    let service = Service::start(&[]).ready();
    let address = service.url.trim_start_matches("http://");
    for _ in 0..50 {
        let mut stream = TcpStream::connect(address).expect("a connection");
        let body = json!({ "control_id": "A", "text": "Access is logged. ".repeat(500) }).to_string();
        let head = format!("POST /api/v1/embed HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(body.as_bytes()).expect("sent");
    }
    let (vector, _) = service.embed("Multi-factor authentication");
    assert!(!vector.is_empty());
}
