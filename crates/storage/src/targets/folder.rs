//! Opening a folder of sets: what the last run left, in whatever way it ended, becomes one state.
//!
//! | found | then |
//! |---|---|
//! | a record, and its file as the record says | the set is there |
//! | a record, and no such file, or another one | the record goes, with a warning that names the set |
//! | a file without a record, or a temporary one | it goes: a put that did not end, or a delete or replacement that did |
//! | no index, or a damaged one (moved aside) | it is made again from the files; of two for one name the later one counts |
//! | a record or a file of another format | nothing is changed, and the folder not opened |
//! | a file that cannot be read for other reasons | nothing is changed, and the folder not opened |
//!
//! Files of other names are left alone.

use super::error::TargetError;
use super::index::{self, Index, RecordFault, Records};
use super::layout::{Fault, Layout, VERSION};
use super::name::{FileName, SetName, set_file};
use super::set::{OpenFault, TargetSet};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const INDEX_FILE: &str = "index.redb";
const LOCK_FILE: &str = "lock";

pub(super) type Sets = BTreeMap<String, Arc<TargetSet>>;

pub(super) struct Folder {
    pub(super) index: Index,
    pub(super) sets: Sets,
    /// Larger than any number in the name of a file.
    pub(super) next_sequence: u64,
    /// The folder is this process's for as long as the file is open.
    pub(super) lock: File,
}

pub(super) fn open(folder: &Path) -> Result<Folder, TargetError> {
    fs::create_dir_all(folder).map_err(|error| TargetError::io("create the folder", folder, error))?;
    let lock = lock(folder)?;
    let (index, records) = Index::open(folder.join(INDEX_FILE))?;
    let files = scan(folder)?;
    let sets = match records {
        Some(records) => restore(folder, &index, records)?,
        None => rebuild(folder, &index, &files)?,
    };
    let mut next_sequence = sets.values().map(|set| set.sequence()).max().map_or(0, |last| last.saturating_add(1));
    for (path, name) in files {
        if let FileName::Set(name, sequence) = name {
            next_sequence = next_sequence.max(sequence.saturating_add(1));
            if sets.get(name.as_str()).is_some_and(|set| set.sequence() == sequence) {
                continue;
            }
        }
        remove(&path);
    }
    Ok(Folder { index, sets, next_sequence, lock })
}

/// The index has a lock of its own, but is closed for moments, and moved away when it is damaged.
fn lock(folder: &Path) -> Result<File, TargetError> {
    let path = folder.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| TargetError::io("create", &path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TargetError::AlreadyOpen { path: folder.to_owned() }),
        // Some network file systems have no locks; whoever shares a folder on one is on their own.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(error)) => Err(TargetError::io("lock", &path, error)),
    }
}

/// The files that are ours by their names.
fn scan(folder: &Path) -> Result<Vec<(PathBuf, FileName)>, TargetError> {
    let unreadable = |error| TargetError::io("read", folder, error);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if let Some(name) = entry.file_name().to_str().and_then(FileName::parse) {
            files.push((entry.path(), name));
        }
    }
    Ok(files)
}

/// The sets of an index.
fn restore(folder: &Path, index: &Index, records: Records) -> Result<Sets, TargetError> {
    let mut sets = Sets::new();
    let mut dropped = Vec::new();
    for (name, record) in records {
        let damage = match (SetName::parse(&name), index::decode(&name, &record)) {
            (_, Err(RecordFault::Version(found))) => {
                return Err(TargetError::Version { path: folder.join(INDEX_FILE), found, known: VERSION });
            }
            (Err(_), _) | (_, Err(RecordFault::Damaged)) => "its record in the index is damaged".to_owned(),
            (Ok(_), Ok((info, sequence, etag))) => {
                let path = folder.join(set_file(&name, sequence));
                match open_set(&path, |set| set.info == info && set.sequence == sequence)? {
                    Ok(set) => {
                        if let Some(etag) = &etag {
                            set.set_etag(etag);
                        }
                        sets.insert(name, Arc::new(set));
                        continue;
                    }
                    Err(damage) => damage,
                }
            }
        };
        tracing::warn!(name, damage, folder = %folder.display(), "a target set is lost and has to be put again");
        dropped.push(name);
    }
    if !dropped.is_empty() {
        index.remove_all(dropped.iter().map(String::as_str))?;
    }
    Ok(sets)
}

/// The sets of the files, for a new index.
fn rebuild(folder: &Path, index: &Index, files: &[(PathBuf, FileName)]) -> Result<Sets, TargetError> {
    let mut sets = Sets::new();
    for (path, file) in files {
        let FileName::Set(name, sequence) = file else { continue };
        match open_set(path, |set| set.info.name == name.as_str() && set.sequence == *sequence)? {
            Ok(set) if sets.get(name.as_str()).is_none_or(|other| other.sequence() < *sequence) => {
                sets.insert(name.as_str().to_owned(), Arc::new(set));
            }
            Ok(_) => {}
            Err(damage) => {
                tracing::warn!(path = %path.display(), damage, "a target set is lost and has to be put again");
            }
        }
    }
    let records: Records =
        sets.iter().map(|(name, set)| (name.clone(), index::encode(set.info(), set.sequence(), None))).collect();
    index.start(records.iter().map(|(name, record)| (name.as_str(), &record[..])))?;
    if !sets.is_empty() {
        tracing::warn!(folder = %folder.display(), sets = sets.len(), "the index of target sets was made again from their files");
    }
    Ok(sets)
}

/// The set at `path`, or what is wrong with it; an error where that is not known.
fn open_set(path: &Path, is: impl FnOnce(&Layout) -> bool) -> Result<Result<TargetSet, String>, TargetError> {
    match TargetSet::open(path, is) {
        Ok(set) => Ok(Ok(set)),
        Err(OpenFault::Missing) => Ok(Err("its file is missing".to_owned())),
        Err(OpenFault::File(Fault::Damaged(damage))) => Ok(Err(damage)),
        Err(OpenFault::File(Fault::Version(found))) => {
            Err(TargetError::Version { path: path.to_owned(), found, known: VERSION })
        }
        Err(OpenFault::Io(error)) => Err(error),
    }
}

/// Removes a file that nothing refers to. One that stays is removed by the next start.
pub(super) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a file of target sets; trying again at the next start");
    }
}

/// Makes the names of files durable.
pub(super) fn sync(folder: &Path) -> Result<(), TargetError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(|error| TargetError::io("write", folder, error))
}
