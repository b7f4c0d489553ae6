//! The file is written once, aside, and appears under its name when it is whole.

use super::{Entry, Header, MAGIC, PREFIX_BYTES, hexadecimal};
use nexus_compute::{PACKED_ALIGNMENT_BYTES, Packed};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Bytes that are written between two looks at whether to go on.
const CHUNK_BYTES: usize = 8 << 20;
/// Bytes after which they are waited for: gigabytes that the system has yet to write would hold up who needs the disk or
/// the memory meanwhile.
const SYNC_BYTES: usize = 256 << 20;
/// What is left free of a disk, at least.
const LEFT_FREE_BYTES: u64 = 1 << 30;

/// Prepared weights that are to be kept in a file.
pub struct PackedWriter {
    path: PathBuf,
    layout: String,
    parts: BTreeMap<String, Packed>,
}

impl PackedWriter {
    pub(super) fn new(path: PathBuf, layout: String, parts: BTreeMap<String, Packed>) -> Self {
        Self { path, layout, parts }
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> u64 {
        self.parts.values().map(|part| part.bytes.len() as u64).sum()
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file, for weights of this digest. Stops early once `wanted` says no, and leaves nothing behind; `false`
    /// then, and where another process writes the same file.
    ///
    /// # Errors
    ///
    /// When it can not be written, or would fill the disk. What is there under its name stays.
    pub fn write(&self, weights: &[u8; 32], wanted: &dyn Fn() -> bool) -> io::Result<bool> {
        let aside = self.path.with_extension("partial");
        let mut file = File::options().create(true).truncate(false).write(true).open(&aside)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Whoever held the lock before may be done, and this be the file under its name by now.
        if !is_still_at(&file, &aside) {
            return Ok(false);
        }
        // What an earlier process left there when it was killed.
        file.set_len(0)?;
        let written = self.require_space().and_then(|()| self.write_to(&mut file, weights, wanted));
        match written {
            Ok(true) => fs::rename(&aside, &self.path).map(|()| true),
            other => {
                let _ = fs::remove_file(&aside);
                other
            }
        }
    }

    fn require_space(&self) -> io::Result<()> {
        #[cfg(unix)]
        if let Some(folder) = self.path.parent() {
            let disk = rustix::fs::statvfs(folder)?;
            let (free, needed) = (disk.f_bavail.saturating_mul(disk.f_frsize), self.bytes() + LEFT_FREE_BYTES);
            if free < needed {
                let detail = format!("{free} bytes are free on its disk, and {needed} are wanted");
                return Err(io::Error::new(io::ErrorKind::StorageFull, detail));
            }
        }
        Ok(())
    }

    fn write_to(&self, file: &mut File, weights: &[u8; 32], wanted: &dyn Fn() -> bool) -> io::Result<bool> {
        let header = self.header(weights)?;
        file.write_all(MAGIC)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&Sha256::digest(&header))?;
        file.write_all(&header)?;
        let mut at = PREFIX_BYTES + header.len();
        let mut unsynced = 0;
        for part in self.parts.values() {
            let start = at.next_multiple_of(PACKED_ALIGNMENT_BYTES);
            file.write_all(&[0; PACKED_ALIGNMENT_BYTES][..start - at])?;
            for chunk in part.bytes.chunks(CHUNK_BYTES) {
                if !wanted() {
                    return Ok(false);
                }
                file.write_all(chunk)?;
                unsynced += chunk.len();
                if unsynced >= SYNC_BYTES {
                    file.sync_data()?;
                    unsynced = 0;
                }
            }
            at = start + part.bytes.len();
        }
        file.sync_all()?;
        Ok(true)
    }

    /// The header as text, filled up with spaces so that its length does not depend on the places that it names.
    fn header(&self, weights: &[u8; 32]) -> io::Result<Vec<u8>> {
        let text = |first: u64| {
            let mut at = first;
            let mut entries = BTreeMap::new();
            for (name, part) in &self.parts {
                let start = at.next_multiple_of(PACKED_ALIGNMENT_BYTES as u64);
                let bytes = part.bytes.len() as u64;
                at = start + bytes;
                entries.insert(name.clone(), Entry { shape: part.shape, format: part.format.clone(), start, bytes });
            }
            let (layout, weights) = (self.layout.clone(), hexadecimal(weights));
            serde_json::to_vec(&Header { layout, weights, file_bytes: at, entries }).map_err(io::Error::other)
        };
        // Places have as many digits as they have with the longest header that there could be.
        let longest = text(u64::MAX / 2)?.len();
        let mut header = text((PREFIX_BYTES + longest) as u64)?;
        header.resize(longest, b' ');
        Ok(header)
    }
}

#[cfg(unix)]
fn is_still_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(open), Ok(there)) if place(&open) == place(&there))
}

/// Elsewhere an open file can not be renamed by another process.
#[cfg(not(unix))]
fn is_still_at(_: &File, path: &Path) -> bool {
    path.exists()
}

impl fmt::Debug for PackedWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedWriter").field("path", &self.path).field("parts", &self.parts.len()).finish()
    }
}
