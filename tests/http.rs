//! Clients that are slow, greedy or broken, over sockets of their own: each is bounded, and others do not notice.

use crate::support::Service;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const TIME_MAX: Duration = Duration::from_secs(60);

fn connect(service: &Service) -> TcpStream {
    let stream = TcpStream::connect(service.url.trim_start_matches("http://")).expect("a connection");
    stream.set_read_timeout(Some(TIME_MAX)).expect("a time limit");
    stream
}

/// All that comes until the service closes the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // What was sent and not read is answered by a reset, once the answer is out.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it stays open: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

fn lives(service: &Service) {
    let started = Instant::now();
    // Over a connection of its own: those that were idle may have made room.
    let mut stream = connect(service);
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
    assert_eq!(statuses(&rest(stream)), ["200"]);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn heads_that_are_too_large_or_make_no_sense() {
    let service = Service::start(&[]);
    for (head, expected) in [
        (format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(300_000)), "431"),
        (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(100_000)), "414"),
        (
            (0..200).fold("GET /health HTTP/1.1\r\n".to_owned(), |head, n| head + &format!("x{n}: y\r\n")) + "\r\n",
            "431",
        ),
        ("GET /health HTTP/1.1\r\nhost x\r\n\r\n".to_owned(), "400"),
        ("POST /api/v1/embed HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(), "400"),
        ("POST /api/v1/embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n".to_owned(), "400"),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}\r\n\r\n".to_owned(), "400"),
    ] {
        let mut stream = connect(&service);
        // It may be refused before all of it is sent.
        let _ = stream.write_all(head.as_bytes());
        let answer = rest(stream);
        // A reset may overtake the refusal of what was still being sent.
        assert!(answer.is_empty() && head.len() > 100_000 || statuses(&answer) == [expected], "{expected}: {answer:?}");
        lives(&service);
    }
}

/// Where two lengths are told, a proxy in front may believe the other one: nothing behind such a request is read as another.
#[test]
fn what_is_behind_a_request_with_two_lengths_is_not_another_request() {
    let service = Service::start(&[]);
    let lengths =
        ["content-length: 60\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 60"];
    for lengths in lengths {
        let mut stream = connect(&service);
        let smuggled = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n";
        write!(stream, "POST /api/v1/embed HTTP/1.1\r\nhost: x\r\n{lengths}\r\n\r\n0\r\n\r\n{smuggled}").expect("sent");
        let answers = rest(stream);
        assert_eq!(statuses(&answers).len(), 1, "{answers}");
        assert!(!answers.contains("openapi"), "{answers}");
    }
}

#[test]
fn requests_one_behind_another_are_answered_in_their_order() {
    let service = Service::start(&[]);
    let mut stream = connect(&service);
    let mut requests = String::new();
    for n in 0..500 {
        requests += &format!("GET /{} HTTP/1.1\r\nhost: x\r\nx-request-id: {n}\r\n\r\n", ["health", "nowhere"][n % 2]);
    }
    requests += "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: last\r\n\r\n";
    let mut writer = stream.try_clone().expect("a socket");
    let writing = std::thread::spawn(move || writer.write_all(requests.as_bytes()).expect("sent"));
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("answers");
    writing.join().expect("no panic");
    let ids: Vec<&str> = answers.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
    assert_eq!(ids.len(), 501);
    assert!(ids[..500].iter().enumerate().all(|(n, id)| *id == n.to_string()) && ids[500] == "last");
    assert_eq!(statuses(&answers).iter().filter(|status| **status == "404").count(), 250);
}

#[test]
fn idle_and_slow_connections_make_room_and_a_busy_one_stays() {
    let service = Service::start(&[("NEXUS_CONNECTIONS_MAX", "40")]).ready();
    // In flight from before the flood to after it.
    let mut busy = connect(&service);
    let body = r#"{"control_id": "A", "text": "Access is logged."}"#;
    write!(
        busy,
        "POST /api/v1/embed HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .expect("sent");
    busy.write_all(&body.as_bytes()[..10]).expect("sent");
    std::thread::sleep(Duration::from_millis(200));

    let mut flood = Vec::new();
    for n in 0..400 {
        let mut stream = connect(&service);
        if n % 2 == 0 {
            let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ");
        }
        flood.push(stream);
        if n % 100 == 99 {
            lives(&service);
        }
    }
    let metrics = reqwest::blocking::get(format!("{}/metrics", service.url)).and_then(|answer| answer.text());
    let metrics = metrics.expect("text");
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
    };
    assert!(value("nexus_http_connections") <= 40.0);
    assert!(value("nexus_http_connections_refused_total") >= 360.0);
    busy.write_all(&body.as_bytes()[10..]).expect("sent");
    assert_eq!(statuses(&rest(busy)), ["200"]);
    drop(flood);
    lives(&service);
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection that speaks HTTP/2.
fn connect_http2(service: &Service) -> TcpStream {
    let mut stream = connect(service);
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).expect("sent");
    stream
}

/// The head of a request in HPACK: by the static table, but for its path.
fn head(method_index: u8, path: &str) -> Vec<u8> {
    let path_length = u8::try_from(path.len()).expect("short");
    [&[0x80 | method_index, 0x86, 0x04, path_length], path.as_bytes(), &[0x41, 1], b"x"].concat()
}

const GET: u8 = 2;
const POST: u8 = 3;

/// The next frame: its kind, its stream, and what is in it; `None` once the connection is over.
fn read_frame(stream: &mut TcpStream) -> Option<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut payload).ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

#[test]
fn streams_of_a_connection_are_bounded() {
    let service = Service::start(&[]).ready();
    let mut stream = connect_http2(&service);
    let (kind, _, settings) = read_frame(&mut stream).expect("settings");
    assert_eq!(kind, SETTINGS);
    // SETTINGS_MAX_CONCURRENT_STREAMS is 3.
    let streams_max = settings.chunks_exact(6).find(|it| it[..2] == [0, 3]).expect("a bound")[2..].to_vec();
    let streams_max = u32::from_be_bytes(streams_max.try_into().expect("4 bytes"));
    assert!(streams_max <= 256, "{streams_max}");
    // Requests whose bodies never come, one more than there may be: the last is refused, and those before it are not.
    for n in 0..=streams_max {
        stream.write_all(&frame(HEADERS, END_HEADERS, 2 * n + 1, &head(POST, "/api/v1/embed"))).expect("sent");
    }
    loop {
        match read_frame(&mut stream).expect("a refusal") {
            (RST_STREAM, refused, _) => {
                assert_eq!(refused, 2 * streams_max + 1);
                break;
            }
            (HEADERS | GOAWAY, ..) => panic!("a request without a body was answered"),
            _ => {}
        }
    }
    lives(&service);
}

/// CVE-2023-44487: requests that are taken back at once cost their sender nothing, and what works on them much.
#[test]
fn requests_that_are_taken_back_at_once_end_their_connection() {
    let service = Service::start(&[]).ready();
    let mut stream = connect_http2(&service);
    let mut writer = stream.try_clone().expect("a socket");
    let flood = std::thread::spawn(move || {
        let sent = (0..20_000u32).find(|n| {
            let id = 2 * n + 1;
            let request = frame(HEADERS, END_HEADERS, id, &head(POST, "/api/v1/embed"));
            writer.write_all(&[request, frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat()).is_err()
        });
        sent.unwrap_or(20_000)
    });
    let mut told = false;
    while let Some((kind, ..)) = read_frame(&mut stream) {
        told |= kind == GOAWAY;
    }
    let sent = flood.join().expect("no panic");
    assert!(told || sent < 20_000, "it takes all of them");
    lives(&service);
}

#[test]
fn http2_answers_many_at_once() {
    let service = Service::start(&[]).ready();
    let mut stream = connect_http2(&service);
    for n in 0..100 {
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &head(GET, "/health"))).expect("sent");
    }
    let mut ended = 0;
    while ended < 100 {
        let (kind, _, payload) = read_frame(&mut stream).expect("an answer");
        ended += usize::from(kind == DATA && payload == br#"{"status":"ok"}"#);
    }
}

/// A client with a window of 0 takes the head of its response, and never the rest.
#[test]
fn a_response_that_is_not_taken_does_not_hold_its_place_for_ever() {
    let service = Service::start(&[("NEXUS_REQUEST_TIMEOUT_MS", "1500")]).ready();
    let mut stream = connect(&service);
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
    // SETTINGS_INITIAL_WINDOW_SIZE is 4.
    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).expect("sent");
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &head(POST, "/api/v1/embed"))).expect("sent");
    stream.write_all(&frame(DATA, END_STREAM, 1, br#"{"control_id": "A", "text": "x"}"#)).expect("sent");
    let in_flight = || {
        let metrics = service.get("/metrics").text().expect("text");
        let line = metrics.lines().find_map(|line| line.strip_prefix("nexus_http_requests_in_flight "));
        line.and_then(|value| value.parse::<f64>().ok()).expect("a gauge")
    };
    let mut answered = false;
    while let Some((kind, ..)) = read_frame(&mut stream) {
        assert_ne!(kind, DATA, "there is no room for it");
        if kind == HEADERS {
            answered = true;
            assert_eq!(in_flight(), 1.0);
        }
    }
    assert!(answered);
    assert_eq!(in_flight(), 0.0);
}
