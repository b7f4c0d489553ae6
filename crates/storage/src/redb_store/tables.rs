//! The tables of the file, and the bound on its size.
//!
//! `embeddings` holds the records by key; `order` numbers the keys in the order in which they were first put;
//! `totals` holds the sum of what the entries are charged. All three change in the same transaction, so they agree.

use crate::{CacheKey, Vector, record};
use redb::{
    AccessGuard, Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table,
    TableDefinition, WriteTransaction,
};

const EMBEDDINGS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("embeddings");
const ORDER: TableDefinition<u64, &[u8; 32]> = TableDefinition::new("order");
const TOTALS: TableDefinition<&str, u64> = TableDefinition::new("totals");
const CHARGED_BYTES: &str = "charged_bytes";

/// The most entries that one transaction evicts, so that a lowered bound does not make one enormous transaction.
const EVICTIONS_MAX: usize = 8192;

pub(super) struct Reader {
    embeddings: ReadOnlyTable<&'static [u8; 32], &'static [u8]>,
}

impl Reader {
    pub(super) fn new(database: &Database) -> Result<Self, redb::Error> {
        Ok(Self { embeddings: database.begin_read()?.open_table(EMBEDDINGS)? })
    }

    pub(super) fn get(&self, key: &CacheKey) -> Result<Option<AccessGuard<'_, &'static [u8]>>, redb::Error> {
        Ok(self.embeddings.get(key.as_bytes())?)
    }
}

/// Makes sure that the tables are there and answer. Returns the number of entries.
pub(super) fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let transaction = begin(database)?;
    let entries = {
        let embeddings = transaction.open_table(EMBEDDINGS)?;
        transaction.open_table(ORDER)?.last()?;
        transaction.open_table(TOTALS)?.get(CHARGED_BYTES)?;
        embeddings.first()?;
        embeddings.len()?
    };
    transaction.commit()?;
    Ok(entries)
}

/// Writes `entries` in one durable transaction and evicts the oldest beyond `bytes_max`. Returns the number of entries
/// held after it, and how many of `entries` were refused.
pub(super) fn write(
    database: &Database,
    entries: &[(CacheKey, Vector)],
    bytes_max: u64,
) -> Result<(u64, u64), redb::Error> {
    let transaction = begin(database)?;
    let mut refused = 0;
    let held = {
        let mut embeddings = transaction.open_table(EMBEDDINGS)?;
        let mut order = transaction.open_table(ORDER)?;
        let mut totals = transaction.open_table(TOTALS)?;
        let mut charged = totals.get(CHARGED_BYTES)?.map_or(0, |bytes| bytes.value());
        let mut next = order.last()?.map_or(0, |(number, _)| number.value() + 1);
        for (key, vector) in entries {
            match record::encode(key, vector).filter(|record| charge(record.len()) <= bytes_max) {
                None => refused += 1,
                Some(record) => {
                    charged += charge(record.len());
                    let replaced = embeddings.insert(key.as_bytes(), record.as_slice())?.map(|old| old.value().len());
                    match replaced {
                        Some(len) => charged = charged.saturating_sub(charge(len)),
                        None => {
                            order.insert(next, key.as_bytes())?;
                            next += 1;
                        }
                    }
                }
            }
        }
        evict(&mut embeddings, &mut order, &mut charged, bytes_max)?;
        totals.insert(CHARGED_BYTES, charged)?;
        embeddings.len()?
    };
    transaction.commit()?;
    Ok((held, refused))
}

fn evict(
    embeddings: &mut Table<'_, &[u8; 32], &[u8]>,
    order: &mut Table<'_, u64, &[u8; 32]>,
    charged: &mut u64,
    bytes_max: u64,
) -> Result<(), redb::Error> {
    for _ in 0..EVICTIONS_MAX {
        if *charged <= bytes_max {
            break;
        }
        let Some(key) = order.pop_first()?.map(|(_, key)| *key.value()) else { break };
        if let Some(removed) = embeddings.remove(&key)? {
            *charged = charged.saturating_sub(charge(removed.value().len()));
        }
    }
    Ok(())
}

fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate).map_err(redb::Error::from)?;
    Ok(transaction)
}

/// What a record of this length takes in the file, about. Pages have 4 KiB; a record that does not share one with two
/// others ends up alone in one, or in one of the next power of two that holds it; small records fill their pages by half
/// in the worst case.
fn charge(record_bytes: usize) -> u64 {
    const PAGE_BYTES: u64 = 4096;
    const KEYS_AND_LINKS_BYTES: u64 = 128;
    let bytes = record_bytes as u64 + KEYS_AND_LINKS_BYTES;
    if bytes > PAGE_BYTES / 3 { bytes.next_power_of_two().max(PAGE_BYTES) } else { bytes * 2 }
}
