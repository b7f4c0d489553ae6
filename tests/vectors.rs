//! Bodies with vectors over a real connection: large, wrong, and named.

use crate::support::Service;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

const RETRIEVE: &str = "/api/v1/retrieve";

/// Numbers that are the same at every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    fn vector(&mut self, dim: usize) -> Vec<f32> {
        (0..dim).map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }
}

/// As Python writes it.
fn text(vector: &[f32]) -> String {
    let components: Vec<String> = vector.iter().map(|&x| f64::from(x).to_string()).collect();
    format!("[{}]", components.join(", "))
}

fn retrieve_body(source: &str, rows: &[String]) -> String {
    format!(r#"{{"source_embedding": {source}, "target_embeddings": [{}], "top_k": 3}}"#, rows.join(", "))
}

/// The one problem that a body is refused with.
fn problem(service: &Service, body: String) -> Value {
    let response = service.post(RETRIEVE, body);
    assert_eq!(response.status(), 422);
    let answer: Value = response.json().expect("JSON");
    answer["detail"][0].clone()
}

#[test]
fn whatever_is_wrong_names_the_row_and_leaves_nothing_behind() {
    const ROWS: usize = 120;
    const DIM: usize = 1024;
    let service = Service::start(&[]).ready();
    let mut random = Random(7);
    let source = text(&random.vector(DIM));
    let rows: Vec<String> = (0..ROWS).map(|_| text(&random.vector(DIM))).collect();
    let good = retrieve_body(&source, &rows);
    assert_eq!(service.post(RETRIEVE, good.clone()).status(), 200);
    let before = service.resident_bytes();

    let start = good.find("[[").expect("rows") + 1;
    let end = good.find("]]").expect("rows") + 1;
    for _ in 0..200 {
        let at = 1 + random.below(good.len() - 1);
        let problem = problem(&service, good[..at].to_owned());
        assert_eq!((&problem["type"], &problem["loc"]), (&json!("json_invalid"), &json!(["body", at])), "{problem}");
        if (start + 1..end).contains(&at) {
            let row = good[start..at].matches('[').count() - 1;
            let error = problem["ctx"]["error"].as_str().unwrap_or_default();
            // Between two rows, the one before is named or the one that is missing.
            let named = [row, row + 1].map(|row| format!("in target_embeddings[{row}]"));
            assert!(named.iter().any(|named| error.ends_with(named)), "at {at} in row {row}: {problem}");
        }
    }
    let with_row = |wrong: &str| {
        let mut random = Random(wrong.len() as u64);
        let at = random.below(ROWS);
        let mut rows = rows.clone();
        rows[at] = wrong.to_owned();
        (problem(&service, retrieve_body(&source, &rows)), at)
    };
    let component = |wrong: &str| {
        let mut components: Vec<String> = vec!["0.5".to_owned(); DIM];
        components[700] = wrong.to_owned();
        format!("[{}]", components.join(", "))
    };
    for (wrong, kind, place) in [
        ("[1, 2]".to_owned(), "value_error", None),
        (text(&vec![1.0; DIM + 1]), "value_error", None),
        (text(&[0.0; DIM]), "value_error", None),
        (component("\"0.5\""), "float_type", Some(700)),
        (component("[0.5]"), "float_type", Some(700)),
        (component("[[[[[[[]]]]]]]"), "float_type", Some(700)),
        (component("1e999"), "finite_number", Some(700)),
        (component("NaN"), "finite_number", Some(700)),
        (component("-Infinity"), "finite_number", Some(700)),
        ("\"not base64\"".to_owned(), "value_error", None),
        ("{}".to_owned(), "list_type", None),
        ("null".to_owned(), "list_type", None),
    ] {
        let (problem, at) = with_row(&wrong);
        let mut loc = vec![json!("body"), json!("target_embeddings"), json!(at)];
        loc.extend(place.map(|component: usize| json!(component)));
        assert_eq!((&problem["type"], &problem["loc"]), (&json!(kind), &json!(loc)), "{problem}");
    }
    // Two million tiny rows: the first is wrong, or only the last.
    let tiny = "[1],".repeat(2_000_000);
    let first = problem(&service, format!(r#"{{"source_embedding": [1, 2], "target_embeddings": [{tiny}[1]]}}"#));
    assert_eq!(first["loc"], json!(["body", "target_embeddings", 0]));
    for body in [
        format!(r#"{{"source_embedding": [1], "target_embeddings": [{tiny}[0]]}}"#),
        format!(r#"{{"target_embeddings": [{tiny}[0]], "source_embedding": [1]}}"#),
    ] {
        assert_eq!(problem(&service, body)["loc"], json!(["body", "target_embeddings", 2_000_000]));
    }
    if let (Some(before), Some(after)) = (before, service.resident_bytes()) {
        assert!(after < before + (48 << 20), "{} MiB before, {} after", before >> 20, after >> 20);
    }
}

#[test]
fn every_form_gives_the_same_answer() {
    const DIM: usize = 2048;
    let service = Service::start(&[]).ready();
    let mut random = Random(3);
    let source = random.vector(DIM);
    let rows: Vec<Vec<f32>> = (0..400).map(|_| random.vector(DIM)).collect();
    let base64 = nexus_vectors::encode_base64;
    let bodies = [
        json!({ "source_embedding": source, "target_embeddings": rows }),
        json!({ "target_embeddings": rows, "zource": 1, "source_embedding": source }),
        json!({ "source_embedding": base64(&source), "target_embeddings": rows.iter().map(|row| base64(row)).collect::<Vec<_>>() }),
        json!({ "source_embedding": base64(&source), "target_embeddings": base64(&rows.concat()) }),
        // Keys are sorted here: the dimensions come before the targets, and the source before both.
        json!({ "dimensions": DIM, "source_embeddings": base64(&source), "target_embeddings": base64(&rows.concat()) }),
    ];
    let answers: Vec<Value> = bodies
        .iter()
        .map(|body| {
            let answer = service.ask(RETRIEVE, body);
            if answer["results"].is_array() { answer["results"][0].clone() } else { answer }
        })
        .collect();
    assert_eq!(answers[0]["candidates"].as_array().map(Vec::len), Some(50));
    for answer in &answers {
        assert_eq!(*answer, answers[0]);
    }
    // A body in chunks, without a length.
    let chunks = std::io::Cursor::new(bodies[0].to_string());
    let response = service.post(RETRIEVE, reqwest::blocking::Body::new(chunks));
    assert_eq!(response.json::<Value>().expect("JSON"), answers[0]);

    let put = service.client.put(format!("{}/api/v1/targets/all", service.url));
    let response = put.body(json!({ "target_embeddings": rows }).to_string()).send().expect("an answer");
    assert_eq!(response.status(), 201);
    assert_eq!(service.ask(RETRIEVE, &json!({ "source_embedding": source, "targets": "all" })), answers[0]);
}

#[test]
fn target_sets_outlive_the_process() {
    let cache = tempfile::tempdir().expect("a folder");
    let mut service = Service::start_on(cache.path(), &[]);
    let put = |service: &Service, rows: Value| {
        let put = service.client.put(format!("{}/api/v1/targets/nist", service.url));
        put.body(json!({ "target_embeddings": rows, "target_ids": ["AC-1", "AC-2"] }).to_string())
            .send()
            .expect("an answer")
    };
    // The folder is opened beside the start.
    while service.get("/api/v1/targets").status() == 503 {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(put(&service, json!([[1, 0], [0, 1]])).status(), 201);
    assert_eq!(put(&service, json!([[0, 1], [1, 0]])).status(), 200);
    let ask = json!({ "source_embedding": [1, 0.1], "targets": "nist", "top_k": 1 });
    let answer = service.ask(RETRIEVE, &ask);
    assert_eq!(answer["candidates"][0]["control_id"], "AC-2");
    service.signal("KILL");
    service.exit();
    let service = Service::start_on(cache.path(), &[]).ready();
    assert_eq!(service.ask(RETRIEVE, &ask), answer);
    let second = Service::start_on(cache.path(), &[]).ready();
    let detail: Value = second.get("/api/v1/targets").json().expect("JSON");
    assert!(detail["detail"].as_str().is_some_and(|detail| detail.contains("in use")), "{detail}");
    assert_eq!(second.embed("Access is logged").1, service.embed("Access is logged").1);
}

#[test]
fn a_set_that_outgrows_its_room_is_answered_507_and_leaves_the_old_one() {
    let service = Service::start(&[("NEXUS_TARGETS_BYTES_MAX", "1MiB")]).ready();
    let put = |rows: usize| {
        let row = format!("[{}1]", "0.123456789,".repeat(999));
        let body = format!(r#"{{"target_embeddings": [{}]}}"#, vec![row; rows].join(","));
        let put = service.client.put(format!("{}/api/v1/targets/nist", service.url));
        put.body(body).send().expect("an answer")
    };
    assert_eq!(put(20).status(), 201);
    let before: Value = service.get("/api/v1/targets/nist").json().expect("JSON");
    // Many blocks, of which an early one has no room.
    let answer = put(2000);
    assert_eq!(answer.status(), 507);
    let detail: Value = answer.json().expect("JSON");
    assert!(detail["detail"].as_str().is_some_and(|detail| detail.contains("are free")), "{detail}");
    assert_eq!(service.get("/api/v1/targets/nist").json::<Value>().expect("JSON"), before);
}

#[test]
fn a_body_without_a_length_is_refused_at_the_limit() {
    let service = Service::start(&[("NEXUS_BODY_BYTES_MAX", "1MiB")]);
    let mut stream = TcpStream::connect(service.url.trim_start_matches("http://")).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let head = "POST /api/v1/retrieve HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    for _ in 0..17 {
        stream.write_all(&chunk).expect("sent");
    }
    let mut start = [0; 12];
    stream.read_exact(&mut start).expect("an answer before the end of the body");
    assert_eq!(&start, b"HTTP/1.1 413");
}
