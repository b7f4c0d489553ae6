//! Models from a hub: served from there, and downloaded without serving. The hub is one on loopback that has the
//! built-in models.

use crate::hub_server::{COMMIT, Hub, HubFile, Mood, REPOSITORY, id_of};
use crate::support::{PATIENCE, Service, nexus, root, stderr_of, wait};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A hub that has one of the built-in models. All files are small ones to it: redirects and digests are tested with the
/// store.
fn hub(model: &str, mood: Mood) -> Hub {
    let folder = root().join("models").join(model);
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8").to_owned();
        (name, HubFile { content: std::fs::read(path).expect("a file"), sha256: None })
    };
    Hub::start(folder.read_dir().expect("the folder").map(file).collect::<BTreeMap<_, _>>(), mood)
}

fn reference() -> String {
    format!("hf://{REPOSITORY}")
}

fn pull(args: &[&str], hub: &Hub, cache: &Path) -> Command {
    let mut command = nexus();
    command.arg("pull").args(args).env("HF_ENDPOINT", &hub.endpoint).env("NEXUS_CACHE_DIR", cache);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end; the folder that is printed.
fn pulled(args: &[&str], hub: &Hub, cache: &Path) -> String {
    let output = pull(args, hub, cache).output().expect("the binary starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The one line of a run that failed with `status`.
fn line(output: &Output, status: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(output.stdout.is_empty());
    // The log has its own lines, each an object.
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    lines[0].to_owned()
}

fn assert_is(folder: &Path, model: &str) {
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let expected = std::fs::read(root().join("models").join(model).join(name)).expect("the model's file");
        assert!(std::fs::read(folder.join(name)).expect(name) == expected, "{name}");
    }
    assert!(!folder.join("README.md").exists());
}

#[test]
fn a_repository_of_a_hub_serves_as_the_same_model_built_in_does() {
    let hub = hub("embedder", Mood::default());
    let built_in = Service::start(&[]).ready();
    let cache = tempfile::tempdir().expect("a folder");
    let reference = reference();
    let env = [("RETRIEVER_MODEL_PATH", reference.as_str()), ("HF_ENDPOINT", &hub.endpoint)];
    let service = Service::start_on(cache.path(), &env).ready();
    let text = "Access to systems is logged.";
    assert_eq!(service.embed(text).0, built_in.embed(text).0);
    assert!(cache.path().join("models/models--acme--model/snapshots").join(COMMIT).join("config.json").exists());
    drop(service);

    // The hub is gone: what is here serves, and is the same model to the cache.
    hub.close();
    let service = Service::start_on(cache.path(), &env).ready();
    assert_eq!(service.embed(text).0, built_in.embed(text).0);
}

#[test]
fn sources_are_mixed_and_a_hub_can_be_the_place_of_both() {
    let hub = hub("reranker", Mood::default());
    let folder = root().join("models").canonicalize().expect("the folder");
    let models_dir = tempfile::tempdir().expect("a folder");
    let models_dir = models_dir.path().to_str().expect("UTF-8");
    let (folder, reference) = (folder.to_str().expect("UTF-8"), reference());
    let service = Service::start(&[
        ("MODEL_BUCKET", folder),
        ("RETRIEVER_MODEL_PATH", "embedder"),
        ("RERANKER_MODEL_PATH", &reference),
        ("HF_ENDPOINT", &hub.endpoint),
        ("NEXUS_MODELS_DIR", models_dir),
        ("NEXUS_BUILTIN", "off"),
    ]);
    service.ready();

    // The reranker is kept; what the hub says about the other is told.
    let service = Service::start(&[
        ("MODEL_BUCKET", "hf://"),
        ("RETRIEVER_MODEL_PATH", "acme/none"),
        ("RERANKER_MODEL_PATH", REPOSITORY),
        ("HF_ENDPOINT", &hub.endpoint),
        ("NEXUS_MODELS_DIR", models_dir),
        ("NEXUS_BUILTIN", "off"),
    ]);
    let answer = service.wait_while_loading();
    let detail = answer["models"][0]["detail"].as_str().expect("a reason");
    assert!(detail.contains("hf://acme/none@main does not exist") && detail.contains("HF_TOKEN"), "{answer}");
    assert_eq!(service.get("/health").status(), 200);
}

#[test]
fn ready_tells_how_far_a_download_is() {
    let hub = hub("embedder", Mood { pause: Duration::from_millis(10), ..Mood::default() });
    let reference = reference();
    let service = Service::start(&[("RETRIEVER_MODEL_PATH", &reference), ("HF_ENDPOINT", &hub.endpoint)]);
    let names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let size = |name| root().join("models/embedder").join(name).metadata().expect("a file").len();
    let total: u64 = names.into_iter().map(size).sum();
    let started = Instant::now();
    let mut seen = 0;
    while seen == 0 {
        let answer: serde_json::Value = service.get("/ready").json().expect("JSON");
        let model = &answer["models"][0];
        assert_eq!(model["status"], "loading", "{answer}");
        if model["stage"] == "fetching" {
            assert_eq!(model["bytes_total"], total, "{answer}");
            seen = model["bytes_done"].as_u64().expect("a number");
            assert!(seen < total, "{answer}");
        }
        assert!(started.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    service.ready();
}

#[test]
fn names_that_are_none_stop_the_start() {
    for (env, expected) in [
        (vec![("RETRIEVER_MODEL_PATH", "hf://acme")], "RETRIEVER_MODEL_PATH=\"hf://acme\": expected hf://owner/name"),
        (vec![("MODEL_BUCKET", "hf://"), ("RERANKER_MODEL_PATH", "a/b/c")], "RERANKER_MODEL_PATH=\"a/b/c\""),
        (vec![("MODEL_BUCKET", "hf://a/b")], "expected hf:// alone"),
        (vec![("HF_ENDPOINT", "hub.example")], "HF_ENDPOINT=\"hub.example\": expected an address"),
        (vec![("RETRIEVER_MODEL_PATH", "hf://a/b"), ("NEXUS_BUILTIN", "off")], "RERANKER_MODEL_PATH to hf://"),
    ] {
        let output = nexus().args(["serve", "--port", "0"]).envs(env).output().expect("the binary starts");
        let line = line(&output, 2);
        assert!(line.contains(expected), "{line}");
    }
}

#[test]
fn a_pulled_folder_serves() {
    let (cache, out) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    for (model, path) in [("embedder", "e"), ("reranker", "r")] {
        // One cache for each: both hubs call their model the same.
        let (hub, cache) = (hub(model, Mood::default()), cache.path().join(model));
        let dir = out.path().join(path);
        let dir = dir.to_str().expect("UTF-8");
        assert_eq!(pulled(&[&reference(), dir], &hub, &cache), dir);
        assert_is(Path::new(dir), model);
        // Again: nothing to do, and nothing is asked of the hub but what the revision is.
        let before = hub.requests().len();
        assert_eq!(pulled(&[&reference(), dir], &hub, &cache), dir);
        assert_eq!(hub.requests().len(), before + 1);
        // Without a folder, it is the one of downloads.
        let folder = pulled(&[&reference()], &hub, &cache);
        assert!(folder.ends_with(COMMIT) && Path::new(&folder).starts_with(&cache), "{folder}");
        assert_is(Path::new(&folder), model);
    }
    let bucket = out.path().to_str().expect("UTF-8");
    let env = [("MODEL_BUCKET", bucket), ("RETRIEVER_MODEL_PATH", "e"), ("RERANKER_MODEL_PATH", "r")];
    Service::start(&env).ready();
}

#[test]
fn a_pull_that_is_stopped_is_continued() {
    let hub = hub("embedder", Mood { pause: Duration::from_millis(20), ..Mood::default() });
    let cache = tempfile::tempdir().expect("a folder");
    let mut child = pull(&[&reference()], &hub, cache.path()).spawn().expect("the binary starts");
    // Until the weights are well under way.
    let blobs = cache.path().join("models/models--acme--model/blobs");
    let part = blobs.join(format!("{}.nexus.part", id_of("model.safetensors")));
    let bytes_here = || part.metadata().map_or(0, |metadata| metadata.len());
    let started = Instant::now();
    while bytes_here() < 100_000 {
        assert!(started.elapsed() < PATIENCE && child.try_wait().expect("its status").is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()));
    assert_eq!(wait(&mut child).code(), Some(130));
    assert_eq!(stderr_of(&mut child), "");
    let kept = bytes_here();
    assert!(kept > 0);

    hub.set(Mood::default());
    let before = hub.requests().len();
    assert_is(Path::new(&pulled(&[&reference()], &hub, cache.path())), "embedder");
    let continued = hub.requests()[before..].iter().any(|request| request.contains(&format!("range=bytes={kept}- ")));
    assert!(continued, "{:?}", &hub.requests()[before..]);
}

#[test]
fn what_can_not_be_pulled_is_one_line() {
    let hub = hub("embedder", Mood::default());
    let (cache, out) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    std::fs::write(out.path().join("notes.txt"), "mine").expect("written");
    let dir = out.path().to_str().expect("UTF-8");
    let reference = reference();
    for (args, status, expected) in [
        (vec!["acme/model"], 2, "expected hf://owner/name"),
        (vec!["hf://acme"], 2, "expected hf://owner/name"),
        (vec!["s3://bucket"], 2, "s3://bucket/path"),
        (vec!["hf://acme/none"], 1, "HF_TOKEN"),
        (vec!["hf://acme/model@v9"], 1, "no such branch"),
        (vec![&reference, dir], 1, "holds notes.txt"),
    ] {
        let line = line(&pull(&args, &hub, cache.path()).output().expect("the binary starts"), status);
        assert!(line.contains(expected), "{line}");
    }
    hub.set(Mood { token: Some("secret".to_owned()), ..Mood::default() });
    let output = pull(&[&reference], &hub, cache.path()).env("HF_TOKEN", "other").output().expect("the binary starts");
    assert!(line(&output, 1).contains("may not read it"), "{output:?}");
    let mut command = pull(&[&reference], &hub, cache.path());
    let output = command.env("HF_TOKEN", "secret").output().expect("the binary starts");
    assert!(output.status.success(), "{output:?}");
    hub.close();
    let line = line(&pull(&["hf://acme/x"], &hub, cache.path()).output().expect("the binary starts"), 1);
    assert!(line.contains(&hub.endpoint) && line.contains("MODEL_BUCKET can name a folder"), "{line}");
}
