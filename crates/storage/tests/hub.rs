//! Models from a hub on loopback: what comes is what was listed, whatever the network does; what can not come is told.

#![forbid(unsafe_code)]
#![cfg(feature = "hub")]

#[path = "../../../tests/hub_server.rs"]
mod hub_server;

use hub_server::{COMMIT, Hub, HubFile, Mood, REPOSITORY};
use nexus_storage::{FetchProgress, HubModels, HubOptions, ModelStore as _, ModelStoreError};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// An upper bound that tells a hang from an answer.
const PATIENCE: Duration = Duration::from_secs(60);

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn files() -> BTreeMap<String, HubFile> {
    let small = |text: &str| HubFile { content: text.as_bytes().to_vec(), sha256: None };
    let large = |content: Vec<u8>| {
        let sha256 = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        HubFile { content, sha256: Some(sha256) }
    };
    [
        ("config.json", small(r#"{"a": 1}"#)),
        ("tokenizer.json", large(bytes(300_000, 1))),
        ("model-00001-of-00002.safetensors", large(bytes(2_000_000, 2))),
        ("model-00002-of-00002.safetensors", large(bytes(1_234_567, 3))),
        ("model.safetensors.index.json", small("{}")),
        ("1_Pooling/config.json", small(r#"{"b": 2}"#)),
        ("README.md", small("not needed")),
        ("pytorch_model.bin", large(bytes(1000, 4))),
    ]
    .into_iter()
    .map(|(name, file)| (name.to_owned(), file))
    .collect()
}

fn needed(name: &str) -> bool {
    !name.ends_with(".md") && !name.ends_with(".bin")
}

struct Case {
    hub: Hub,
    folder: TempDir,
    token: Option<String>,
    /// Generous, but for what is about it: the machine may be busy.
    stall_timeout: Duration,
    tries_max: u32,
}

impl Case {
    fn new(mood: Mood) -> Self {
        Self::with_files(files(), mood)
    }

    fn with_files(files: BTreeMap<String, HubFile>, mood: Mood) -> Self {
        let (hub, folder) = (Hub::start(files, mood), tempfile::tempdir().unwrap());
        Self { hub, folder, token: None, stall_timeout: PATIENCE / 4, tries_max: 6 }
    }

    fn options(&self) -> HubOptions {
        HubOptions {
            endpoint: self.hub.endpoint.clone() + "/",
            token: self.token.clone(),
            stall_timeout: self.stall_timeout,
            tries_max: self.tries_max,
            backoff: Duration::from_millis(1),
            ..HubOptions::new(self.folder.path())
        }
    }

    fn fetch_named(&self, name: &str) -> Result<PathBuf, ModelStoreError> {
        self.fetch_with(name, &|_| {})
    }

    fn fetch_with(
        &self,
        name: &str,
        progress: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<PathBuf, ModelStoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let models = HubModels::new(self.options()).unwrap();
        runtime.block_on(async { tokio::time::timeout(PATIENCE, models.fetch(name, progress)).await.expect("no hang") })
    }

    fn fetch(&self) -> Result<PathBuf, ModelStoreError> {
        self.fetch_named(REPOSITORY)
    }

    /// The message with its causes, of a fetch that has to fail.
    fn error(&self, name: &str) -> String {
        let error = self.fetch_named(name).unwrap_err();
        let text = error.source().map_or(error.to_string(), |source| format!("{error}: {source}"));
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    }
}

/// The snapshot has what the hub has, and nothing else.
fn assert_complete(folder: &Path) {
    assert!(folder.ends_with(COMMIT), "{}", folder.display());
    for (name, file) in files().iter().filter(|(name, _)| needed(name)) {
        assert!(std::fs::read(folder.join(name)).unwrap() == file.content, "{name}");
    }
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "1_Pooling",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );
}

#[test]
fn a_model_comes_once() {
    let case = Case::new(Mood::default());
    let told = Mutex::new(Vec::new());
    let folder = case.fetch_with(REPOSITORY, &|progress| told.lock().unwrap().push(progress)).unwrap();
    assert_complete(&folder);
    let told = told.into_inner().unwrap();
    let total = files().iter().filter(|(name, _)| needed(name)).map(|(_, file)| file.content.len() as u64).sum();
    assert_eq!(told.first(), Some(&FetchProgress { bytes_done: 0, bytes_total: total }));
    assert_eq!(told.last(), Some(&FetchProgress { bytes_done: total, bytes_total: total }));
    assert!(told.windows(2).all(|pair| pair[0].bytes_done <= pair[1].bytes_done));

    // Again: the list is asked for, the files are not.
    let before = case.hub.requests().len();
    assert_eq!(case.fetch().unwrap(), folder);
    assert_eq!(case.fetch_named("hf://acme/model@v1").unwrap(), folder);
    assert!(case.hub.requests()[before..].iter().all(|request| request.contains("/api/models/")));
    assert_eq!(case.hub.requests().len(), before + 2);
    // A commit never changes: nobody is asked.
    assert_eq!(case.fetch_named(&format!("acme/model@{COMMIT}")).unwrap(), folder);
    assert_eq!(case.hub.requests().len(), before + 2);
}

#[test]
fn a_hub_that_is_gone_is_no_trouble_for_what_is_here() {
    let case = Case::new(Mood::default());
    let folder = case.fetch().unwrap();
    case.hub.close();
    assert_eq!(case.fetch().unwrap(), folder);
    let error = case.error("acme/model@v1");
    assert!(error.contains(&case.hub.endpoint) && error.contains("MODEL_BUCKET can name a folder"), "{error}");

    // What is here is only what is all here.
    std::fs::remove_file(folder.join("tokenizer.json").canonicalize().unwrap()).unwrap();
    assert!(case.fetch().is_err());
}

#[test]
fn broken_connections_are_continued() {
    let case = Case::new(Mood { cut_after: Some(100_000), ..Mood::default() });
    assert_complete(&case.fetch().unwrap());
    let requests = case.hub.requests();
    // Each continues where the last one broke off, so that no byte is asked for twice.
    for start in (100_000..2_000_000).step_by(100_000) {
        let range = format!("/far/model-00001-of-00002.safetensors range=bytes={start}- ");
        assert_eq!(requests.iter().filter(|request| request.contains(&range)).count(), 1, "{range}");
    }
}

#[test]
fn what_an_earlier_fetch_brought_is_kept() {
    let case = Case::new(Mood { cut_after: Some(60_000), ..Mood::default() });
    // Too little to count as working, so that the fetch gives up.
    let error = case.error(REPOSITORY);
    assert!(error.contains("hf://acme/model@main"), "{error}");
    let before = case.hub.requests().len();
    case.hub.set(Mood::default());
    assert_complete(&case.fetch().unwrap());
    assert!(
        case.hub.requests()[before..]
            .iter()
            .any(|request| request.contains("/far/model") && request.contains("range=bytes="))
    );
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let mut case = Case::new(Mood { cut_after: Some(250_000), ..Mood::default() });
    // One try: files are left half-done.
    case.tries_max = 1;
    case.fetch().unwrap_err();
    case.hub.set(Mood { ignores_ranges: true, ..Mood::default() });
    assert_complete(&case.fetch().unwrap());
}

#[test]
fn a_busy_hub_is_asked_again() {
    let case = Case::new(Mood { busy_times: 2, ..Mood::default() });
    assert_complete(&case.fetch().unwrap());
    case.hub.set(Mood { busy_times: 1000, ..Mood::default() });
    let error = case.error("acme/model@v1");
    assert!(error.contains("503"), "{error}");
}

#[test]
fn a_hub_that_lists_no_sizes_is_asked_for_them() {
    let case = Case::new(Mood { terse: true, ..Mood::default() });
    assert_complete(&case.fetch().unwrap());
}

#[test]
fn hangs_end() {
    let mut case = Case::new(Mood { hangs: true, ..Mood::default() });
    (case.stall_timeout, case.tries_max) = (Duration::from_secs(1), 2);
    let started = Instant::now();
    let error = case.error(REPOSITORY);
    assert!(error.contains("nearly nothing came for 1 s"), "{error}");
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn another_size_is_an_error_and_nothing_of_it_is_kept_as_a_model() {
    let case = Case::new(Mood { short_by: 1, ..Mood::default() });
    let error = case.error(REPOSITORY);
    assert!(error.contains("bytes or more, and is listed with"), "{error}");
    case.hub.set(Mood::default());
    assert_complete(&case.fetch().unwrap());
}

#[test]
fn wrong_bytes_are_fetched_anew_and_refused_if_they_stay_wrong() {
    let case = Case::new(Mood { wrong_times: 1, ..Mood::default() });
    assert_complete(&case.fetch().unwrap());

    let case = Case::new(Mood { wrong_times: 1000, ..Mood::default() });
    let error = case.error(REPOSITORY);
    assert!(error.contains("SHA-256"), "{error}");
    case.hub.set(Mood::default());
    assert_complete(&case.fetch().unwrap());
}

#[test]
fn tokens_go_to_the_hub_alone() {
    let mut case = Case::new(Mood { token: Some("secret".to_owned()), ..Mood::default() });
    let error = case.error(REPOSITORY);
    assert!(error.contains("does not exist") && error.contains("HF_TOKEN"), "{error}");
    case.token = Some(" secret\n".to_owned());
    assert!(!format!("{:?}", case.options()).contains("secret"));
    assert_complete(&case.fetch().unwrap());
    let requests = case.hub.requests();
    let (far, near): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.contains(" /far/"));
    assert!(!far.is_empty() && far.iter().all(|request| request.ends_with("authorization=")), "{far:?}");
    assert!(near.iter().skip(1).all(|request| request.ends_with("authorization=Bearer secret")), "{near:?}");
}

#[test]
fn what_is_not_there_or_closed_is_told() {
    let mut case = Case::new(Mood::default());
    for (name, parts) in [
        ("acme/other", ["hf://acme/other@main does not exist", "HF_TOKEN"]),
        ("acme/model@v9", ["hf://acme/model@v9 does not exist", "no such branch, tag or commit"]),
        ("acme", ["hf://acme does not exist", "hf://owner/name"]),
    ] {
        let error = case.error(name);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    case.hub.set(Mood { gated: true, ..Mood::default() });
    let error = case.error(REPOSITORY);
    assert!(error.contains("denied") && error.contains("ask for access on http://"), "{error}");

    case.token = Some("s\u{1}".to_owned());
    let error = HubModels::new(case.options()).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN"), "{error}");
}

#[test]
fn a_repository_without_a_model_is_told() {
    for (missing, expected) in [("config.json", "has no config.json"), ("safetensors", "has no *.safetensors")] {
        let files = files().into_iter().filter(|(name, _)| !(name == missing || name.ends_with(missing))).collect();
        let case = Case::with_files(files, Mood::default());
        let error = case.error(REPOSITORY);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn two_at_once_share_the_work() {
    let case = Case::new(Mood { pause: Duration::from_millis(2), ..Mood::default() });
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..3).map(|_| scope.spawn(|| case.fetch().unwrap())).collect();
        fetches.into_iter().for_each(|fetch| assert_complete(&fetch.join().unwrap()));
    });
    let requests = case.hub.requests();
    let of_first = requests.iter().filter(|request| request.contains("/far/model-00001")).count();
    assert_eq!(of_first, 1, "{requests:?}");
}

#[test]
fn a_folder_that_can_not_be_written_is_named() {
    let case = Case::new(Mood::default());
    let file = case.folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let options = HubOptions { folder: file.clone(), ..case.options() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(HubModels::new(options).unwrap().fetch(REPOSITORY, &|_| {})).unwrap_err();
    assert!(error.source().unwrap().to_string().contains(&format!("cannot write {}", file.display())), "{error:?}");
}
