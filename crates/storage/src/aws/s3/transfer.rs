//! The transfer of what is missing of a listing: ranges of all files through one bounded pool.
//!
//! All of it is one future without tasks of its own, so that dropping it ends it; connections and disk have threads of
//! their own below it. An attempt that breaks off keeps what it brought: the next one asks for the rest.

use super::arriving::Arrivals;
use super::client::{Checksum, Client};
use super::explain::Fault;
use super::folder::{ModelFolder, free_bytes};
use super::listing::{Listing, Object};
use super::pace::{Next, Pace, Traffic};
use super::part::{Due, FinishError, PartFile};
use super::retry::Tries;
use super::{S3Options, blocking};
use crate::aws::Trouble;
use crate::error_chain;
use crate::{FetchProgress, ModelStoreError, Progress};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Bytes that are gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;
/// Progress is told no more often.
const TELL_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Transfer<'a> {
    pub(super) client: &'a Client,
    pub(super) options: &'a S3Options,
    pub(super) folder: &'a Arc<ModelFolder>,
    pub(super) meter: &'a Meter<'a>,
    pub(super) traffic: Traffic,
    /// Told of each file that is complete.
    pub(super) arrivals: Option<&'a Arc<Arrivals>>,
}

/// A file that is being fetched.
struct Job {
    part: Arc<PartFile>,
    checksum: Option<Checksum>,
    /// Empty for a file of which everything is here but the final name.
    missing: Vec<Range<u64>>,
}

impl Transfer<'_> {
    /// Fetches what is missing. When this returns well, all objects of the listing are in the folder.
    pub(super) async fn run(&self, listing: &Listing) -> Result<(), Fault> {
        let total = listing.bytes();
        let (folder, objects) = (self.folder.clone(), listing.objects.clone());
        let mut missing: Vec<Object> =
            blocking(move || objects.into_iter().filter(|object| !folder.has(object)).collect()).await;
        // What is small first, then one shard after the other: who loads the model begins with the first.
        missing.sort_by_key(Object::is_weights);
        if missing.is_empty() {
            return Ok(());
        }
        let checksums: Vec<_> = stream::iter(missing.clone())
            .map(|object| self.checksum(object))
            .buffered(self.options.connections_max)
            .try_collect()
            .await?;
        let jobs = self.open(listing, missing, checksums).await?;
        let left: u64 = jobs.iter().map(|job| job.part.left_bytes()).sum();
        self.meter.start(total - left, total);

        let ranges: Vec<(Arc<Job>, Range<u64>)> = jobs
            .iter()
            .flat_map(|job| pieces(&job.missing, self.options.range_bytes).map(|range| (job.clone(), range)))
            .collect();
        let outcome = stream::iter(ranges)
            .map(|(job, range)| self.range(job, range))
            .buffer_unordered(self.options.connections_max)
            .try_for_each(|()| async { Ok(()) })
            .await;
        if outcome.is_err() {
            // Writes whose range was dropped with the first error still go on, as do syncs, and no other attempt may meet
            // them.
            while jobs.iter().any(|job| Arc::strong_count(&job.part) > 1) {
                sleep(Duration::from_millis(2)).await;
            }
            // So that a next attempt, or the next process, finds as much as there is. A disk that cannot do that has
            // been complained about.
            blocking(move || jobs.iter().for_each(|job| job.part.checkpoint())).await;
        }
        outcome
    }

    async fn checksum(&self, object: Object) -> Result<Option<Checksum>, Fault> {
        let mut tries = self.options.tries();
        loop {
            match self.client.checksum(&object).await {
                Ok(checksum) => return Ok(checksum),
                Err(fault) => tries.wait(fault, &self.client.url(&object.key)).await?,
            }
        }
    }

    /// Makes room, checks that there is some, and opens the files.
    async fn open(
        &self,
        listing: &Listing,
        missing: Vec<Object>,
        checksums: Vec<Option<Checksum>>,
    ) -> Result<Vec<Arc<Job>>, Fault> {
        let (folder, listing) = (self.folder.clone(), listing.clone());
        let (spare_bytes, checkpoint_bytes) = (self.options.spare_bytes, self.options.checkpoint_bytes);
        let opened = blocking(move || {
            folder.prune(&listing);
            let needed: u64 = missing.iter().map(|object| folder.needed_bytes(object)).sum();
            if needed > 0 {
                let enough = |free| free >= needed.saturating_add(spare_bytes);
                folder.make_room(|| free_bytes(folder.root()).is_none_or(enough));
            }
            if let Some(free) = free_bytes(folder.root())
                && needed > 0
                && free < needed.saturating_add(spare_bytes)
            {
                return Err(ModelStoreError::DiskFull {
                    place: folder.root().display().to_string(),
                    needed_bytes: needed.saturating_add(spare_bytes),
                    free_bytes: free,
                    source: None,
                });
            }
            let jobs = missing.iter().zip(checksums).map(|(object, checksum)| {
                let (part, missing) = PartFile::open(&folder, object, checkpoint_bytes)
                    .map_err(|error| disk_error(folder.root(), object.size, error))?;
                Ok(Arc::new(Job { part: Arc::new(part), checksum, missing }))
            });
            jobs.collect()
        });
        Ok(opened.await?)
    }

    /// One range, in as many attempts as it takes; with the last one of a file, the file's end.
    async fn range(&self, job: Arc<Job>, range: Range<u64>) -> Result<(), Fault> {
        let object = &job.part.object;
        let place = || self.client.url(&object.key);
        let mut tries = self.options.tries();
        let mut at = range.start;
        while at < range.end {
            let before = at;
            if let Err(fault) = self.attempt(&job.part, &mut at, range.end).await {
                if at > before {
                    tries.progressed();
                }
                tries.wait(fault, &place()).await?;
            }
        }
        let (part, checksum, size) = (job.part.clone(), job.checksum.clone(), object.size);
        let (folder, arrivals) = (self.folder.clone(), self.arrivals.cloned());
        let finished = blocking(move || {
            // An empty file has one range, and it is empty as well.
            match if range.is_empty() { Due::Finish } else { part.written(range) } {
                Due::Nothing => Ok(false),
                Due::Checkpoint => {
                    // On a thread of its own, so that this connection goes on.
                    drop(tokio::task::spawn_blocking(move || part.checkpoint()));
                    Ok(false)
                }
                Due::Finish => {
                    part.finish(checksum.as_ref())?;
                    if let Some(arrivals) = arrivals {
                        arrivals.arrived(&folder, &part.object);
                    }
                    Ok(true)
                }
            }
        });
        let complete = finished.await.map_err(|error| match error {
            FinishError::Io(error) => Fault::Final(disk_error(self.folder.root(), size, error)),
            FinishError::Checksum(words) => {
                tracing::warn!(place = place(), problem = words, "a download is damaged, and fetched again");
                Fault::Damaged { place: place(), problem: words }
            }
        })?;
        if complete {
            self.meter.tell(self.folder);
        }
        Ok(())
    }

    /// One request. `at` is moved on by what was written.
    async fn attempt(&self, part: &Arc<PartFile>, at: &mut u64, end: u64) -> Result<(), Fault> {
        let window = self.options.stall_window;
        let mut body = self.client.range(&part.object, &(*at..end), window).await?;
        let mut pace = Pace::new(&self.traffic, self.options.bytes_per_s_min, window);
        let mut chunks = Vec::new();
        let mut gathered = 0;
        let broken = loop {
            let next = pace.next(&mut body).await;
            match next {
                Next::Chunk(chunk) => {
                    gathered += chunk.len();
                    chunks.push(chunk);
                }
                Next::End => {
                    break (*at + (gathered as u64) < end)
                        .then(|| (Trouble::Unreachable, "the connection ended in the middle".to_owned()));
                }
                Next::Broken(error) => break Some((Trouble::Unreachable, error_chain(error.as_ref()))),
                Next::Slow(bytes) => {
                    break Some((Trouble::TimedOut, format!("only {bytes} bytes came in {window:?}")));
                }
            }
            if *at + gathered as u64 > end {
                let words = format!("more bytes came than the {} that were asked for", end - *at);
                return Err(Fault::Transient(Trouble::Other, words));
            }
            if gathered >= WRITE_BYTES {
                self.write(part, at, std::mem::take(&mut chunks), std::mem::take(&mut gathered)).await?;
            }
        };
        self.write(part, at, chunks, gathered).await?;
        broken.map_or(Ok(()), |(trouble, words)| Err(Fault::Transient(trouble, words)))
    }

    async fn write(&self, part: &Arc<PartFile>, at: &mut u64, chunks: Vec<Bytes>, bytes: usize) -> Result<(), Fault> {
        if bytes == 0 {
            return Ok(());
        }
        let (target, offset) = (part.clone(), *at);
        blocking(move || target.write(offset, &chunks))
            .await
            .map_err(|error| disk_error(self.folder.root(), part.left_bytes(), error))?;
        *at += bytes as u64;
        self.meter.add(bytes as u64, self.folder);
        Ok(())
    }
}

/// Cuts ranges at multiples of `bytes`. A file that misses nothing has one piece, and that is empty.
fn pieces(missing: &[Range<u64>], bytes: u64) -> impl Iterator<Item = Range<u64>> + '_ {
    let nothing = missing.is_empty().then_some(0..0);
    let cut = missing.iter().flat_map(move |range| {
        let range = range.clone();
        (range.start / bytes..range.end.div_ceil(bytes))
            .map(move |n| range.start.max(n * bytes)..range.end.min((n + 1).saturating_mul(bytes)))
    });
    nothing.into_iter().chain(cut)
}

/// What an error of the disk means, with `bytes` still to be written.
pub(super) fn disk_error(folder: &Path, bytes: u64, source: io::Error) -> ModelStoreError {
    let place = folder.display().to_string();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            let free_bytes = free_bytes(folder).unwrap_or(0);
            ModelStoreError::DiskFull { place, needed_bytes: bytes, free_bytes, source: Some(source) }
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ModelStoreError::Denied {
            place,
            advice: "let the user that runs the service write this folder, or set NEXUS_MODELS_DIR to another"
                .to_owned(),
        },
        _ => ModelStoreError::Io { place, source },
    }
}

/// How far a download is, told from time to time.
pub(super) struct Meter<'a> {
    progress: &'a Progress<'a>,
    done: AtomicU64,
    total: AtomicU64,
    told: Mutex<Instant>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(progress: &'a Progress<'a>) -> Self {
        Self { progress, done: AtomicU64::new(0), total: AtomicU64::new(0), told: Mutex::new(Instant::now()) }
    }

    /// So much is here of so much, and this is told.
    pub(super) fn start(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        (self.progress)(FetchProgress { bytes_done: done, bytes_total: total });
    }

    fn add(&self, bytes: u64, folder: &ModelFolder) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= TELL_EVERY {
            *told = Instant::now();
            drop(told);
            self.tell(folder);
        }
    }

    /// Tells how far it is now.
    fn tell(&self, folder: &ModelFolder) {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        (self.progress)(FetchProgress { bytes_done: done, bytes_total: total });
        // A few bytes into the page cache.
        folder.tell(done, total);
    }
}

impl S3Options {
    pub(super) fn tries(&self) -> Tries {
        Tries::new(self.attempts_max, self.patience)
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one range of a list of ranges")]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_at_multiples_and_cover_what_is_missing() {
        let all = |missing: &[Range<u64>], bytes| pieces(missing, bytes).collect::<Vec<_>>();
        assert_eq!(all(&[0..10], 4), [0..4, 4..8, 8..10]);
        assert_eq!(all(&[3..9, 11..12], 4), [3..4, 4..8, 8..9, 11..12]);
        assert_eq!(all(&[0..8], 4), [0..4, 4..8]);
        assert_eq!(all(&[0..8], u64::MAX), [0..8]);
        assert_eq!(all(&[], 4), [0..0]);
    }

    #[test]
    fn a_full_disk_is_told_from_other_errors_and_names_folder_and_bytes() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge] {
            let error = disk_error(Path::new("/nowhere"), 77, kind.into());
            assert!(matches!(error, ModelStoreError::DiskFull { needed_bytes: 77, source: Some(_), .. }), "{error:?}");
            assert!(error.to_string().contains("/nowhere") && error.to_string().contains("77 bytes"), "{error}");
        }
        let error = disk_error(Path::new("/nowhere"), 77, io::ErrorKind::ReadOnlyFilesystem.into());
        assert!(matches!(error, ModelStoreError::Denied { .. }));
        assert!(matches!(disk_error(Path::new("/x"), 1, io::Error::other("fire")), ModelStoreError::Io { .. }));
    }
}
