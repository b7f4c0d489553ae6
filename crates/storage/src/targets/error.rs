//! What can go wrong with target sets.

use super::SetDtype;
use std::io;
use std::path::{Path, PathBuf};

/// Why a target set was not written, or the folder of sets not opened. Whatever it is, the sets that were there before
/// are still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Another process, or another handle of this one, has the folder open.
    #[error("the target sets in {} are in use by another process", path.display())]
    AlreadyOpen {
        /// The folder.
        path: PathBuf,
    },
    /// The set is larger than what is left of `bytes_max`. What was written of it is removed with its writer.
    #[error("the target set needs {needed_bytes} bytes or more, and {free_bytes} of {limit_bytes} are free")]
    TooLarge {
        /// Bytes of the set's file as far as they are known, to within 7: those written and those refused.
        needed_bytes: u64,
        /// Bytes that the set may have now.
        free_bytes: u64,
        /// Bytes that all sets may have, together.
        limit_bytes: u64,
    },
    /// One set more than there may be.
    #[error("there are {limit} target sets, and no more are kept")]
    TooMany {
        /// The most sets that are kept.
        limit: usize,
    },
    /// What was pushed is no whole number of rows of the set's shape, or not one norm a row.
    #[error("{bytes} bytes and {norms} norms are no rows of {dimensions} components of {dtype}")]
    Rows {
        /// Bytes of the rows.
        bytes: u64,
        /// Norms given for them.
        norms: usize,
        /// Components in each row.
        dimensions: usize,
        /// Type of the components.
        dtype: SetDtype,
    },
    /// Rows of a set that has not been given a shape, or another shape than it had.
    #[error("the target set's rows have no shape, or were given two")]
    Shape,
    /// Not one id a row.
    #[error("{ids} ids for {rows} rows")]
    Ids {
        /// Ids given.
        ids: usize,
        /// Rows given.
        rows: usize,
    },
    /// The disk is full, or the user's share of it. Nothing is left behind.
    #[error("no space is left for {}", path.display())]
    DiskFull {
        /// The file that has no space.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or the folder cannot be read, written or renamed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried: `create`, `read`, `write`, ...
        doing: &'static str,
        /// The file or the folder.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The index cannot be read or written.
    #[error("cannot use the index of target sets {}", path.display())]
    Index {
        /// The index's file.
        path: PathBuf,
        /// What went wrong.
        source: Box<redb::Error>,
    },
    /// The index is damaged. It is rebuilt when the folder is opened the next time.
    #[error("the index of target sets {} is damaged: {damage}", path.display())]
    IndexDamaged {
        /// The index's file.
        path: PathBuf,
        /// What is wrong with it.
        damage: String,
    },
    /// The place that holds the sets of all replicas cannot be asked, and nothing is known here that would do.
    #[error("shared target sets can not be reached: {reason}")]
    Unavailable {
        /// What the place said, and what to do about it.
        reason: String,
    },
    /// What lies where a set should is none.
    #[error("{place} is no target set: {damage}; put the set again, or delete it")]
    NotASet {
        /// Where it lies.
        place: String,
        /// What is wrong with it.
        damage: String,
    },
    /// The folder was written by a later version of this program. Nothing in it was changed.
    #[error("{} is of format {found}; this version reads format {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format that is known.
        known: u32,
    },
}

impl TargetError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::DiskFull { path, source }
            }
            _ => Self::Io { doing, path, source },
        }
    }
}
