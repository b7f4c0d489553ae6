//! Bodies other than plain JSON: base64, safetensors, gzip, zstd.

use super::{app, post, ready, send};
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use nexus_engine::Models;
use nexus_vectors::encode_base64;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use tower::ServiceExt as _;

const RETRIEVE: &str = "/api/v1/retrieve";

fn body() -> String {
    json!({ "source_embedding": [1, 0], "target_embeddings": [[0, 1], [1, 0.1]], "target_ids": ["a", "b"], "top_k": 1 })
        .to_string()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("in memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("in memory")
}

fn coded(path: &str, coding: &str, body: Vec<u8>) -> Request<Body> {
    let request = Request::post(path).header("content-type", "application/json").header("content-encoding", coding);
    request.body(Body::from(body)).expect("a request")
}

#[tokio::test]
async fn base64_and_safetensors_answer_as_numbers_do() {
    let app = ready();
    let expected = post(&app, RETRIEVE, body()).await;
    assert_eq!(expected.status, StatusCode::OK, "{}", expected.text);
    let [source, first, second] = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]];
    let mut bodies = vec![];
    for targets in
        [json!([encode_base64(&first), encode_base64(&second)]), json!(encode_base64(&[first, second].concat()))]
    {
        let body = json!({ "source_embedding": encode_base64(&source), "target_embeddings": targets,
            "target_ids": ["a", "b"], "top_k": 1 });
        bodies.push(Request::post(RETRIEVE).body(Body::from(body.to_string())));
    }
    let header = json!({
        "__metadata__": { "top_k": "1", "target_ids": "[\"a\",\"b\"]" },
        "source_embedding": { "dtype": "F32", "shape": [2], "data_offsets": [0, 8] },
        "target_embeddings": { "dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24] },
    })
    .to_string();
    let mut file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    file.extend([source, first, second].concat().iter().flat_map(|x: &f32| x.to_le_bytes()));
    let binary = |path: &str| Request::post(path).header("content-type", "application/octet-stream");
    bodies.push(binary(RETRIEVE).body(Body::from(file.clone())));
    for request in bodies {
        let answer = send(&app, request.expect("a request")).await;
        assert_eq!((answer.status, &answer.text), (StatusCode::OK, &expected.text));
    }
    // Only where vectors are.
    let answer = send(&app, binary("/api/v1/embed").body(Body::from(file)).expect("a request")).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn compressed_bodies() {
    let app = ready();
    let expected = post(&app, RETRIEVE, body()).await.text;
    for (coding, bytes) in [
        ("gzip", gzip(body().as_bytes())),
        ("X-GZIP", [gzip(&body().as_bytes()[..20]), gzip(&body().as_bytes()[20..])].concat()),
        ("zstd", zstd(body().as_bytes())),
        ("identity", body().into_bytes()),
    ] {
        let answer = send(&app, coded(RETRIEVE, coding, bytes)).await;
        assert_eq!((answer.status, &answer.text), (StatusCode::OK, &expected), "{coding}");
    }
    let embed = br#"{"control_id": "A", "text": "x"}"#;
    let answer = send(&app, coded("/api/v1/embed", "gzip", gzip(embed))).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    // What is not what it says, or ends early.
    for (coding, bytes) in [
        ("gzip", embed.to_vec()),
        ("zstd", embed.to_vec()),
        ("gzip", gzip(embed)[..20].to_vec()),
        ("zstd", zstd(embed)[..20].to_vec()),
    ] {
        let answer = send(&app, coded("/api/v1/embed", coding, bytes)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{coding}: {}", answer.text);
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.contains(coding)), "{}", answer.text);
    }
}

#[tokio::test]
async fn what_a_body_may_have_counts_decoded() {
    let app = ready();
    let bomb = vec![b' '; 500_000];
    for path in [RETRIEVE, "/api/v1/embed"] {
        for (coding, bytes) in [("gzip", gzip(&bomb)), ("zstd", zstd(&bomb))] {
            assert!(bytes.len() < 10_000);
            assert_eq!(send(&app, coded(path, coding, bytes)).await.status, StatusCode::PAYLOAD_TOO_LARGE, "{coding}");
        }
    }
    assert_eq!(app.bodies.held(), 0);
}

#[tokio::test]
async fn a_frame_that_asks_for_a_large_window_is_refused() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("in memory");
    encoder.window_log(27).expect("a setting");
    encoder.write_all(&vec![b' '; 1 << 20]).expect("in memory");
    let frame = encoder.finish().expect("in memory");
    let answer = send(&ready(), coded("/api/v1/embed", "zstd", frame)).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.text.contains("8 MiB"), "{}", answer.text);
}

#[tokio::test]
async fn responses_are_compressed_for_who_asks() {
    let app = app(Models::default());
    let ids: Vec<String> = (0..200).map(|i| format!("control-{i}")).collect();
    let body = json!({ "source_embedding": [1], "target_embeddings": vec![[1]; 200], "target_ids": ids, "top_k": 200 });
    let ask = async |accepted: &str| {
        let request = Request::post(RETRIEVE).header("accept-encoding", accepted).body(Body::from(body.to_string()));
        let response = super::router(app.clone()).oneshot(request.expect("a request")).await.expect("an answer");
        let coding = response.headers().get("content-encoding").map(|value| value.to_str().expect("text").to_owned());
        (coding, to_bytes(response.into_body(), usize::MAX).await.expect("a body"))
    };
    let (coding, plain) = ask("identity").await;
    assert_eq!(coding, None);
    let json: Value = serde_json::from_slice(&plain).expect("JSON");
    assert_eq!(json["candidates"].as_array().map(Vec::len), Some(200));
    let (coding, bytes) = ask("gzip").await;
    assert_eq!(coding.as_deref(), Some("gzip"));
    let mut decoded = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut decoded).expect("gzip");
    assert!(decoded == plain && bytes.len() < plain.len());
    let (coding, bytes) = ask("gzip;q=0.5, zstd").await;
    assert_eq!(coding.as_deref(), Some("zstd"));
    assert!(zstd::decode_all(&bytes[..]).expect("zstd") == plain);
}
