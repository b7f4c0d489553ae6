//! Target sets when they are opened again: with what an end without warning leaves, with damaged files, of other versions.

#![forbid(unsafe_code)]

mod target_sets_support;

use nexus_storage::{TargetError, TargetOptions, TargetSets};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use target_sets_support::*;
use tempfile::tempdir;

/// The states between the steps of a put and of a delete, made from what is there before and after.
#[test]
fn between_any_two_steps_it_is_the_old_set_or_the_new_one() {
    let folder = tempdir().unwrap();
    put(&open(folder.path()), "a", 1, 10);
    let before = copy(folder.path());
    put(&open(folder.path()), "a", 2, 10);
    let after = copy(folder.path());
    open(folder.path()).delete("a").unwrap();
    let deleted = copy(folder.path());
    let (old, new) = (set_files(before.path()).remove(0), set_files(after.path()).remove(0));
    let content = fs::read(&new).unwrap();
    let temporary = Path::new("/.writing-0000000000000007");
    // What is there, a file that is there as well, how much of it, and the set with its index and without.
    for (state, file, len, with, without) in [
        (&before, temporary, 0, Some(1), Some(1)),
        (&before, temporary, 4200, Some(1), Some(1)),
        (&before, temporary, content.len(), Some(1), Some(1)),
        (&before, &new, content.len(), Some(1), Some(2)),
        (&after, &old, content.len(), Some(2), Some(2)),
        // Without the index nothing tells that a file is of a deleted set.
        (&deleted, &new, content.len(), None, Some(2)),
    ] {
        for index in [true, false] {
            let copy = copy(state.path());
            let content = if *file == old { fs::read(&old).unwrap() } else { content[..len].to_vec() };
            fs::write(copy.path().join(file.file_name().unwrap()), content).unwrap();
            if !index {
                fs::remove_file(copy.path().join("index.redb")).unwrap();
            }
            let sets = open(copy.path());
            let expected = if index { with } else { without };
            match expected {
                Some(seed) => assert_is(&sets, "a", seed, 10),
                None => assert!(sets.list().is_empty()),
            }
            assert_eq!(set_files(copy.path()).len(), sets.list().len());
        }
    }
}

#[test]
fn a_folder_that_is_in_use_says_so() {
    let folder = tempdir().unwrap();
    let sets = open(folder.path());
    put(&sets, "a", 1, 2);
    let writing = sets.begin(&name("b")).unwrap();
    let error = TargetSets::open(folder.path(), TargetOptions::default()).err().unwrap();
    assert!(matches!(&error, TargetError::AlreadyOpen { path } if path == folder.path()));
    assert_eq!(
        error.to_string(),
        format!("the target sets in {} are in use by another process", folder.path().display())
    );
    drop(sets);
    // A writer is a use, too: it could still finish.
    assert!(TargetSets::open(folder.path(), TargetOptions::default()).is_err());
    drop(writing);
    assert_is(&open(folder.path()), "a", 1, 2);
}

#[test]
fn a_damaged_file_is_dropped_and_the_others_stay() {
    let folder = tempdir().unwrap();
    {
        let sets = open(folder.path());
        put(&sets, "bad", 1, 10);
        put(&sets, "good", 2, 10);
    }
    let file = set_files(folder.path()).remove(0);
    let good = fs::read(&file).unwrap();
    let other = fs::read(set_files(folder.path()).remove(1)).unwrap();
    let mut damages: Vec<(&str, Option<Vec<u8>>)> = vec![
        ("missing", None),
        ("another set's", Some(other)),
        ("longer", Some([&good[..], &[0]].concat())),
        ("garbage", Some(bytes(9, good.len()))),
        ("a large header", Some([&u64::MAX.to_le_bytes(), &good[8..]].concat())),
        ("no ends of ids", Some([&good[..4096 + 320 + 80], &bytes(5, good.len() - 4096 - 400)].concat())),
    ];
    for len in [0, 1, 7, 8, 100, 4095, 4096, 4097, good.len() - 1] {
        damages.push(("truncated", Some(good[..len].to_vec())));
    }
    let text = String::from_utf8_lossy(&good[8..4096]).into_owned();
    for (from, to) in [
        (r#""name":"bad""#, r#""name":"bat""#),
        (r#""nexus_target_set""#, r#""nexus_target_sex""#),
        (r#""created_unix_s":"1"#, r#""created_unix_s":"2"#),
        (r#""dtype":"F32""#, r#""dtype":"U32""#),
        (r#""dtype":"F64""#, r#""dtype":"I64""#),
        (r#""dtype":"U64""#, r#""dtype":"I64""#),
        (r#""dtype":"U8""#, r#""dtype":"I8""#),
        ("[10,8]", "[8,10]"),
        ("[10,8]", "[80]  "),
        (r#""norms""#, r#""forms""#),
        (r#""target_id_ends""#, r#""target_id_endz""#),
        (r#""target_ids""#, r#""target_idz""#),
    ] {
        assert!(text.contains(from), "{from}");
        damages.push((to, Some([&good[..8], text.replacen(from, to, 1).as_bytes(), &good[4096..]].concat())));
    }
    for (what, content) in damages {
        for index in [true, false] {
            // A header that fits but for the set's creation time only the index can refute.
            if !index && what.contains("created") {
                continue;
            }
            let copy = copy(folder.path());
            let file = copy.path().join(file.file_name().unwrap());
            match &content {
                Some(content) => fs::write(&file, content).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            if !index {
                fs::remove_file(copy.path().join("index.redb")).unwrap();
            }
            let sets = open(copy.path());
            assert_eq!(names(&sets), ["good"], "{what}");
            assert_is(&sets, "good", 2, 10);
            assert_eq!((sets.bytes(), set_files(copy.path()).len()), (sets.list()[0].bytes, 1), "{what}");
            put(&sets, "bad", 3, 10);
            drop(sets);
            assert_is(&open(copy.path()), "bad", 3, 10);
        }
    }
}

#[test]
fn an_index_that_is_lost_or_damaged_is_made_again() {
    let folder = tempdir().unwrap();
    {
        let sets = open(folder.path());
        put(&sets, "a", 1, 10);
        put(&sets, "b", 2, 10);
        put(&sets, "gone", 2, 10);
        put(&sets, "a", 3, 10);
        sets.delete("gone").unwrap();
    }
    let index = fs::read(folder.path().join("index.redb")).unwrap();
    let mut flipped = index.clone();
    flipped.iter_mut().skip(4096).step_by(97).for_each(|byte| *byte ^= 0x5a);
    let damages = [None, Some(vec![]), Some(bytes(1, 10_000)), Some(index[..index.len() / 2].to_vec()), Some(flipped)];
    for (i, damage) in damages.into_iter().enumerate() {
        let copy = copy(folder.path());
        let index = copy.path().join("index.redb");
        match &damage {
            Some(damage) => fs::write(&index, damage).unwrap(),
            None => fs::remove_file(&index).unwrap(),
        }
        for _ in 0..2 {
            let sets = open(copy.path());
            assert_eq!(names(&sets), ["a", "b"], "{i}");
            assert_is(&sets, "a", 3, 10);
            assert_is(&sets, "b", 2, 10);
        }
        let sets = open(copy.path());
        put(&sets, "a", 4, 1);
        drop(sets);
        assert_is(&open(copy.path()), "a", 4, 1);
        let aside = fs::read_dir(copy.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("index.redb.damaged-"));
        assert_eq!(aside.count(), usize::from(i > 1), "{i}");
    }
}

#[test]
fn leftovers_go_and_other_files_stay() {
    let folder = tempdir().unwrap();
    let sets = open(folder.path());
    put(&sets, "a", 1, 10);
    let replaced = set_files(folder.path()).remove(0);
    let content = fs::read(&replaced).unwrap();
    put(&sets, "a", 2, 10);
    drop(sets);
    // As if the process had ended before it removed the replaced file, with others being written.
    fs::write(&replaced, content).unwrap();
    fs::write(folder.path().join(".writing-00000000000000ff"), "x").unwrap();
    let others = ["notes.txt", "model.safetensors", ".writing-by-hand", "a.safetensors"];
    for other in others {
        fs::write(folder.path().join(other), "mine").unwrap();
    }
    let sets = open(folder.path());
    assert_is(&sets, "a", 2, 10);
    assert!(!replaced.exists() && !folder.path().join(".writing-00000000000000ff").exists());
    for other in others {
        assert_eq!(fs::read(folder.path().join(other)).unwrap(), b"mine");
    }
    put(&sets, "a", 3, 10);
    assert_is(&sets, "a", 3, 10);
}

#[test]
fn the_folder_of_a_later_version_is_left_as_it_is() {
    let folder = tempdir().unwrap();
    put(&open(folder.path()), "a", 1, 10);
    let file = set_files(folder.path()).remove(0);
    let mut content = fs::read(&file).unwrap();
    let at = content.windows(6).position(|bytes| bytes == br#"t":"1""#).unwrap();
    content[at + 4] = b'2';
    fs::write(&file, &content).unwrap();
    for index in [true, false] {
        if !index {
            fs::remove_file(folder.path().join("index.redb")).unwrap();
        }
        let error = TargetSets::open(folder.path(), TargetOptions::default()).err().unwrap();
        assert_eq!(error.to_string(), format!("{} is of format 2; this version reads format 1", file.display()));
        assert_eq!(fs::read(&file).unwrap(), content);
    }
}

#[test]
fn folders_that_cannot_be_used() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = TargetSets::open(&file.join("sub"), TargetOptions::default()).err().unwrap();
    assert_eq!(error.to_string(), format!("cannot create the folder {}", file.join("sub").display()));
    assert!(std::error::Error::source(&error).is_some());
    // A folder where the index should be.
    fs::create_dir(folder.path().join("index.redb")).unwrap();
    let error = TargetSets::open(folder.path(), TargetOptions::default()).err().unwrap();
    assert_eq!(error.to_string(), format!("cannot use {}", folder.path().join("index.redb").display()));
    // A folder that goes while it is used.
    let sets = open(&folder.path().join("sets"));
    fs::remove_dir_all(sets.folder()).unwrap();
    let error = sets.begin(&name("a")).err().unwrap();
    assert!(error.to_string().starts_with("cannot create "), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any bytes in the place of the last tensors: no id of a damaged file panics, or is no text.
    #[test]
    fn damaged_ids_are_none(damage in prop::collection::vec((0usize..200, any::<u8>()), 1..20)) {
        let folder = tempdir().unwrap();
        put(&open(folder.path()), "a", 1, 10);
        let file = set_files(folder.path()).remove(0);
        let mut content = fs::read(&file).unwrap();
        let (begin, len) = (4096 + 400, content.len());
        for (at, byte) in damage {
            content[(begin + at).min(len - 1)] ^= byte;
        }
        fs::write(&file, &content).unwrap();
        let sets = open(folder.path());
        if let Some(set) = sets.get("a") {
            for row in 0..11 {
                let _ = set.id(row);
            }
            prop_assert_eq!(set.rows(), bytes(1, 320));
        }
    }

    #[test]
    fn any_history_is_that_of_a_map(
        steps in prop::collection::vec((0..6usize, 0..4usize, 0..20usize), 1..25),
    ) {
        let folder = tempdir().unwrap();
        let mut sets = Some(open(folder.path()));
        let mut model = BTreeMap::<String, (usize, usize)>::new();
        for (seed, (what, set, rows)) in steps.into_iter().enumerate() {
            let key = format!("set-{set}");
            match (what, sets.as_ref().unwrap()) {
                (0..=2, sets) => {
                    prop_assert_eq!(put(sets, &key, seed, rows).1, model.insert(key, (seed, rows)).is_some());
                }
                (3, sets) => prop_assert_eq!(sets.delete(&key).unwrap(), model.remove(&key).is_some()),
                (4, sets) => fill(&mut sets.begin(&name(&key)).unwrap(), seed, rows),
                _ => {
                    drop(sets.take());
                    // Every other time without the index.
                    if rows % 2 == 0 {
                        fs::remove_file(folder.path().join("index.redb")).unwrap();
                    }
                    sets = Some(open(folder.path()));
                }
            }
            let sets = sets.as_ref().unwrap();
            prop_assert_eq!(names(sets), model.keys().cloned().collect::<Vec<_>>());
            prop_assert_eq!(set_files(folder.path()).len(), model.len());
            prop_assert_eq!(sets.bytes(), sets.list().iter().map(|info| info.bytes).sum::<u64>());
            for (key, &(seed, rows)) in &model {
                assert_is(sets, key, seed, rows);
            }
        }
    }
}
