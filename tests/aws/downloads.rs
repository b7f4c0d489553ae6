//! Large models on their way: broken connections, content that changes, ends without warning, no room.
//!
//! What is downloaded is numbers that no model has, in many shards, as large models are published: the service refuses to
//! load it, and says so; what counts here is that every byte on the disk is the bucket's.

use crate::places::{Bucket, Random, s3_url};
use crate::proxy::{Fault, Message, Proxy};
use crate::replica::{Replica, Start};
use crate::support::PATIENCE;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const MODEL: &str = "models/qwen-embedding-8b";
const MIB: usize = 1 << 20;
const RANGE_BYTES: usize = 8 * MIB;
const CONNECTIONS_MAX: usize = 6;

/// These tests move gigabytes: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// A bucket with one large model in it, and what each of its files has to be.
struct Large {
    bucket: Bucket,
    files: BTreeMap<String, [u8; 32]>,
    bytes: usize,
}

impl Large {
    /// So many shards of so many bytes each.
    fn new(shards: usize, shard_bytes: usize, seed: u64) -> Self {
        let mut large = Self { bucket: Bucket::new(), files: BTreeMap::new(), bytes: 0 };
        large.put("config.json", br#"{"architectures": ["Unheard"], "model_type": "unheard"}"#.to_vec());
        for i in 1..=shards {
            // Not a multiple of anything, so that the last range is a short one.
            let bytes = Random::new(seed * 1000 + i as u64).bytes(shard_bytes + 13 * i);
            large.put(&format!("model-{i:05}-of-{shards:05}.safetensors"), bytes);
        }
        large
    }

    fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(name.to_owned(), sha256(&bytes));
        self.bytes += bytes.len();
        self.bucket.put(&format!("{MODEL}/{name}"), bytes);
    }

    /// Starts on it by way of `proxy`, downloading into `folder`.
    fn start(&self, proxy: &Proxy, folder: &Path) -> Replica {
        Start::new()
            .env("MODEL_BUCKET", &self.bucket.name)
            .env("AWS_ENDPOINT_URL_S3", &proxy.url)
            .env("NEXUS_MODELS_DIR", folder.to_str().expect("UTF-8"))
            .env("NEXUS_DOWNLOAD_RANGE_BYTES", &RANGE_BYTES.to_string())
            .env("NEXUS_DOWNLOAD_CONNECTIONS_MAX", &CONNECTIONS_MAX.to_string())
            .start()
    }

    /// Waits until the retriever's files are there, which ends with the refusal to load them.
    fn wait(&self, replica: &Replica) {
        let started = Instant::now();
        let mut last = (0, Instant::now());
        loop {
            let answer: serde_json::Value = replica.get("/ready").json().expect("JSON");
            let retriever = &answer["models"][0];
            if let Some(detail) = retriever["detail"].as_str() {
                assert!(detail.to_lowercase().contains("unheard"), "not refused for what is in it: {detail}");
                return;
            }
            // As long as it moves it may take its time.
            let done = retriever["bytes_done"].as_u64().unwrap_or_default();
            if done != last.0 {
                last = (done, Instant::now());
            }
            assert!(last.1.elapsed() < PATIENCE, "it stands still after {:?}: {answer}", started.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Every file of the model is in `folder` under its own name, byte for byte, and nothing else is under such a name.
    fn assert_whole(&self, folder: &Path) {
        let mut found = BTreeMap::<String, Vec<[u8; 32]>>::new();
        for path in files_in(folder) {
            let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8").to_owned();
            if self.files.contains_key(&name) {
                found.entry(name).or_default().push(sha256(&std::fs::read(&path).expect("a file")));
            }
        }
        for (name, expected) in &self.files {
            let digests = found.remove(name).unwrap_or_default();
            assert!(!digests.is_empty(), "{name} is not there");
            assert!(digests.iter().all(|digest| digest == expected), "{name} is not what the bucket has");
        }
    }
}

/// All files under `folder`, through links.
fn files_in(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match std::fs::metadata(&path).expect("its state").is_dir() {
            true => files.extend(files_in(&path)),
            false => files.push(path),
        }
    }
    files
}

/// A tenth of all connections is reset, a fifth breaks somewhere in the answer, and some are told to slow down.
fn break_at_random(proxy: &Proxy, seed: u64) {
    let random = Mutex::new(Random::new(seed));
    proxy.rule(move |_| {
        let mut random = random.lock().unwrap_or_else(PoisonError::into_inner);
        match random.next() % 20 {
            0 | 1 => Fault::Reset,
            2..=5 => Fault::Cut { bytes: random.next() as usize % (8 * MIB) },
            6 => Fault::Answer(Message::response(503, &[], "<Error><Code>SlowDown</Code></Error>")),
            _ => Fault::Pass,
        }
    });
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_gigabyte_arrives_whole_over_connections_that_break() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let large = Large::new(16, 64 * MIB, 1);
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = Proxy::to(&s3_url());
    break_at_random(&proxy, 42);
    let replica = large.start(&proxy, folder.path());
    large.wait(&replica);
    large.assert_whole(folder.path());
    let asked = proxy.asked().len();
    assert!(asked > 150, "{asked} requests: nothing was asked for again");
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_killed_download_goes_on_where_it_was() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Two files: what only counts when a file is complete does not pass for resuming.
    let large = Large::new(2, 256 * MIB, 3);
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = Proxy::to(&s3_url());
    let mut before = 0;
    // Both times most of a file is under way; then to the end.
    for percent in [45, 90] {
        let replica = large.start(&proxy, folder.path());
        let started = Instant::now();
        while proxy.bytes() < large.bytes as u64 * percent / 100 {
            assert!(started.elapsed() < PATIENCE, "{} bytes", proxy.bytes());
            std::thread::sleep(Duration::from_millis(5));
        }
        replica.kill();
        before = proxy.bytes();
    }
    let replica = large.start(&proxy, folder.path());
    large.wait(&replica);
    large.assert_whole(folder.path());
    // A kill takes the ranges that are under way, what came since the last sync began, and before that less than what is
    // synced at a time.
    let lost_max = (CONNECTIONS_MAX * RANGE_BYTES + 2 * 32 * MIB) as u64;
    let (last, bytes) = (proxy.bytes() - before, large.bytes as u64);
    assert!(before + last < bytes + 2 * lost_max, "{last} bytes after {before}, of {bytes}");
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn content_that_changes_half_way_is_never_mixed() {
    let mut large = Large::new(2, 48 * MIB, 2);
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = Proxy::to(&s3_url());
    let name = "model-00001-of-00002.safetensors";
    let (started, done) = (std::sync::Arc::new(AtomicUsize::new(0)), std::sync::Arc::new(AtomicUsize::new(0)));
    let (count, changed) = (started.clone(), done.clone());
    proxy.rule(move |asked| {
        if asked.method == "GET" && asked.path.contains(name) {
            // The third range of the file and all after it wait for the new content.
            if count.fetch_add(1, Ordering::SeqCst) >= 2 {
                let since = Instant::now();
                while changed.load(Ordering::SeqCst) == 0 && since.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        Fault::Pass
    });
    let replica = large.start(&proxy, folder.path());
    let since = Instant::now();
    while started.load(Ordering::SeqCst) < 3 {
        assert!(since.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    // Of the same length, so that the content alone tells.
    let bytes = Random::new(99).bytes(48 * MIB + 13);
    let old = large.files[name];
    large.put(name, bytes);
    assert_ne!(large.files[name], old);
    done.store(1, Ordering::SeqCst);
    large.wait(&replica);
    large.assert_whole(folder.path());
    let refused = proxy.asked().iter().filter(|asked| asked.path.contains(name)).count();
    assert!(refused > 7, "{refused} requests: the new content was not asked for");
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn without_room_for_it_a_model_is_not_there_and_later_it_is() {
    let bucket = Bucket::with_models();
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_str().expect("UTF-8");
    let start = Start::new().env("MODEL_BUCKET", &bucket.name).env("NEXUS_MODELS_DIR", place);
    // The reranker's weights fit, and the retriever's do not.
    let replica = start.clone().file_bytes_max(15 << 20).start();
    let answer = replica.wait_while_loading();
    assert_eq!(answer["status"], "failed", "{answer}");
    assert_eq!(replica.get("/health").status(), 200);
    assert_eq!(answer["models"][1]["status"], "ready", "{answer}");
    let detail = answer["models"][0]["detail"].as_str().expect("a reason");
    assert!(detail.contains(place), "{detail}");
    replica.stop();
    let weights = std::fs::metadata(crate::support::root().join("models/embedder/model.safetensors"));
    let whole = weights.expect("its size").len();
    let complete = files_in(folder.path()).into_iter().filter(|path| {
        let hidden = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with('.'));
        !hidden && std::fs::metadata(path).is_ok_and(|file| file.len() == whole)
    });
    assert_eq!(complete.count(), 0, "a file that looks complete");

    let replica = start.start().ready();
    assert!(!replica.embed("room enough").1);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn two_processes_on_one_folder_download_once() {
    let bucket = Bucket::with_models();
    let folder = tempfile::tempdir().expect("a folder");
    let proxy = Proxy::to(&s3_url());
    let start = Start::new()
        .env("MODEL_BUCKET", &bucket.name)
        .env("AWS_ENDPOINT_URL_S3", &proxy.url)
        .env("NEXUS_MODELS_DIR", folder.path().to_str().expect("UTF-8"));
    let (first, second) = (start.start(), start.start());
    let (first, second) = (first.ready(), second.ready());
    assert_eq!(first.embed("the same").0, second.embed("the same").0);
    // Both models have 33 MB.
    assert!(proxy.bytes() < 50_000_000, "{} bytes", proxy.bytes());
}
