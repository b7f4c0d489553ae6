//! How a set lies in its file: a safetensors file, so that any tool for tensors reads it.
//!
//! The header is padded with spaces until the data begins at byte 4096, so that it can be written last, when the number
//! of rows is known. The data, without gaps:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `target_embeddings` | F32, F16 or BF16 | `[rows, dimensions]` | the rows, as they were given |
//! | `padding` | U8 | 1 to 7 | only where the next tensor would not begin at a multiple of 8 |
//! | `norms` | F64 | `[rows]` | the rows' norms |
//! | `target_id_ends` | U64 | `[rows]` | where in `target_ids` each id ends; only where there are ids |
//! | `target_ids` | U8 | bytes | all ids in UTF-8, one after the other; only where there are ids |
//!
//! `__metadata__` has the format's version, the set's name, the time it was made, and the file's sequence number: an
//! index that is lost is made again from the files alone.

use super::set::{SetDtype, SetInfo};
use safetensors::tensor::{Metadata, SafeTensors};
use safetensors::{Dtype, SafeTensorError};
use std::fmt::Write as _;
use std::ops::Range;

// The files are little-endian, and norms are read where they lie.
const _: () = assert!(cfg!(target_endian = "little"), "target sets need a little-endian machine");

/// The format that this version writes and reads.
pub(super) const VERSION: u32 = 1;
/// Where the data begins in files that this version writes.
pub(super) const DATA_AT: usize = 4096;
/// The largest header that is looked at.
const HEADER_BYTES_MAX: usize = 1 << 20;
const LENGTH_BYTES: usize = 8;

const EMBEDDINGS: &str = "target_embeddings";
const PADDING: &str = "padding";
const NORMS: &str = "norms";
const ID_ENDS: &str = "target_id_ends";
const IDS: &str = "target_ids";

const VERSION_KEY: &str = "nexus_target_set";
const NAME_KEY: &str = "name";
const CREATED_KEY: &str = "created_unix_s";
const SEQUENCE_KEY: &str = "sequence";

/// Where everything is in a file, and what the file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) info: SetInfo,
    pub(super) sequence: u64,
    pub(super) rows: Range<usize>,
    /// Begins at a multiple of 8, has 8 bytes a row.
    pub(super) norms: Range<usize>,
    pub(super) ids: Option<IdLayout>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IdLayout {
    /// Begins at a multiple of 8, has 8 bytes a row.
    pub(super) ends: Range<usize>,
    pub(super) text: Range<usize>,
}

/// Why bytes are not a set.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Of another format than [`VERSION`].
    Version(u32),
    Damaged(String),
}

pub(super) const PADDING_BYTES_MAX: u64 = 7;

/// The zeros between rows of this many bytes and the norms.
pub(super) fn padding(rows_bytes: u64) -> u64 {
    rows_bytes.next_multiple_of(8) - rows_bytes
}

/// The first [`DATA_AT`] bytes of a set's file. `info.bytes` is not read.
pub(super) fn header(info: &SetInfo, sequence: u64, ids_bytes: u64) -> Vec<u8> {
    let SetInfo { name, rows, dimensions, dtype, created_unix_s, .. } = info;
    let rows_bytes = (rows * dimensions * dtype.bytes()) as u64;
    // Names have no character that JSON escapes.
    let mut json = format!(
        r#"{{"__metadata__":{{"{VERSION_KEY}":"{VERSION}","{NAME_KEY}":"{name}","{CREATED_KEY}":"{created_unix_s}","{SEQUENCE_KEY}":"{sequence}"}}"#
    );
    let mut begin = 0;
    let mut tensor = |name: &str, dtype: &str, shape: &str, bytes: u64| {
        let end = begin + bytes;
        // Writing to a string does not fail.
        let _ = write!(json, r#","{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{begin},{end}]}}"#);
        begin = end;
    };
    let a_row = |bytes: usize| (rows * bytes) as u64;
    tensor(EMBEDDINGS, dtype.name(), &format!("{rows},{dimensions}"), rows_bytes);
    match padding(rows_bytes) {
        0 => {}
        bytes => tensor(PADDING, "U8", &bytes.to_string(), bytes),
    }
    tensor(NORMS, "F64", &rows.to_string(), a_row(size_of::<f64>()));
    if info.has_ids {
        tensor(ID_ENDS, "U64", &rows.to_string(), a_row(size_of::<u64>()));
        tensor(IDS, "U8", &ids_bytes.to_string(), ids_bytes);
    }
    json.push('}');
    let json_bytes = DATA_AT - LENGTH_BYTES;
    debug_assert!(json.len() <= json_bytes, "a name of 128 characters and five tensors take a third of it");
    let mut header = (json_bytes as u64).to_le_bytes().to_vec();
    header.extend(json.into_bytes());
    header.resize(DATA_AT, b' ');
    header
}

/// What `file`, the whole of one, says of itself. Only the header is read.
pub(super) fn parse(file: &[u8]) -> Result<Layout, Fault> {
    let damaged = |what: &str| Fault::Damaged(what.to_owned());
    let (length, _) = file.split_first_chunk::<LENGTH_BYTES>().ok_or_else(|| damaged("it has no header"))?;
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX as u64 {
        return Err(damaged("its header is too large"));
    }
    // Checks that tensors have the bytes that their shapes ask for, do not overlap, and fill the file to its end.
    let (length, header) = SafeTensors::read_metadata(file).map_err(not_safetensors)?;
    let data_at = LENGTH_BYTES + length;
    let own = |key: &str| header.metadata().as_ref().and_then(|metadata| metadata.get(key));
    let version = own(VERSION_KEY).and_then(|version| version.parse().ok());
    match version.ok_or_else(|| damaged("it is no target set"))? {
        VERSION => {}
        other => return Err(Fault::Version(other)),
    }
    let number = |key: &str| own(key).and_then(|text| text.parse().ok());
    let (Some(name), Some(created_unix_s), Some(sequence)) = (own(NAME_KEY), number(CREATED_KEY), number(SEQUENCE_KEY))
    else {
        return Err(damaged("its header does not name it"));
    };
    let (dtype, rows, dimensions, row_range) = embeddings(&header, data_at).ok_or_else(|| damaged("it has no rows"))?;
    let norms =
        column(&header, data_at, NORMS, Dtype::F64, rows).ok_or_else(|| damaged("it has not one norm a row"))?;
    let has_ids = header.info(IDS).is_some() || header.info(ID_ENDS).is_some();
    let ids = if has_ids {
        let ends = column(&header, data_at, ID_ENDS, Dtype::U64, rows);
        let text = header.info(IDS).filter(|ids| ids.dtype == Dtype::U8);
        let (Some(ends), Some(text)) = (ends, text) else { return Err(damaged("it has not one id a row")) };
        Some(IdLayout { ends, text: range(data_at, text.data_offsets) })
    } else {
        None
    };
    let (name, bytes) = (name.clone(), file.len() as u64);
    let info = SetInfo { name, rows, dimensions, dtype, bytes, created_unix_s, has_ids };
    Ok(Layout { info, sequence, rows: row_range, norms, ids })
}

fn not_safetensors(error: SafeTensorError) -> Fault {
    Fault::Damaged(format!("it is no safetensors file, or not all of one: {error}"))
}

fn embeddings(header: &Metadata, data_at: usize) -> Option<(SetDtype, usize, usize, Range<usize>)> {
    let tensor = header.info(EMBEDDINGS)?;
    let dtype = match tensor.dtype {
        Dtype::F32 => SetDtype::F32,
        Dtype::F16 => SetDtype::F16,
        Dtype::BF16 => SetDtype::Bf16,
        _ => return None,
    };
    let [rows, dimensions] = tensor.shape[..] else { return None };
    let range = range(data_at, tensor.data_offsets);
    let aligned = range.start.is_multiple_of(size_of::<u64>());
    (aligned && (rows == 0 || dimensions > 0)).then_some((dtype, rows, dimensions, range))
}

/// A tensor with 8 bytes a row, where a slice of them can be taken.
fn column(header: &Metadata, data_at: usize, name: &str, dtype: Dtype, rows: usize) -> Option<Range<usize>> {
    let tensor = header.info(name).filter(|tensor| tensor.dtype == dtype && tensor.shape == [rows])?;
    Some(range(data_at, tensor.data_offsets)).filter(|range| range.start.is_multiple_of(size_of::<u64>()))
}

fn range(data_at: usize, (begin, end): (usize, usize)) -> Range<usize> {
    data_at + begin..data_at + end
}
