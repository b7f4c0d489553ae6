//! Prepared weights kept in a file beside the model, so that the next start maps them instead of preparing them again.
//!
//! A file is for one layout of one device, which its name says, and for weights of one digest: it is used only where both
//! are what is loaded now. Layout of a file: [`MAGIC`], the length of the header (u64, little-endian), the header's
//! SHA-256, the header (JSON), then the weights, each at a multiple of [`PACKED_ALIGNMENT_BYTES`].
//!
//! Deliberately absent: which models are worth a file, and when it is written (crate `nexus-engine`); what is in the bytes
//! (the backend that made them).

mod write;

pub use write::PackedWriter;

use crate::files;
use nexus_compute::{PACKED_ALIGNMENT_BYTES, Packed, SharedBytes};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"nexuspw1";
/// Magic, length, SHA-256.
const PREFIX_BYTES: usize = 8 + 8 + 32;
/// Far beyond the header of any model.
const HEADER_BYTES_MAX: u64 = 64 << 20;

/// What is in a file, and where.
#[derive(Serialize, Deserialize)]
struct Header {
    layout: String,
    /// Hexadecimal digest of what was prepared.
    weights: String,
    /// Bytes of the whole file.
    file_bytes: u64,
    entries: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    shape: [usize; 2],
    format: String,
    /// From the start of the file.
    start: u64,
    bytes: u64,
}

/// Why a file is not used.
#[derive(Debug, Error)]
pub enum PackedFileError {
    /// There is none.
    #[error("there is none")]
    Absent,
    /// It can not be read.
    #[error("it can not be read: {0}")]
    Read(io::Error),
    /// It is not what it should be.
    #[error("{0}")]
    Malformed(&'static str),
    /// It was made of other weights.
    #[error("it was made of other weights")]
    OtherWeights,
}

/// The prepared weights of a model while it is loaded: taken from a file, or collected for one.
pub struct PackedWeights {
    path: PathBuf,
    layout: String,
    kept: Option<BTreeMap<String, Packed>>,
    made: Mutex<BTreeMap<String, Packed>>,
}

impl PackedWeights {
    /// Nothing is kept yet for this layout in `folder`; what is prepared is collected.
    pub fn new(folder: &Path, layout: &str) -> Self {
        let path = folder.join(format!("{FILE_PREFIX}{layout}{FILE_SUFFIX}"));
        Self { path, layout: layout.to_owned(), kept: None, made: Mutex::default() }
    }

    /// Maps what is kept of weights with this digest.
    ///
    /// # Errors
    ///
    /// When there is no file, or one that must not be used; what is prepared is collected then.
    pub fn map(&mut self, weights: &[u8; 32]) -> Result<(), PackedFileError> {
        self.kept = Some(read(&self.path, &self.layout, weights)?);
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of what was prepared so far.
    pub fn prepared(&self) -> Vec<String> {
        self.made().keys().cloned().collect()
    }

    /// What was collected, to be written; `None` where a file is mapped.
    pub fn into_writer(self) -> Option<PackedWriter> {
        let made = self.made.into_inner().unwrap_or_else(PoisonError::into_inner);
        (self.kept.is_none() && !made.is_empty()).then(|| PackedWriter::new(self.path, self.layout, made))
    }

    /// Whether what is prepared is collected, since no file is mapped.
    pub fn collects(&self) -> bool {
        self.kept.is_none()
    }

    /// The weight of this name, from the file.
    pub(crate) fn take(&self, name: &str, shape: [usize; 2]) -> Option<&Packed> {
        self.kept.as_ref()?.get(name).filter(|packed| packed.shape == shape)
    }

    /// Collects a weight that was prepared.
    pub(crate) fn put(&self, name: &str, packed: Packed) {
        self.made().insert(name.to_owned(), packed);
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<String, Packed>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for PackedWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept.as_ref().map(BTreeMap::len);
        f.debug_struct("PackedWeights").field("path", &self.path).field("kept", &kept).finish_non_exhaustive()
    }
}

/// Files beside a model that are this module's. A dot is what they begin with, so that nobody takes them for a part of the
/// model: downloads, digests and progress leave out what begins with one.
const FILE_PREFIX: &str = ".nexus-packed-";
const FILE_SUFFIX: &str = ".bin";

fn hexadecimal(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path, layout: &str, weights: &[u8; 32]) -> Result<BTreeMap<String, Packed>, PackedFileError> {
    let map = files::map(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PackedFileError::Absent,
        _ => PackedFileError::Read(error),
    })?;
    let malformed = PackedFileError::Malformed;
    let (prefix, _) = map.split_at_checked(PREFIX_BYTES).ok_or(malformed("it is too short"))?;
    let (magic, prefix) = prefix.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(malformed("it is no file of packed weights of this version"));
    }
    let (length, sum) = prefix.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
    let header = usize::try_from(length)
        .ok()
        .filter(|_| length <= HEADER_BYTES_MAX)
        .and_then(|length| map.get(PREFIX_BYTES..PREFIX_BYTES + length))
        .ok_or(malformed("it ends within its header"))?;
    if Sha256::digest(header).as_slice() != sum {
        return Err(malformed("its header is damaged"));
    }
    let header: Header = serde_json::from_slice(header).map_err(|_| malformed("its header is damaged"))?;
    if header.layout != layout {
        return Err(malformed("it is of another layout than its name says"));
    }
    if header.weights != hexadecimal(weights) {
        return Err(PackedFileError::OtherWeights);
    }
    if header.file_bytes != map.len() as u64 {
        return Err(malformed("it is not as long as it was when it was written"));
    }
    let bytes = SharedBytes::new(map);
    let packed = |(name, entry): (String, Entry)| {
        let start = usize::try_from(entry.start).ok()?;
        let end = start.checked_add(usize::try_from(entry.bytes).ok()?)?;
        let bytes = bytes.slice(start..end).filter(|_| start.is_multiple_of(PACKED_ALIGNMENT_BYTES))?;
        Some((name, Packed { shape: entry.shape, format: entry.format, bytes }))
    };
    header.entries.into_iter().map(packed).collect::<Option<_>>().ok_or(malformed("a weight lies beyond its end"))
}
