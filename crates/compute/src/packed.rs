//! Prepared weights as bytes: what a device made of a tensor, so that it can be kept in a file and taken back from there.
//!
//! Deliberately absent: files, and how to tell whose weights are in one (crate `nexus-models`).

use crate::{ComputeError, Result};
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Where the bytes of a prepared weight have to start, counted from the start of a file or a page.
pub const PACKED_ALIGNMENT_BYTES: usize = 64;

/// Bytes that stay where they are for as long as somebody holds this: a mapped file, or memory of a device that is the
/// host's.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// All bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let range = 0..owner.as_ref().len();
        Self { owner: Arc::new(owner), range }
    }

    /// Bytes `range` of these; `None` where they do not reach as far.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        Some(Self { owner: self.owner.clone(), range: start + range.start..start + range.end })
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedBytes").field(&self.range.len()).finish()
    }
}

/// A prepared weight as bytes.
#[derive(Clone, Debug)]
pub struct Packed {
    /// `[out, in]` of a linear layer, `[rows, columns]` of a table.
    pub shape: [usize; 2],
    /// What the bytes hold, in the words of the backend that made them.
    pub format: String,
    /// The bytes, aligned to [`PACKED_ALIGNMENT_BYTES`].
    pub bytes: SharedBytes,
}

impl Packed {
    /// Fails unless there are `expected` bytes, aligned as they have to be.
    pub(crate) fn require(&self, op: &'static str, expected: Option<usize>) -> Result<()> {
        let aligned = self.bytes.as_ptr().align_offset(PACKED_ALIGNMENT_BYTES) == 0;
        if expected == Some(self.bytes.len()) && aligned {
            return Ok(());
        }
        let ([rows, columns], format, bytes) = (self.shape, &self.format, self.bytes.len());
        let detail = format!(
            "{bytes} bytes at {} of {rows} x {columns} in {format:?} are not what this device makes of them",
            if aligned { "an aligned address" } else { "an address that is not aligned" },
        );
        Err(ComputeError::Shape { op, detail })
    }

    /// What a device says that keeps no packed weights.
    pub fn refused(&self, op: &'static str) -> ComputeError {
        ComputeError::Shape { op, detail: format!("this device takes no weights in {:?}", self.format) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stay_within_their_bytes() {
        let all = SharedBytes::new(vec![0, 1, 2, 3, 4, 5]);
        let part = all.slice(2..5).unwrap();
        assert_eq!(*part, [2, 3, 4]);
        assert_eq!(*part.slice(1..3).unwrap(), [3, 4]);
        assert!(part.slice(1..4).is_none());
        assert!(part.slice(4..4).is_none());
        drop(all);
        assert_eq!(*part, [2, 3, 4]);
    }
}
