//! How many bytes of request bodies are in memory, and how many may be.
//!
//! Bytes are counted as they arrive: a length that was only announced takes nothing from others. Deliberately absent:
//! waiting. Who can not have what is asked for gives up what is held, or two large bodies, half read, could wait for
//! each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes that all requests share.
#[derive(Clone, Debug)]
pub struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// Of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// What could be had at this moment.
    pub(super) fn free(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Nothing yet, for one request.
    pub(super) fn share(&self) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }
}

/// What one request holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    bytes: usize,
}

impl Share {
    /// Takes `more` bytes, all or none. Whether they could be had.
    #[must_use]
    pub(super) fn grow(&mut self, more: usize) -> bool {
        let taken = self.budget.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(more));
        self.bytes += if taken.is_ok() { more } else { 0 };
        taken.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_comes_back() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.share(), budget.share());
        assert!(one.grow(4) && one.grow(3));
        assert!(!other.grow(4));
        assert!(other.grow(3));
        assert_eq!(budget.free(), 0);
        drop(one);
        assert_eq!(budget.free(), 7);
        drop(other);
        assert_eq!(budget.free(), 10);
    }
}
