//! A file on its way: bytes written where they belong under a temporary name, and beside it a journal of the ranges that
//! are there for certain.
//!
//! A range gets into the journal after its bytes are synced, some megabytes at a time; what is not in it after an end
//! without warning is fetched again. Ranges go on arriving while a sync is under way, and a file has one at most: a disk
//! that is slower than the network has fewer and larger ones. Both files are named by the content (name, size, ETag), so
//! that nothing of one content is ever continued with another. The final name comes with a rename, when all is synced and
//! checked.
//!
//! Everything here blocks, and is called on threads for that.

use super::client::Checksum;
use super::folder::{ModelFolder, sync_folder};
use super::listing::Object;
use bytes::Bytes;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is read at a time to compute a checksum.
const CHECK_BYTES: usize = 1 << 20;

pub(super) struct PartFile {
    pub(super) object: Object,
    path: PathBuf,
    journal_path: PathBuf,
    file: File,
    /// Written to by who holds `sync`.
    journal_file: File,
    journal: Mutex<Journal>,
    /// Held during a sync; what the last one could not do. The system tells an error of the disk once.
    sync: Mutex<Option<io::Error>>,
    left_bytes: AtomicU64,
    checkpoint_bytes: u64,
    /// Whoever writes still holds the folder, whether somebody waits for the outcome or not.
    folder: Arc<ModelFolder>,
}

#[derive(Default)]
struct Journal {
    unsynced: Vec<Range<u64>>,
    unsynced_bytes: u64,
    /// A checkpoint is under way, or about to be.
    checkpointing: bool,
}

/// What is to be done now that a range is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// [`PartFile::checkpoint`]; nobody has to wait for it.
    Checkpoint,
    /// [`PartFile::finish`]: all ranges of the file are written.
    Finish,
}

/// Why a file did not get its final name.
pub(super) enum FinishError {
    /// It was removed: its bytes are not those of the object.
    Checksum(String),
    Io(io::Error),
}

impl PartFile {
    /// Goes on with what an earlier process left, or begins; and the ranges that are missing, in order.
    pub(super) fn open(
        folder: &Arc<ModelFolder>,
        object: &Object,
        checkpoint_bytes: u64,
    ) -> io::Result<(Self, Vec<Range<u64>>)> {
        let (path, journal_path) = folder.part_paths(object);
        let header = format!("nexus-ranges 1 {}\n", object.digest());
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        let old = if file.metadata()?.len() == object.size { fs::read(&journal_path).ok() } else { None };
        let (kept_bytes, mut done) =
            old.as_deref().and_then(|old| parse(old, &header, object.size)).unwrap_or_default();
        let journal = if kept_bytes > 0 {
            let mut journal = File::options().write(true).open(&journal_path)?;
            // A line that was cut off is not continued.
            journal.set_len(kept_bytes)?;
            journal.seek(io::SeekFrom::End(0))?;
            journal
        } else {
            // Before the file is made anew, so that no old journal vouches for it.
            match fs::remove_file(&journal_path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => sync_folder(folder.objects())?,
            }
            file.set_len(0)?;
            reserve(&file, object.size)?;
            let mut journal = File::create(&journal_path)?;
            journal.write_all(header.as_bytes())?;
            journal
        };
        let missing = gaps(&mut done, object.size);
        let left_bytes = missing.iter().map(|range| range.end - range.start).sum();
        let part = Self {
            object: object.clone(),
            path,
            journal_path,
            file,
            journal_file: journal,
            journal: Mutex::default(),
            sync: Mutex::new(None),
            left_bytes: AtomicU64::new(left_bytes),
            checkpoint_bytes,
            folder: folder.clone(),
        };
        Ok((part, missing))
    }

    /// Bytes that are not here yet.
    pub(super) fn left_bytes(&self) -> u64 {
        self.left_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn write(&self, mut offset: u64, chunks: &[Bytes]) -> io::Result<()> {
        for chunk in chunks {
            write_at(&self.file, chunk, offset)?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    /// Notes that all bytes of a range were written. Says what is due now, to one caller.
    pub(super) fn written(&self, range: Range<u64>) -> Due {
        let bytes = range.end - range.start;
        let checkpoint = {
            let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            journal.unsynced.push(range);
            journal.unsynced_bytes += bytes;
            let due = journal.unsynced_bytes >= self.checkpoint_bytes && !journal.checkpointing;
            journal.checkpointing |= due;
            due
        };
        if self.left_bytes.fetch_sub(bytes, Ordering::AcqRel) == bytes {
            return Due::Finish;
        }
        if checkpoint { Due::Checkpoint } else { Due::Nothing }
    }

    /// Syncs what was written, then notes it, until too little is left for another one. What goes wrong is told when the
    /// file is finished.
    pub(super) fn checkpoint(&self) {
        let mut failed = self.sync.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let ranges = {
                let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
                journal.unsynced_bytes = 0;
                std::mem::take(&mut journal.unsynced)
            };
            // After an error of the disk nobody knows what is there.
            if !ranges.is_empty() && failed.is_none() {
                *failed = self.note(&ranges).err();
            }
            let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            if failed.is_some() || journal.unsynced_bytes < self.checkpoint_bytes.max(1) {
                journal.checkpointing = false;
                return;
            }
        }
    }

    fn note(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        self.file.sync_data()?;
        let lines: String = ranges.iter().map(|range| format!("{} {}\n", range.start, range.end)).collect();
        (&self.journal_file).write_all(lines.as_bytes())?;
        self.journal_file.sync_data()
    }

    /// Gives the file its final name, once its bytes are checked and on the disk.
    pub(super) fn finish(&self, checksum: Option<&Checksum>) -> Result<(), FinishError> {
        {
            let mut failed = self.sync.lock().unwrap_or_else(PoisonError::into_inner);
            self.file.sync_all().and(failed.take().map_or(Ok(()), Err)).map_err(FinishError::Io)?;
        }
        if let Some(expected) = checksum {
            let found = self.compute(expected).map_err(FinishError::Io)?;
            if found != expected.value {
                self.remove();
                let algorithm = expected.algorithm.as_str();
                return Err(FinishError::Checksum(format!("{algorithm} is {found}, expected {}", expected.value)));
            }
        }
        fs::rename(&self.path, self.folder.object_path(&self.object)).map_err(FinishError::Io)?;
        // One that stays vouches for a file that is not there, and is removed with the next revision.
        let _ = fs::remove_file(&self.journal_path);
        sync_folder(self.folder.objects()).map_err(FinishError::Io)
    }

    fn compute(&self, checksum: &Checksum) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        let mut hash = checksum.algorithm.into_impl();
        let mut buffer = vec![0; CHECK_BYTES];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(aws_smithy_types::base64::encode(hash.finalize())),
                read => hash.update(&buffer[..read]),
            }
        }
    }

    fn remove(&self) {
        for path in [&self.journal_path, &self.path] {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a damaged download");
            }
        }
    }
}

/// The ranges of a journal, and how long it is up to the end of its last whole line.
fn parse(journal: &[u8], header: &str, size: u64) -> Option<(u64, Vec<Range<u64>>)> {
    let lines = journal.strip_prefix(header.as_bytes())?;
    let mut kept = header.len();
    let mut ranges = Vec::new();
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        let range = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n')?.split_once(' '));
        let range = range.and_then(|(start, end)| Some(start.parse().ok()?..end.parse().ok()?));
        let Some(range) = range.filter(|range: &Range<u64>| range.start < range.end && range.end <= size) else {
            break;
        };
        kept += line.len();
        ranges.push(range);
    }
    Some((kept as u64, ranges))
}

/// What of `0..size` is in none of the ranges.
fn gaps(done: &mut [Range<u64>], size: u64) -> Vec<Range<u64>> {
    done.sort_by_key(|range| range.start);
    let mut missing = Vec::new();
    let mut at = 0;
    for range in done {
        if range.start > at {
            missing.push(at..range.start);
        }
        at = at.max(range.end);
    }
    if at < size {
        missing.push(at..size);
    }
    missing
}

/// Makes the file as long as it will be, with its space where the file system can promise that.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if bytes > 0 {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    file.set_len(bytes)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one range of a list of ranges")]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_up_to_its_last_whole_line() {
        let header = "nexus-ranges 1 abc\n";
        let read = |rest: &str| parse(format!("{header}{rest}").as_bytes(), header, 100);
        assert_eq!(read(""), Some((19, vec![])));
        assert_eq!(read("0 10\n20 30\n"), Some((30, vec![0..10, 20..30])));
        assert_eq!(read("0 10\n20 3"), Some((24, vec![0..10])), "cut off");
        assert_eq!(read("0 10\n\0\0\0\0"), Some((24, vec![0..10])), "zeros of a disk that lost power");
        for bad in ["10 10\n", "20 10\n", "0 101\n", "-1 5\n", "x\n", "5\n", "\n"] {
            assert_eq!(read(&format!("{bad}0 10\n")), Some((19, vec![])), "{bad:?}");
        }
        assert_eq!(parse(b"nexus-ranges 1 abd\n0 10\n", header, 100), None);
        assert_eq!(parse(b"", header, 100), None);
    }

    #[test]
    fn gaps_are_what_no_range_has() {
        assert_eq!(gaps(&mut [], 10), [0..10]);
        assert_eq!(gaps(&mut [], 0), []);
        assert_eq!(gaps(&mut [6..8, 0..2, 1..4], 10), [4..6, 8..10]);
        assert_eq!(gaps(&mut [0..4, 4..10], 10), []);
        assert_eq!(gaps(&mut [2..9, 3..4], 10), [0..2, 9..10]);
    }
}
