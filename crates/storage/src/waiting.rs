//! What waits to be written, counted and bounded.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Entries that wait, and their bytes.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

impl Waiting {
    /// Takes a place for one entry more; whether there was one.
    pub(crate) fn reserve(&self, bytes: usize, entries_max: usize, bytes_max: usize) -> bool {
        // Add first and look then: two callers at once can both be refused, but never both get the last place.
        let entries_before = self.entries.fetch_add(1, Ordering::Relaxed);
        let bytes_before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = entries_before < entries_max && bytes_before.saturating_add(bytes) <= bytes_max;
        if !fits {
            self.release(1, bytes);
        }
        fits
    }

    /// Gives the places of entries back.
    pub(crate) fn release(&self, entries: usize, bytes: usize) {
        self.entries.fetch_sub(entries, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Entries that wait now.
    #[cfg(feature = "aws")]
    pub(crate) fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }
}
