//! A start on models in S3, and what is said when they can not be had.

use crate::places::{Bucket, s3_url};
use crate::proxy::{Asked, Fault, Message, Proxy};
use crate::replica::{Replica, Start};
use crate::support::{PATIENCE, Service, floats};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const TEXT: &str = "MFA is enabled for the root user of the account";

fn error(status: u16, code: &str, headers: &[(&str, &str)]) -> Message {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
    Message::response(status, headers, body)
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn models_in_a_bucket_serve_as_the_built_in_ones_do() {
    let bucket = Bucket::with_models();
    let proxy = Proxy::to(&s3_url());
    // Slow enough to be seen on the way.
    proxy.rule(|asked| match asked.path.contains(".safetensors") && asked.method == "GET" {
        true => Fault::Delay(Duration::from_millis(500)),
        false => Fault::Pass,
    });
    let start = Start::new().env("MODEL_BUCKET", &bucket.name).env("AWS_ENDPOINT_URL_S3", &proxy.url);
    let replica = start.env("NEXUS_DOWNLOAD_RANGE_BYTES", "4MiB").env("NEXUS_BUILTIN", "off").start();
    assert_eq!(replica.get("/health").status(), 200);
    let response = replica.get("/ready");
    assert_eq!(response.status(), 503);
    let answer: Value = response.json().expect("JSON");
    assert_eq!(answer["status"], "loading", "{answer}");
    replica.ready_when(|answer| {
        let models = answer["models"].as_array().expect("models");
        let total = |model: &Value| model["bytes_total"].as_u64().is_some_and(|total| total > 10_000_000);
        assert_ne!(answer["status"], "failed", "{answer}");
        assert_ne!(answer["status"], "ready", "it was ready before any bytes were told");
        models.iter().any(total)
    });
    let replica = replica.ready();

    let builtin = Service::start(&[("NEXUS_CACHE", "off")]).ready();
    assert_eq!(replica.embed(TEXT).0, builtin.embed(TEXT).0);
    let body = json!({ "source_text": TEXT, "candidates": [
        { "control_id": "a", "text": "Multi-factor authentication is required for all users." },
        { "control_id": "b", "text": "Backups of important data are made daily." },
    ]});
    let path = "/api/v1/rerank";
    assert_eq!(replica.ask(path, &body)["rankings"], builtin.ask(path, &body)["rankings"]);

    // Every range is one of the object that was seen first.
    let asked = proxy.asked();
    let ranges: Vec<&Asked> = asked.iter().filter(|asked| !asked.header("range").is_empty()).collect();
    assert!(ranges.len() >= 20_459_912 / (4 << 20), "{}", ranges.len());
    for range in ranges {
        assert!(!range.header("if-match").is_empty(), "{range:?}");
    }
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn what_is_complete_is_not_downloaded_again() {
    let bucket = Bucket::with_models();
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = Proxy::to(&s3_url());
    let start = Start::new().env("MODEL_BUCKET", &bucket.name).env("AWS_ENDPOINT_URL_S3", &proxy.url);
    let start = start.folder(folder.path());
    let first = start.start().ready();
    let (vector, _) = first.embed(TEXT);
    first.stop();
    let bytes = proxy.bytes();
    assert!(bytes > 30_000_000, "{bytes}");

    let second = start.start().ready();
    assert_eq!(second.embed(TEXT).0, vector);
    assert!(proxy.bytes() - bytes < 1_000_000, "{} bytes more", proxy.bytes() - bytes);
    second.stop();

    // Another tokenizer configuration, of the same model: one file, and not the weights.
    let key = "models/qwen-embedding-8b/tokenizer_config.json";
    let mut changed = bucket.get(key);
    changed.push(b'\n');
    bucket.put(key, changed);
    let bytes = proxy.bytes();
    let third = start.start().ready();
    assert_eq!(third.embed(TEXT).0, vector);
    assert!(proxy.bytes() - bytes < 1_000_000, "{} bytes more", proxy.bytes() - bytes);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn transient_errors_of_s3_are_lived_through() {
    let bucket = Bucket::with_models();
    let proxy = Proxy::to(&s3_url());
    let count = std::sync::atomic::AtomicU32::new(0);
    proxy.rule(move |_| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 5 {
        0 => Fault::Answer(error(503, "SlowDown", &[])),
        1 => Fault::Reset,
        2 => Fault::Answer(error(500, "InternalError", &[])),
        _ => Fault::Pass,
    });
    let start = Start::new().env("MODEL_BUCKET", &bucket.name).env("AWS_ENDPOINT_URL_S3", &proxy.url);
    let replica = start.env("NEXUS_DOWNLOAD_RANGE_BYTES", "4MiB").start().ready();
    assert!(!replica.embed(TEXT).1);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_range_that_stalls_is_asked_for_again() {
    let bucket = Bucket::with_models();
    let proxy = Proxy::to(&s3_url());
    let count = std::sync::atomic::AtomicU32::new(0);
    proxy.rule(move |asked| {
        let weights = asked.method == "GET" && asked.path.contains(".safetensors");
        match weights && count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2 {
            true => Fault::Trickle { bytes_per_s: 2000 },
            false => Fault::Pass,
        }
    });
    let start = Start::new().env("MODEL_BUCKET", &bucket.name).env("AWS_ENDPOINT_URL_S3", &proxy.url);
    // As they were, two ranges of 2 MiB would take 17 minutes.
    let replica = start.env("NEXUS_DOWNLOAD_RANGE_BYTES", "2MiB").start().ready();
    assert!(!replica.embed(TEXT).1);
}

/// Starts, sees that the failure is told within a minute while the process lives, and gives what it says.
fn failure(start: &Start) -> (Replica, Vec<String>) {
    let started = Instant::now();
    let replica = start.start();
    assert_eq!(replica.get("/health").status(), 200);
    let answer = replica.ready_when(|answer| {
        assert_ne!(answer["status"], "ready", "{answer}");
        answer["models"].as_array().expect("models").iter().any(|model| model["detail"].is_string())
    });
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    assert_eq!(replica.get("/ready").status(), 503);
    assert_eq!(replica.get("/health").status(), 200);
    let details: Vec<String> = answer["models"]
        .as_array()
        .expect("models")
        .iter()
        .filter_map(|model| Some(model["detail"].as_str()?.to_owned()))
        .collect();
    // The log says the same.
    let started = Instant::now();
    while !replica.log().iter().any(|line| details.iter().any(|detail| says(line, detail))) {
        assert!(started.elapsed() < PATIENCE, "{details:?} is not in the log");
        std::thread::sleep(Duration::from_millis(20));
    }
    // What needs no model still answers.
    let body = json!({ "source_embedding": [1, 0], "target_embeddings": [[1, 0]] });
    assert_eq!(replica.ask("/api/v1/retrieve", &body)["candidates"][0]["control_id"], "0");
    (replica, details)
}

/// Whether a line of the log has a text in it, which is quoted there.
fn says(line: &str, text: &str) -> bool {
    let quoted = json!(text).to_string();
    line.contains(text) || line.contains(quoted.trim_matches('"'))
}

fn assert_told(details: &[String], words: &[&str]) {
    for detail in details {
        for word in words {
            assert!(detail.to_lowercase().contains(&word.to_lowercase()), "no {word:?} in: {detail}");
        }
    }
    assert!(!details.is_empty());
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_missing_bucket_and_a_missing_model_are_told() {
    let start = Start::new().env("MODEL_BUCKET", "no-such-bucket");
    assert_told(&failure(&start).1, &["no-such-bucket"]);

    let bucket = Bucket::new();
    bucket.put_folder("reranker", "models/modernbert-reranker");
    let start = Start::new().env("MODEL_BUCKET", &bucket.name);
    let (replica, details) = failure(&start);
    assert_told(&details, &[&bucket.name, "models/qwen-embedding-8b"]);
    // The other model is there, and loads.
    let answer = replica.ready_when(|answer| answer["models"][1]["status"] != "loading");
    assert_eq!(answer["models"][1]["status"], "ready", "{answer}");

    // A folder without its weights.
    bucket.put_folder("embedder", "models/qwen-embedding-8b");
    bucket.delete("models/qwen-embedding-8b/model.safetensors");
    assert_told(&failure(&start).1, &["safetensors"]);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_denied_bucket_is_told() {
    let bucket = Bucket::with_models();
    let proxy = Proxy::to(&s3_url());
    let start = Start::new().env("MODEL_BUCKET", &bucket.name).env("AWS_ENDPOINT_URL_S3", &proxy.url);
    proxy.rule(|_| Fault::Answer(error(403, "AccessDenied", &[])));
    assert_told(&failure(&start).1, &[&bucket.name, "denied", "s3:ListBucket"]);
    // Listing is allowed, and getting is not.
    proxy.rule(|asked| match asked.path.contains("list-type") {
        true => Fault::Pass,
        false => Fault::Answer(error(403, "AccessDenied", &[])),
    });
    assert_told(&failure(&start).1, &[&bucket.name, "denied", "s3:GetObject"]);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_bucket_of_another_region_is_told_with_its_region() {
    let bucket = Bucket::with_models();
    let proxy = Proxy::to(&s3_url());
    proxy.rule(|_| Fault::Answer(error(301, "PermanentRedirect", &[("x-amz-bucket-region", "eu-central-1")])));
    let start = Start::new().env("MODEL_BUCKET", &bucket.name).env("AWS_ENDPOINT_URL_S3", &proxy.url);
    assert_told(&failure(&start.env("AWS_REGION", "us-west-2")).1, &["eu-central-1", "us-west-2", "AWS_REGION"]);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn no_credentials_are_told() {
    let bucket = Bucket::with_models();
    let start = Start::new().without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
    assert_told(&failure(&start.env("MODEL_BUCKET", &bucket.name)).1, &["credentials"]);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn an_endpoint_where_nobody_is_is_told() {
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    drop(listener);
    let replica = Start::new().env("MODEL_BUCKET", "anything").env("AWS_ENDPOINT_URL_S3", &url).start();
    // It may be there soon, and is asked again for a while; the log does not wait for that.
    let started = Instant::now();
    while !replica.log().iter().any(|line| line.contains("anything") && line.contains("refused")) {
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", replica.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(replica.get("/ready").status(), 503);
    assert_eq!(replica.get("/health").status(), 200);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_start_without_other_settings_has_everything_the_documentation_promises() {
    let bucket = Bucket::with_models();
    // As a container definition has it: the bucket and the region, and a cache table that nobody has made.
    let start = Start::new().env("MODEL_BUCKET", &bucket.name).env("AWS_REGION", "us-east-1").without("NEXUS_CACHE");
    let replica = start.start().ready();
    let (vector, hit) = replica.embed(TEXT);
    assert!(!hit);
    assert_eq!(replica.embed(TEXT), (vector.clone(), true));
    let body = json!({ "items": [{ "control_id": "a", "text": TEXT }] });
    let answer = replica.ask("/api/v1/embed/batch", &body);
    assert_eq!(floats(&answer["results"][0]["embedding"]), vector);
    let models: Value = replica.get("/ready").json().expect("JSON");
    for model in models["models"].as_array().expect("models") {
        assert!(model["source"].as_str().is_some_and(|source| source.contains(&bucket.name)), "{model}");
    }
    replica.stop();
}
