//! A target set's file and its record: what is opened has the rows, norms and ids that it says, within its file, and what
//! is written is read.

#![forbid(unsafe_code)]
#![no_main]

mod folder;

use libfuzzer_sys::fuzz_target;
use nexus_storage::{SetDtype, SetInfo, TargetSet, fuzz};

fuzz_target!(|data: &[u8]| {
    let Some((&form, data)) = data.split_first() else { return };
    match form % 3 {
        0 => file(data),
        1 => written(data),
        _ => record(data),
    }
});

fn file(bytes: &[u8]) {
    let path = folder::write("set", bytes);
    let Ok(set) = fuzz::open_set(&path) else { return };
    check(&set, bytes.len());
    assert_eq!(fuzz::open_set(&path).expect("it was opened before").info(), set.info());
}

/// A file as the service makes it, of data that the disk may have damaged.
fn written(data: &[u8]) {
    let Some((&[rows, dimensions, kind, ids], data)) = data.split_first_chunk::<4>() else { return };
    let dtype = [SetDtype::F32, SetDtype::F16, SetDtype::Bf16][usize::from(kind % 3)];
    let (rows, dimensions) = (usize::from(rows % 16), 1 + usize::from(dimensions % 16));
    let mut info = SetInfo {
        name: "a-set".to_owned(),
        rows,
        dimensions,
        dtype,
        bytes: 0,
        created_unix_s: data.len() as u64,
        has_ids: kind >= 128,
    };
    let ids_bytes = if info.has_ids { usize::from(ids) } else { 0 };
    let mut bytes = fuzz::set_header(&info, 7, ids_bytes as u64);
    let data_at = bytes.len();
    let numbers = if info.has_ids { 16 } else { 8 };
    let length = (rows * dimensions * dtype.bytes()).next_multiple_of(8) + rows * numbers + ids_bytes;
    bytes.extend_from_slice(data);
    bytes.resize(data_at + length, b'x');
    // The last id has to end where the ids do, or there is no set.
    if info.has_ids && rows > 0 {
        let end = data_at + length - ids_bytes;
        bytes[end - 8..end].copy_from_slice(&(ids_bytes as u64).to_le_bytes());
    }
    info.bytes = bytes.len() as u64;
    let path = folder::write("set", &bytes);
    match fuzz::open_set(&path) {
        Ok(set) => {
            assert_eq!(*set.info(), info);
            check(&set, bytes.len());
        }
        Err(why) => assert!(rows == 0 && ids_bytes > 0, "{why}"),
    }
}

fn check(set: &TargetSet, file_bytes: usize) {
    let info = set.info();
    assert_eq!(set.rows().len(), info.rows * info.dimensions * info.dtype.bytes());
    assert!(set.rows().as_ptr().addr().is_multiple_of(8));
    assert_eq!(set.norms().len(), info.rows);
    assert_eq!(info.bytes, file_bytes as u64);
    let ids: usize = (0..info.rows).filter_map(|row| set.id(row)).map(str::len).max().unwrap_or(0);
    assert!(set.rows().len() + 8 * info.rows + ids <= file_bytes);
    assert!(info.has_ids || (0..info.rows).all(|row| set.id(row).is_none()));
    assert_eq!((set.id(info.rows), set.id(usize::MAX)), (None, None));
}

fn record(bytes: &[u8]) {
    let Some((info, sequence, etag)) = fuzz::decode_record("a-set", bytes) else { return };
    let again = fuzz::encode_record(&info, sequence, etag.as_deref());
    assert_eq!(again.len(), bytes.len());
    assert_eq!(fuzz::decode_record("a-set", &again), Some((info, sequence, etag)));
}
