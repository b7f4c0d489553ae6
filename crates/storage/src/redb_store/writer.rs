//! The thread that writes.
//!
//! It takes entries from a queue that is bounded in entries and in bytes, waits a moment for more of them, and writes
//! them in one transaction. An entry counts against the bounds until its transaction is over.

use super::{Store, tables};
use crate::waiting::Waiting;
use crate::{CacheKey, Vector, record};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::oneshot;

pub(super) struct Writer {
    store: Arc<Store>,
    /// What is in the queue or being written. The channel itself has no bound; this is the bound.
    waiting: Arc<Waiting>,
    /// `None` once dropping has begun: the thread ends when the queue has no sender.
    queue: Option<Sender<Message>>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    Put(CacheKey, Vector),
    Flush(oneshot::Sender<()>),
}

impl Writer {
    pub(super) fn start(store: Arc<Store>) -> io::Result<Self> {
        let (queue, messages) = channel();
        let waiting = Arc::new(Waiting::default());
        let thread = std::thread::Builder::new().name("nexus-cache-writer".to_owned()).spawn({
            let (store, waiting) = (Arc::clone(&store), Arc::clone(&waiting));
            move || run(&store, &waiting, &messages)
        })?;
        Ok(Self { store, waiting, queue: Some(queue), thread: Some(thread) })
    }

    pub(super) fn put(&self, entries: Vec<(CacheKey, Vector)>) {
        for (key, vector) in entries {
            let bytes = size_of_val::<[f32]>(&vector);
            let sent = record::all_finite(&vector)
                && !self.store.retired.load(Ordering::Relaxed)
                && self.waiting.reserve(
                    bytes,
                    self.store.options.queue_entries_max,
                    self.store.options.queue_bytes_max,
                )
                && self.queue.as_ref().is_some_and(|queue| queue.send(Message::Put(key, vector)).is_ok());
            if !sent {
                self.store.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn flush(&self) -> BoxFuture<'static, ()> {
        let (done, wait) = oneshot::channel();
        match &self.queue {
            Some(queue) if queue.send(Message::Flush(done)).is_ok() => wait.map(drop).boxed(),
            _ => ready(()).boxed(),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It cannot panic: what may is caught. Nobody is left to be told if it did.
            thread.join().ok();
        }
    }
}

fn run(store: &Store, waiting: &Waiting, messages: &Receiver<Message>) {
    let mut batch = Vec::new();
    while let Ok(first) = messages.recv() {
        let deadline = Instant::now() + store.options.batch_delay;
        let mut next = Ok(first);
        let mut bytes = 0;
        let flushed = loop {
            match next {
                Ok(Message::Put(key, vector)) => {
                    bytes += size_of_val::<[f32]>(&vector);
                    batch.push((key, vector));
                }
                Ok(Message::Flush(done)) => break Some(done),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break None,
            }
            if batch.len() >= store.options.batch_entries_max || bytes >= store.options.batch_bytes_max {
                break None;
            }
            next = messages.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        };
        write(store, &batch);
        waiting.release(batch.len(), bytes);
        batch.clear();
        if let Some(done) = flushed {
            // Whoever asked may have stopped waiting.
            done.send(()).ok();
        }
    }
}

fn write(store: &Store, batch: &[(CacheKey, Vector)]) {
    if batch.is_empty() {
        return;
    }
    let retired = store.retired.load(Ordering::Relaxed);
    let written = if retired {
        None
    } else {
        store.guard("write to", || tables::write(&store.database, batch, store.options.bytes_max))
    };
    let dropped = match written {
        Some((entries, refused)) => {
            store.entries.store(entries, Ordering::Relaxed);
            refused
        }
        None => batch.len() as u64,
    };
    store.dropped.fetch_add(dropped, Ordering::Relaxed);
}
