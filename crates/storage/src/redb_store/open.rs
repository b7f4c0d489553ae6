//! Opening the file, and what is done about one that cannot be used.
//!
//! redb trusts a file that was closed cleanly. One that was damaged since can make it panic, and even panic twice, which
//! ends the process. So a file that is small enough to be read in a moment is checked in full when it is opened. A
//! larger one is checked after a run that did not end cleanly, by redb itself: should damage ever end the process, it
//! does so once.

use super::{RedbOptions, tables};
use redb::{Builder, Database};
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

/// Why there is no store. The service goes on without one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another handle of this one, has the store open.
    #[error("{} is in use by another process", path.display())]
    AlreadyOpen {
        /// The file.
        path: PathBuf,
    },
    /// The folder is not there and cannot be made.
    #[error("cannot create the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file cannot be opened, read or written.
    #[error("cannot open {}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: Box<redb::Error>,
    },
    /// The file is damaged and could not be moved out of the way.
    #[error("{} is damaged ({damage}) and cannot be moved aside", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: String,
        /// Why it could not be moved.
        source: io::Error,
    },
    /// The thread that writes cannot be started.
    #[error("cannot start the thread that writes {}", path.display())]
    Thread {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// The store's database, ready for use, and its number of entries.
pub(super) fn open(path: &Path, options: &RedbOptions) -> Result<(Database, u64), OpenError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|source| OpenError::Folder { path: folder.to_owned(), source })?;
    }
    let damage = match attempt(path, options) {
        Attempt::Opened(database, entries) => return Ok((database, entries)),
        Attempt::Failed(error) => return Err(error),
        Attempt::Damaged(damage) => damage,
    };
    move_aside(path, &damage).map_err(|source| OpenError::Damaged { path: path.to_owned(), damage, source })?;
    match attempt(path, options) {
        Attempt::Opened(database, entries) => Ok((database, entries)),
        Attempt::Failed(error) => Err(error),
        Attempt::Damaged(damage) => Err(OpenError::Damaged {
            path: path.to_owned(),
            damage,
            source: io::Error::other("a new store in its place is damaged, too"),
        }),
    }
}

enum Attempt {
    Opened(Database, u64),
    Damaged(String),
    Failed(OpenError),
}

fn attempt(path: &Path, options: &RedbOptions) -> Attempt {
    let check = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= options.check_bytes_max);
    let opened = catch_unwind(AssertUnwindSafe(|| -> Result<_, redb::Error> {
        let database =
            Builder::new().set_cache_size(options.page_cache_bytes).set_check_integrity_on_open(check).create(path)?;
        let entries = tables::prepare(&database)?;
        Ok((database, entries))
    }));
    match opened {
        Ok(Ok((database, entries))) => Attempt::Opened(database, entries),
        Ok(Err(redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch)) => {
            Attempt::Failed(OpenError::AlreadyOpen { path: path.to_owned() })
        }
        Ok(Err(error)) if means_damage(&error) => Attempt::Damaged(error.to_string()),
        Ok(Err(error)) => Attempt::Failed(OpenError::Store { path: path.to_owned(), source: Box::new(error) }),
        Err(_) => Attempt::Damaged("it made the store's code panic".to_owned()),
    }
}

/// Whether the file's content is at fault, and not the machine.
pub(crate) fn means_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TypeDefinitionChanged { .. } => true,
        redb::Error::Io(error) => matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
        _ => false,
    }
}

/// Renames the file to `<path>.damaged-<unix time>`, in place of any earlier one such: the last is kept for whoever
/// wants to look, and damage that comes again does not fill the disk.
pub(crate) fn move_aside(path: &Path, damage: &str) -> io::Result<()> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    remove_earlier(path);
    let mut aside = OsString::from(path);
    aside.push(format!(".damaged-{seconds}"));
    let aside = PathBuf::from(aside);
    tracing::warn!(
        path = %path.display(), moved_to = %aside.display(), damage,
        "a store's file is damaged; moving it aside and starting a new one"
    );
    fs::rename(path, aside)
}

fn remove_earlier(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else { return };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let prefix = format!("{name}.damaged-");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_earlier = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix(&prefix))
            .is_some_and(|time| !time.is_empty() && time.bytes().all(|b| b.is_ascii_digit()));
        if is_earlier {
            fs::remove_file(entry.path()).ok();
        }
    }
}
