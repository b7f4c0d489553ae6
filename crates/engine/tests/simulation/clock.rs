//! A clock that goes on when it is told, and whoever sleeps by it.

use futures::{FutureExt, future::BoxFuture};
use std::{
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

#[derive(Clone, Default)]
pub(crate) struct Clock(Arc<Mutex<Time>>);

#[derive(Default)]
struct Time {
    now_ms: u64,
    sleepers: Vec<(u64, Waker)>,
}

impl Clock {
    pub(crate) fn now_ms(&self) -> u64 {
        self.with(|time| time.now_ms)
    }

    pub(crate) fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        let due = self.now_ms() + duration.as_millis() as u64;
        poll_fn(move |context| {
            clock.with(|time| {
                if time.now_ms >= due {
                    return Poll::Ready(());
                }
                time.sleepers.push((due, context.waker().clone()));
                Poll::Pending
            })
        })
        .boxed()
    }

    /// Whether anybody sleeps.
    pub(crate) fn is_awaited(&self) -> bool {
        self.with(|time| !time.sleepers.is_empty())
    }

    pub(crate) fn advance(&self, ms: u64) {
        let due = self.with(|time| {
            time.now_ms += ms;
            let now_ms = time.now_ms;
            let (due, rest) = std::mem::take(&mut time.sleepers).into_iter().partition(|(due, _)| *due <= now_ms);
            time.sleepers = rest;
            due
        });
        let due: Vec<(u64, Waker)> = due;
        due.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn with<T>(&self, work: impl FnOnce(&mut Time) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
