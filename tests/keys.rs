//! API keys, from `nexus key` to a service that asks for them.

use crate::support::{PATIENCE, Service, nexus, run};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A key and its line, as `nexus key` prints them.
fn key(name: &str) -> (String, String) {
    let output = run(&["key", name], &[]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let [_, key, _, line] = lines[..] else { panic!("{text}") };
    (key.to_owned(), line.to_owned())
}

fn status(service: &Service, key: Option<&str>) -> u16 {
    let mut request = service.client.get(format!("{}/api/v1/targets", service.url));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    request.send().expect("an answer").status().as_u16()
}

/// A service with these settings, and what it logs.
fn start(cache: &Path, env: &[(&str, &str)]) -> (Service, Arc<Mutex<String>>) {
    let log = Arc::new(Mutex::new(String::new()));
    let mut command = nexus();
    command.arg("serve").env("NEXUS_CACHE_DIR", cache).envs(env.iter().copied());
    let lines = Arc::clone(&log);
    let service = Service::spawn(command, move |line| {
        eprintln!("{line}");
        lines.lock().expect("no panic").push_str(&format!("{line}\n"));
    });
    (service, log)
}

#[test]
fn keys_of_the_settings_and_of_a_file_that_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    let ((ann, of_ann), (bob, of_bob), (robot, of_robot)) = (key("ann"), key("bob"), key("robot"));
    std::fs::write(&file, format!("# people\n{of_ann}\n")).expect("written");
    let env = [("NEXUS_API_KEYS", of_robot.as_str()), ("NEXUS_API_KEYS_FILE", file.to_str().expect("UTF-8"))];
    let (service, log) = start(folder.path(), &env);
    let service = service.ready();
    assert_eq!(status(&service, None), 401);
    assert_eq!([&ann, &bob, &robot].map(|key| status(&service, Some(key))), [200, 401, 200]);
    assert_eq!(status(&service, Some(of_ann.split_once(':').expect("a digest").1)), 401, "a digest is no key");

    std::fs::write(&file, format!("# people, and ann left\n{of_bob}\n")).expect("written");
    let began = Instant::now();
    while status(&service, Some(&bob)) != 200 {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!([&ann, &bob, &robot].map(|key| status(&service, Some(key))), [401, 200, 200]);
    drop(service);
    let log = log.lock().expect("no panic");
    assert!(log.contains("\"client\":\"bob\"") && log.contains("\"client\":\"robot\""), "{log}");
    for secret in [&ann, &bob, &robot] {
        assert!(!log.contains(secret.as_str()));
    }
}

#[test]
fn wrong_keys_stop_the_start_without_being_quoted() {
    for (variable, value) in
        [("NEXUS_API_KEYS", "hunter2"), ("NEXUS_API_KEYS", "ann:hunter2"), ("NEXUS_API_KEYS_FILE", "/no/keys")]
    {
        let output = run(&["serve"], &[("NEXUS_PORT", "0"), (variable, value)]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(variable) && !stderr.contains("hunter2"), "{stderr}");
    }
}

#[test]
fn a_port_that_others_reach_is_warned_of_unless_keys_are_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, line) = key("ann");
    for (env, warned) in [
        (vec![("NEXUS_HOST", "0.0.0.0")], true),
        (vec![("NEXUS_HOST", "0.0.0.0"), ("NEXUS_API_KEYS", line.as_str())], false),
        (vec![], false),
    ] {
        let (service, log) = start(folder.path(), &env);
        drop(service);
        let log = log.lock().expect("no panic");
        assert_eq!(log.contains("whoever reaches it may ask"), warned, "{log}");
    }
}

#[test]
fn a_client_with_its_part_of_the_queue_is_told_so_and_others_find_room() {
    const BATCHES: usize = 24;
    let folder = tempfile::tempdir().expect("a folder");
    let ((ann, of_ann), (robot, of_robot)) = (key("ann"), key("robot"));
    let keys = format!("{of_ann},{of_robot}");
    let env =
        [("NEXUS_API_KEYS", keys.as_str()), ("NEXUS_QUEUE_TOKENS_MAX", "8192"), ("NEXUS_BATCH_TOKENS_MAX", "256")];
    let (service, _log) = start(folder.path(), &env);
    let service = service.ready();
    let ask = |key: &str, path: &str, body: serde_json::Value| {
        let request = service.client.post(format!("{}{path}", service.url)).bearer_auth(key).json(&body);
        let answer = request.send().expect("an answer");
        (answer.status().as_u16(), answer.text().expect("a body"))
    };
    let item = |name: String| serde_json::json!({ "control_id": name, "text": format!("{name}: {}", "keys are rotated ".repeat(16)) });
    let batch = |number: usize| {
        let items: Vec<_> = (0..40).map(|at| item(format!("{number}-{at}"))).collect();
        ask(&robot, "/api/v1/embed/batch", serde_json::json!({ "items": items }))
    };
    std::thread::scope(|threads| {
        let batch = &batch;
        let batches: Vec<_> = (0..BATCHES).map(|number| threads.spawn(move || batch(number))).collect();
        let mut asked = 0;
        while asked == 0 || batches.iter().any(|batch| !batch.is_finished()) {
            let (status, body) = ask(&ann, "/api/v1/embed", item(format!("ann's {asked}")));
            assert_eq!(status, 200, "{body}");
            asked += 1;
        }
        let answers: Vec<_> = batches.into_iter().map(|batch| batch.join().expect("no panic")).collect();
        let refused: Vec<_> = answers.iter().filter(|(status, _)| *status != 200).collect();
        assert!((1..BATCHES).contains(&refused.len()), "{} of {BATCHES} refused", refused.len());
        for (status, body) in refused {
            assert_eq!(*status, 429, "{body}");
            assert!(body.contains("this client has too many tokens in the queue"), "{body}");
        }
    });
}
