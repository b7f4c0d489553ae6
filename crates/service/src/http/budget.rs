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
    /// Holds `bytes` from now on. Whether more could be had; if not, it holds what it held.
    #[must_use]
    pub(super) fn resize(&mut self, bytes: usize) -> bool {
        match bytes.checked_sub(self.bytes) {
            Some(more) => {
                let free = &self.budget.0;
                let taken = free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(more));
                if taken.is_err() {
                    return false;
                }
            }
            None => {
                self.budget.0.fetch_add(self.bytes - bytes, Ordering::Relaxed);
            }
        }
        self.bytes = bytes;
        true
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
        assert!(one.resize(4) && one.resize(7));
        assert!(!other.resize(4));
        assert!(other.resize(3));
        assert_eq!(budget.free(), 0);
        assert!(one.resize(5));
        assert_eq!(budget.free(), 2);
        drop(one);
        assert_eq!(budget.free(), 7);
        drop(other);
        assert_eq!(budget.free(), 10);
    }
}
