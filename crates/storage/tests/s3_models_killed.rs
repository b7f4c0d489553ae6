//! Downloads of models after an end without warning and with a full disk, in processes of their own.
//!
//! A program of its own, as target sets have one: a child holds its parent's locks until it has replaced itself.

#![forbid(unsafe_code)]
#![cfg(feature = "aws")]
#![expect(clippy::print_stdout, reason = "how the other process answers")]

#[allow(dead_code, reason = "made for other tests as well")]
#[path = "../src/aws/s3/double.rs"]
mod double;

use double::{BUCKET, Double, content};
use nexus_storage::{ModelStore, ModelStoreError, S3Models, S3Options, aws_config};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

const FOLDER: &str = "NEXUS_TEST_MODELS";
const FILES: [(&str, usize); 3] = [("config.json", 300), ("a.safetensors", 6_000_000), ("b.safetensors", 4_000_000)];
const TOTAL: u64 = 10_000_300;

fn another_process(before: &[&str], server: &Double, folder: &Path) -> Command {
    let executable = env::current_exe().unwrap();
    let mut words = before.to_vec();
    words.extend([
        executable.to_str().unwrap(),
        "--exact",
        "fetch_in_a_process_of_its_own",
        "--ignored",
        "--nocapture",
    ]);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env(FOLDER, folder).env("AWS_ENDPOINT_URL", &server.url).stdout(Stdio::piped());
    command.env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", "x");
    command
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn fetch_in_a_process_of_its_own() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let options = S3Options {
        range_bytes: 100_000,
        connections_max: 4,
        checkpoint_bytes: 300_000,
        spare_bytes: 0,
        ..S3Options::new(folder)
    };
    let store = S3Models::new(aws_config("us-east-1"), BUCKET, "", options);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    match runtime.block_on(store.fetch("m", &|progress| println!("\nat {}", progress.bytes_done))) {
        Ok(folder) => println!("complete {}", folder.display()),
        Err(error @ ModelStoreError::DiskFull { .. }) => println!("full {error}"),
        Err(error) => println!("other {error:?}"),
    }
}

fn server() -> Double {
    let server = Double::start();
    for (name, size) in FILES {
        server.put(&format!("m/{name}"), 0, size);
    }
    server
}

/// Runs a download, which is killed when it has brought `bytes`. The folder, if it came to its end.
fn run(server: &Double, folder: &Path, kill_at_bytes: u64) -> (u64, Option<PathBuf>) {
    let mut child = another_process(&[], server, folder).spawn().unwrap();
    let (mut first, mut found) = (None, None);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(bytes) = line.strip_prefix("at ") {
            let bytes = bytes.parse().unwrap();
            first.get_or_insert(bytes);
            if bytes >= kill_at_bytes {
                child.kill().unwrap();
            }
        } else if let Some(path) = line.strip_prefix("complete ") {
            found = Some(PathBuf::from(path));
        } else {
            assert!(!line.starts_with("other") && !line.starts_with("full"), "{line}");
        }
    }
    child.wait().unwrap();
    (first.unwrap_or(0), found)
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let server = server();
    let folder = tempfile::tempdir().unwrap();
    server.faults().bytes_per_s = Some(1_500_000);
    let mut begun_at = Vec::new();
    for kill_at_bytes in [2_000_000, 5_000_000, 8_000_000] {
        let (first, found) = run(&server, folder.path(), kill_at_bytes);
        assert_eq!(found, None);
        begun_at.push(first);
    }
    server.faults().bytes_per_s = None;
    let began = Instant::now();
    while server.answering() > 0 && began.elapsed() < Duration::from_secs(30) {
        sleep(Duration::from_millis(5));
    }
    server.take_served_bytes();
    let (first, found) = run(&server, folder.path(), u64::MAX);
    let found = found.unwrap();
    begun_at.push(first);
    // What was under way and what was not synced yet is fetched again, of each file.
    assert!(begun_at[1] >= 1_000_000 && begun_at[2] >= 4_000_000 && begun_at[3] >= 7_000_000, "{begun_at:?}");
    assert_eq!(server.take_served_bytes(), TOTAL - first);
    for (name, size) in FILES {
        assert!(fs::read(found.join(name)).unwrap() == content(&format!("m/{name}"), 0, size), "{name}");
    }
    // And the next start has nothing to do.
    assert_eq!(run(&server, folder.path(), u64::MAX), (TOTAL, Some(found)));
    assert_eq!(server.take_served_bytes(), 0);
}

/// A limit on the size of files stands in for a full disk: it is what an unprivileged test can set.
#[test]
fn a_full_disk_is_told_and_leaves_no_half_file() {
    let server = server();
    let folder = tempfile::tempdir().unwrap();
    let limited = r#"trap "" XFSZ; ulimit -f 8000; exec "$@""#;
    let output = another_process(&["sh", "-c", limited, "sh"], &server, folder.path()).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let told = output.lines().find(|line| line.starts_with("full ")).unwrap_or_else(|| panic!("{output}"));
    assert!(told.contains("no space is left in ") && told.contains(&folder.path().display().to_string()), "{told}");
    let model = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    for entry in fs::read_dir(model.join("objects")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(name.starts_with('.') || [300, 4_000_000].contains(&entry.metadata().unwrap().len()), "{name}");
    }
    let (_, found) = run(&server, folder.path(), u64::MAX);
    assert!(found.is_some());
}
