//! The index: which file holds which set. A set is there when the index says so, and not before.
//!
//! One table in a redb file of its own, records by name. It has few entries and is written once a put, so what counts is
//! that it can be trusted: it is checked in full each time it is opened, and opened anew after any failure.

use super::error::TargetError;
use super::layout::VERSION;
use super::set::{SetDtype, SetInfo};
use crate::redb_store::open::{means_damage, move_aside};
use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const SETS: TableDefinition<&str, &[u8]> = TableDefinition::new("target_sets");
const PAGE_CACHE_BYTES: usize = 1 << 20;
const RECORD_BYTES: usize = 48;
const ETAG_BYTES_MAX: usize = 1024;

/// Records as they lie in the index, by name.
pub(super) type Records = Vec<(String, Vec<u8>)>;

pub(super) struct Index {
    path: PathBuf,
    /// `None` after a failure: redb answers nothing after one until its file is opened again.
    database: Mutex<Option<Database>>,
}

/// A change that failed.
#[derive(Debug)]
pub(super) struct NotChanged {
    pub(super) error: TargetError,
    /// Whether the index is known to be as it was before. Otherwise only the next start will tell.
    pub(super) certain: bool,
}

impl Index {
    /// The index at `path` and its records by name; `None` for a new one that [`Index::start`] has not been called on. A
    /// damaged one is moved aside for a new one.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Option<Records>), TargetError> {
        let index = Self { path, database: Mutex::new(None) };
        let records = match index.records() {
            Err(TargetError::IndexDamaged { damage, .. }) => {
                move_aside(&index.path, &damage).map_err(|error| TargetError::io("move aside", &index.path, error))?;
                index.records()?
            }
            other => other?,
        };
        Ok((index, records))
    }

    fn records(&self) -> Result<Option<Records>, TargetError> {
        self.run(|database| {
            let table = match database.begin_read()?.open_table(SETS) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let mut records = Vec::new();
            for entry in table.iter()? {
                let (name, record) = entry?;
                records.push((name.value().to_owned(), record.value().to_owned()));
            }
            Ok(Some(records))
        })
    }

    /// Makes the index's table with these records, all or nothing: the table being there means that files without a
    /// record are leftovers.
    pub(super) fn start<'a>(&self, records: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<(), TargetError> {
        self.write(records.map(|(name, record)| (name, Some(record))))
    }

    /// Removes records.
    pub(super) fn remove_all<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<(), TargetError> {
        self.write(names.map(|name| (name, None)))
    }

    /// Sets or removes the record of `name`. It is durable when this returns `Ok`.
    pub(super) fn change(&self, name: &str, record: Option<&[u8]>) -> Result<(), NotChanged> {
        let Err(error) = self.write(std::iter::once((name, record))) else { return Ok(()) };
        // A write that failed late may have taken effect all the same: look.
        let found = self.run(|database| {
            let table = database.begin_read()?.open_table(SETS)?;
            Ok(table.get(name)?.map(|found| found.value().to_owned()))
        });
        match found {
            Ok(found) if found.as_deref() == record => Ok(()),
            Ok(_) => Err(NotChanged { error, certain: true }),
            Err(_) => Err(NotChanged { error, certain: false }),
        }
    }

    fn write<'a>(&self, changes: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> Result<(), TargetError> {
        self.run(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
            {
                let mut table = transaction.open_table(SETS)?;
                for (name, record) in changes {
                    match record {
                        Some(record) => drop(table.insert(name, record)?),
                        None => drop(table.remove(name)?),
                    }
                }
            }
            Ok(transaction.commit()?)
        })
    }

    pub(super) fn run<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, TargetError> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let open = slot.take();
        // redb may panic on a damaged file.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let database = match open {
                Some(database) => database,
                None => Builder::new()
                    .set_cache_size(PAGE_CACHE_BYTES)
                    .set_check_integrity_on_open(true)
                    .create(&self.path)
                    .map_err(redb::Error::from)?,
            };
            let value = work(&database)?;
            Ok((database, value))
        }));
        match outcome {
            Ok(Ok((database, value))) => {
                *slot = Some(database);
                Ok(value)
            }
            Ok(Err(error)) => Err(self.error(error)),
            Err(_) => Err(self.damaged("it made the store's code panic".to_owned())),
        }
    }

    fn error(&self, error: redb::Error) -> TargetError {
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
                TargetError::AlreadyOpen { path: self.path.parent().unwrap_or(Path::new("")).to_owned() }
            }
            error if means_damage(&error) => self.damaged(error.to_string()),
            redb::Error::Io(error) => TargetError::io("use", &self.path, error),
            error => TargetError::Index { path: self.path.clone(), source: Box::new(error) },
        }
    }

    fn damaged(&self, damage: String) -> TargetError {
        TargetError::IndexDamaged { path: self.path.clone(), damage }
    }
}

/// A set's record, little-endian: version `u32`, type `u8`, has ids `u8`, two zeros, then rows, dimensions, bytes,
/// creation time and sequence number, `u64` each, and, for a copy of what is kept elsewhere, its ETag there. The file's name
/// follows from the set's name and the sequence number.
pub(super) fn encode(info: &SetInfo, sequence: u64, etag: Option<&str>) -> Vec<u8> {
    let dtype = match info.dtype {
        SetDtype::F32 => 0,
        SetDtype::F16 => 1,
        SetDtype::Bf16 => 2,
    };
    let mut record = [0; RECORD_BYTES];
    record[..4].copy_from_slice(&VERSION.to_le_bytes());
    record[4..6].copy_from_slice(&[dtype, info.has_ids.into()]);
    let numbers = [info.rows as u64, info.dimensions as u64, info.bytes, info.created_unix_s, sequence];
    for (bytes, number) in record[8..].chunks_exact_mut(8).zip(numbers) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    let mut record = record.to_vec();
    record.extend_from_slice(etag.unwrap_or_default().as_bytes());
    record
}

/// What a record says, or why it says nothing.
pub(super) fn decode(name: &str, record: &[u8]) -> Result<(SetInfo, u64, Option<String>), RecordFault> {
    let (version, _) = record.split_first_chunk::<4>().ok_or(RecordFault::Damaged)?;
    match u32::from_le_bytes(*version) {
        VERSION => {}
        other => return Err(RecordFault::Version(other)),
    }
    let (record, etag) = record.split_first_chunk::<RECORD_BYTES>().ok_or(RecordFault::Damaged)?;
    let etag = str::from_utf8(etag).ok().filter(|etag| etag.len() <= ETAG_BYTES_MAX).ok_or(RecordFault::Damaged)?;
    let (numbers, _) = record[8..].as_chunks::<8>();
    let number = |i: usize| u64::from_le_bytes(numbers[i]);
    let size = |i: usize| usize::try_from(number(i)).map_err(|_| RecordFault::Damaged);
    let info = SetInfo {
        name: name.to_owned(),
        rows: size(0)?,
        dimensions: size(1)?,
        dtype: match record[4] {
            0 => SetDtype::F32,
            1 => SetDtype::F16,
            2 => SetDtype::Bf16,
            _ => return Err(RecordFault::Damaged),
        },
        bytes: number(2),
        created_unix_s: number(3),
        has_ids: record[5] == 1,
    };
    Ok((info, number(4), Some(etag.to_owned()).filter(|etag| !etag.is_empty())))
}

/// Why a record says nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RecordFault {
    Version(u32),
    Damaged,
}
