//! `nexus health`, as health checks of containers run it.

use crate::support::{PATIENCE, Service, run};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Output;
use std::time::Instant;

/// The one line of an answer that is no.
fn no(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.lines().count() == 1 && output.stdout.is_empty(), "{stderr}");
    stderr
}

fn yes(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_service_is_asked_by_its_settings_or_its_address() {
    let service = Service::start(&[]).ready();
    let port = service.url.rsplit(':').next().expect("a port");
    assert_eq!(yes(&run(&["health", "--ready", "--url", &service.url], &[])), "ready");
    for host in ["127.0.0.1", "0.0.0.0", ""] {
        let env = [("NEXUS_HOST", host), ("NEXUS_PORT", port)];
        assert_eq!(yes(&run(&["health"], &env)), "ok");
        assert_eq!(yes(&run(&["health", "--ready"], &env)), "ready");
    }
}

#[test]
fn a_service_without_models_lives_and_is_not_ready() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("none");
    let place = place.to_str().expect("UTF-8");
    let service = Service::start(&[("MODEL_BUCKET", place)]);
    service.wait_while_loading();
    assert_eq!(yes(&run(&["health", "--url", &service.url], &[])), "ok");
    let line = no(&run(&["health", "--ready", "--url", &service.url], &[]));
    assert!(line.contains("503, failed") && line.contains(place), "{line}");
}

#[test]
fn a_service_without_the_device_that_it_needs_lives_and_says_why() {
    // Whatever the machine has, it has no hundred GPUs.
    let service = Service::start(&[("NEXUS_DEVICE", "cuda:99")]);
    service.wait_while_loading();
    assert_eq!(yes(&run(&["health", "--url", &service.url], &[])), "ok");
    let line = no(&run(&["health", "--ready", "--url", &service.url], &[]));
    assert!(line.contains("503, failed"), "{line}");
    let answer: serde_json::Value = service.get("/ready").json().expect("JSON");
    for model in answer["models"].as_array().expect("models") {
        let detail = model["detail"].as_str().expect("a reason");
        assert!(detail.contains("NEXUS_DEVICE=cuda:99"), "{answer}");
    }
    assert_eq!(answer["replicas"], serde_json::json!([]));
}

#[test]
fn nobody_there_and_nothing_said_are_told_in_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    // Takes connections and says nothing.
    let started = Instant::now();
    let line = no(&run(&["health", "--url", &url], &[]));
    assert!(line.contains(&url) && line.contains("no answer in 4 s"), "{line}");
    assert!(started.elapsed() < PATIENCE);
    drop(listener);
    let line = no(&run(&["health", "--url", &url], &[]));
    assert!(line.contains("no answer: "), "{line}");
}

#[test]
fn an_answer_that_is_none_is_no() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"+OK ready\r\n\r\n");
    });
    let line = no(&run(&["health", "--url", &url], &[]));
    assert!(line.contains("not HTTP"), "{line}");
    server.join().expect("no panic");
}

#[test]
fn questions_that_make_no_sense_are_refused() {
    for (args, env) in [
        (vec!["health", "--url", "https://127.0.0.1"], vec![]),
        (vec!["health", "--url", "127.0.0.1:8000"], vec![]),
        (vec!["health"], vec![("NEXUS_PORT", "0")]),
        (vec!["health"], vec![("NEXUS_PORT", "http")]),
    ] {
        assert_eq!(run(&args, &env).status.code(), Some(2), "{args:?}");
    }
}
