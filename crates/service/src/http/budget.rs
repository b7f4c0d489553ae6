//! How much of something bounded is held, and by whom: bytes of request bodies, requests that are worked on.
//!
//! Where clients have names, none of them takes what is left: a client that holds some already may hold, all in all, no
//! more than would stay free (a dynamic threshold: Choudhury and Hahne 1998, <https://doi.org/10.1109/90.664262>). One alone
//! comes to half of it, two to a third each, and whoever comes next always finds room.
//!
//! What is held is counted as it comes: a length that was only announced takes nothing from others. Deliberately absent:
//! waiting. Who can not have what is asked for gives up what is held, or two large bodies, half read, could wait for
//! each other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What all requests share.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    /// By the names of clients that hold something.
    clients: HashMap<Arc<str>, usize>,
}

/// Why something was not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exhausted {
    /// All of it is held.
    All,
    /// The client holds its part of it.
    Client,
}

impl Budget {
    /// Of `max` in all.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Inner { max, held: Mutex::default() }))
    }

    /// What there is in all.
    pub fn max(&self) -> usize {
        self.0.max
    }

    /// What is held at this moment.
    pub fn held(&self) -> usize {
        self.lock().all
    }

    /// Whether `amount` more could be had at this moment.
    pub(super) fn has(&self, amount: usize) -> bool {
        amount <= self.0.max - self.held()
    }

    /// Nothing yet, for one request of `client`, if it has a name.
    pub(super) fn share(&self, client: Option<Arc<str>>) -> Share {
        Share { budget: self.clone(), client, amount: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing between lock and unlock panics.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one request holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    client: Option<Arc<str>>,
    amount: usize,
}

impl Share {
    /// Holds `amount` from now on. If that can not be had, it holds what it held.
    pub(super) fn resize(&mut self, amount: usize) -> Result<(), Exhausted> {
        let mut held = self.budget.lock();
        if let Some(more) = amount.checked_sub(self.amount) {
            let left = (self.budget.0.max - held.all).checked_sub(more).ok_or(Exhausted::All)?;
            // A client's only request may have all that is free.
            let of_client = self.client.as_ref().and_then(|client| held.clients.get(client)).copied().unwrap_or(0);
            if of_client > self.amount && of_client + more > left {
                return Err(Exhausted::Client);
            }
        }
        held.all = held.all - self.amount + amount;
        if let Some(client) = &self.client {
            match held.clients.entry(Arc::clone(client)) {
                Entry::Occupied(mut entry) => {
                    let of_client = *entry.get() - self.amount + amount;
                    if of_client == 0 {
                        entry.remove();
                    } else {
                        *entry.get_mut() = of_client;
                    }
                }
                Entry::Vacant(entry) if amount > 0 => {
                    entry.insert(amount);
                }
                Entry::Vacant(_) => {}
            }
        }
        drop(held);
        self.amount = amount;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Less is always to be had.
        let _ = self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_comes_back() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.share(None), budget.share(None));
        assert_eq!((one.resize(4), one.resize(7)), (Ok(()), Ok(())));
        assert_eq!(other.resize(4), Err(Exhausted::All));
        assert_eq!(other.resize(3), Ok(()));
        assert_eq!(budget.held(), 10);
        assert_eq!(one.resize(5), Ok(()));
        assert!(budget.has(2) && !budget.has(3));
        drop(one);
        assert_eq!(budget.held(), 3);
        drop(other);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn no_client_takes_what_others_would_need() {
        let budget = Budget::new(12);
        let take = |client: &str| {
            let mut share = budget.share(Some(client.into()));
            share.resize(1).map(|()| share)
        };
        let greedy: Vec<Share> = std::iter::from_fn(|| take("greedy").ok()).collect();
        assert_eq!(greedy.len(), 6, "half of it");
        assert_eq!(take("greedy").err(), Some(Exhausted::Client));
        let modest: Vec<Share> = std::iter::from_fn(|| take("modest").ok()).collect();
        assert_eq!(modest.len(), 3, "half of what is left");
        assert!(take("third").is_ok());
        drop(greedy);
        assert!(take("modest").is_ok(), "what is given back is for everybody");
        drop(modest);
        assert_eq!(budget.held(), 0);
        assert!(budget.lock().clients.is_empty(), "nothing is left of clients that went");
    }

    #[test]
    fn an_only_request_may_have_all_that_is_free() {
        let budget = Budget::new(10);
        let mut only = budget.share(Some("ann".into()));
        assert_eq!((only.resize(6), only.resize(10)), (Ok(()), Ok(())));
        assert_eq!(budget.share(Some("ann".into())).resize(1), Err(Exhausted::All));
        assert_eq!(only.resize(6), Ok(()));
        let mut second = budget.share(Some("ann".into()));
        assert_eq!(second.resize(1), Err(Exhausted::Client));
        assert_eq!(budget.share(Some("bob".into())).resize(4), Ok(()));
    }
}
