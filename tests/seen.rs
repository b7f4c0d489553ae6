//! What operators see of a running service.

use crate::support::Service;
use serde_json::{Value, json};

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().expect("a number")
}

#[test]
fn work_is_seen_by_stage_model_and_device() {
    let service = Service::start(&[]).ready();
    let texts = ["Access is logged.", "Keys are rotated.", "Access is logged."];
    for text in texts {
        service.embed(text);
    }
    let candidates: Vec<Value> =
        (0..100).map(|n| json!({ "control_id": n.to_string(), "text": format!("Control {n} on access") })).collect();
    service.ask("/api/v1/rerank", &json!({ "source_text": "Access", "candidates": candidates }));

    let text = service.get("/metrics").text().expect("text");
    for (stage, model, count) in [
        ("cache", "embedder", 3.0),
        ("tokenize", "embedder", 2.0),
        ("queue", "embedder", 2.0),
        ("serialize", "embedder", 3.0),
        // In pieces of 64.
        ("tokenize", "reranker", 2.0),
        ("queue", "reranker", 100.0),
        ("serialize", "reranker", 1.0),
    ] {
        let series = format!("nexus_stage_duration_seconds_count{{stage=\"{stage}\",model=\"{model}\"}}");
        assert_eq!(value(&text, &series), count, "{stage} {model}");
    }
    assert!(value(&text, "nexus_stage_duration_seconds_count{stage=\"compute\",model=\"reranker\"}") >= 1.0);
    assert!(value(&text, "nexus_batch_sequences_sum{model=\"reranker\"}") == 100.0);
    let fill = value(&text, "nexus_batch_fill_ratio_sum{model=\"reranker\"}");
    assert!(fill > 0.0 && fill <= value(&text, "nexus_batch_fill_ratio_count{model=\"reranker\"}"));
    assert!(value(&text, "nexus_tokens_total{model=\"embedder\"}") > 5.0);
    assert_eq!(value(&text, "nexus_cache_hits_total{tier=\"memory\"}"), 1.0);
    assert_eq!(value(&text, "nexus_cache_misses_total"), 2.0);
    assert_eq!(value(&text, "nexus_cache_breaker_open{operation=\"read\"}"), 0.0);
    assert_eq!((value(&text, "nexus_replicas"), value(&text, "nexus_replicas_up")), (1.0, 1.0));
    assert_eq!((value(&text, "nexus_ready"), value(&text, "nexus_model_ready{model=\"reranker\"}")), (1.0, 1.0));
    let busy = text.lines().find(|line| line.starts_with("nexus_device_busy_seconds_total{")).expect("a device");
    assert!(busy.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).is_some_and(|s| s > 0.0), "{busy}");
    if cfg!(target_os = "linux") {
        assert!(value(&text, "nexus_process_resident_memory_bytes") > 1e6);
        assert!(value(&text, "nexus_process_open_fds") > 3.0);
        assert!(value(&text, "nexus_process_cpu_seconds_total") > 0.0);
    }

    let status: Value = service.get("/status").json().expect("JSON");
    assert_eq!((&status["status"], &status["cache"]["hits"]), (&json!("ready"), &json!(1)));
    assert_eq!(status["replicas"][0]["status"], "up");
    assert!(status["replicas"][0]["tokens"].as_u64().is_some_and(|tokens| tokens > 0));
    assert_eq!(status["models"][1]["kind"], "reranker");
    assert_eq!(status["totals"]["failed"], 0);
    assert!(service.get("/").text().expect("text").contains("<title>Nexus"));
}
