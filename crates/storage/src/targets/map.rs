//! The one unsafe step: mapping a file into memory.

#![allow(unsafe_code)]

use memmap2::Mmap;
use std::fs::File;
use std::io;

/// `file` as memory, read-only. It stays valid when the file is renamed, replaced or removed.
///
/// A file that somebody shortens in place while it is mapped ends the process when the missing part is read, and one
/// that is written to in place changes under its readers. Nothing in this crate does either: a set's file is complete
/// before it is mapped, and is only ever renamed or removed after.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only, and files of the folder are never changed in place, as said above; other processes
    // that of this program are kept out by the folder's lock.
    unsafe { Mmap::map(file) }
}
