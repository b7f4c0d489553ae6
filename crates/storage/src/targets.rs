//! Target sets: embeddings that clients compare with again and again, sent once and kept by name.
//!
//! Each set is one file of the folder, mapped into memory ([`layout`] says what is in it), and an index says which file
//! is which set's ([`index`]). A set is put in place in this order:
//!
//! 1. the whole file under a temporary name, made durable ([`writer`]);
//! 2. its own name, which no other file ever had, made durable;
//! 3. the record in the index, made durable: from here on it is the set;
//! 4. the file that it replaces is removed; whoever holds that set keeps it.
//!
//! A process that is ended between any two of these leaves the old set or the new one, and a file too many, which the
//! next start removes ([`folder`]).
//!
//! Everything here but [`TargetSets::get`], [`TargetSets::list`] and the counters blocks on the disk: call it where that
//! is fine.
//!
//! Deliberately absent: what a row means, whether ids are unique, an approximate index, expiry (a client that wants room
//! deletes), a checksum over rows, which would read gigabytes at each start, and advice to the kernel on how the maps are
//! read (a first pass over 470 MB from the disk took as long with it as without).

mod error;
mod folder;
#[cfg(feature = "fuzz")]
pub mod fuzz;
#[cfg(feature = "aws")]
mod incoming;
mod index;
mod layout;
mod map;
mod name;
mod set;
mod store;
mod writer;

pub use error::TargetError;
pub use name::{SetName, SetNameError};
pub use set::{SetDtype, SetInfo, TargetSet};
pub use store::{SetList, TargetStore};
pub use writer::SetWriter;

#[cfg(feature = "aws")]
pub(crate) use incoming::Incoming;
#[cfg(feature = "aws")]
pub(crate) use store::blocking;
pub(crate) use writer::Sealed;

use index::{Index, NotChanged};
use name::set_file;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How [`TargetSets`] bounds itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetOptions {
    /// Bytes of all sets' files, those included that are being written. Not counted are the index (less than a megabyte), a
    /// set while it is being replaced, so that a set can be replaced by one of its size however full the folder is (on
    /// the disk there may so be up to twice this for as long as that takes), and a set that was replaced or deleted and
    /// is still held by a reader.
    pub bytes_max: u64,
    /// The most sets. Each takes a mapping, of which Linux gives a process 65,530 where nobody changed that.
    pub sets_max: usize,
    /// Whether a set that finds no room takes that of others, those first that were not asked for longest: for a folder
    /// of copies of what is kept elsewhere.
    pub makes_room: bool,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self { bytes_max: 16 << 30, sets_max: 4096, makes_room: false }
    }
}

/// Sets of target embeddings in a folder. A clone is another handle of the same.
#[derive(Clone)]
pub struct TargetSets {
    shared: Arc<Shared>,
}

/// What the sets and their writers share.
struct Shared {
    folder: PathBuf,
    options: TargetOptions,
    index: Index,
    state: Mutex<State>,
    /// Held while the index and then the state change, so that both change in the same order.
    changes: Mutex<()>,
    next_sequence: AtomicU64,
    /// Goes on with each set that is asked for.
    uses: AtomicU64,
    /// Keeps other processes out.
    _lock: File,
}

struct State {
    sets: folder::Sets,
    /// Of the files of `sets`.
    sets_bytes: u64,
    /// Of the files being written.
    writing_bytes: u64,
}

impl TargetSets {
    /// Opens the folder, or makes one, and maps every set in it; reads a page or two of each.
    ///
    /// What an ended process left half done is removed. A set whose file is missing, of the wrong size or without a right
    /// header is dropped and logged; a damaged index is moved aside, logged, and made again from the files. More sets
    /// than the bounds allow are kept; there is just no room for others.
    ///
    /// # Errors
    ///
    /// [`TargetError::AlreadyOpen`] while another process (or another handle of this one) has the folder open;
    /// [`TargetError::Version`] for the folder of a later version; what the file system refuses.
    pub fn open(folder: &Path, options: TargetOptions) -> Result<Self, TargetError> {
        let opened = folder::open(folder)?;
        let sets_bytes = opened.sets.values().map(|set| set.info().bytes).sum();
        let state = State { sets: opened.sets, sets_bytes, writing_bytes: 0 };
        let shared = Shared {
            folder: folder.to_owned(),
            options,
            index: opened.index,
            state: Mutex::new(state),
            changes: Mutex::new(()),
            next_sequence: AtomicU64::new(opened.next_sequence),
            uses: AtomicU64::new(1),
            _lock: opened.lock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Starts a set, new or in place of the one that has the name. Of several at once for one name, the one that is
    /// finished last stays.
    ///
    /// # Errors
    ///
    /// [`TargetError::TooLarge`] and [`TargetError::TooMany`] when there is no room; what the disk says. What the writer
    /// was then given room for it keeps, whatever others do.
    pub fn begin(&self, name: &SetName) -> Result<SetWriter, TargetError> {
        self.shared.make_place(name.as_str())?;
        SetWriter::begin(&self.shared, name)
    }

    /// Starts a set whose file, of this many bytes, comes from elsewhere.
    ///
    /// # Errors
    ///
    /// As [`TargetSets::begin`].
    #[cfg(feature = "aws")]
    pub(crate) fn begin_file(&self, name: &SetName, bytes: u64) -> Result<Incoming, TargetError> {
        self.shared.make_place(name.as_str())?;
        Incoming::begin(&self.shared, name, bytes)
    }

    /// The set of this name.
    pub fn get(&self, name: &str) -> Option<Arc<TargetSet>> {
        let set = self.shared.state().sets.get(name).cloned()?;
        set.used(self.shared.uses.fetch_add(1, Ordering::Relaxed));
        Some(set)
    }

    /// All sets, by name.
    pub fn list(&self) -> Vec<SetInfo> {
        self.shared.state().sets.values().map(|set| set.info().clone()).collect()
    }

    /// Removes the set of this name, durably. Whether there was one.
    ///
    /// # Errors
    ///
    /// What the index says; the set is then still there.
    pub fn delete(&self, name: &str) -> Result<bool, TargetError> {
        self.shared.delete(name)
    }

    /// Bytes of all sets' files, without those being written.
    pub fn bytes(&self) -> u64 {
        self.shared.state().sets_bytes
    }

    /// Bytes that they may have.
    pub fn bytes_max(&self) -> u64 {
        self.shared.options.bytes_max
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_sequence(&self) -> u64 {
        self.next_sequence.fetch_add(1, Ordering::Relaxed)
    }

    fn check_count(&self, name: &str) -> Result<(), TargetError> {
        let state = self.state();
        let limit = self.options.sets_max;
        if state.sets.len() < limit || state.sets.contains_key(name) {
            Ok(())
        } else {
            Err(TargetError::TooMany { limit })
        }
    }

    /// [`Shared::check_count`], after others have made place where they do.
    fn make_place(&self, name: &str) -> Result<(), TargetError> {
        loop {
            let Err(refused) = self.check_count(name) else { return Ok(()) };
            let others = self.state().longest_unused(name);
            match others.filter(|_| self.options.makes_room) {
                Some(other) => self.give_up(&other)?,
                None => return Err(refused),
            }
        }
    }

    /// [`Shared::try_reserve`], after others have made room where they do.
    fn reserve(&self, name: &str, held_bytes: u64, bytes: u64) -> Result<(), TargetError> {
        loop {
            let Err(refused) = self.try_reserve(name, held_bytes, bytes) else { return Ok(()) };
            let other = {
                let state = self.state();
                let needed_bytes = state.writing_bytes.saturating_add(bytes);
                // Not one for a set that would not fit without all of them.
                let fits = self.options.makes_room && needed_bytes <= self.options.bytes_max;
                state.longest_unused(name).filter(|_| fits)
            };
            match other {
                Some(other) => self.give_up(&other)?,
                None => return Err(refused),
            }
        }
    }

    fn give_up(&self, name: &str) -> Result<(), TargetError> {
        tracing::debug!(name, "a target set makes room for others");
        self.delete(name).map(drop)
    }

    /// Takes `bytes` more for a writer of `name` that has `held_bytes`.
    ///
    /// Counted are all writers, and all sets but the one that will be replaced. Whatever the order in which writers are
    /// then finished, the sets stay within the bound: when each was let in there was room for all of them beside it.
    fn try_reserve(&self, name: &str, held_bytes: u64, bytes: u64) -> Result<(), TargetError> {
        let mut state = self.state();
        let limit_bytes = self.options.bytes_max;
        let others = state.sets_bytes - state.bytes_of(name) + (state.writing_bytes - held_bytes);
        let free_bytes = limit_bytes.saturating_sub(others);
        let needed_bytes = held_bytes.saturating_add(bytes);
        if bytes > 0 && needed_bytes > free_bytes {
            return Err(TargetError::TooLarge { needed_bytes, free_bytes, limit_bytes });
        }
        state.writing_bytes += bytes;
        Ok(())
    }

    /// Makes a complete, durable and mapped temporary file the set. Whether it replaced one.
    fn commit(&self, sealed: Sealed) -> Result<bool, TargetError> {
        let Sealed { set, mut temporary } = sealed;
        let name = set.info().name.clone();
        let path = &self.file_of(&set);
        let record = index::encode(set.info(), set.sequence(), set.etag());
        let _changing = loop {
            self.make_place(&name)?;
            let changing = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            // Others may have taken the place in between.
            if self.check_count(&name).is_ok() {
                break changing;
            }
        };
        fs::rename(&temporary.path, path).map_err(|error| TargetError::io("create", path, error))?;
        path.clone_into(&mut temporary.path);
        folder::sync(&self.folder)?;
        if let Err(NotChanged { error, certain }) = self.index.change(&name, Some(&record)) {
            // What the index may refer to has to stay; if it does not, the next start removes it.
            temporary.kept = !certain;
            return Err(error);
        }
        temporary.kept = true;
        set.used(self.uses.fetch_add(1, Ordering::Relaxed));
        let replaced = {
            let mut state = self.state();
            state.writing_bytes -= std::mem::take(&mut temporary.reserved_bytes);
            state.sets_bytes = state.sets_bytes - state.bytes_of(&name) + set.info().bytes;
            state.sets.insert(name, set)
        };
        if let Some(old) = &replaced {
            folder::remove(&self.file_of(old));
        }
        Ok(replaced.is_some())
    }

    fn delete(&self, name: &str) -> Result<bool, TargetError> {
        let _changing = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.state().sets.contains_key(name) {
            return Ok(false);
        }
        self.index.change(name, None).map_err(|not_changed| not_changed.error)?;
        let removed = {
            let mut state = self.state();
            state.sets_bytes -= state.bytes_of(name);
            state.sets.remove(name)
        };
        if let Some(old) = &removed {
            folder::remove(&self.file_of(old));
        }
        Ok(removed.is_some())
    }

    fn file_of(&self, set: &TargetSet) -> PathBuf {
        self.folder.join(set_file(&set.info().name, set.sequence()))
    }
}

impl State {
    fn bytes_of(&self, name: &str) -> u64 {
        self.sets.get(name).map_or(0, |set| set.info().bytes)
    }

    /// The set that was not asked for longest, but this one.
    fn longest_unused(&self, but: &str) -> Option<String> {
        let others = self.sets.iter().filter(|(name, _)| *name != but);
        others.min_by_key(|(_, set)| set.last_used()).map(|(name, _)| name.clone())
    }
}

#[cfg(test)]
mod tests;
