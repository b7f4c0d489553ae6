//! The bounded queue, and the task that empties it.
//!
//! The task gathers up to 25 entries, which is what DynamoDB takes at once (at 400 KB each they stay below its 16 MB), and
//! writes them, some requests at a time: as many as the table takes ([`pace`](super::pace)). What comes back unprocessed,
//! or fails in a way that passes, is tried again after a pause.
//!
//! A batch is given up after some tries without progress. While the breaker is open, all that waits and all that comes is
//! dropped: a dropped entry costs one computation later, a kept one memory now and time at the end.
//!
//! Two writes of one key that are under way at once come in any order: a key has one vector.

use super::item::{Item, encode};
use super::jitter::backoff;
use super::pace::Pace;
use super::trouble::{Doing, Failure};
use super::{Shared, count, epoch_s};
use crate::aws::Trouble;
use crate::waiting::Waiting;
use crate::{CacheKey, Vector};
use aws_sdk_dynamodb::types::{PutRequest, WriteRequest};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// What DynamoDB takes in one request.
pub(super) const BATCH_MAX: usize = 25;

/// The longest that a flush waits.
const FLUSH_MAX: Duration = Duration::from_secs(20);

/// When the writer tries again, and when it gives up.
#[derive(Clone, Debug)]
pub(super) struct WriteTuning {
    /// How long the first entry of a batch waits for others.
    pub(super) delay: Duration,
    /// Tries of a batch in a row that write none of it.
    pub(super) tries_max: u32,
    /// The first pause, doubled each time that none is written.
    pub(super) pause: Duration,
    pub(super) pause_max: Duration,
}

impl Default for WriteTuning {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(20),
            tries_max: 8,
            pause: Duration::from_millis(50),
            pause_max: Duration::from_secs(5),
        }
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// What is in the queue or being written. The channel itself has no bound; this is the bound.
    waiting: Arc<Waiting>,
    queue: UnboundedSender<Message>,
}

enum Message {
    Put(Entry),
    Flush(oneshot::Sender<()>),
}

struct Entry {
    key: CacheKey,
    vector: Vector,
    revision: Arc<str>,
}

impl Writer {
    pub(super) fn start(shared: Arc<Shared>) -> Self {
        let (queue, messages) = unbounded_channel();
        let waiting = Arc::new(Waiting::default());
        shared.runtime.spawn(run(Arc::clone(&shared), Arc::clone(&waiting), messages));
        Self { shared, waiting, queue }
    }

    pub(super) fn put(&self, entries: Vec<(CacheKey, Vector)>) {
        let shut = self.shared.writes.is_shut();
        let revision = self.shared.revision();
        for (key, vector) in entries {
            let entry = Entry { key, vector, revision: Arc::clone(&revision) };
            let bytes = entry.bytes();
            let sent = !shut
                && self.waiting.reserve(
                    bytes,
                    self.shared.options.queue_entries_max,
                    self.shared.options.queue_bytes_max,
                )
                && self.queue.send(Message::Put(entry)).is_ok();
            if !sent {
                count(&self.shared.counters.dropped, 1);
            }
        }
    }

    pub(super) fn flush(&self) -> BoxFuture<'static, ()> {
        let (done, wait) = oneshot::channel();
        match self.queue.send(Message::Flush(done)) {
            Ok(()) => timeout(FLUSH_MAX, wait).map(drop).boxed(),
            Err(_) => ready(()).boxed(),
        }
    }

    pub(super) fn waiting(&self) -> u64 {
        self.waiting.entries() as u64
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        size_of_val::<[f32]>(&self.vector)
    }
}

async fn run(shared: Arc<Shared>, waiting: Arc<Waiting>, mut messages: UnboundedReceiver<Message>) {
    let pace = Arc::new(Pace::new(&shared.tuning.write));
    let mut batches = JoinSet::new();
    // Ends when the cache was dropped and the queue is empty.
    while let Some(first) = messages.recv().await {
        let deadline = Instant::now() + shared.tuning.write.delay;
        let mut next = Some(first);
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let flushed = loop {
            match next {
                Some(Message::Put(entry)) => batch.push(entry),
                Some(Message::Flush(done)) => break Some(done),
                None => break None,
            }
            if batch.len() == BATCH_MAX {
                break None;
            }
            next = timeout_at(deadline, messages.recv()).await.ok().flatten();
        };
        while batches.try_join_next().is_some() {}
        while batches.len() >= pace.requests() {
            batches.join_next().await;
        }
        if !batch.is_empty() {
            let (shared, waiting, pace) = (Arc::clone(&shared), Arc::clone(&waiting), Arc::clone(&pace));
            batches.spawn(async move {
                let (entries, bytes) = (batch.len(), batch.iter().map(Entry::bytes).sum());
                write(&shared, &pace, batch).await;
                waiting.release(entries, bytes);
            });
        }
        if let Some(done) = flushed {
            while batches.join_next().await.is_some() {}
            // Whoever asked may have stopped waiting.
            done.send(()).ok();
        }
    }
    while batches.join_next().await.is_some() {}
}

/// Writes what can be written of a batch, and counts the rest as dropped.
async fn write(shared: &Shared, pace: &Pace, batch: Vec<Entry>) {
    let mut left = requests(shared, batch);
    let mut tries = 0;
    while !left.is_empty() {
        let Some(pass) = shared.writes.admit() else { break };
        let sent = pace.wait().await;
        let before = left.len();
        let failure = match call(shared, left.clone()).await {
            Ok(unprocessed) => {
                pass.succeeded();
                left = unprocessed;
                if left.is_empty() {
                    pace.whole();
                    return;
                }
                if left.len() < before {
                    pace.part(sent);
                    tries = 0;
                    continue;
                }
                pace.throttled(sent);
                Failure::throttled()
            }
            Err(failure) if failure.trouble == Trouble::Throttled => {
                // A table that is busy is a table that works.
                drop(pass);
                pace.throttled(sent);
                failure
            }
            Err(failure) => {
                pass.failed(failure.lasts());
                pace.failed();
                failure
            }
        };
        tries += 1;
        count(&shared.counters.write_failures, 1);
        shared.complaints.complain(Doing::Write, &failure);
        if failure.lasts() || tries >= shared.tuning.write.tries_max {
            break;
        }
        if failure.trouble != Trouble::Throttled {
            sleep(backoff(tries, shared.tuning.write.pause, shared.tuning.write.pause_max)).await;
        }
    }
    count(&shared.counters.dropped, left.len());
}

/// The requests of a batch, one a key: DynamoDB refuses a batch that has a key twice. What may not be kept is dropped.
fn requests(shared: &Shared, batch: Vec<Entry>) -> Vec<WriteRequest> {
    let now = epoch_s();
    let expires = shared.options.ttl.map(|ttl| now.saturating_add(ttl.as_secs()));
    let mut items: HashMap<CacheKey, Item> = HashMap::with_capacity(batch.len());
    for Entry { key, vector, revision } in batch {
        match encode(&key, &vector, shared.options.dtype, &revision, now, expires) {
            Some(item) => drop(items.insert(key, item)),
            None => count(&shared.counters.dropped, 1),
        }
    }
    let put = |item| {
        Some(WriteRequest::builder().put_request(PutRequest::builder().set_item(Some(item)).build().ok()?).build())
    };
    items.into_values().filter_map(put).collect()
}

/// One BatchWriteItem. Answers what to ask for again.
async fn call(shared: &Shared, requests: Vec<WriteRequest>) -> Result<Vec<WriteRequest>, Failure> {
    let limit = shared.options.write_timeout;
    let request = shared.client.batch_write_item().request_items(&shared.options.table, requests).send();
    match timeout(limit, request).await {
        Ok(Ok(output)) => Ok(output.unprocessed_items.unwrap_or_default().into_values().flatten().collect()),
        Ok(Err(error)) => Err(Failure::from(&error)),
        Err(_) => Err(Failure::timed_out(limit)),
    }
}
