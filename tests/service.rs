//! The work itself, with the built-in models: embed, retrieve, rerank, and a cache that tells the truth.

use crate::support::{Service, cosine, floats, root};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MFA_CHECK: &str = "MFA is enabled for the root user of the account";
const MFA_CONTROL: &str = "Multi-factor authentication is required for all users with access to information systems.";
const BACKUP_CONTROL: &str = "Backups of important data are made daily and restored on trial once a year.";

#[test]
fn health_answers_at_once_and_ready_soon() {
    let service = Service::start(&[("NEXUS_DEVICE", "cpu")]);
    assert_eq!(service.get("/health").status(), 200);
    let service = service.ready();
    let answer: Value = service.get("/ready").json().expect("JSON");
    let roles: Vec<&Value> = answer["models"].as_array().expect("models").iter().map(|model| &model["role"]).collect();
    assert_eq!(roles, ["retriever", "reranker"]);
    let [replica] = &answer["replicas"].as_array().expect("replicas")[..] else { panic!("{answer}") };
    assert_eq!((&replica["status"], &replica["detail"]), (&"serving".into(), &Value::Null), "{replica}");
    assert!(replica["device"].as_str().is_some_and(|device| !device.is_empty()), "{replica}");
    for model in answer["models"].as_array().expect("models") {
        assert!(model["source"].as_str().is_some_and(|source| source.contains("built-in")), "{model}");
    }
}

#[test]
fn embeddings_are_unit_vectors_with_exactly_the_promised_keys() {
    let service = Service::start(&[]).ready();
    let answer = service.ask("/api/v1/embed", &json!({ "control_id": "AC-1", "text": MFA_CHECK }));
    let mut keys: Vec<&String> = answer.as_object().expect("an object").keys().collect();
    keys.sort();
    assert_eq!(keys, ["cache_hit", "control_id", "embedding"]);
    assert_eq!(answer["control_id"], "AC-1");
    let full = floats(&answer["embedding"]);
    let length: f32 = full.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");

    let half = full.len() / 2;
    let body = json!({ "control_id": "A", "text": MFA_CHECK, "dimensions": half });
    let truncated = floats(&service.ask("/api/v1/embed", &body)["embedding"]);
    assert_eq!(truncated.len(), half);
    assert!(cosine(&truncated, &full[..half]) > 0.9999);
    let length: f32 = truncated.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");

    let body = json!({ "control_id": "A", "text": MFA_CHECK, "encoding_format": "base64" });
    let packed = service.ask("/api/v1/embed", &body);
    let decoded = nexus_vectors::decode_base64(packed["embedding"].as_str().expect("a string")).expect("a vector");
    assert_eq!(decoded, full);

    let body =
        json!({ "control_id": "A", "text": MFA_CHECK, "instruction": "Find the control that this check fulfils" });
    let instructed = floats(&service.ask("/api/v1/embed", &body)["embedding"]);
    assert_ne!(instructed, full);

    let body = json!({ "control_id": "A", "text": MFA_CHECK, "dimensions": full.len() + 1 });
    let answer = service.post("/api/v1/embed", body.to_string());
    assert_eq!(answer.status(), 422);
    let answer: Value = answer.json().expect("JSON");
    assert_eq!(answer["detail"][0]["loc"], json!(["body", "dimensions"]));
}

#[test]
fn a_batch_gives_the_same_vectors_in_order() {
    let service = Service::start(&[("NEXUS_CACHE", "off")]).ready();
    let long = "Access to systems is logged. ".repeat(60);
    let texts = [MFA_CHECK, &long, "x", BACKUP_CONTROL];
    let items: Vec<Value> =
        texts.iter().enumerate().map(|(i, text)| json!({ "control_id": i.to_string(), "text": text })).collect();
    let answer = service.ask("/api/v1/embed/batch", &json!({ "items": items }));
    let results = answer["results"].as_array().expect("results");
    assert_eq!(results.len(), texts.len());
    for (i, (result, text)) in results.iter().zip(texts).enumerate() {
        assert_eq!(result["control_id"], i.to_string());
        let (alone, _) = service.embed(text);
        assert!(cosine(&floats(&result["embedding"]), &alone) > 0.9999, "{text}");
    }
    assert_eq!(service.ask("/api/v1/embed/batch", &json!({ "items": [] })), json!({ "results": [] }));
}

#[test]
fn cache_hit_tells_the_truth_and_outlives_the_process() {
    let cache = tempfile::tempdir().expect("a folder");
    let start = |kind| Service::start_on(cache.path(), &[("NEXUS_CACHE", kind)]).ready();

    let mut service = start("redb");
    let (computed, hit) = service.embed(MFA_CHECK);
    assert!(!hit);
    assert_eq!(service.embed(MFA_CHECK), (computed.clone(), true));
    assert!(!service.embed(BACKUP_CONTROL).1);
    service.signal("TERM");
    assert!(service.exit().success());

    let service = start("redb");
    assert_eq!(service.embed(MFA_CHECK), (computed.clone(), true));
    drop(service);

    let service = start("memory");
    assert_eq!(service.embed(MFA_CHECK), (computed.clone(), false));
    assert_eq!(service.embed(MFA_CHECK), (computed.clone(), true));
    drop(service);

    let service = start("off");
    assert_eq!(service.embed(MFA_CHECK), (computed.clone(), false));
    assert_eq!(service.embed(MFA_CHECK), (computed, false));
}

#[test]
fn a_second_process_runs_beside_the_first_on_one_cache_folder() {
    let cache = tempfile::tempdir().expect("a folder");
    let first = Service::start_on(cache.path(), &[]).ready();
    let second = Service::start_on(cache.path(), &[]).ready();
    assert_eq!(first.embed(MFA_CHECK).0, second.embed(MFA_CHECK).0);
    assert!(second.embed(MFA_CHECK).1);
}

#[test]
fn an_mfa_check_finds_the_mfa_control() {
    let service = Service::start(&[]).ready();
    let controls = csv_controls();
    let items: Vec<Value> = controls.iter().map(|(id, text)| json!({ "control_id": id, "text": text })).collect();
    let results = service.ask("/api/v1/embed/batch", &json!({ "items": items }));
    let targets: Vec<&Value> =
        results["results"].as_array().expect("results").iter().map(|result| &result["embedding"]).collect();
    let ids: Vec<&String> = controls.iter().map(|(id, _)| id).collect();

    let source = service.ask("/api/v1/embed", &json!({ "control_id": "check", "text": MFA_CHECK }));
    let body = json!({
        "source_embedding": source["embedding"], "target_embeddings": targets, "target_ids": ids, "top_k": 5,
    });
    let answer = service.ask("/api/v1/retrieve", &body);
    let candidates = answer["candidates"].as_array().expect("candidates");
    assert_eq!(candidates.len(), 5);
    let similarities: Vec<f64> = candidates.iter().map(|c| c["similarity"].as_f64().expect("a number")).collect();
    assert!(similarities.is_sorted_by(|a, b| a >= b), "{similarities:?}");
    assert!(candidates[..3].iter().any(|candidate| candidate["control_id"] == "POL-ACC-2"), "{answer}");

    let texts: Vec<Value> = candidates
        .iter()
        .filter_map(|candidate| {
            let id = candidate["control_id"].as_str()?;
            let (_, text) = controls.iter().find(|(control, _)| control == id)?;
            Some(json!({ "control_id": id, "text": text }))
        })
        .collect();
    let answer = service.ask("/api/v1/rerank", &json!({ "source_text": MFA_CHECK, "candidates": texts }));
    assert!(
        answer["rankings"].as_array().expect("rankings")[..2].iter().any(|r| r["control_id"] == "POL-ACC-2"),
        "{answer}"
    );
}

#[test]
fn rerank_puts_the_match_first() {
    let service = Service::start(&[]).ready();
    let body = json!({
        "source_text": MFA_CHECK,
        "candidates": [
            { "control_id": "backup", "text": BACKUP_CONTROL },
            { "control_id": "mfa", "text": MFA_CONTROL },
            { "control_id": "backup again", "text": BACKUP_CONTROL },
        ],
    });
    let answer = service.ask("/api/v1/rerank", &body);
    let rankings = answer["rankings"].as_array().expect("rankings");
    let ids: Vec<&Value> = rankings.iter().map(|ranking| &ranking["control_id"]).collect();
    assert_eq!(ids, ["mfa", "backup", "backup again"]);
    for ranking in rankings {
        let score = ranking["score"].as_f64().expect("a number");
        assert!((0.0..=1.0).contains(&score), "{answer}");
    }
}

#[test]
fn texts_beyond_the_window_are_cut() {
    // Well over 32 tokens before there is a difference.
    let start = "Access to systems is logged. ".repeat(20);
    let texts = [MFA_CONTROL, BACKUP_CONTROL].map(|end| format!("{start}{end}"));
    let cache = tempfile::tempdir().expect("a folder");
    let vectors = |window| {
        let service = Service::start_on(cache.path(), &[("NEXUS_TEXT_TOKENS_MAX", window)]).ready();
        // On one cache folder: what was made of a part of a text is not what the whole of it gives.
        let vectors = texts.each_ref().map(|text| {
            let (vector, hit) = service.embed(text);
            assert!(!hit, "window {window}: {text}");
            assert!(service.embed(text).1);
            vector
        });
        let mut service = service;
        service.signal("TERM");
        assert!(service.exit().success());
        vectors
    };
    let [one, other] = vectors("32");
    assert_eq!(one, other);
    let [whole, whole_other] = vectors("0");
    assert!(cosine(&whole, &whole_other) < 0.999);
    assert!(cosine(&whole, &one) < 0.999);
}

#[test]
fn very_long_texts_cost_no_more_than_their_window() {
    let service = Service::start(&[("NEXUS_TEXT_TOKENS_MAX", "32")]).ready();
    let long = "Access to systems is logged. ".repeat(2000);
    let (vector, _) = service.embed(&long);
    assert!(vector.iter().all(|x| x.is_finite()));
    let body = json!({ "source_text": long, "candidates": [{ "control_id": "A", "text": long }] });
    let started = Instant::now();
    assert_eq!(service.ask("/api/v1/rerank", &body)["rankings"][0]["control_id"], "A");
    // What is cut off must cost no more than its tokenization: overflowing parts of a pair multiply.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

fn csv_controls() -> Vec<(String, String)> {
    let mut reader = csv::Reader::from_path(root().join("examples/policy-controls.csv")).expect("the example");
    reader
        .records()
        .map(|record| {
            let record = record.expect("a record");
            (record[0].to_owned(), record[2].to_owned())
        })
        .collect()
}
