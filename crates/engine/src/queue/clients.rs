//! How many tokens of clients with names wait: one of them has its part of the queue, and others find room.
//!
//! The rule is that of a dynamic threshold (Choudhury and Hahne 1998, <https://doi.org/10.1109/90.664262>): who has something
//! already may have, all in all, no more than would stay free. What is counted is given back when it is dropped, so that a job
//! takes its tokens along, however it leaves.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tokens of all clients that ever came. Their names are those of the keys.
#[derive(Debug, Default)]
pub(super) struct Clients(HashMap<Arc<str>, Arc<AtomicUsize>>);

impl Clients {
    /// Whether `client` may have `tokens` more, of which `free` are free now.
    pub(super) fn may_have(&self, client: &str, tokens: usize, free: usize) -> bool {
        let held = self.0.get(client).map_or(0, |held| held.load(Ordering::Relaxed));
        // A client's only request may have all that is free.
        held == 0 || held.saturating_add(tokens) <= free.saturating_sub(tokens)
    }

    /// What `client` has.
    #[cfg(test)]
    pub(super) fn held(&self, client: &str) -> usize {
        self.0.get(client).map_or(0, |held| held.load(Ordering::Relaxed))
    }

    /// Counts `tokens` for `client`.
    pub(super) fn take(&mut self, client: Arc<str>, tokens: usize) -> Part {
        Part::new(Arc::clone(self.0.entry(client).or_default()), tokens)
    }
}

/// Tokens that are counted for a client until this is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    held: Arc<AtomicUsize>,
    tokens: usize,
}

impl Part {
    fn new(held: Arc<AtomicUsize>, tokens: usize) -> Self {
        held.fetch_add(tokens, Ordering::Relaxed);
        Self { held, tokens }
    }

    /// So many for the same client.
    pub(super) fn another(&self, tokens: usize) -> Self {
        Self::new(Arc::clone(&self.held), tokens)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.held.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_what_would_stay_free_and_its_only_request_all() {
        let mut clients = Clients::default();
        assert!(clients.may_have("ann", 100, 100));
        let part = clients.take("ann".into(), 40);
        // With ten more, fifty of a hundred.
        assert!(clients.may_have("ann", 10, 60) && !clients.may_have("ann", 11, 60));
        assert!(clients.may_have("robot", 60, 60));
        let another = part.another(10);
        assert!(!clients.may_have("ann", 1, 50));
        drop(part);
        assert!(clients.may_have("ann", 20, 50));
        drop(another);
        assert!(clients.may_have("ann", 100, 100));
    }
}
