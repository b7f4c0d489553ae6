//! Connections that are open: how many there may be, and which one goes when another comes.
//!
//! A connection without a request is worth keeping for its client, and nothing more: where there is no room, the one that has
//! been without for longest is closed. So whoever opens thousands and says nothing takes them from nobody but himself. A
//! connection with a request in flight is never closed for another.
//!
//! Deliberately absent: limits for each address. Behind a load balancer, all clients have the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// For the number of requests of a connection that is to end: more than there can be.
const EVICTED: usize = usize::MAX / 2;

/// All connections.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    accepted: AtomicU64,
    refused: AtomicU64,
    evicted: AtomicU64,
    started: Instant,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Connection {
    started: Instant,
    requests: AtomicUsize,
    /// Since when it has been without a request, in nanoseconds since the start.
    idle_since_ns: AtomicU64,
    close: Notify,
}

impl Connections {
    /// At most `max`.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Inner {
            max,
            open: Mutex::default(),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            started: Instant::now(),
        }))
    }

    /// How many there may be.
    pub fn max(&self) -> usize {
        self.0.max
    }

    /// How many there are.
    pub fn open(&self) -> usize {
        self.lock().len()
    }

    /// How many were turned away since the start, for want of room: new ones, and idle ones that went for new ones.
    pub fn turned_away(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed) + self.0.evicted.load(Ordering::Relaxed)
    }

    /// A place for another one; `None` where each has a request in flight.
    pub(super) fn admit(&self) -> Option<Place> {
        let connection = Arc::new(Connection {
            started: self.0.started,
            requests: AtomicUsize::new(0),
            idle_since_ns: AtomicU64::new(self.0.started.elapsed().as_nanos() as u64),
            close: Notify::new(),
        });
        let mut open = self.lock();
        if open.len() >= self.0.max {
            let Some(evicted) = evict(&mut open) else {
                self.0.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            };
            self.0.evicted.fetch_add(1, Ordering::Relaxed);
            evicted.close();
        }
        let id = self.0.accepted.fetch_add(1, Ordering::Relaxed);
        open.insert(id, Arc::clone(&connection));
        Some(Place { id, connection, connections: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        // Nothing between lock and unlock panics.
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes out the connection that has been without a request for longest, if there is one without.
fn evict(open: &mut HashMap<u64, Arc<Connection>>) -> Option<Arc<Connection>> {
    loop {
        let idle = open.iter().filter(|(_, it)| it.requests.load(Ordering::Acquire) == 0);
        let (&id, longest) = idle.min_by_key(|(_, it)| it.idle_since_ns.load(Ordering::Relaxed))?;
        // Unless its next request has come since.
        if longest.requests.compare_exchange(0, EVICTED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return open.remove(&id);
        }
    }
}

/// The place of a connection; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    connection: Arc<Connection>,
    connections: Connections,
}

impl Place {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
    }
}

impl Connection {
    /// Ends it as soon as may be, whatever is in flight.
    pub(super) fn close(&self) {
        // Kept for who waits later.
        self.close.notify_one();
    }

    /// Waits for [`Connection::close`]; for the one task that serves it.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }

    /// Waits until it has been without a request for `time_max`.
    pub(super) async fn idle_for(&self, time_max: Duration) {
        loop {
            let since = Duration::from_nanos(self.idle_since_ns.load(Ordering::Relaxed));
            let idle = self.started.elapsed().saturating_sub(since);
            if self.requests.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(time_max).await;
            } else if idle < time_max {
                tokio::time::sleep(time_max - idle).await;
            } else {
                return;
            }
        }
    }

    /// It has a request, until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::AcqRel);
        Busy(Arc::clone(self))
    }
}

/// A request of a connection.
#[derive(Debug)]
pub(super) struct Busy(Arc<Connection>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.idle_since_ns.store(self.0.started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn is_told(place: &Place) -> bool {
        place.connection().closed().now_or_never().is_some()
    }

    #[test]
    fn the_one_that_was_idle_for_longest_goes() {
        let connections = Connections::new(2);
        let (first, second) = (connections.admit().expect("room"), connections.admit().expect("room"));
        drop(first.connection().enter());
        let third = connections.admit().expect("the second has done nothing for longest");
        assert!(is_told(&second) && !is_told(&first) && !is_told(&third));
        assert_eq!((connections.open(), connections.turned_away()), (2, 1));
        // Its own end changes nothing.
        drop(second);
        assert_eq!(connections.open(), 2);
        drop((first, third));
        assert_eq!(connections.open(), 0);
    }

    #[test]
    fn none_with_a_request_goes() {
        let connections = Connections::new(2);
        let (first, second) = (connections.admit().expect("room"), connections.admit().expect("room"));
        let busy = [first.connection().enter(), second.connection().enter()];
        assert!(connections.admit().is_none());
        assert!(!is_told(&first) && !is_told(&second));
        assert_eq!(connections.turned_away(), 1);
        drop(busy);
        assert!(connections.admit().is_some());
        assert!(is_told(&first));
    }
}
