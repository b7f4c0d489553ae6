//! The digests, and that a memo changes nothing but the time they take.

use super::*;
use std::fs::{self, FileTimes};
use std::time::{Duration, SystemTime};

fn hex(digest: [u8; 32]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// A file that has been as it is for a while, as far as its modification time tells.
fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(path).unwrap().set_times(FileTimes::new().set_modified(hour_ago)).unwrap();
}

#[test]
fn the_digest_does_not_change_by_accident() {
    let digest = digest_bytes(&[("config.json", b"{}"), ("model.safetensors", &[1, 2, 3])]);
    assert_eq!(hex(digest), "cd31f799fe70ce958f17f2193956f1a6ad3a878ffb4ae25d3c6df6a5a808ef69");
}

#[test]
fn names_contents_and_number_matter_and_order_does_not() {
    let base = digest_bytes(&[("a", b"1"), ("b", b"2")]);
    assert_eq!(base, digest_bytes(&[("b", b"2"), ("a", b"1")]));
    for other in [
        digest_bytes(&[("a", b"2"), ("b", b"1")]),
        digest_bytes(&[("a", b"12")]),
        digest_bytes(&[("a", b"1")]),
        digest_bytes(&[("ab", b"1"), ("b", b"2")]),
        digest_bytes(&[("a", b"1"), ("b", b"2"), ("c", b"")]),
        digest_bytes(&[]),
    ] {
        assert_ne!(base, other);
    }
}

#[test]
fn files_and_bytes_agree_wherever_the_files_are() {
    let folder = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..3 * READ_BYTES + 17).map(|i| (i * 31 % 251) as u8).collect();
    let expected = digest_bytes(&[("a.bin", &large), ("b.bin", b""), ("c.bin", b"c")]);
    for sub in ["x", "y"] {
        let sub = folder.path().join(sub);
        fs::create_dir(&sub).unwrap();
        let paths: Vec<PathBuf> = ["c.bin", "a.bin", "b.bin"].iter().map(|name| sub.join(name)).collect();
        write(&paths[0], b"c");
        write(&paths[1], &large);
        write(&paths[2], b"");
        assert_eq!(DigestMemo::in_memory().digest_files(&paths).unwrap(), expected);
        assert_eq!(DigestMemo::open(folder.path().join("memo")).digest_files(&paths).unwrap(), expected);
    }
}

#[test]
fn errors_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.bin");
    for (path, kind) in [(absent, io::ErrorKind::NotFound), (folder.path().to_owned(), io::ErrorKind::InvalidInput)] {
        let error = DigestMemo::in_memory().digest_files(std::slice::from_ref(&path)).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
    }
}

/// Writes a memo that knows `path` in its present state by `digest`.
fn remember(memo: &Path, path: &Path, digest: [u8; 32]) {
    let mut known = Memo::default();
    known.insert_settled(&path.canonicalize().unwrap(), &FileState::of(path).unwrap(), digest);
    known.save(memo).unwrap();
}

#[test]
fn what_is_remembered_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let (memo, file) = (folder.path().join("memo"), folder.path().join("f"));
    write(&file, b"content");
    remember(&memo, &file, [7; 32]);
    let paths = [file.clone()];
    let as_remembered = combine(vec![(b"f".to_vec(), [7; 32])]);
    assert_eq!(DigestMemo::open(&memo).digest_files(&paths).unwrap(), as_remembered);
    // Another size, or another time, and it is read.
    write(&file, b"content, longer");
    assert_eq!(DigestMemo::open(&memo).digest_files(&paths).unwrap(), digest_bytes(&[("f", b"content, longer")]));
    write(&file, b"content");
    remember(&memo, &file, [7; 32]);
    File::options().write(true).open(&file).unwrap().set_modified(SystemTime::now()).unwrap();
    assert_eq!(DigestMemo::open(&memo).digest_files(&paths).unwrap(), digest_bytes(&[("f", b"content")]));
}

#[test]
fn a_file_that_has_just_changed_is_not_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let (memo, file) = (folder.path().join("memo"), folder.path().join("f"));
    fs::write(&file, b"1").unwrap();
    DigestMemo::open(&memo).digest_files(std::slice::from_ref(&file)).unwrap();
    let state = FileState::of(&file).unwrap();
    assert_eq!(Memo::load(&memo).get(&file.canonicalize().unwrap(), &state), None);
}

#[test]
fn a_damaged_memo_is_ignored_and_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let (memo, file) = (folder.path().join("memo"), folder.path().join("f"));
    write(&file, b"content");
    remember(&memo, &file, [7; 32]);
    let good = fs::read(&memo).unwrap();
    let expected = digest_bytes(&[("f", b"content")]);
    let mut damaged: Vec<Vec<u8>> = (0..good.len()).map(|end| good[..end].to_vec()).collect();
    damaged.extend((0..good.len()).map(|at| {
        let mut copy = good.clone();
        copy[at] ^= 1;
        copy
    }));
    damaged.push(b"\xff\xfe".to_vec());
    for content in damaged {
        fs::write(&memo, &content).unwrap();
        let digest = DigestMemo::open(&memo).digest_files(std::slice::from_ref(&file)).unwrap();
        assert_eq!(digest, expected, "{}", String::from_utf8_lossy(&content));
        let rewritten = fs::read_to_string(&memo).unwrap();
        assert!(memo::parse(&rewritten).is_some());
    }
}

#[test]
fn memos_of_two_processes_are_merged() {
    let folder = tempfile::tempdir().unwrap();
    let (memo, a, b) = (folder.path().join("memo"), folder.path().join("a"), folder.path().join("b"));
    write(&a, b"a");
    write(&b, b"b");
    remember(&memo, &a, [1; 32]);
    remember(&memo, &b, [2; 32]);
    let merged = Memo::load(&memo);
    for (path, digest) in [(&a, [1; 32]), (&b, [2; 32])] {
        assert_eq!(merged.get(&path.canonicalize().unwrap(), &FileState::of(path).unwrap()), Some(digest));
    }
    // Files that are gone are forgotten.
    fs::remove_file(&a).unwrap();
    remember(&memo, &b, [2; 32]);
    assert!(!fs::read_to_string(&memo).unwrap().contains(&a.display().to_string()));
}

#[test]
fn a_memo_that_cannot_be_written_costs_nothing_but_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    write(&file, b"content");
    // A file where a folder is needed.
    let memo = file.join("memo");
    let digest = DigestMemo::open(&memo).digest_files(std::slice::from_ref(&file)).unwrap();
    assert_eq!(digest, digest_bytes(&[("f", b"content")]));
}
