//! The line of numbers that deployments make metrics of.

use crate::support::{PATIENCE, Service, nexus, root};
use serde_json::Value;
use std::sync::mpsc;
use std::time::Instant;

#[test]
fn the_stats_line_has_what_deployments_read_from_it() {
    let (sender, lines) = mpsc::channel();
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = nexus();
    command.arg("serve").env("NEXUS_CACHE_DIR", folder.path());
    let mut service = Service::spawn(command, move |line| {
        let _ = sender.send(line.to_owned());
    })
    .ready();
    for text in ["a", "b", "a"] {
        service.embed(text);
    }
    assert_eq!(service.post("/api/v1/embed", "{").status(), 422);
    // One at the end, too: nobody waits a minute here.
    service.signal("TERM");
    assert_eq!(service.exit().code(), Some(0));
    let started = Instant::now();
    let stats: Value = loop {
        let line = lines.recv_timeout(PATIENCE.saturating_sub(started.elapsed())).expect("a line of stats");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        if line["message"] == "stats" {
            break line;
        }
    };
    for (field, expected) in [
        ("requests", 4),
        ("requests_failed", 0),
        ("requests_in_flight", 0),
        ("queue_jobs", 2),
        ("queued_tokens", 0),
        ("replicas", 1),
        ("replicas_up", 1),
        ("device_retries", 0),
        ("device_failures", 0),
        ("cache_hits", 1),
        ("cache_misses", 2),
        ("cache_failures", 0),
        ("cache_dropped", 0),
        ("cache_breaker_open", 0),
    ] {
        assert_eq!(stats[field], expected, "{field} in {stats}");
    }
    // Two texts, and what the models were checked with.
    assert_eq!(stats["batches"], 4, "{stats}");
    assert!(stats["batch_tokens"].as_u64() > stats["batches"].as_u64(), "{stats}");
    assert!(stats["queue_wait_ms_p95"].as_f64().is_some_and(|ms| ms > 0.0), "{stats}");

    let metrics = std::fs::read_to_string(root().join("deploy/cdk/lib/metrics.ts")).expect("the metrics");
    let (_, fields) = metrics.split_once("export const STATS = {\n").expect("the fields");
    let (fields, _) = fields.split_once("}").expect("their end");
    let fields: Vec<_> = fields.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    assert!(fields.len() > 5, "{fields:?}");
    for field in fields {
        assert!(stats[field].is_number(), "{field} is no number in {stats}");
    }
}
