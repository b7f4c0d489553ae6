//! What can only be tested from inside: the bytes of the formats, and failures of the index.

use super::index::{RecordFault, decode, encode};
use super::layout::{Fault, header, parse};
use super::*;
use proptest::prelude::*;
use std::fs;
use tempfile::tempdir;

fn info() -> SetInfo {
    SetInfo {
        name: "nist-800-53r5".to_owned(),
        rows: 3,
        dimensions: 5,
        dtype: SetDtype::Bf16,
        bytes: 4096 + 32 + 24 + 24 + 7,
        created_unix_s: 1_700_000_000,
        has_ids: true,
    }
}

/// A whole file of [`info`].
fn file() -> Vec<u8> {
    let mut file = header(&info(), 77, 7);
    file.resize(info().bytes as usize, 0);
    file
}

/// When this fails, the sets that users have are lost. If that is meant, raise the version.
#[test]
fn the_formats_do_not_change_by_accident() {
    let header = header(&info(), 77, 7);
    assert_eq!(header.len(), 4096);
    assert_eq!(header[..8], 4088u64.to_le_bytes());
    assert_eq!(
        str::from_utf8(&header[8..]).unwrap().trim_end(),
        concat!(
            r#"{"__metadata__":{"nexus_target_set":"1","name":"nist-800-53r5","created_unix_s":"1700000000","sequence":"77"},"#,
            r#""target_embeddings":{"dtype":"BF16","shape":[3,5],"data_offsets":[0,30]},"#,
            r#""padding":{"dtype":"U8","shape":[2],"data_offsets":[30,32]},"#,
            r#""norms":{"dtype":"F64","shape":[3],"data_offsets":[32,56]},"#,
            r#""target_id_ends":{"dtype":"U64","shape":[3],"data_offsets":[56,80]},"#,
            r#""target_ids":{"dtype":"U8","shape":[7],"data_offsets":[80,87]}}"#,
        )
    );
    let record: String = encode(&info(), 77, None).iter().map(|b| format!("{b:02x}")).collect();
    let numbers = [3u64, 5, 4183, 1_700_000_000, 77].map(|n| format!("{:016x}", n.swap_bytes())).concat();
    assert_eq!(record, format!("0100000002010000{numbers}"));
}

#[test]
fn a_header_says_what_it_was_given() {
    let layout = parse(&file()).unwrap();
    assert_eq!((layout.info, layout.sequence), (info(), 77));
    assert_eq!((layout.rows, layout.norms), (4096..4126, 4128..4152));
    let ids = layout.ids.unwrap();
    assert_eq!((ids.ends, ids.text), (4152..4176, 4176..4183));
}

#[test]
fn the_longest_header_fits() {
    let huge = usize::MAX;
    let info = SetInfo { name: "x".repeat(128), rows: 0, dimensions: huge, created_unix_s: u64::MAX, ..info() };
    let longest = header(&info, u64::MAX, u64::MAX);
    let json = str::from_utf8(&longest[8..]).unwrap().trim_end();
    // Every other number would have 20 digits at most, too.
    assert!(longest.len() == 4096 && json.ends_with('}') && json.len() + 12 * 20 < 4088, "{}", json.len());
}

#[test]
fn records_of_other_versions_and_lengths() {
    let good = encode(&info(), 77, None);
    assert_eq!(decode("nist-800-53r5", &good), Ok((info(), 77, None)));
    for len in 0..good.len() {
        assert_eq!(decode("a", &good[..len]), Err(RecordFault::Damaged));
    }
    assert_eq!(decode("a", &[&2u32.to_le_bytes()[..], &[0; 100]].concat()), Err(RecordFault::Version(2)));
    let mut other_type = good;
    other_type[4] = 3;
    assert_eq!(decode("a", &other_type), Err(RecordFault::Damaged));
}

proptest! {
    #[test]
    fn any_header_is_read_or_refused(
        changes in prop::collection::vec((0usize..700, any::<u8>()), 1..6),
        len in 0usize..5000,
    ) {
        let mut file = file();
        for (at, byte) in changes {
            file[at] = byte;
        }
        let _ = parse(&file[..len.min(file.len())]);
        if let Ok(layout) = parse(&file) {
            // What is read lies in the file and where numbers may lie.
            let ids = layout.ids.clone();
            let columns = ids.iter().map(|ids| &ids.ends).chain([&layout.norms]);
            for range in columns {
                prop_assert_eq!((range.start % 8, range.len()), (0, layout.info.rows * 8));
                prop_assert!(range.end <= file.len());
            }
            let row_bytes = layout.info.dimensions * layout.info.dtype.bytes();
            prop_assert_eq!(layout.rows.len(), layout.info.rows * row_bytes);
            prop_assert!(layout.rows.end <= file.len() && ids.is_none_or(|ids| ids.text.end <= file.len()));
        }
    }
}

#[test]
fn hostile_headers() {
    let with = |json: &str| {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json.as_bytes());
        file
    };
    let max = usize::MAX;
    let own = r#""__metadata__":{"nexus_target_set":"1","name":"a","created_unix_s":"1","sequence":"1"}"#;
    for json in [
        String::new(),
        "{}".to_owned(),
        format!("{{{own}}}"),
        format!(r#"{{{own},"target_embeddings":{{"dtype":"F32","shape":[{max},{max}],"data_offsets":[0,0]}}}}"#),
        format!(r#"{{{own},"target_embeddings":{{"dtype":"F32","shape":[0,0],"data_offsets":[{max},{max}]}}}}"#),
        format!(r#"{{{own},"target_embeddings":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}}}"#),
        "[".repeat(100_000),
    ] {
        assert!(matches!(parse(&with(&json)), Err(Fault::Damaged(_))), "{json:.200}");
    }
    // Rows of nothing would be any number of rows.
    let norms = r#""norms":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}"#;
    let json = format!(r#"{{{own},"target_embeddings":{{"dtype":"F32","shape":[1,0],"data_offsets":[0,0]}},{norms}}}"#);
    assert!(matches!(parse(&[with(&json), vec![0; 8]].concat()), Err(Fault::Damaged(_))));
}

#[test]
fn an_index_that_failed_works_again() {
    let folder = tempdir().unwrap();
    let (index, records) = Index::open(folder.path().join("index.redb")).unwrap();
    assert!(records.is_none());
    index.start([("a", &encode(&info(), 1, None)[..])].into_iter()).unwrap();
    let full = || Err::<(), _>(redb::Error::Io(std::io::ErrorKind::StorageFull.into()));
    assert!(matches!(index.run(|_| full()), Err(TargetError::DiskFull { .. })));
    assert!(matches!(index.run::<()>(|_| panic!("as redb might")), Err(TargetError::IndexDamaged { .. })));
    assert!(matches!(index.run::<()>(|_| Err(redb::Error::PreviousIo)), Err(TargetError::Index { .. })));
    index.change("b", Some(&encode(&info(), 2, Some("\"e\"")))).unwrap();
    index.change("a", None).unwrap();
    drop(index);
    let (_, records) = Index::open(folder.path().join("index.redb")).unwrap();
    assert_eq!(records.unwrap(), [("b".to_owned(), encode(&info(), 2, Some("\"e\"")))]);
}

/// An index that is a folder by now cannot be written or looked at: what was put may or may not be in it.
#[test]
fn when_nobody_knows_what_the_index_says_both_files_stay() {
    let folder = tempdir().unwrap();
    let sets = TargetSets::open(folder.path(), TargetOptions::default()).unwrap();
    let a = SetName::parse("a").unwrap();
    sets.begin(&a).unwrap().finish().unwrap();
    let index = folder.path().join("index.redb");
    sets.shared.index.run::<()>(|_| Err(redb::Error::PreviousIo)).unwrap_err();
    fs::rename(&index, folder.path().join("elsewhere")).unwrap();
    fs::create_dir(&index).unwrap();
    let set_files = || {
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().ends_with(".safetensors")).count()
    };
    assert!(sets.begin(&a).unwrap().finish().is_err());
    assert!(sets.delete("a").is_err());
    assert_eq!((set_files(), sets.list().len()), (2, 1));
    assert_eq!(sets.shared.state().writing_bytes, 0);
    // The index is back, and works without a restart.
    fs::remove_dir(&index).unwrap();
    fs::rename(folder.path().join("elsewhere"), &index).unwrap();
    assert!(sets.begin(&a).unwrap().finish().unwrap().1);
    drop(sets);
    let sets = TargetSets::open(folder.path(), TargetOptions::default()).unwrap();
    assert_eq!((set_files(), sets.list().len()), (1, 1));
}
