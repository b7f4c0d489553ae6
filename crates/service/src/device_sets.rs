//! Resident target sets in the memory of a GPU, where they are searched faster than they can be read from the CPU's.
//!
//! The device says which rows may be among the best, with a margin for its rounding; those are ranked on the CPU, with the
//! bits of the search there. Where the margin is not enough, where a set is not on the device, and whenever the device fails,
//! the CPU searches: nothing is ever waited for.
//!
//! A set is brought to the device when it is asked for a second time, in the background. What was used longest ago makes
//! room. Deliberately absent: vectors that come with a request, whose way to a GPU takes longer than the CPU needs for them.

use nexus_compute::ComputeError;
use nexus_compute::cuda::{Candidates, Cuda, DeviceRows, Format, Gpu};
use nexus_storage::{SetDtype, TargetSet};
use nexus_vectors::{Dtype, Rows, Scored, Sources, top_k_among};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Smaller sets are read from the CPU's memory in less time than a GPU takes to begin.
const SET_BYTES_MIN: usize = 8 << 20;

/// The sets on a device, if there is one.
#[derive(Debug, Default)]
pub struct DeviceSets(OnceLock<Arc<dyn Finder>>);

trait Finder: fmt::Debug + Send + Sync {
    /// For each source of length 1, what may be among its `k` nearest; `None` where the device does not know.
    fn candidates(self: Arc<Self>, set: &Arc<TargetSet>, sources: &[Vec<f32>], k: usize) -> Option<Vec<Candidates>>;
}

impl DeviceSets {
    /// From now on, sets of at most `bytes_max` bytes together are kept on this device. The first device stays.
    pub fn open<G: Gpu>(&self, device: Cuda<G>, bytes_max: u64) {
        let _ = self.0.set(Arc::new(OnDevice { device, bytes_max, entries: Mutex::default(), is_gone: false.into() }));
    }

    /// For each source the `k` rows of `set` that are most similar, best first, as the CPU ranks them; `None` where the CPU has
    /// to search.
    pub(crate) fn nearest(&self, set: &Arc<TargetSet>, sources: &Sources, k: usize) -> Option<Vec<Vec<Scored>>> {
        let finder = self.0.get()?;
        let dtype = Dtype::parse(set.info().dtype.name())?;
        let rows = Rows::from_bytes(set.rows(), dtype, set.info().dimensions).ok()?;
        if set.rows().len() < SET_BYTES_MIN || sources.dim() != rows.dim() {
            return None;
        }
        let units: Vec<Vec<f32>> = (0..sources.len()).map(|source| sources.unit(source)).collect();
        let found = finder.clone().candidates(set, &units, k)?;
        let candidates: Vec<Vec<usize>> = found.iter().map(|found| found.rows.clone()).collect();
        let ranked = top_k_among(sources, rows, set.norms(), &candidates, k).ok()?;
        let enough = |(found, ranked): (&Candidates, &Vec<Scored>)| {
            let last = ranked.last().map_or(f32::INFINITY, |last| last.similarity);
            found.is_enough(if ranked.len() < k.min(rows.len()) { f32::NEG_INFINITY } else { last })
        };
        found.iter().zip(&ranked).all(enough).then_some(ranked)
    }
}

#[derive(Debug)]
struct OnDevice<G: Gpu> {
    device: Cuda<G>,
    bytes_max: u64,
    /// The one used last is last.
    entries: Mutex<Vec<Entry<G>>>,
    /// The device failed.
    is_gone: AtomicBool,
}

#[derive(Debug)]
struct Entry<G: Gpu> {
    /// Gone when the set was replaced or deleted.
    set: Weak<TargetSet>,
    place: Place<G>,
}

#[derive(Debug)]
enum Place<G: Gpu> {
    /// Asked for once.
    Elsewhere,
    /// On its way.
    Coming(u64),
    There(Arc<DeviceRows<G>>, u64),
    /// It does not fit.
    Refused,
}

impl<G: Gpu> Finder for OnDevice<G> {
    fn candidates(self: Arc<Self>, set: &Arc<TargetSet>, sources: &[Vec<f32>], k: usize) -> Option<Vec<Candidates>> {
        if self.is_gone.load(Ordering::Relaxed) {
            return None;
        }
        let rows = self.rows(set)?;
        match rows.search(sources, k) {
            Ok(found) => found,
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }
}

impl<G: Gpu> OnDevice<G> {
    /// The set, if it is there. If it was asked for before, it is sent for.
    fn rows(self: &Arc<Self>, set: &Arc<TargetSet>) -> Option<Arc<DeviceRows<G>>> {
        let info = set.info();
        let format = format_of(info.dtype)?;
        let bytes = DeviceRows::<G>::bytes(info.rows, info.dimensions, format);
        let mut entries = self.entries();
        entries.retain(|entry| entry.set.strong_count() > 0);
        let Some(at) = entries.iter().position(|entry| std::ptr::eq(entry.set.as_ptr(), Arc::as_ptr(set))) else {
            let place = if bytes > self.bytes_max { Place::Refused } else { Place::Elsewhere };
            entries.push(Entry { set: Arc::downgrade(set), place });
            return None;
        };
        let mut entry = entries.remove(at);
        let found = match &entry.place {
            Place::There(rows, _) => Some(rows.clone()),
            // Where others on their way have taken the room, it is asked for again another time.
            Place::Elsewhere if !make_room(&mut entries, self.bytes_max - bytes) => None,
            Place::Elsewhere => {
                entry.place = Place::Coming(bytes);
                let (sets, set) = (self.clone(), set.clone());
                let bring = move || sets.bring(&set, format, bytes);
                if std::thread::Builder::new().name("set-to-device".into()).spawn(bring).is_err() {
                    entry.place = Place::Elsewhere;
                }
                None
            }
            Place::Coming(_) | Place::Refused => None,
        };
        entries.push(entry);
        found
    }

    fn bring(&self, set: &Arc<TargetSet>, format: Format, bytes: u64) {
        let brought = DeviceRows::new(&self.device, format, set.info().dimensions, set.rows(), set.norms());
        let place = match brought {
            Ok(rows) => Place::There(Arc::new(rows), bytes),
            Err(error) => {
                self.failed(&error);
                Place::Refused
            }
        };
        let mut entries = self.entries();
        if let Some(entry) = entries.iter_mut().find(|entry| std::ptr::eq(entry.set.as_ptr(), Arc::as_ptr(set))) {
            entry.place = place;
        }
    }

    fn failed(&self, error: &ComputeError) {
        if error.is_device_failure() && !self.is_gone.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "target sets are searched on the CPU from now on: the GPU failed");
        } else {
            tracing::warn!(%error, "a target set is searched on the CPU");
        }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry<G>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes sets off the device, those used longest ago first, until at most `bytes_max` are left. What is on its way stays;
/// where that is more, nothing is taken off, and this is false.
fn make_room<G: Gpu>(entries: &mut [Entry<G>], bytes_max: u64) -> bool {
    let coming = |entry: &Entry<G>| if let Place::Coming(bytes) = entry.place { bytes } else { 0 };
    if entries.iter().map(coming).sum::<u64>() > bytes_max {
        return false;
    }
    let held = |entry: &Entry<G>| match entry.place {
        Place::Coming(bytes) | Place::There(_, bytes) => bytes,
        Place::Elsewhere | Place::Refused => 0,
    };
    let mut bytes: u64 = entries.iter().map(held).sum();
    for entry in entries {
        if bytes <= bytes_max {
            break;
        }
        if let Place::There(_, freed) = entry.place {
            bytes -= freed;
            entry.place = Place::Elsewhere;
        }
    }
    true
}

/// How a device stores rows of this type; f16 it does not.
fn format_of(dtype: SetDtype) -> Option<Format> {
    match dtype {
        SetDtype::F32 => Some(Format::F32),
        SetDtype::Bf16 => Some(Format::Bf16),
        SetDtype::F16 => None,
    }
}

#[cfg(test)]
mod tests;
