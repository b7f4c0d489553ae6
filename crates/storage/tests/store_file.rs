//! The store's file between versions of this program, and between processes.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "how the other process answers")]

use futures::executor::block_on;
use nexus_storage::{CacheKey, CacheKeyBuilder, EmbeddingCache, OpenError, RedbCache, RedbOptions, Vector};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::{env, fs};

/// Names the store that [`open_for_another_process`] opens.
const STORE: &str = "NEXUS_TEST_STORE";

/// Held by tests that start processes: until a child has replaced itself, it holds the locks of all files that its
/// parent has open, and a test beside it would find its own store in use.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embeddings-v1.redb")
}

/// What the fixture holds: a key made by [`CacheKeyBuilder`], so that its layout is held as well, and the vector.
fn entries() -> Vec<(CacheKey, Vector)> {
    let keys = CacheKeyBuilder::new(&[1; 32], &[2; 32], "last", 512, "f32");
    (0..8u32)
        .map(|i| {
            let text = format!("control {i}");
            let key = keys.key((i % 2 == 0).then_some("find the control"), 16, &text);
            (key, (0..16).map(|j| (i as f32 - 3.5) / (j as f32 + 1.0)).collect())
        })
        .collect()
}

fn assert_all_hits(cache: &RedbCache) {
    let (keys, vectors): (Vec<_>, Vec<_>) = entries().into_iter().unzip();
    let expected: Vec<_> = vectors.into_iter().map(Some).collect();
    assert_eq!(block_on(cache.get(&keys)), expected);
    assert_eq!(cache.stats().damaged, 0);
}

/// When this fails, the entries that users have would all be misses. If that is meant, raise the version (of the
/// record, or of the key), and add a fixture of the new one beside this.
#[test]
fn a_file_of_version_1_is_all_hits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("embeddings.redb");
    fs::copy(fixture(), &path).unwrap();
    let cache = RedbCache::open(&path, RedbOptions::default()).unwrap();
    assert_eq!(cache.stats().entries, Some(8));
    assert_all_hits(&cache);
    // It can be written to as well.
    cache.put(vec![(CacheKey::from_bytes([9; 32]), Vector::from([1.0]))]);
    block_on(cache.flush());
    assert_eq!(cache.stats().entries, Some(9));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was moved aside");
}

#[test]
#[ignore = "writes the fixture"]
fn write_the_fixture() {
    fs::create_dir_all(fixture().parent().unwrap()).unwrap();
    fs::remove_file(fixture()).ok();
    let cache = RedbCache::open(fixture(), RedbOptions::default()).unwrap();
    cache.put(entries());
    drop(cache);
    println!("{} bytes", fs::metadata(fixture()).unwrap().len());
}

#[test]
fn another_process_is_told_and_finds_everything_afterwards() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("embeddings.redb");
    let cache = RedbCache::open(&path, RedbOptions::default()).unwrap();
    cache.put(entries());
    block_on(cache.flush());
    assert_eq!(in_another_process(&path), "already open");
    assert_all_hits(&cache);
    drop(cache);
    assert_eq!(in_another_process(&path), "all hits");
}

fn in_another_process(store: &Path) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "open_for_another_process", "--ignored", "--nocapture"])
        .env(STORE, store)
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let (_, answer) = stdout.split_once("answer: ").unwrap_or_else(|| panic!("{stdout}"));
    answer.lines().next().unwrap().to_owned()
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn open_for_another_process() {
    let Some(path) = env::var_os(STORE) else { return };
    match RedbCache::open(path, RedbOptions::default()) {
        Ok(cache) => {
            assert_all_hits(&cache);
            println!("answer: all hits");
        }
        Err(OpenError::AlreadyOpen { .. }) => println!("answer: already open"),
        Err(error) => println!("answer: {error}"),
    }
}

/// What a process leaves that is ended without warning: everything up to the last flush is there.
#[test]
fn a_killed_process_loses_nothing_that_was_flushed() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("embeddings.redb");
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "write_and_wait_to_be_killed", "--ignored", "--nocapture"])
        .env(STORE, &path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("flushed")));
    child.kill().unwrap();
    child.wait().unwrap();
    let cache = RedbCache::open(&path, RedbOptions::default()).unwrap();
    assert_all_hits(&cache);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was moved aside");
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn write_and_wait_to_be_killed() {
    let Some(path) = env::var_os(STORE) else { return };
    let cache = RedbCache::open(path, RedbOptions::default()).unwrap();
    cache.put(entries());
    block_on(cache.flush());
    println!("flushed");
    // More, of which some is being written when the end comes.
    for i in 0..=u64::MAX {
        let key = CacheKeyBuilder::new(&[3; 32], &[3; 32], "last", 512, "f32").key(None, 16, &i.to_string());
        cache.put(vec![(key, Vector::from([i as f32; 16]))]);
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
}
