//! A folder of files made of an input, as far as the targets share it: what the service maps from a disk is mapped here,
//! too.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// This process's folder; `scripts/fuzz.sh` says where, in memory, and removes it.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("nexus-fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        folder
    })
}

/// Writes a file of the folder; the same name has the same length of path always.
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("written");
    path
}

/// The input as `N` parts: their lengths but the last's in two bytes each, then they.
#[allow(dead_code, reason = "not every target takes its input apart")]
pub fn parts<const N: usize>(data: &[u8]) -> Option<[&[u8]; N]> {
    let (lengths, mut rest) = data.split_at_checked(2 * (N - 1))?;
    let mut parts = [data; N];
    for (part, length) in parts.iter_mut().zip(lengths.as_chunks::<2>().0) {
        (*part, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    }
    parts[N - 1] = rest;
    Some(parts)
}
