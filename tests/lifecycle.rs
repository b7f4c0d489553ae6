//! Starting and ending: taken ports, models that are not there, signals.

use crate::support::{PATIENCE, Service, run};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn models_that_are_missing_are_told_while_the_service_lives() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("none");
    let place = place.to_str().expect("UTF-8");
    for bucket in [place.to_owned(), format!("file://{place}")] {
        let service = Service::start(&[("MODEL_BUCKET", &bucket), ("NEXUS_BUILTIN", "off")]);
        assert_eq!(service.get("/health").status(), 200);
        let answer = service.wait_while_loading();
        assert_eq!(answer["status"], "failed");
        assert!(answer["models"][0]["detail"].as_str().is_some_and(|detail| detail.contains(place)), "{answer}");
        assert_eq!(service.get("/ready").status(), 503);

        let response = service.post("/api/v1/embed", r#"{"control_id": "A", "text": "x"}"#);
        assert_eq!(response.status(), 503);
        let refusal: Value = response.json().expect("JSON");
        assert!(refusal["detail"].as_str().is_some_and(|detail| detail.contains(place)), "{refusal}");

        let body = json!({ "source_embedding": [1, 0], "target_embeddings": [[1, 0]] });
        assert_eq!(service.ask("/api/v1/retrieve", &body)["candidates"][0]["control_id"], "0");
    }
}

#[test]
fn a_taken_port_is_one_line_and_status_1() {
    let service = Service::start(&[]);
    let port = service.url.rsplit(':').next().expect("a port");
    let output = run(&["serve", "--port", port], &[("NEXUS_CACHE", "off")]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.lines().count() == 1 && stderr.contains(port), "{stderr}");
}

#[test]
fn a_host_that_is_none_is_one_line_and_status_1() {
    let output = run(&["serve", "--port", "0", "--host", "no such host"], &[("NEXUS_CACHE", "off")]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.lines().count() == 1 && stderr.contains("no such host"), "{stderr}");
}

#[test]
fn both_signals_end_an_idle_service_at_once_with_status_0() {
    for signal in ["TERM", "INT"] {
        let mut service = Service::start(&[]);
        let address = service.url.trim_start_matches("http://");
        let _silent = std::net::TcpStream::connect(address).expect("a connection that never says anything");
        let started = Instant::now();
        service.signal(signal);
        assert_eq!(service.exit().code(), Some(0), "{signal}");
        assert!(started.elapsed() < Duration::from_secs(10), "{signal}: {:?}", started.elapsed());
    }
}

#[test]
fn a_request_in_flight_is_answered_before_the_end() {
    let mut service = Service::start(&[("NEXUS_CACHE", "off")]).ready();
    // Long enough to be in flight when the signal comes, short enough for the bound.
    let items: Vec<Value> = (0..200)
        .map(|i| json!({ "control_id": i.to_string(), "text": format!("{i} Access to systems is logged. ").repeat(8) }))
        .collect();
    let request = service
        .client
        .post(format!("{}/api/v1/embed/batch", service.url))
        .header("content-type", "application/json")
        .body(json!({ "items": items }).to_string());
    let answer = std::thread::spawn(move || request.send().expect("an answer"));
    std::thread::sleep(Duration::from_millis(100));
    service.signal("TERM");
    let response = answer.join().expect("no panic");
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().expect("JSON");
    assert_eq!(answer["results"].as_array().map(Vec::len), Some(200));
    assert_eq!(service.exit().code(), Some(0));
}

#[test]
fn a_slow_client_does_not_hold_the_end_up() {
    use std::io::Write as _;
    let mut service = Service::start(&[("NEXUS_SHUTDOWN_TIMEOUT_MS", "6000")]);
    let address = service.url.trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(address).expect("a connection");
    let head = "POST /api/v1/embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).expect("sent");
    std::thread::sleep(Duration::from_millis(200));
    // While a request is in flight, /ready tells what is coming.
    service.signal("TERM");
    let started = Instant::now();
    while service.get("/ready").json::<Value>().expect("JSON")["status"] != "stopping" {
        assert!(started.elapsed() < PATIENCE);
    }
    assert_eq!(service.exit().code(), Some(0));
    // One deadline for all of the end, not one for each part of it.
    assert!(started.elapsed() < Duration::from_secs(11), "{:?}", started.elapsed());
}

#[test]
fn a_second_signal_ends_at_once() {
    use std::io::Write as _;
    let mut service = Service::start(&[("NEXUS_SHUTDOWN_TIMEOUT_MS", "100000")]);
    let address = service.url.trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(address).expect("a connection");
    stream.write_all(b"POST /api/v1/embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").expect("sent");
    std::thread::sleep(Duration::from_millis(200));
    let started = Instant::now();
    service.signal("TERM");
    std::thread::sleep(Duration::from_millis(200));
    service.signal("TERM");
    assert_eq!(service.exit().code(), Some(130));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[cfg(target_os = "linux")]
#[test]
fn threads_that_serve_requests_wait_for_those_that_compute() {
    const OTHER: u32 = 0;
    const BATCH: u32 = 3;
    let service = Service::start(&[]).ready();
    service.embed("a control");
    service.ask("/api/v1/retrieve", &json!({ "source_embedding": [1, 0], "target_embeddings": [[1, 0]] }));
    let threads = service.threads();
    for (name, policy) in [("tokio-rt-worker", BATCH), ("replica-", OTHER), ("compute-", OTHER), ("tokenize-", OTHER)] {
        let policies: Vec<u32> = threads.iter().filter(|it| it.0.starts_with(name)).map(|it| it.1).collect();
        assert!(!policies.is_empty() || name == "compute-", "no {name}: {threads:?}");
        assert!(policies.iter().all(|it| *it == policy), "{name}: {threads:?}");
    }
}
