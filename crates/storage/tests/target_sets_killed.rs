//! Target sets after an end without warning and with a full disk, in processes of their own.
//!
//! A program of its own, and one test at a time: until a child that is being started has replaced itself, it holds the
//! locks of all files that its parent has open, and a test beside it would find its own folder in use.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "how the other process answers")]

mod target_sets_support;

use nexus_storage::{SetDtype, TargetError, TargetOptions, TargetSets};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::{env, fs};
use target_sets_support::*;
use tempfile::tempdir;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Names the folder that the tests which are run in a process of their own open.
const FOLDER: &str = "NEXUS_TEST_TARGETS";

/// This test program, to run one of its tests; `before` is what it is started with, if not directly.
fn another_process(before: &[&str], test: &str, folder: &Path) -> Command {
    let executable = env::current_exe().unwrap();
    let mut words = before.to_vec();
    words.extend([executable.to_str().unwrap(), "--exact", test, "--ignored", "--nocapture"]);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env(FOLDER, folder).stdout(Stdio::piped());
    command
}

/// Whatever a process was doing when it was killed: every set is one that was put, whole, and no older than the last
/// that was acknowledged.
#[test]
fn a_killed_process_leaves_the_old_set_or_the_new_one() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempdir().unwrap();
    let mut acknowledged = BTreeMap::<String, Option<usize>>::new();
    for round in 0..12u64 {
        let mut child = another_process(&[], "put_and_delete_until_killed", folder.path()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut begun = None;
        let mut seen = 0;
        loop {
            if seen == 5 + round {
                // Somewhere inside of what comes next.
                std::thread::sleep(std::time::Duration::from_micros(round * 430));
                child.kill().unwrap();
            }
            let Some(line) = lines.next() else { break };
            let line = line.unwrap();
            let [.., what, set, seed] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
            let state = match what {
                "put" => Some(seed.parse().unwrap()),
                "delete" => None,
                "done" => {
                    let (set, state) = begun.take().unwrap();
                    acknowledged.insert(set, state);
                    seen += 1;
                    continue;
                }
                _ => continue,
            };
            begun = Some((set.to_owned(), state));
        }
        child.wait().unwrap();
        assert!(seen >= 5 + round);
        let sets = open(folder.path());
        for set in ["a", "b"] {
            let found = sets.get(set).map(|found| {
                let seed = found.id(0).unwrap().strip_suffix("/0").unwrap().parse().unwrap();
                assert_is(&sets, set, seed, 2000);
                seed
            });
            let last = acknowledged.get(set).copied().flatten();
            let next = begun.as_ref().filter(|(begun, _)| begun == set).map_or(last, |(_, state)| *state);
            assert!(found == last || found == next, "{set}: {found:?} is neither {last:?} nor {next:?}");
            acknowledged.insert(set.to_owned(), found);
        }
        assert_eq!(set_files(folder.path()).len(), sets.list().len());
    }
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn put_and_delete_until_killed() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let sets = open(Path::new(&folder));
    for seed in 0..usize::MAX {
        let set = ["a", "b"][seed % 2];
        if seed % 7 == 6 {
            println!("\ndelete {set} 0");
            sets.delete(set).unwrap();
        } else {
            println!("\nput {set} {seed}");
            put(&sets, set, seed, 2000);
        }
        println!("done {set} 0");
    }
}

/// A limit on the size of files stands in for a full disk: it is what an unprivileged test can set.
#[test]
fn a_full_disk_leaves_what_was_there() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempdir().unwrap();
    put(&open(folder.path()), "a", 1, 10);
    let index_bytes = fs::metadata(folder.path().join("index.redb")).unwrap().len();
    // In blocks of 512 bytes: the index fits and a large set does not; then a small set fits and the index does not.
    for (blocks, test) in [(index_bytes / 512 + 100, "put_too_much"), (16, "put_beyond_the_index")] {
        let limited = format!(r#"trap "" XFSZ; ulimit -f {blocks}; exec "$@""#);
        let output = another_process(&["sh", "-c", &limited, "sh"], test, folder.path()).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        assert!(output.contains("as expected"), "{output}");
        let sets = open(folder.path());
        assert_is(&sets, "a", 1, 10);
        assert_eq!(set_files(folder.path()).len(), sets.list().len());
        put(&sets, "b", 2, 10);
        assert_is(&sets, "b", 2, 10);
    }
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn put_too_much() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let sets = open(Path::new(&folder));
    for rows in [200_000, 1_000_000] {
        let mut writer = sets.begin(&name("a")).unwrap();
        writer.set_shape(SetDtype::F32, 8).unwrap();
        let pushed = writer.push(&bytes(3, rows * 32), &norms(3, rows));
        let error = pushed.and_then(|()| writer.finish().map(drop)).unwrap_err();
        assert!(matches!(error, TargetError::DiskFull { .. }), "{error:?}");
        assert!(error.to_string().starts_with("no space is left for "), "{error}");
        assert!(std::error::Error::source(&error).is_some());
        assert_eq!(set_files(sets.folder()).len(), sets.list().len());
        assert_is(&sets, "a", 1, 10);
    }
    put(&sets, "small", 4, 10);
    println!("as expected");
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn put_beyond_the_index() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    match TargetSets::open(Path::new(&folder), TargetOptions::default()) {
        // Opening may have to write as well.
        Err(error) => println!("as expected: {error:?}"),
        Ok(sets) => {
            let mut writer = sets.begin(&name("a")).unwrap();
            fill(&mut writer, 3, 10);
            let error = writer.finish().unwrap_err();
            assert_is(&sets, "a", 1, 10);
            println!("as expected, when it is written to: {error:?}");
        }
    }
}
