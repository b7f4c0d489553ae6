//! One set, mapped into memory.

use super::error::TargetError;
use super::layout::{self, Fault, IdLayout, Layout};
use super::map::map;
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fmt, fs, io};

/// Type of a set's components.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetDtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
}

impl SetDtype {
    /// Bytes of one component.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// As safetensors calls it: `F32`, `F16`, `BF16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }
}

impl fmt::Display for SetDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of a set without reading its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetInfo {
    /// Its name, a [`super::SetName`].
    pub name: String,
    /// Number of rows; may be zero.
    pub rows: usize,
    /// Components in each row; zero only where there are no rows.
    pub dimensions: usize,
    /// Type of the components.
    pub dtype: SetDtype,
    /// Bytes of the file.
    pub bytes: u64,
    /// When it was put, in seconds since 1970.
    pub created_unix_s: u64,
    /// Whether its rows have ids.
    pub has_ids: bool,
}

/// A set, read-only and whole for as long as it is held: it may be replaced or deleted meanwhile.
///
/// Its pages are read from the file when they are touched, so that any of its methods may wait for the disk. Only the
/// header was checked: rows that the disk damaged are not noticed, and an id that it damaged is `None`.
pub struct TargetSet {
    map: Mmap,
    layout: Layout,
    /// What the place that it is a copy of calls this state of it. Set before the set is committed.
    etag: OnceLock<Box<str>>,
    used: AtomicU64,
}

/// Why there is no set at a path.
#[derive(Debug)]
pub(super) enum OpenFault {
    Missing,
    File(Fault),
    Io(TargetError),
}

impl TargetSet {
    /// Maps the file at `path`, which has to say of itself what `is` accepts. Reads its first page and the one where
    /// the last id ends.
    pub(super) fn open(path: &Path, is: impl FnOnce(&Layout) -> bool) -> Result<Self, OpenFault> {
        let damaged = |what: &str| OpenFault::File(Fault::Damaged(what.to_owned()));
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => OpenFault::Missing,
            _ => OpenFault::Io(TargetError::io("read", path, source)),
        };
        // Asked before it is opened: opening a pipe would wait for somebody to write to it.
        let metadata = fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(damaged("it is not a file"));
        }
        // An empty file cannot be mapped.
        if metadata.len() == 0 {
            return Err(damaged("it is empty"));
        }
        let map = map(&File::open(path).map_err(unreadable)?).map_err(unreadable)?;
        let layout = layout::parse(&map).map_err(OpenFault::File)?;
        if !is(&layout) {
            return Err(damaged("it is another set"));
        }
        let set = Self { map, layout, etag: OnceLock::new(), used: AtomicU64::new(0) };
        if set
            .layout
            .ids
            .as_ref()
            .is_some_and(|ids| set.ends(ids).last().map_or(0, |&end| end) != ids.text.len() as u64)
        {
            return Err(damaged("its ids do not end where they should"));
        }
        Ok(set)
    }

    /// What is known of it.
    pub fn info(&self) -> &SetInfo {
        &self.layout.info
    }

    /// The rows, `[rows, dimensions]` of the set's type, row-major and little-endian, exactly as they were given. Begins
    /// at an address that every type's components may begin at.
    pub fn rows(&self) -> &[u8] {
        &self.map[self.layout.rows.clone()]
    }

    /// The rows' norms, as they were given.
    pub fn norms(&self) -> &[f64] {
        // The map begins at a page and the norms at a multiple of 8 in it: see `Layout`.
        bytemuck::cast_slice(&self.map[self.layout.norms.clone()])
    }

    /// The id of a row. `None` where the set has no ids ([`SetInfo::has_ids`]), there is no such row, or the file is
    /// damaged there.
    pub fn id(&self, row: usize) -> Option<&str> {
        let ids = self.layout.ids.as_ref()?;
        let ends = self.ends(ids);
        let begin = row.checked_sub(1).map_or(Some(0), |before| ends.get(before).copied())?;
        let (begin, end) = (usize::try_from(begin).ok()?, usize::try_from(*ends.get(row)?).ok()?);
        str::from_utf8(self.map[ids.text.clone()].get(begin..end)?).ok()
    }

    /// What the place that it is a copy of calls this state of it. `None` where it is no copy.
    pub(crate) fn etag(&self) -> Option<&str> {
        self.etag.get().map(AsRef::as_ref)
    }

    /// To be called once, before the set is committed.
    pub(super) fn set_etag(&self, etag: &str) {
        // The first word counts.
        let _ = self.etag.set(etag.into());
    }

    /// The whole file.
    #[cfg(feature = "aws")]
    pub(crate) fn file(&self) -> &[u8] {
        &self.map
    }

    pub(super) fn used(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }

    pub(super) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    #[cfg(feature = "aws")]
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn sequence(&self) -> u64 {
        self.layout.sequence
    }

    fn ends(&self, ids: &IdLayout) -> &[u64] {
        bytemuck::cast_slice(&self.map[ids.ends.clone()])
    }
}

impl fmt::Debug for TargetSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetSet").field("info", self.info()).finish_non_exhaustive()
    }
}
