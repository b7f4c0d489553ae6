//! One call to a stream at a time, and none of another thread while a recording is made: what it asked for would be recorded.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// Who may use a stream.
#[derive(Default)]
pub(super) struct Order {
    recorder: Mutex<Option<ThreadId>>,
    ended: Condvar,
}

/// The right to use the stream.
pub(super) struct Turn<'a> {
    guard: MutexGuard<'a, Option<ThreadId>>,
}

impl Turn<'_> {
    /// Whether the calling thread is recording.
    pub(super) fn is_recording(&self) -> bool {
        self.guard.is_some()
    }
}

/// A recording under way; it ends when this is dropped.
pub(super) struct Recorder<'a>(&'a Order);

impl Order {
    /// Waits for the turn of the calling thread.
    pub(super) fn turn(&self) -> Turn<'_> {
        let me = thread::current().id();
        let guard = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let other = |recorder: &mut Option<ThreadId>| recorder.is_some_and(|thread| thread != me);
        Turn { guard: self.ended.wait_while(guard, other).unwrap_or_else(PoisonError::into_inner) }
    }

    /// Begins a recording by the calling thread, which must not be making one.
    pub(super) fn record(&self) -> Recorder<'_> {
        *self.turn().guard = Some(thread::current().id());
        Recorder(self)
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        *self.0.recorder.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn others_wait_for_the_end_of_a_recording() {
        let order = Order::default();
        let (sender, receiver) = mpsc::channel();
        let recorder = order.record();
        assert!(order.turn().is_recording());
        thread::scope(|scope| {
            let order = &order;
            scope.spawn(move || sender.send(order.turn().is_recording()).unwrap());
            assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
            drop(recorder);
            assert_eq!(receiver.recv_timeout(Duration::from_secs(30)), Ok(false));
        });
        assert!(!order.turn().is_recording());
    }
}
