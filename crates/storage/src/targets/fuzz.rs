//! Target sets' files and records as fuzz targets see them.

use super::set::{OpenFault, SetInfo, TargetSet};
use super::{index, layout};
use std::path::Path;

/// The set in the file at `path`, whichever it is, or why there is none.
pub fn open_set(path: &Path) -> Result<TargetSet, String> {
    TargetSet::open(path, |_| true).map_err(|fault| match fault {
        OpenFault::Missing => "missing".to_owned(),
        OpenFault::File(fault) => format!("{fault:?}"),
        OpenFault::Io(error) => error.to_string(),
    })
}

/// The first bytes that a set's file is written with.
pub fn set_header(info: &SetInfo, sequence: u64, ids_bytes: u64) -> Vec<u8> {
    layout::header(info, sequence, ids_bytes)
}

/// A record of the index: the set, its sequence number, and its ETag where it is a copy.
pub fn decode_record(name: &str, record: &[u8]) -> Option<(SetInfo, u64, Option<String>)> {
    index::decode(name, record).ok()
}

/// What [`decode_record`] reads.
pub fn encode_record(info: &SetInfo, sequence: u64, etag: Option<&str>) -> Vec<u8> {
    index::encode(info, sequence, etag)
}
