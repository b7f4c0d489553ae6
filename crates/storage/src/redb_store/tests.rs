//! The store under everything that can happen to it short of a crash of the machine.

use super::*;
use crate::testing::{awkward, bits, key, vector};
use futures::executor::block_on;
use redb::{ReadableDatabase, ReadableTableMetadata, TableDefinition};
use std::fs;
use tempfile::TempDir;

/// As `tables.rs` has it: what a foreign hand would write to.
const EMBEDDINGS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("embeddings");

fn options() -> RedbOptions {
    RedbOptions { batch_delay: Duration::from_millis(1), ..RedbOptions::default() }
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache").join("embeddings.redb");
    (folder, path)
}

fn open(path: &Path) -> RedbCache {
    RedbCache::open(path, options()).unwrap()
}

fn put(cache: &RedbCache, entries: impl IntoIterator<Item = (CacheKey, Vector)>) {
    cache.put(entries.into_iter().collect());
    block_on(cache.flush());
}

fn get(cache: &RedbCache, i: u64) -> Option<Vector> {
    block_on(cache.get(&[key(i)])).remove(0)
}

fn files_aside(path: &Path) -> usize {
    let names = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().contains(".redb.damaged-")).count()
}

/// Writes `record` where the entry of `key` lies, past all checks.
fn overwrite(cache: &RedbCache, key: &CacheKey, record: &[u8]) {
    let transaction = cache.store.database.begin_write().unwrap();
    transaction.open_table(EMBEDDINGS).unwrap().insert(key.as_bytes(), record).unwrap();
    transaction.commit().unwrap();
}

#[test]
fn a_hit_is_bit_for_bit_what_was_put() {
    let (_folder, path) = folder();
    let cache = open(&path);
    put(&cache, [(key(1), awkward()), (key(2), vector(&[])), (key(3), vector(&[0.5; 4096]))]);
    assert_eq!(bits(&get(&cache, 1).unwrap()), bits(&awkward()));
    assert_eq!(get(&cache, 2).as_deref(), Some(&[][..]));
    assert_eq!(get(&cache, 3), Some(vector(&[0.5; 4096])));
    assert_eq!(get(&cache, 4), None);
    assert_eq!(cache.stats(), CacheStats { entries: Some(3), hits: 3, misses: 1, ..CacheStats::default() });
}

#[tokio::test]
async fn reads_inside_a_runtime() {
    let (_folder, path) = folder();
    let cache = open(&path);
    cache.put(vec![(key(1), awkward())]);
    cache.flush().await;
    let found = cache.get(&[key(2), key(1)]).await;
    assert_eq!(found, [None, Some(awkward())]);
}

#[test]
fn everything_put_is_there_after_dropping() {
    let (_folder, path) = folder();
    // A long delay: dropping must not wait for it, nor lose what waits.
    let cache = RedbCache::open(&path, RedbOptions { batch_delay: Duration::from_secs(600), ..options() }).unwrap();
    cache.put((0..3000).map(|i| (key(i), vector(&[i as f32, 1.0]))).collect());
    drop(cache);
    let cache = open(&path);
    assert_eq!(cache.stats().entries, Some(3000));
    for i in 0..3000 {
        assert_eq!(get(&cache, i).as_deref(), Some(&[i as f32, 1.0][..]));
    }
    assert_eq!(cache.stats().dropped, 0);
}

#[test]
fn not_finite_is_never_kept() {
    let (_folder, path) = folder();
    let cache = open(&path);
    put(&cache, [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|bad| (key(1), vector(&[1.0, bad]))));
    assert_eq!(get(&cache, 1), None);
    assert_eq!((cache.stats().entries, cache.stats().dropped), (Some(0), 3));
}

#[test]
fn a_damaged_entry_is_a_miss_and_the_next_put_heals_it() {
    let (_folder, path) = folder();
    let cache = open(&path);
    let good = record::encode(&key(1), &awkward()).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..good.len())
        .map(|at| {
            let mut copy = good.clone();
            copy[at] ^= 0x10;
            copy
        })
        .collect();
    damaged.extend([vec![], good[..20].to_vec(), good[..good.len() - 1].to_vec(), [&good[..], &[0; 4]].concat()]);
    damaged.push(record::encode(&key(2), &awkward()).unwrap());
    for (i, record) in damaged.iter().enumerate() {
        overwrite(&cache, &key(1), record);
        assert_eq!(get(&cache, 1), None, "{i}");
        assert_eq!(cache.stats().damaged, i as u64 + 1);
        put(&cache, [(key(1), awkward())]);
        assert_eq!(get(&cache, 1).map(|found| bits(&found)), Some(bits(&awkward())));
    }
    assert_eq!(cache.stats().entries, Some(1));
}

#[test]
fn the_queue_is_bounded_in_entries_and_bytes() {
    let (_folder, path) = folder();
    let cache =
        RedbCache::open(&path, RedbOptions { queue_entries_max: 100, queue_bytes_max: 4000, ..options() }).unwrap();
    // Nobody else can write while this transaction is open.
    let stall = cache.store.database.begin_write().unwrap();
    cache.put((0..150).map(|i| (key(i), vector(&[1.0]))).collect());
    assert_eq!(cache.stats().dropped, 50);
    drop(stall);
    block_on(cache.flush());
    assert_eq!(cache.stats().entries, Some(100));
    let stall = cache.store.database.begin_write().unwrap();
    cache.put((1000..1010).map(|i| (key(i), vector(&[1.0; 300]))).collect());
    assert_eq!(cache.stats().dropped, 50 + 7);
    drop(stall);
    block_on(cache.flush());
    assert_eq!(cache.stats().entries, Some(103));
    // Room again.
    put(&cache, (2000..2100).map(|i| (key(i), vector(&[1.0]))));
    assert_eq!((cache.stats().entries, cache.stats().dropped), (Some(203), 57));
}

#[test]
fn a_flush_waits_for_what_was_put_before_it() {
    let (_folder, path) = folder();
    let cache = open(&path);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                for i in (thread * 1000)..(thread * 1000 + 20) {
                    put(cache, [(key(i), vector(&[i as f32]))]);
                    assert_eq!(get(cache, i).as_deref(), Some(&[i as f32][..]));
                }
            });
        }
    });
}

#[test]
fn beyond_its_bound_the_oldest_go_first() {
    let (_folder, path) = folder();
    let bytes_max = 4 << 20;
    let cache = RedbCache::open(&path, RedbOptions { bytes_max, ..options() }).unwrap();
    for batch in 0..40 {
        put(&cache, (batch * 100..batch * 100 + 100).map(|i| (key(i), vector(&[i as f32; 700]))));
    }
    let entries = cache.stats().entries.unwrap();
    assert_eq!(entries, bytes_max / 4096, "each has a page of its own");
    assert_eq!(get(&cache, 4000 - entries - 1), None);
    assert!(get(&cache, 4000 - entries).is_some());
    assert!(get(&cache, 3999).is_some());
    // An entry that is put again keeps its turn, and is counted once.
    put(&cache, [(key(4000 - entries), vector(&[2.0; 700]))]);
    assert_eq!(cache.stats().entries, Some(entries));
    drop(cache);
    let file_bytes = fs::metadata(&path).unwrap().len();
    // A small file grows by doubling.
    assert!(file_bytes < bytes_max * 2 + (1 << 20), "the file has {file_bytes} bytes");
    // A lower bound takes effect with the next write.
    let cache = RedbCache::open(&path, RedbOptions { bytes_max: bytes_max / 4, ..options() }).unwrap();
    put(&cache, [(key(9999), vector(&[1.0; 700]))]);
    assert_eq!(cache.stats().entries, Some(bytes_max / 4 / 4096));
    assert!(get(&cache, 9999).is_some());
    // What can never fit is refused, and evicts nothing.
    put(&cache, [(key(1), vector(&vec![1.0; bytes_max as usize]))]);
    assert_eq!((cache.stats().entries, cache.stats().dropped), (Some(bytes_max / 4 / 4096), 1));
}

#[test]
fn a_second_handle_is_told() {
    let (_folder, path) = folder();
    let cache = open(&path);
    put(&cache, [(key(1), awkward())]);
    let error = RedbCache::open(&path, options()).err().unwrap();
    assert!(matches!(&error, OpenError::AlreadyOpen { path: p } if *p == path), "{error}");
    assert_eq!(error.to_string(), format!("{} is in use by another process", path.display()));
    assert!(get(&cache, 1).is_some(), "the first goes on");
    drop(cache);
    open(&path);
}

#[test]
fn a_file_that_is_no_store_is_moved_aside() {
    let garbage: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for content in [b"x".to_vec(), b"SQLite format 3\0".repeat(1000), garbage, vec![0; 1 << 20]] {
        let (_folder, path) = folder();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &content).unwrap();
        let cache = open(&path);
        put(&cache, [(key(1), awkward())]);
        assert!(get(&cache, 1).is_some());
        assert_eq!(files_aside(&path), 1);
    }
    // A file without content is a store that nobody wrote to yet.
    let (_folder, path) = folder();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "").unwrap();
    put(&open(&path), [(key(1), awkward())]);
    assert_eq!(files_aside(&path), 0);
}

/// A store's file with 200 entries, closed cleanly.
fn sample(path: &Path) -> Vec<u8> {
    let cache = open(path);
    put(&cache, (0..200).map(|i| (key(i), vector(&[i as f32; 64]))));
    drop(cache);
    fs::read(path).unwrap()
}

/// Opens what is at `path`, whatever it is, and uses it: a hit must be right, and a new entry must not be lost while
/// the store says that it is fine.
fn exercise(path: &Path) -> u64 {
    let cache = open(path);
    let mut hits = 0;
    for i in 0..200 {
        if let Some(found) = get(&cache, i) {
            assert_eq!(*found, [i as f32; 64]);
            hits += 1;
        }
    }
    put(&cache, [(key(5000), vector(&[5.0]))]);
    let _ = get(&cache, 5000);
    drop(cache);
    // The start after that works in any case.
    let cache = open(path);
    put(&cache, [(key(5001), vector(&[5.0]))]);
    hits
}

#[test]
fn a_truncated_file_is_replaced() {
    let (_folder, path) = folder();
    let good = sample(&path);
    for part in 0..8 {
        fs::write(&path, &good[..good.len() * part / 8]).unwrap();
        exercise(&path);
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(exercise(&path), 200);
    assert!(files_aside(&path) <= 1, "the last one only is kept");
}

#[test]
fn flipped_bytes_anywhere_in_the_file_never_give_a_wrong_vector() {
    let (_folder, path) = folder();
    let good = sample(&path);
    let mut state = 12345u64;
    for round in 0..30 {
        let mut file = good.clone();
        for _ in 0..1 + round % 8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Half of them into the first pages, where the file's own structure is.
            let range = if state & 1 == 0 { 8192 } else { file.len() as u64 };
            file[((state >> 16) % range) as usize] ^= (state >> 8) as u8 | 1;
        }
        fs::write(&path, &file).unwrap();
        exercise(&path);
    }
}

#[test]
fn folders_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = RedbCache::open(file.join("sub/embeddings.redb"), options()).err().unwrap();
    assert!(matches!(error, OpenError::Folder { .. }), "{error}");
    assert_eq!(error.to_string(), format!("cannot create the folder {}", file.join("sub").display()));
    assert!(std::error::Error::source(&error).is_some());
    // A folder where the file should be.
    let error = RedbCache::open(folder.path(), options()).err().unwrap();
    assert!(matches!(error, OpenError::Store { .. }), "{error}");
    assert_eq!(error.to_string(), format!("cannot open {}", folder.path().display()));
    assert!(folder.path().is_dir(), "and it stays");
}

#[test]
fn a_full_disk_drops_and_goes_on() {
    // `/dev/full` cannot stand in for a file that is read back, so the failure is made by hand.
    let (_folder, path) = folder();
    let cache = open(&path);
    let failed: Option<()> =
        cache.store.guard("write to", || Err(redb::Error::Io(std::io::ErrorKind::StorageFull.into())));
    assert!(failed.is_none());
    put(&cache, [(key(1), awkward())]);
    assert!(get(&cache, 1).is_some(), "what is not the file's fault does not retire it");
}

#[test]
fn damage_found_while_reading_retires_the_file() {
    let (_folder, path) = folder();
    let cache = open(&path);
    put(&cache, [(key(1), awkward())]);
    for work in [|| panic!("as redb might"), || Err(redb::Error::Corrupted("as redb says".to_owned()))] {
        let failed: Option<()> = cache.store.guard("read", work);
        assert!(failed.is_none());
    }
    assert_eq!(get(&cache, 1), None);
    put(&cache, [(key(2), awkward())]);
    assert_eq!((get(&cache, 2), cache.stats().dropped), (None, 1));
    assert_eq!((files_aside(&path), path.exists()), (1, false));
    drop(cache);
    put(&open(&path), [(key(1), awkward())]);
}

#[test]
fn the_tables_agree_with_each_other() {
    let (_folder, path) = folder();
    let cache = RedbCache::open(&path, RedbOptions { bytes_max: 100_000, ..options() }).unwrap();
    for round in 0..30u64 {
        put(&cache, (0..20).map(|i| (key((round * 13 + i * 7) % 150), vector(&vec![1.0; (i * 50) as usize]))));
    }
    let transaction = cache.store.database.begin_read().unwrap();
    let order: TableDefinition<u64, &[u8; 32]> = TableDefinition::new("order");
    let entries = transaction.open_table(EMBEDDINGS).unwrap().len().unwrap();
    assert_eq!(transaction.open_table(order).unwrap().len().unwrap(), entries);
    assert_eq!(cache.stats().entries, Some(entries));
}
