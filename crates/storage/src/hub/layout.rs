//! Where files lie, as tools of the hub agree: `blobs` by content, `snapshots` by commit and name, `refs` by revision.
//!
//! What is written here appears complete or not at all, whatever ends the process. Which snapshots are complete is told
//! by a manifest of ours beside them (`nexus/COMMIT.json`); other tools fill theirs file by file.

use super::listing::{Listing, Wanted};
use super::name::{HubName, is_commit};
use super::trouble::Trouble;
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How often a lock is tried.
const LOCK_EVERY: Duration = Duration::from_millis(200);
/// How long another process may hold the lock and bring nothing: longer than the digest of a large file takes.
const LOCK_QUIET_MAX: Duration = Duration::from_secs(300);

/// The folder of one repository.
pub(super) struct Layout {
    folder: PathBuf,
    cache: CacheRepo,
}

/// The sizes of a complete snapshot's files, by name.
#[derive(Deserialize, Serialize)]
struct Manifest {
    files: BTreeMap<String, u64>,
}

impl Layout {
    pub(super) fn new(root: &Path, name: &HubName) -> Self {
        let repo = Repo::with_revision(name.repository().to_owned(), RepoType::Model, name.revision().to_owned());
        let folder = root.join(repo.folder_name());
        Self { folder, cache: Cache::new(root.to_owned()).repo(repo) }
    }

    /// Where a file's content is once it is complete.
    pub(super) fn blob(&self, file: &Wanted) -> PathBuf {
        self.cache.blob_path(&file.etag)
    }

    /// Where it grows until then. Not the name that `hf-hub` gives its own, which are of another form.
    pub(super) fn part(&self, file: &Wanted) -> PathBuf {
        self.cache.blob_path(&format!("{}.nexus.part", file.etag))
    }

    /// Bytes of a file that are here.
    pub(super) fn bytes_here(&self, file: &Wanted) -> u64 {
        bytes_of(&self.blob(file)).or_else(|| bytes_of(&self.part(file))).unwrap_or(0)
    }

    /// The complete snapshot that the revision stood for last, and its bytes.
    pub(super) fn known(&self, name: &HubName) -> Option<(PathBuf, u64)> {
        let commit = if name.is_commit() {
            name.revision().to_ascii_lowercase()
        } else {
            fs::read_to_string(self.folder.join("refs").join(name.revision())).ok()?.trim().to_owned()
        };
        if !is_commit(&commit) {
            return None;
        }
        let manifest: Manifest = serde_json::from_slice(&fs::read(self.manifest(&commit)).ok()?).ok()?;
        let folder = self.cache.pointer_path(&commit);
        let complete = manifest.files.iter().all(|(name, bytes)| bytes_of(&folder.join(name)) == Some(*bytes));
        complete.then(|| (folder, manifest.files.values().sum()))
    }

    /// Writes down that the listing's files are all here; their folder.
    pub(super) fn remember(&self, name: &HubName, listing: &Listing) -> io::Result<PathBuf> {
        let files = listing.files.iter().map(|file| (file.name.clone(), file.size)).collect();
        let path = self.manifest(&listing.commit);
        let text = serde_json::to_vec_pretty(&Manifest { files })?;
        write_whole(&path, &text)?;
        if !name.is_commit() {
            write_whole(&self.folder.join("refs").join(name.revision()), listing.commit.as_bytes())?;
        }
        Ok(self.cache.pointer_path(&listing.commit))
    }

    /// Gives a complete file its name in the snapshot.
    pub(super) fn link(&self, commit: &str, file: &Wanted) -> io::Result<()> {
        let blob = self.blob(file);
        let path = self.cache.pointer_path(commit).join(&file.name);
        let leads_there = || Some(path.canonicalize().ok()? == blob.canonicalize().ok()?);
        if leads_there() == Some(true) {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder)?;
        let temporary = path.with_extension("nexus.tmp");
        let _ = fs::remove_file(&temporary);
        // Up from the file's folder to the repository's.
        let up: PathBuf =
            folder.strip_prefix(&self.folder).unwrap_or(folder).components().map(|_| Component::ParentDir).collect();
        symlink(&up.join("blobs").join(&file.etag), &temporary)
            // Some file systems have no links of one kind or the other.
            .or_else(|_| fs::hard_link(&blob, &temporary))
            .or_else(|_| fs::copy(&blob, &temporary).map(|_| ()))?;
        fs::rename(&temporary, &path)
    }

    /// One process at a time fetches a repository. While another does, `more` is asked whether it brings anything; if
    /// nothing comes for long, waiting is an error.
    pub(super) async fn lock(&self, more: impl Fn() -> bool) -> Result<Option<File>, Trouble> {
        fs::create_dir_all(self.folder.join("blobs"))?;
        let path = self.folder.join("nexus.lock");
        let file = File::create(&path)?;
        let mut quiet_since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(%error, "no locks in this folder: no two processes may download into it at once");
                    return Ok(None);
                }
            }
            if more() {
                quiet_since = Instant::now();
            }
            if quiet_since.elapsed() > LOCK_QUIET_MAX {
                let what = format!("another process holds {} and downloads nothing: end it", path.display());
                return Err(Trouble::Disk(io::Error::new(io::ErrorKind::ResourceBusy, what)));
            }
            tokio::time::sleep(LOCK_EVERY).await;
        }
    }

    fn manifest(&self, commit: &str) -> PathBuf {
        self.folder.join("nexus").join(format!("{commit}.json"))
    }
}

/// The size of a file, through links; `None` where there is no file.
pub(super) fn bytes_of(path: &Path) -> Option<u64> {
    path.metadata().ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// A complete and checked part becomes a blob.
pub(super) fn settle(part: &Path, blob: &Path) -> io::Result<()> {
    fs::rename(part, blob)?;
    sync_folder(blob)
}

/// Writes a small file so that it is there whole or not at all.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".nexus.tmp");
    let mut file = File::create(&temporary)?;
    io::Write::write_all(&mut file, content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// Makes a rename last. Where folders can not be opened, the system sees to it by itself.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent().map(File::open) {
        Some(Ok(folder)) if cfg!(unix) => folder.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    // Needs a privilege on Windows that few have.
    Err(io::ErrorKind::Unsupported.into())
}
