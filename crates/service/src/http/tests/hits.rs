//! Answers from the cache: the bytes of the first answer, written once, and sent without a copy.

use super::{app, fakes, post};
use crate::http::{App, router, server};
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nexus_engine::{EmbedItem, Embedding, EngineError, Models, Retriever, RetrieverInfo};
use nexus_storage::{CacheKeyBuilder, MemoryCache, Vector};
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt as _;

const DIMENSIONS: usize = 4096;
const HEAD: &str = r#"{"control_id":"A","embedding":"#;
const MISS_END: &str = r#","cache_hit":false}"#;
const HIT_END: &str = r#","cache_hit":true}"#;

/// Computes unit vectors out of texts' lengths, and remembers them.
struct Remembering {
    info: RetrieverInfo,
    keys: CacheKeyBuilder,
    cache: Arc<MemoryCache>,
}

impl Retriever for Remembering {
    fn info(&self) -> &RetrieverInfo {
        &self.info
    }

    fn embed(&self, items: Vec<EmbedItem>) -> BoxFuture<'_, Result<Vec<Embedding>, EngineError>> {
        let embed = |item: &EmbedItem| {
            let key = self.keys.key(None, DIMENSIONS, &item.text);
            match self.cache.get_one(&key) {
                Some(vector) => Embedding { vector, cache_hit: true },
                None => {
                    let vector = unit_vector(item.text.len() as u64);
                    self.cache.put_one(key, vector.clone());
                    Embedding { vector, cache_hit: false }
                }
            }
        };
        let embeddings = items.iter().map(embed).collect();
        async { Ok(embeddings) }.boxed()
    }
}

/// As a model gives it: components of all sizes around 1/64, both signs, length 1.
fn unit_vector(seed: u64) -> Vector {
    let mut state = seed.wrapping_add(1);
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    let row: Vec<f64> = (0..DIMENSIONS).map(|_| uniform() + uniform() + uniform()).collect();
    let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
    row.iter().map(|x| (x / norm) as f32).collect()
}

fn remembering(cache_bytes: usize) -> (Arc<App>, Arc<MemoryCache>) {
    let cache = Arc::new(MemoryCache::new(cache_bytes));
    let models = Models::default();
    models.retriever.ready(Arc::new(Remembering {
        info: RetrieverInfo {
            model: "fake".to_owned(),
            revision: fakes::revision(1),
            dimensions: DIMENSIONS,
            window_tokens: 16,
        },
        keys: CacheKeyBuilder::new(&[0; 32], &[0; 32], "last", 16, "f32"),
        cache: Arc::clone(&cache),
    }));
    (app(models), cache)
}

fn body(text: &str) -> String {
    json!({ "control_id": "A", "text": text }).to_string()
}

async fn respond(app: &Arc<App>, text: &str) -> Response<Body> {
    let request = Request::post("/api/v1/embed").body(Body::from(body(text))).expect("a request");
    router(Arc::clone(app)).oneshot(request).await.expect("the router never fails")
}

/// The pieces that a body is sent in.
async fn frames(mut body: Body) -> Vec<Bytes> {
    let mut frames = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        frames.push(frame.expect("no error").into_data().expect("data"));
    }
    frames
}

#[tokio::test]
async fn a_hit_is_the_misss_vector_to_the_byte() {
    let (app, _) = remembering(1 << 20);
    let miss = post(&app, "/api/v1/embed", body("x")).await.text;
    let vector = miss.strip_prefix(HEAD).and_then(|text| text.strip_suffix(MISS_END)).expect("a miss");
    for _ in 0..3 {
        let hit = post(&app, "/api/v1/embed", body("x")).await;
        assert_eq!(hit.text, format!("{HEAD}{vector}{HIT_END}"));
        assert_eq!(hit.header("content-length"), hit.text.len().to_string());
        assert_eq!(hit.header("content-type"), "application/json");
    }
}

#[tokio::test]
async fn each_number_is_the_shortest_of_its_f32() {
    let (app, _) = remembering(1 << 20);
    let vector = unit_vector(1);
    for end in [MISS_END, HIT_END] {
        let text = post(&app, "/api/v1/embed", body("x")).await.text;
        let list = text.strip_prefix(HEAD).and_then(|text| text.strip_suffix(end)).expect("an answer");
        let list = list.strip_prefix('[').and_then(|list| list.strip_suffix(']')).expect("a list");
        let numbers: Vec<&str> = list.split(',').collect();
        assert_eq!(numbers.len(), DIMENSIONS);
        for (number, x) in numbers.iter().zip(&*vector) {
            assert_eq!(number.parse::<f32>().map(f32::to_bits), Ok(x.to_bits()), "{number}");
            // The digits of Rust's own shortest form, wherever the point stands.
            let digits = |text: &str| {
                let text = text.split('e').next().unwrap_or_default().replace(['-', '.'], "");
                text.trim_start_matches('0').trim_end_matches('0').to_owned()
            };
            assert_eq!(digits(number), digits(&format!("{x:e}")), "{number}");
        }
        assert!((45_000..52_000).contains(&text.len()), "{} bytes", text.len());
    }
}

#[tokio::test]
async fn a_hit_is_written_once_and_not_copied() {
    let (app, cache) = remembering(1 << 20);
    frames(respond(&app, "x").await.into_body()).await;
    assert_eq!(cache.rendered_bytes(), 0, "what is asked for once is not kept as text");
    let first = frames(respond(&app, "x").await.into_body()).await;
    let second = frames(respond(&app, "x").await.into_body()).await;
    assert_eq!(first.iter().map(Bytes::len).collect::<Vec<_>>()[..1], [HEAD.len()]);
    assert_eq!((first[1].as_ptr(), first[1].len()), (second[1].as_ptr(), second[1].len()));
    assert!(cache.rendered_bytes() >= first[1].len());

    // So it is with base64, beside the list of numbers.
    let base64 = json!({ "control_id": "A", "text": "x", "encoding_format": "base64" }).to_string();
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let request = Request::post("/api/v1/embed").body(Body::from(base64.clone())).expect("a request");
        let response = router(Arc::clone(&app)).oneshot(request).await.expect("the router never fails");
        let frames = frames(response.into_body()).await;
        assert_eq!(frames[1].len(), 2 + (DIMENSIONS * 4).div_ceil(3) * 4);
        addresses.push(frames[1].as_ptr());
    }
    assert_eq!(addresses[0], addresses[1]);
    let third = frames(respond(&app, "x").await.into_body()).await;
    assert_eq!(third[1].as_ptr(), first[1].as_ptr());
}

#[tokio::test]
async fn a_batch_has_the_same_bytes_in_order() {
    let (app, _) = remembering(1 << 20);
    let known = post(&app, "/api/v1/embed", body("known")).await.text;
    let known = known.strip_prefix(HEAD).and_then(|text| text.strip_suffix(MISS_END)).expect("a miss").to_owned();
    let items = json!({ "items": [
        { "control_id": "A", "text": "known" },
        { "control_id": "A", "text": "not known" },
        { "control_id": "A", "text": "known", "encoding_format": "base64" },
        { "control_id": "A", "text": "known" },
    ] });
    for _ in 0..2 {
        let answer = post(&app, "/api/v1/embed/batch", items.to_string()).await;
        assert_eq!(answer.header("content-length"), answer.text.len().to_string());
        let hit = format!("{HEAD}{known}{HIT_END}");
        assert!(answer.text.starts_with(&format!("{{\"results\":[{hit},{HEAD}[")));
        assert!(answer.text.ends_with(&format!(",{hit}]}}")));
        let results = answer.json()["results"].clone();
        assert_eq!(results[2]["embedding"], nexus_vectors::encode_base64(&unit_vector(5)));
        assert_eq!(results[1]["embedding"].as_array().map(Vec::len), Some(DIMENSIONS));
    }
}

#[tokio::test]
async fn the_memory_for_the_cache_keeps_its_bound() {
    // Room for the text of one vector, and for three vectors or so.
    let bytes_max = 110_000;
    let (app, cache) = remembering(bytes_max);
    for round in 0..3 {
        for length in 1..8 {
            let text = "x".repeat(length);
            let first = post(&app, "/api/v1/embed", body(&text)).await.json()["embedding"].clone();
            let answer = post(&app, "/api/v1/embed", body(&text)).await.json();
            assert_eq!((&answer["cache_hit"], &answer["embedding"]), (&Value::Bool(true), &first), "round {round}");
            assert!(cache.bytes() <= bytes_max);
            assert!((1..=bytes_max / 2).contains(&cache.rendered_bytes()));
        }
    }
}

/// Serves `app` on a socket for as long as `client` runs.
async fn over_a_socket<T>(app: Arc<App>, client: impl AsyncFnOnce(TcpStream) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let lifecycle = app.lifecycle.clone();
    let transport = server::Transport { connections: app.connections.clone(), tls: None };
    let serving =
        server::serve(listener, transport, router(app), lifecycle, std::future::pending(), Duration::from_secs(1));
    tokio::select! {
        _ = serving => panic!("it serves until it is stopped"),
        answer = async { client(TcpStream::connect(address).await.expect("a connection")).await } => answer,
    }
}

async fn check_over_a_socket(app: &Arc<App>, response: Response<Incoming>) {
    assert_eq!(response.status(), StatusCode::OK);
    let length = response.headers()["content-length"].to_str().expect("text").to_owned();
    let bytes = to_bytes(Body::new(response.into_body()), usize::MAX).await.expect("a body");
    assert_eq!(length, bytes.len().to_string());
    assert_eq!(bytes, post(app, "/api/v1/embed", body("x")).await.text);
}

#[tokio::test]
async fn a_hit_over_http_1_and_2() {
    let (app, _) = remembering(1 << 20);
    post(&app, "/api/v1/embed", body("x")).await;
    let request = || {
        let builder = Request::post("http://127.0.0.1/api/v1/embed").header("host", "127.0.0.1");
        builder.body(Body::from(body("x"))).expect("a request")
    };
    over_a_socket(Arc::clone(&app), async |stream| {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.expect("HTTP/1");
        tokio::spawn(connection);
        // One connection for both: the end of each body has to be where its length says.
        for _ in 0..2 {
            check_over_a_socket(&app, sender.send_request(request()).await.expect("an answer")).await;
        }
    })
    .await;
    over_a_socket(Arc::clone(&app), async |stream| {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.expect("HTTP/2");
        tokio::spawn(connection);
        for _ in 0..2 {
            check_over_a_socket(&app, sender.send_request(request()).await.expect("an answer")).await;
        }
    })
    .await;
}
