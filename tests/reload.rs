//! New revisions of the models in a service that is at work: nobody notices but by the answers.

use crate::revised::{Models, negate, shrink};
use crate::support::{PATIENCE, Service, floats, run};
use reqwest::blocking::Response;
use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const TOKEN: &str = "correct horse battery staple";
const HEADER: &str = "x-nexus-model-revision";
const CANDIDATES: [&str; 2] = ["Multi-factor authentication is required for all users.", "Data at rest is encrypted."];

fn start(models: &Models, more: &[(&'static str, &'static str)]) -> Service {
    let mut env = models.env().to_vec();
    env.push(("NEXUS_ADMIN_TOKEN", TOKEN));
    env.extend(more);
    Service::start(&env)
}

fn reload_as(service: &Service, authorization: Option<&str>) -> Response {
    let mut request = service.client.post(format!("{}/admin/reload", service.url));
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    request.send().expect("an answer")
}

fn reload(service: &Service) -> Response {
    reload_as(service, Some(&format!("Bearer {TOKEN}")))
}

/// Reloads; the outcomes of both models, and the retriever's detail.
fn outcomes(service: &Service, status: u16) -> ([String; 2], String) {
    let response = reload(service);
    assert_eq!(response.status(), status);
    let answer: Value = response.json().expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    assert_eq!(answer["models"][0]["role"], "retriever");
    // Every answer names what serves now, and /ready agrees.
    let ready: Value = service.get("/ready").json().expect("JSON");
    assert_eq!(ready["status"], "ready", "{ready}");
    for at in 0..2 {
        assert_eq!(answer["models"][at]["revision"], ready["models"][at]["revision"]);
        assert_eq!(answer["models"][at]["outcome"], ready["models"][at]["reload"]["status"]);
        assert_eq!(answer["models"][at]["detail"], ready["models"][at]["reload"]["detail"]);
    }
    ([0, 1].map(|at| text(&answer["models"][at]["outcome"])), text(&answer["models"][0]["detail"]))
}

/// What a service answered, and which revision it said that it was.
struct Answered {
    text: String,
    revision: String,
    numbers: Vec<f32>,
}

fn embed(service: &Service, text: &str) -> Answered {
    let body = json!({ "control_id": "A", "text": text });
    let (revision, answer) = answer(service, "/api/v1/embed", &body);
    Answered { text: text.to_owned(), revision, numbers: floats(&answer["embedding"]) }
}

fn rerank(service: &Service, text: &str) -> Answered {
    let candidates = CANDIDATES.map(|candidate| json!({ "control_id": candidate, "text": candidate }));
    let (revision, answer) =
        answer(service, "/api/v1/rerank", &json!({ "source_text": text, "candidates": candidates }));
    let score = |candidate: &str| {
        let ranking = answer["rankings"].as_array()?.iter().find(|ranking| ranking["control_id"] == candidate)?;
        Some(ranking["score"].as_f64()? as f32)
    };
    let numbers = CANDIDATES.map(|candidate| score(candidate).expect("a score")).into();
    Answered { text: text.to_owned(), revision, numbers }
}

fn answer(service: &Service, path: &str, body: &Value) -> (String, Value) {
    let response = service.post(path, body.to_string());
    let (status, revision) = (response.status(), response.headers().get(HEADER).cloned());
    let text = response.text().expect("text");
    assert_eq!(status, 200, "{path}: {text}");
    let revision = revision.expect("a revision").to_str().expect("text").to_owned();
    (revision, serde_json::from_str(&text).expect("JSON"))
}

/// Asks for one text after another until it is told to stop.
fn client(service: &Service, stop: &AtomicBool, number: usize) -> (Vec<Answered>, Vec<Answered>) {
    let (mut embedded, mut reranked) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::SeqCst) {
        let text = format!("Control {number}-{}: access keys are rotated", embedded.len());
        embedded.push(embed(service, &text));
        reranked.push(rerank(service, &text));
    }
    (embedded, reranked)
}

/// Each revision in the order in which it was met, and the answers that named it.
fn by_revision(answers: &[Answered]) -> Vec<(&str, Vec<&Answered>)> {
    let mut met: Vec<(&str, Vec<&Answered>)> = Vec::new();
    for answered in answers {
        match met.iter_mut().find(|(revision, _)| *revision == answered.revision) {
            Some((_, answers)) => answers.push(answered),
            None => met.push((&answered.revision, vec![answered])),
        }
    }
    met
}

/// Whether a few of the answers, from the first to the last, are what a service that was started on the revision gives.
fn check(service: &Service, answers: &[&Answered], ask: fn(&Service, &str) -> Answered) {
    for answered in answers.iter().step_by((answers.len() / 10).max(1)).chain(answers.last()) {
        let fresh = ask(service, &answered.text);
        assert_eq!(fresh.revision, answered.revision);
        // Other texts were in the same batch: the same to rounding.
        for (a, b) in fresh.numbers.iter().zip(&answered.numbers) {
            assert!((a - b).abs() < 1e-4, "{}: {a} {b}", answered.text);
        }
        assert_eq!(fresh.numbers.len(), answered.numbers.len());
    }
}

#[test]
fn no_request_fails_while_revisions_come_and_go() {
    let models = Models::new();
    negate(&models.revise("embedder", 2), "layers.1.mlp.down_proj.weight");
    negate(&models.revise("reranker", 2), "classifier.weight");
    let weights = models.revise("embedder", 3).join("model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() / 2]).expect("written");
    shrink(&models.revise("embedder", 4));

    let service = start(&models, &[]).ready();
    let stop = AtomicBool::new(false);
    let pause = || thread::sleep(Duration::from_millis(300));
    let answers: Vec<(Vec<Answered>, Vec<Answered>)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|number| {
                scope.spawn({
                    let (service, stop) = (&service, &stop);
                    move || client(service, stop, number)
                })
            })
            .collect();
        // Told to stop whatever happens, or a failed assertion would wait for them for ever.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let stopping = Stop(&stop);
        pause();
        assert_eq!(outcomes(&service, 200).0, ["unchanged", "unchanged"]);
        for (number, status, outcome, detail) in [
            (2, 200, "swapped", ""),
            (3, 500, "failed", "model.safetensors"),
            (4, 500, "failed", "8 dimensions, the one that serves 384"),
            (2, 200, "unchanged", ""),
            (1, 200, "swapped", ""),
        ] {
            models.link("embedder", number);
            let (found, why) = outcomes(&service, status);
            assert_eq!(found, [outcome, "unchanged"], "revision {number}: {why}");
            assert!(why.contains(detail) && why.is_empty() == detail.is_empty(), "revision {number}: {why}");
            pause();
        }
        models.link("embedder", 2);
        models.link("reranker", 2);
        assert_eq!(outcomes(&service, 200).0, ["swapped", "swapped"]);
        pause();
        drop(stopping);
        clients.into_iter().map(|client| client.join().expect("no request failed")).collect()
    });

    let fresh = |number| {
        models.link("embedder", number);
        models.link("reranker", number);
        start(&models, &[("NEXUS_CACHE", "off")]).ready()
    };
    let (second, first) = (fresh(2), fresh(1));
    for (embedded, reranked) in &answers {
        let retrievers = by_revision(embedded);
        assert_eq!(retrievers.len(), 2, "the first, which came back, and the second");
        check(&first, &retrievers[0].1, embed);
        check(&second, &retrievers[1].1, embed);
        let rerankers = by_revision(reranked);
        assert_eq!(rerankers.len(), 2);
        check(&first, &rerankers[0].1, rerank);
        check(&second, &rerankers[1].1, rerank);
        // Sequential requests of one client see each flip once: no answer of a revision that was gone.
        let flips =
            |answers: &[Answered]| answers.windows(2).filter(|pair| pair[0].revision != pair[1].revision).count();
        assert_eq!((flips(embedded), flips(reranked)), (3, 1));
    }
    // The same text on both revisions: the answers that were checked could have told them apart.
    let (old, new) = (embed(&first, "MFA"), embed(&second, "MFA"));
    assert!(old.numbers.iter().zip(&new.numbers).any(|(a, b)| (a - b).abs() > 1e-2));
    let (old, new) = (rerank(&first, "MFA"), rerank(&second, "MFA"));
    assert!(old.numbers.iter().zip(&new.numbers).any(|(a, b)| (a - b).abs() > 1e-2));
}

#[test]
fn only_who_has_the_token_reloads_and_without_one_nobody() {
    let models = Models::new();
    let service = start(&models, &[]).ready();
    let wrong = format!("Bearer {TOKEN}r");
    for authorization in
        [None, Some(""), Some("Bearer"), Some("Bearer "), Some(TOKEN), Some("Basic Og=="), Some(&wrong)]
    {
        let response = reload_as(&service, authorization);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["www-authenticate"]),
            (401, &"Bearer".parse().expect("a value"))
        );
        let answer: Value = response.json().expect("JSON");
        assert!(answer["detail"].as_str().is_some_and(|detail| !detail.contains(TOKEN)), "{answer}");
    }
    assert_eq!(service.get("/ready").json::<Value>().expect("JSON")["models"][0]["reload"], Value::Null);
    assert_eq!(service.get("/admin/reload").status(), 405);
    assert_eq!(reload_as(&service, Some(&format!("bearer {TOKEN}"))).status(), 200);

    let service = Service::start(&[]);
    for path in ["/admin/reload", "/no/such/path"] {
        let response = service.client.post(format!("{}{path}", service.url)).bearer_auth("").send().expect("an answer");
        assert_eq!(
            (response.status().as_u16(), response.text().expect("text")),
            (404, r#"{"detail":"Not Found"}"#.into())
        );
    }

    // What helps the user does not show the token.
    let help = run(&["serve", "--help"], &[("NEXUS_ADMIN_TOKEN", TOKEN)]);
    assert!(help.status.success() && !String::from_utf8_lossy(&help.stdout).contains(TOKEN));
}

/// Opens the pipe for writing and closes it, which whoever waits to read from it takes for an empty file.
fn let_go(pipe: &std::path::Path) {
    drop(fs::OpenOptions::new().write(true).open(pipe).expect("a pipe"));
}

#[test]
fn one_reload_at_a_time_and_it_may_take_longer_than_a_request() {
    let models = Models::new();
    // A file that nobody needs and that takes as long to read as the test says.
    let pipe = models.folder("reranker", 1).join("notes.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()));
    let service = start(&models, &[("NEXUS_REQUEST_TIMEOUT_MS", "200")]);
    let response = reload(&service);
    assert_eq!(response.status(), 409);
    assert!(response.text().expect("text").contains("first time"));
    let_go(&pipe);
    let service = service.ready();

    thread::scope(|scope| {
        let first = scope.spawn(|| reload(&service));
        let started = Instant::now();
        let waits = |model: &Value| model["reload"]["status"] == "loading";
        while !waits(&service.get("/ready").json::<Value>().expect("JSON")["models"][1]) {
            assert!(started.elapsed() < PATIENCE);
        }
        let response = reload(&service);
        assert_eq!(response.status(), 409);
        assert!(response.text().expect("text").contains("is running"));
        thread::sleep(Duration::from_millis(500));
        assert!(!first.is_finished());
        assert_eq!(service.get("/ready").status(), 200);
        let_go(&pipe);
        assert_eq!(first.join().expect("no panic").status(), 200);
    });
}

#[test]
fn a_hangup_reloads_and_repairs_what_failed_at_the_start() {
    let models = Models::new();
    fs::remove_file(models.folder("embedder", 1).join("tokenizer.json")).expect("removed");
    let service = Service::start(&models.env());
    let started = Instant::now();
    let ready = || service.get("/ready").json::<Value>().expect("JSON");
    let mut answer = ready();
    while answer["models"][0]["status"] == "loading" || answer["models"][1]["status"] == "loading" {
        assert!(started.elapsed() < PATIENCE, "{answer}");
        answer = ready();
    }
    assert_eq!(answer["status"], "failed");

    let tokenizer = crate::support::root().join("models/embedder/tokenizer.json");
    fs::copy(tokenizer, models.folder("embedder", 1).join("tokenizer.json")).expect("copied");
    service.signal("HUP");
    let started = Instant::now();
    loop {
        let answer = ready();
        if answer["models"][1]["reload"]["status"] == "unchanged" {
            assert_eq!(answer["models"][0]["reload"]["status"], "swapped");
            assert_eq!(answer["status"], "ready");
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{answer}");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(service.embed("MFA").0.len(), 384);
}
