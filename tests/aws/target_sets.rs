//! Target sets that replicas share: two on one bucket, each with a folder of its own.

use crate::places::{Bucket, unique};
use crate::proxy::{Fault, Message, Proxy};
use crate::replica::{Replica, Start};
use crate::support::PATIENCE;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one replica may take to know what another was told: one second is promised.
const KNOWN_IN: Duration = Duration::from_secs(5);

struct Shared {
    bucket: Bucket,
    prefix: String,
}

impl Shared {
    fn new() -> Self {
        Self { bucket: Bucket::new(), prefix: unique("sets") }
    }

    fn start(&self) -> Start {
        Start::new().env("NEXUS_TARGETS_URL", &format!("s3://{}/{}", self.bucket.name, self.prefix))
    }

    fn replica(&self) -> Replica {
        open(self.start().start())
    }

    fn replica_on(&self, folder: &Path) -> Replica {
        open(self.start().folder(folder).start())
    }
}

/// Waits until sets can be used: they are opened beside the start.
fn open(replica: Replica) -> Replica {
    let started = Instant::now();
    while replica.get("/api/v1/targets").status() == 503 {
        assert!(started.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    replica
}

/// Puts a set whose first row points at `nearest`.
fn put(replica: &Replica, set: &str, nearest: &str) -> u16 {
    let body = json!({ "target_embeddings": [[1, 0], [0, 1]], "target_ids": [nearest, "other"] });
    let request = replica.client.put(format!("{}/api/v1/targets/{set}", replica.url));
    request
        .header("content-type", "application/json")
        .body(body.to_string())
        .send()
        .expect("an answer")
        .status()
        .as_u16()
}

fn delete(replica: &Replica, set: &str) -> u16 {
    let request = replica.client.delete(format!("{}/api/v1/targets/{set}", replica.url));
    request.send().expect("an answer").status().as_u16()
}

/// What a retrieve request finds nearest in a set, or the status that refuses it.
fn nearest(replica: &Replica, set: &str) -> Result<String, u16> {
    let body = json!({ "source_embedding": [1, 0.1], "targets": set, "top_k": 1 });
    let response = replica.post("/api/v1/retrieve", body.to_string());
    match response.status().as_u16() {
        200 => {
            let answer: Value = response.json().expect("JSON");
            Ok(answer["candidates"][0]["control_id"].as_str().expect("a name").to_owned())
        }
        status => Err(status),
    }
}

fn names(replica: &Replica) -> Vec<String> {
    let answer: Value = replica.get("/api/v1/targets").json().expect("JSON");
    let sets = answer.as_array().or(answer["sets"].as_array()).or(answer["targets"].as_array());
    (sets.unwrap_or_else(|| panic!("no list: {answer}")).iter())
        .map(|set| set["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// Waits until `what` is so, which other replicas are told within a second.
fn soon(what: impl Fn() -> bool, message: &str) {
    let started = Instant::now();
    while !what() {
        assert!(started.elapsed() < KNOWN_IN, "after {KNOWN_IN:?}: {message}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_set_put_at_one_replica_is_there_at_the_other() {
    let shared = Shared::new();
    let (one, two) = (shared.replica(), shared.replica());
    assert_eq!(nearest(&two, "nist"), Err(404));
    assert_eq!(put(&one, "nist", "first"), 201);
    assert_eq!(nearest(&one, "nist").as_deref(), Ok("first"));
    soon(|| nearest(&two, "nist").as_deref() == Ok("first"), "the other does not know it");
    soon(|| names(&two) == ["nist"], "the other does not list it");
    let of = |replica: &Replica| replica.get("/api/v1/targets/nist").json::<Value>().expect("JSON");
    assert_eq!(of(&one), of(&two));

    // Replaced by the other; never anything but the old set or the new one.
    assert_eq!(put(&two, "nist", "second"), 200);
    assert_eq!(nearest(&two, "nist").as_deref(), Ok("second"));
    soon(
        || {
            let found = nearest(&one, "nist");
            assert!(matches!(found.as_deref(), Ok("first" | "second")), "{found:?}");
            found.as_deref() == Ok("second")
        },
        "the old set stays",
    );

    assert_eq!(delete(&one, "nist"), 204);
    assert_eq!(nearest(&one, "nist"), Err(404));
    soon(|| nearest(&two, "nist") == Err(404), "the deleted set stays");
    assert_eq!(delete(&two, "nist"), 404);
    assert!(names(&two).is_empty());
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_list_is_of_the_bucket_whoever_put_the_sets() {
    let shared = Shared::new();
    let (one, two) = (shared.replica(), shared.replica());
    assert_eq!(put(&one, "a", "a"), 201);
    assert_eq!(put(&two, "b", "b"), 201);
    for replica in [&one, &two] {
        soon(|| names(replica) == ["a", "b"], "a set is missing");
    }
    // Each deletes the other's, which nobody asks for by name.
    assert_eq!(delete(&one, "b"), 204);
    soon(|| names(&two) == ["a"], "a deleted set is listed by the replica that put it");
    assert_eq!(delete(&two, "a"), 204);
    soon(|| names(&one).is_empty(), "a deleted set is listed by the replica that put it");
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn sets_outlive_replicas_and_their_disks() {
    let shared = Shared::new();
    let folder = tempfile::tempdir().expect("a folder");
    let one = shared.replica_on(folder.path());
    for set in ["a", "b"] {
        assert_eq!(put(&one, set, set), 201);
    }
    one.kill();
    // On the same disk, and on another.
    let again = shared.replica_on(folder.path());
    let two = shared.replica();
    for replica in [&again, &two] {
        soon(|| names(replica) == ["a", "b"], "sets are gone");
        for set in ["a", "b"] {
            assert_eq!(nearest(replica, set).as_deref(), Ok(set));
        }
    }
    // Deleted while a replica was away: it does not come back with it.
    again.stop();
    assert_eq!(delete(&two, "a"), 204);
    let again = shared.replica_on(folder.path());
    // In the list, before anybody asks for it by name.
    soon(|| names(&again) == ["b"], "a deleted set is listed");
    assert_eq!(nearest(&again, "a"), Err(404));
    assert!(!shared.bucket.keys(&shared.prefix).is_empty());
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_bucket_that_is_gone_for_a_while_leaves_what_is_known() {
    let shared = Shared::new();
    let proxy = Proxy::to(&crate::places::s3_url());
    let one = open(shared.start().env("AWS_ENDPOINT_URL_S3", &proxy.url).start());
    assert_eq!(put(&one, "nist", "known"), 201);
    for fault in [500, 403] {
        proxy.rule(move |_| {
            let code = if fault == 500 { "InternalError" } else { "AccessDenied" };
            let body = format!("<Error><Code>{code}</Code><Message>told by the proxy</Message></Error>");
            Fault::Answer(Message::response(fault, &[], body))
        });
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(3) {
            assert_eq!(nearest(&one, "nist").as_deref(), Ok("known"));
            std::thread::sleep(Duration::from_millis(100));
        }
        // What can not be shared is not accepted.
        let status = put(&one, "other", "x");
        assert!(status >= 500, "{status}");
        proxy.pass();
        assert_eq!(nearest(&one, "nist").as_deref(), Ok("known"));
    }
    let two = shared.replica();
    assert_eq!(put(&one, "other", "later"), 201);
    soon(|| nearest(&two, "other").as_deref() == Ok("later"), "the other does not know it");
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_bucket_that_is_removed_is_not_one_without_sets() {
    let shared = Shared::new();
    let one = shared.replica();
    assert_eq!(put(&one, "nist", "known"), 201);
    shared.bucket.remove();
    // One that knows nothing says what is wrong.
    let two = shared.start().start();
    for path in ["/api/v1/targets", "/api/v1/targets/nist"] {
        let started = Instant::now();
        loop {
            // It says 503 while it opens its folder, too.
            let answer = two.get(path);
            assert_eq!(answer.status(), 503, "{path}");
            let said = answer.text().expect("text");
            if said.contains(&format!("there is no bucket {}: create it", shared.bucket.name)) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        assert_eq!(nearest(&one, "nist").as_deref(), Ok("known"));
        assert_eq!(nearest(&one, "other"), Err(503));
        assert_eq!(names(&one), ["nist"]);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!((delete(&one, "nist"), put(&one, "nist", "x")), (503, 503));
    assert_eq!(nearest(&one, "nist").as_deref(), Ok("known"));
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn what_is_kept_on_disk_stays_within_its_bound() {
    let shared = Shared::new();
    let one = shared.replica();
    let row: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let body = json!({ "target_embeddings": vec![row.clone(); 100] }).to_string();
    for i in 0..8 {
        let request = one.client.put(format!("{}/api/v1/targets/set-{i}", one.url)).body(body.clone());
        assert_eq!(request.send().expect("an answer").status(), 201);
    }
    // Room for two of the eight sets, of 400 KB each.
    let folder = tempfile::tempdir().expect("a folder");
    let start = shared.start().folder(folder.path()).env("NEXUS_TARGETS_BYTES_MAX", "1MiB");
    let small = open(start.start());
    soon(|| names(&small).len() == 8, "sets are missing");
    for i in (0..8).chain(0..8) {
        let body = json!({ "source_embedding": row, "targets": format!("set-{i}"), "top_k": 1 });
        assert_eq!(small.ask("/api/v1/retrieve", &body)["candidates"][0]["control_id"], "0");
    }
    let bytes = folder_bytes(&folder.path().join("targets"));
    assert!(bytes < 2 << 20, "{bytes} bytes");
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |path: std::path::PathBuf| match std::fs::metadata(&path) {
        Ok(state) if state.is_dir() => folder_bytes(&path),
        // The index is no set.
        Ok(state) if path.extension().is_none_or(|end| end != "redb") => state.len(),
        _ => 0,
    };
    entries.flatten().map(|entry| of(entry.path())).sum()
}
