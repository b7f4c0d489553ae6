//! Target sets: what a client puts is what it gets, now and after a restart.

#![forbid(unsafe_code)]

mod target_sets_support;

use nexus_storage::{SetDtype, SetWriter, TargetError, TargetOptions, TargetSets};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs;
use target_sets_support::*;
use tempfile::tempdir;

const DTYPES: [SetDtype; 3] = [SetDtype::F32, SetDtype::F16, SetDtype::Bf16];

#[test]
fn every_type_with_and_without_ids_now_and_after_reopening() {
    let folder = tempdir().unwrap();
    let mut sets = open(&folder.path().join("made/when/missing"));
    let mut expected = BTreeMap::new();
    for dtype in DTYPES {
        // Three components of two bytes: rows end off every boundary of 8.
        for (rows, dimensions) in [(0, 0), (0, 5), (1, 1), (1, 3), (3, 3), (7, 384), (1000, 17)] {
            for with_ids in [false, true] {
                let set = format!("{dtype}.{rows}x{dimensions}.{with_ids}");
                let content = bytes(rows, rows * dimensions * dtype.bytes());
                let mut writer = sets.begin(&name(&set)).unwrap();
                let ids: Vec<String> = (0..rows).map(|row| format!("id {row}")).collect();
                if with_ids {
                    writer.push_ids(&ids).unwrap();
                }
                writer.set_shape(dtype, dimensions).unwrap();
                let row_bytes = dimensions * dtype.bytes();
                // In several pushes, of which some are empty.
                for begin in (0..rows).step_by(3) {
                    let end = (begin + 3).min(rows);
                    let norms = &norms(0, rows)[begin..end];
                    writer.push(&content[begin * row_bytes..end * row_bytes], norms).unwrap();
                    writer.push(&[], &[]).unwrap();
                }
                let (info, replaced) = writer.finish().unwrap();
                assert!(!replaced);
                assert_eq!((info.rows, info.dimensions, info.dtype), (rows, dimensions, dtype));
                assert_eq!(info.has_ids, with_ids && rows > 0);
                expected.insert(set, (info, content, ids));
            }
        }
    }
    let total: u64 = expected.values().map(|(info, ..)| info.bytes).sum();
    for _ in 0..2 {
        assert_eq!(sets.bytes(), total);
        assert_eq!(sets.list(), expected.values().map(|(info, ..)| info.clone()).collect::<Vec<_>>());
        for (set, (info, content, ids)) in &expected {
            let found = sets.get(set).unwrap();
            assert_eq!((found.info(), found.rows()), (info, &content[..]));
            assert_eq!(found.norms(), norms(0, info.rows));
            for (row, id) in ids.iter().enumerate() {
                assert_eq!(found.id(row), info.has_ids.then_some(id.as_str()));
            }
        }
        assert!(sets.get("absent").is_none());
        let path = sets.folder().to_owned();
        drop(sets);
        sets = open(&path);
    }
}

#[test]
fn any_reader_of_safetensors_reads_the_file() {
    let folder = tempdir().unwrap();
    let sets = open(folder.path());
    let mut writer = sets.begin(&name("a")).unwrap();
    writer.set_shape(SetDtype::F16, 3).unwrap();
    writer.push(&bytes(1, 18), &[1.0, 2.0, 3.0]).unwrap();
    writer.push_ids(["x", "", "é"]).unwrap();
    let (info, _) = writer.finish().unwrap();
    let file = fs::read(&set_files(folder.path())[0]).unwrap();
    assert_eq!(info.bytes, file.len() as u64);
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let tensor = |name: &str| {
        let tensor = tensors.tensor(name).unwrap();
        (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())
    };
    let words = |words: [u64; 3]| words.map(u64::to_le_bytes).concat();
    assert_eq!(tensor("target_embeddings"), (Dtype::F16, vec![3, 3], bytes(1, 18)));
    assert_eq!(tensor("norms"), (Dtype::F64, vec![3], words([1.0f64, 2.0, 3.0].map(f64::to_bits))));
    assert_eq!(tensor("target_id_ends"), (Dtype::U64, vec![3], words([1, 1, 3])));
    assert_eq!(tensor("target_ids"), (Dtype::U8, vec![3], "xé".as_bytes().to_vec()));
    assert_eq!(tensor("padding"), (Dtype::U8, vec![6], vec![0; 6]));
    assert_eq!(&file[4096..4096 + 18], &bytes(1, 18), "the data begins at a page");
    let (_, header) = SafeTensors::read_metadata(&file).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!((metadata["nexus_target_set"].as_str(), metadata["name"].as_str()), ("1", "a"));
}

#[test]
fn a_reader_keeps_what_is_replaced_or_deleted() {
    let folder = tempdir().unwrap();
    let sets = open(folder.path());
    assert!(!put(&sets, "a", 1, 100).1);
    let first = sets.get("a").unwrap();
    assert!(put(&sets, "a", 2, 50).1);
    let second = sets.get("a").unwrap();
    assert_eq!(set_files(folder.path()).len(), 1, "the replaced file is gone");
    assert!(sets.delete("a").unwrap());
    assert!(!sets.delete("a").unwrap());
    assert_eq!((sets.get("a").is_some(), sets.bytes(), set_files(folder.path()).len()), (false, 0, 0));
    assert_eq!((first.rows(), second.rows()), (&bytes(1, 3200)[..], &bytes(2, 1600)[..]));
    assert_eq!((first.id(99), second.id(49)), (Some("1/99"), Some("2/49")));
    drop(sets);
    assert!(open(folder.path()).list().is_empty());
    assert_eq!(first.norms(), norms(1, 100));
}

#[test]
fn the_last_to_finish_stays() {
    let folder = tempdir().unwrap();
    let sets = open(folder.path());
    let (mut one, mut two) = (sets.begin(&name("a")).unwrap(), sets.begin(&name("a")).unwrap());
    fill(&mut one, 1, 5);
    fill(&mut two, 2, 5);
    assert!(!two.finish().unwrap().1);
    assert!(one.finish().unwrap().1);
    assert_is(&sets, "a", 1, 5);
    drop(sets);
    // Also by what the files alone say.
    fs::remove_file(folder.path().join("index.redb")).unwrap();
    assert_is(&open(folder.path()), "a", 1, 5);
}

#[test]
fn many_at_once() {
    let folder = tempdir().unwrap();
    let sets = open(folder.path());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let sets = &sets;
            scope.spawn(move || {
                for round in 0..8 {
                    put(sets, "shared", thread * 100 + round, 20);
                    put(sets, &format!("own-{thread}"), round, 10);
                    let shared = sets.get("shared").unwrap();
                    let seed: usize = shared.id(0).unwrap().strip_suffix("/0").unwrap().parse().unwrap();
                    assert_eq!((shared.rows(), shared.norms()), (&bytes(seed, 640)[..], &norms(seed, 20)[..]));
                }
            });
        }
    });
    let bytes = sets.list().iter().map(|info| info.bytes).sum::<u64>();
    assert_eq!((sets.list().len(), sets.bytes(), set_files(folder.path()).len()), (5, bytes, 5));
    let seed = sets.get("shared").unwrap().id(0).unwrap().to_owned();
    drop(sets);
    let sets = open(folder.path());
    assert_eq!(sets.get("shared").unwrap().id(0), Some(seed.as_str()));
    for thread in 0..4 {
        assert_is(&sets, &format!("own-{thread}"), 7, 10);
    }
}

#[test]
fn rows_of_which_the_shape_comes_last() {
    let folder = tempdir().unwrap();
    let sets = open(folder.path());
    // More than is handed out at once, in pieces that end anywhere.
    let (rows, dimensions) = (3001, 300);
    let content = bytes(3, rows * dimensions * 2);
    let mut writer = sets.begin(&name("a")).unwrap();
    for piece in content.chunks(100_003) {
        writer.push_bytes(piece).unwrap();
    }
    assert!(matches!(writer.measure(|_, _| Ok::<_, TargetError>(())), Err(TargetError::Shape)));
    writer.set_shape(SetDtype::Bf16, dimensions).unwrap();
    let mut seen = Vec::new();
    writer
        .measure(|rows, norms| {
            assert!(norms.is_empty());
            norms.extend(rows.chunks(600).map(|row| f64::from(row[0])));
            seen.extend_from_slice(rows);
            Ok::<_, TargetError>(())
        })
        .unwrap();
    assert_eq!(seen, content);
    // More rows may follow, and nothing is handed out twice.
    writer.push(&content[..600], &[0.5]).unwrap();
    writer.measure(|_, _| panic!("everything has its norm")).unwrap_or_else(|error: TargetError| panic!("{error}"));
    writer.finish().unwrap();
    let set = sets.get("a").unwrap();
    assert_eq!(set.rows(), [&content[..], &content[..600]].concat());
    let expected: Vec<f64> = content.chunks(600).map(|row| f64::from(row[0])).chain([0.5]).collect();
    assert_eq!(set.norms(), expected);
}

#[test]
fn what_is_no_set_is_refused_and_leaves_nothing() {
    let folder = tempdir().unwrap();
    let sets = open(folder.path());
    put(&sets, "a", 1, 3);
    let before = set_files(folder.path());
    let refused = |what: &str, fill: &dyn Fn(&mut SetWriter) -> Result<(), TargetError>| {
        let mut writer = sets.begin(&name("a")).unwrap();
        let error = fill(&mut writer).and_then(|()| writer.finish().map(drop)).unwrap_err();
        assert_eq!(error.to_string(), what);
        assert_eq!(set_files(folder.path()), before, "{what}");
    };
    refused("7 bytes and 1 norms are no rows of 2 components of F32", &|writer| {
        writer.set_shape(SetDtype::F32, 2)?;
        writer.push(&[0; 7], &[1.0])
    });
    refused("16 bytes and 1 norms are no rows of 2 components of F32", &|writer| {
        writer.set_shape(SetDtype::F32, 2)?;
        writer.push(&[0; 16], &[1.0])
    });
    refused("0 bytes and 1 norms are no rows of 0 components of F16", &|writer| {
        writer.set_shape(SetDtype::F16, 0)?;
        writer.push(&[], &[1.0])
    });
    refused("8 bytes and 0 norms are no rows of 1 components of F16", &|writer| {
        writer.set_shape(SetDtype::F16, 1)?;
        writer.push_bytes(&[0; 8])
    });
    refused("8 bytes and 0 norms are no rows of 1 components of F16", &|writer| {
        writer.set_shape(SetDtype::F16, 1)?;
        writer.push_bytes(&[0; 8])?;
        writer.push(&[0; 2], &[1.0])
    });
    refused("7 bytes and 0 norms are no rows of 1 components of F16", &|writer| {
        writer.set_shape(SetDtype::F16, 1)?;
        writer.push_bytes(&[0; 7])?;
        writer.measure(|_, _| Ok(()))
    });
    refused("8 bytes and 1 norms are no rows of 1 components of F16", &|writer| {
        writer.set_shape(SetDtype::F16, 1)?;
        writer.push_bytes(&[0; 8])?;
        writer.measure(|_, norms| {
            norms.push(1.0);
            Ok(())
        })
    });
    refused(&format!("4 bytes and 0 norms are no rows of {} components of F32", usize::MAX), &|writer| {
        writer.set_shape(SetDtype::F32, usize::MAX)?;
        writer.push_bytes(&[0; 4])?;
        writer.measure(|_, _| Ok(()))
    });
    refused("the target set's rows have no shape, or were given two", &|writer| writer.push_bytes(&[0; 8]));
    refused("the target set's rows have no shape, or were given two", &|writer| writer.push(&[0; 8], &[1.0]));
    refused("the target set's rows have no shape, or were given two", &|writer| {
        writer.set_shape(SetDtype::F16, 1)?;
        writer.set_shape(SetDtype::F16, 1)?;
        writer.set_shape(SetDtype::Bf16, 1)
    });
    refused("1 ids for 2 rows", &|writer| {
        writer.set_shape(SetDtype::F16, 1)?;
        writer.push(&[0; 4], &[1.0; 2])?;
        writer.push_ids(["a"])
    });
    refused("1 ids for 0 rows", &|writer| writer.push_ids(["a"]));
    assert_is(&sets, "a", 1, 3);
}

#[test]
fn an_error_of_the_caller_ends_the_writer() {
    let folder = tempdir().unwrap();
    let sets = open(folder.path());
    let mut writer = sets.begin(&name("a")).unwrap();
    writer.push_bytes(&[0; 8]).unwrap();
    writer.set_shape(SetDtype::F32, 2).unwrap();
    #[derive(Debug)]
    struct NotFinite;
    impl From<TargetError> for NotFinite {
        fn from(error: TargetError) -> Self {
            panic!("{error}")
        }
    }
    writer.measure(|_, _| Err(NotFinite)).unwrap_err();
    assert!(matches!(writer.push_bytes(&[0; 8]), Err(TargetError::Io { .. })));
    assert!(writer.finish().is_err());
    assert!(set_files(folder.path()).is_empty() && sets.list().is_empty());
}

#[test]
fn the_bytes_of_all_sets_are_bounded() {
    let folder = tempdir().unwrap();
    let size = {
        let sets = open(folder.path());
        let (info, _) = put(&sets, "a", 1, 100);
        info.bytes
    };
    let bytes_max = 2 * size + size / 2;
    let sets = TargetSets::open(folder.path(), TargetOptions { bytes_max, ..TargetOptions::default() }).unwrap();
    assert_eq!((sets.bytes(), sets.bytes_max()), (size, bytes_max));
    put(&sets, "b", 2, 100);
    // No room for a third, and nothing of it stays.
    let mut writer = sets.begin(&name("c")).unwrap();
    writer.set_shape(SetDtype::F32, 8).unwrap();
    let error = writer.push(&bytes(3, 3200), &norms(3, 100)).unwrap_err();
    let needed = 4096 + 7 + 3200 + 800;
    assert!(
        matches!(error, TargetError::TooLarge { needed_bytes, free_bytes, limit_bytes }
            if (needed_bytes, free_bytes, limit_bytes) == (needed, size / 2, bytes_max)),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        format!("the target set needs {needed} bytes or more, and {} of {bytes_max} are free", size / 2)
    );
    drop(writer);
    assert_eq!(set_files(folder.path()).len(), 2);
    // One that is there can be replaced by one of its size: it makes room for it.
    put(&sets, "a", 4, 100);
    assert_eq!(sets.bytes(), 2 * size);
    // What is being written counts for others, until it is dropped.
    let mut first = sets.begin(&name("a")).unwrap();
    fill(&mut first, 5, 100);
    assert!(matches!(sets.begin(&name("c")), Err(TargetError::TooLarge { .. })));
    let mut again = sets.begin(&name("a")).unwrap();
    again.set_shape(SetDtype::F32, 8).unwrap();
    assert!(matches!(again.push(&bytes(3, 3200), &norms(3, 100)), Err(TargetError::TooLarge { .. })));
    drop(again);
    drop(first);
    assert_eq!(set_files(folder.path()).len(), 2);
    // What is deleted is room.
    assert!(sets.delete("b").unwrap());
    put(&sets, "c", 6, 100);
    drop(sets);
    // A lower bound keeps what is there.
    let sets = TargetSets::open(folder.path(), TargetOptions { bytes_max: 10, ..TargetOptions::default() }).unwrap();
    assert_eq!(names(&sets), ["a", "c"]);
    assert!(matches!(sets.begin(&name("a")), Err(TargetError::TooLarge { free_bytes: 0, .. })));
}

#[test]
fn the_number_of_sets_is_bounded() {
    let folder = tempdir().unwrap();
    let sets = TargetSets::open(folder.path(), TargetOptions { sets_max: 2, ..TargetOptions::default() }).unwrap();
    put(&sets, "a", 1, 1);
    let (mut b, mut c) = (sets.begin(&name("b")).unwrap(), sets.begin(&name("c")).unwrap());
    fill(&mut b, 2, 1);
    fill(&mut c, 3, 1);
    b.finish().unwrap();
    assert!(matches!(c.finish(), Err(TargetError::TooMany { limit: 2 })));
    assert!(matches!(sets.begin(&name("c")), Err(TargetError::TooMany { limit: 2 })));
    assert!(put(&sets, "a", 4, 1).1, "replacing makes no more of them");
    assert_eq!((names(&sets), set_files(folder.path()).len()), (vec!["a".to_owned(), "b".to_owned()], 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn ids_are_any_texts(ids in prop::collection::vec(prop_oneof![Just(String::new()), any::<String>()], 1..30)) {
        let folder = tempdir().unwrap();
        let sets = open(folder.path());
        let mut writer = sets.begin(&name("a")).unwrap();
        writer.set_shape(SetDtype::F16, 3).unwrap();
        writer.push(&bytes(1, ids.len() * 6), &norms(1, ids.len())).unwrap();
        writer.push_ids(&ids).unwrap();
        writer.finish().unwrap();
        let set = sets.get("a").unwrap();
        for (row, id) in ids.iter().enumerate() {
            prop_assert_eq!(set.id(row), Some(id.as_str()));
        }
        prop_assert_eq!(set.id(ids.len()), None);
        prop_assert_eq!(set.id(usize::MAX), None);
    }

    /// Writers of several sets at once, in any order: the sets never exceed the bound, and the disk never its double.
    #[test]
    fn the_bound_holds_whatever_is_interleaved(
        steps in prop::collection::vec((0..5usize, 0..3usize, 1..40usize), 1..60),
    ) {
        let folder = tempdir().unwrap();
        let bytes_max = 20_000;
        let sets = TargetSets::open(folder.path(), TargetOptions { bytes_max, ..TargetOptions::default() }).unwrap();
        let mut writers = Vec::new();
        for (seed, (what, set, rows)) in steps.into_iter().enumerate() {
            match what {
                0 | 1 => {
                    if let Ok(mut writer) = sets.begin(&name(&format!("set-{set}"))) {
                        writer.set_shape(SetDtype::F32, 8).unwrap();
                        writers.push(writer);
                    }
                }
                2 if !writers.is_empty() => {
                    let at = seed % writers.len();
                    let rows = rows * 5;
                    let before = writers[at].bytes();
                    match writers[at].push(&bytes(seed, rows * 32), &norms(seed, rows)) {
                        Ok(()) => prop_assert_eq!(writers[at].bytes(), before + rows as u64 * 40),
                        Err(TargetError::TooLarge { .. }) => prop_assert_eq!(writers[at].bytes(), before),
                        Err(error) => panic!("{error}"),
                    }
                }
                3 if !writers.is_empty() => {
                    let writer = writers.swap_remove(seed % writers.len());
                    let expected = writer.bytes();
                    prop_assert_eq!(writer.finish().unwrap().0.bytes, expected);
                }
                4 if rows < 10 => drop(sets.delete(&format!("set-{set}")).unwrap()),
                4 => drop(writers.pop()),
                _ => {}
            }
            prop_assert!(sets.bytes() <= bytes_max);
            let on_disk = set_files(folder.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum::<u64>();
            prop_assert!(on_disk <= 2 * bytes_max, "{}", on_disk);
        }
        // Nothing stays charged to anybody.
        writers.clear();
        for info in sets.list() {
            sets.delete(&info.name).unwrap();
        }
        let mut writer = sets.begin(&name("a")).unwrap();
        writer.push_bytes(&vec![0; bytes_max as usize - 4096 - 7]).unwrap();
        let full = matches!(writer.push_bytes(&[0]), Err(TargetError::TooLarge { .. }));
        prop_assert!(full);
    }
}
