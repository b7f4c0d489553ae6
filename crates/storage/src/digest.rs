//! Digests of content: what a model is, whatever its folder is called.
//!
//! The digest of a set of files is the SHA-256 over their names and the SHA-256 of each, sorted by name. Reading
//! gigabytes at every start would take longer than loading them, so [`DigestMemo`] remembers each file's digest by
//! path, size and times ([`memo`]).

mod memo;

use memo::{FileState, Memo};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const DOMAIN: &[u8] = b"nexus files 1";
const READ_BYTES: usize = 1 << 20;
/// Files that are read at once: enough for a fast disk, and a share of a large machine.
const READERS_MAX: usize = 4;

/// The digest of files that are in memory: the same as [`DigestMemo::digest_files`] gives for files of these names (of
/// which that one drops the folders) and contents.
pub fn digest_bytes(files: &[(&str, &[u8])]) -> [u8; 32] {
    combine(files.iter().map(|(name, content)| (name.as_bytes().to_vec(), Sha256::digest(content).into())).collect())
}

/// Computes digests of files, each file's once.
///
/// What it remembers lies in one small file. A memo that is damaged, of another version, or cannot be read or written
/// costs time and nothing else. Several processes may use one memo: it is replaced atomically, and what one process
/// remembered is at worst forgotten by another.
pub struct DigestMemo {
    path: Option<PathBuf>,
    memo: Mutex<Memo>,
}

impl DigestMemo {
    /// The memo at `path`, empty where there is none.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let memo = Mutex::new(Memo::load(&path));
        Self { path: Some(path), memo }
    }

    /// A memo that lives as long as this value.
    pub fn in_memory() -> Self {
        Self { path: None, memo: Mutex::default() }
    }

    /// The digest of these files' names (without their folders) and contents; their order does not matter.
    ///
    /// Reads files that it does not remember, several at once; for gigabytes, call it where blocking is fine.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or changes while it is read; the message names it.
    pub fn digest_files(&self, paths: &[PathBuf]) -> io::Result<[u8; 32]> {
        let mut states = Vec::with_capacity(paths.len());
        for path in paths {
            let canonical = path.canonicalize().map_err(|error| name_file(path, error))?;
            let state = FileState::of(&canonical).map_err(|error| name_file(path, error))?;
            states.push((canonical, state));
        }
        let mut digests: Vec<Option<[u8; 32]>> = {
            let memo = self.lock();
            states.iter().map(|(path, state)| memo.get(path, state)).collect()
        };
        let unknown: Vec<usize> = (0..paths.len()).filter(|&i| digests[i].is_none()).collect();
        if !unknown.is_empty() {
            let read = read_all(&unknown.iter().map(|&i| &states[i]).collect::<Vec<_>>());
            let mut memo = self.lock();
            for (i, digest) in unknown.into_iter().zip(read) {
                let digest = digest.map_err(|error| name_file(&paths[i], error))?;
                let (path, state) = &states[i];
                memo.insert(path, state, digest);
                digests[i] = Some(digest);
            }
            if let Some(path) = &self.path
                && let Err(error) = memo.save(path)
            {
                tracing::warn!(path = %path.display(), %error, "cannot remember digests; they are computed again next time");
            }
        }
        let name = |path: &Path| path.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
        Ok(combine(paths.iter().zip(digests).filter_map(|(path, digest)| Some((name(path), digest?))).collect()))
    }

    fn lock(&self) -> MutexGuard<'_, Memo> {
        self.memo.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name_file(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn combine(mut files: Vec<(Vec<u8>, [u8; 32])>) -> [u8; 32] {
    files.sort_unstable();
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update((files.len() as u64).to_le_bytes());
    for (name, digest) in files {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(digest);
    }
    hasher.finalize().into()
}

/// The digest of each file, in order, read by a few threads.
fn read_all(files: &[&(PathBuf, FileState)]) -> Vec<io::Result<[u8; 32]>> {
    let threads = files.len().min(READERS_MAX).min(std::thread::available_parallelism().map_or(1, usize::from));
    if threads <= 1 {
        return files.iter().map(|(path, state)| read_one(path, state)).collect();
    }
    // Files in order of size would end more evenly, but shards are of one size anyway.
    let next = AtomicUsize::new(0);
    let read = Mutex::new(Vec::with_capacity(files.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some((path, state)) = files.get(i) else { break };
                    let digest = read_one(path, state);
                    read.lock().unwrap_or_else(PoisonError::into_inner).push((i, digest));
                }
            });
        }
    });
    let mut read = read.into_inner().unwrap_or_else(PoisonError::into_inner);
    read.sort_unstable_by_key(|(i, _)| *i);
    read.into_iter().map(|(_, digest)| digest).collect()
}

fn read_one(path: &Path, state: &FileState) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => hasher.update(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if !FileState::of(path)?.is_content_of(state) {
        return Err(io::Error::other("changed while it was read"));
    }
    Ok(hasher.finalize().into())
}

#[cfg(test)]
mod tests;
