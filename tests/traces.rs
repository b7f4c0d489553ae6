//! Traces, sent to a collector, and the requests of traces that clients began.

use crate::support::{Service, nexus};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The trace of the example in W3C Trace Context, 3.2.4.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// What takes OTLP over HTTP: its address, and what it was sent.
fn collector() -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&bodies);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            loop {
                let (mut head, mut length) = (String::new(), 0);
                while !head.ends_with("\r\n\r\n") {
                    let before = head.len();
                    if !matches!(reader.read_line(&mut head), Ok(1..)) {
                        break;
                    }
                    if let Some(value) = head[before..].to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().expect("a length");
                    }
                }
                let mut body = vec![0; length];
                if head.is_empty() || reader.read_exact(&mut body).is_err() {
                    break;
                }
                assert!(head.starts_with("POST /v1/traces HTTP/1.1"), "{head}");
                taken.lock().expect("no panic").push(body);
                let _ = reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            }
        }
    });
    (address, bodies)
}

fn contains(bodies: &[Vec<u8>], wanted: &[u8]) -> bool {
    bodies.iter().any(|body| body.windows(wanted.len()).any(|window| window == wanted))
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[test]
fn a_clients_trace_goes_on() {
    let (address, bodies) = collector();
    let cache = tempfile::tempdir().expect("a folder");
    let log = Arc::new(Mutex::new(String::new()));
    let mut command = nexus();
    command.arg("serve").env("NEXUS_CACHE_DIR", cache.path()).env("OTEL_EXPORTER_OTLP_ENDPOINT", &address);
    let lines = Arc::clone(&log);
    let service = Service::spawn(command, move |line| lines.lock().expect("no panic").push_str(line));
    let mut service = service.ready();
    let ask = |sampled: &str, trace: &str| {
        let request = service.client.post(format!("{}/api/v1/embed", service.url));
        let request = request.header("traceparent", format!("00-{trace}-00f067aa0ba902b7-{sampled}"));
        let body = r#"{"control_id": "A", "text": "The text of a control"}"#;
        let response = request.header("content-type", "application/json").body(body).send();
        assert_eq!(response.expect("an answer").status(), 200);
    };
    let unsampled = TRACE.replace("4b", "5c");
    ask("01", TRACE);
    ask("00", &unsampled);
    // What was not sent yet is sent at the end.
    service.signal("TERM");
    assert_eq!(service.exit().code(), Some(0));
    let bodies = bodies.lock().expect("no panic");
    assert!(contains(&bodies, &bytes_of(TRACE)), "the trace goes on");
    assert!(contains(&bodies, &bytes_of("00f067aa0ba902b7")), "below its client's span");
    assert!(!contains(&bodies, &bytes_of(&unsampled)), "what its client does not sample is not sent");
    for span in ["request", "tokenize", "cache", "compute"] {
        assert!(contains(&bodies, span.as_bytes()), "{span}");
    }
    assert!(!contains(&bodies, b"The text of a control"));
    let log = log.lock().expect("no panic");
    assert!(log.contains(&format!("\"trace\":\"{TRACE}\"")), "{log}");
}

#[test]
fn a_collector_that_is_gone_costs_nobody_an_answer() {
    // A port that nobody listens on.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let address = format!("http://127.0.0.1:{port}");
    let mut service = Service::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &address)]).ready();
    for n in 0..50 {
        service.embed(&format!("Control {n}"));
    }
    let started = Instant::now();
    service.signal("TERM");
    assert_eq!(service.exit().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}
