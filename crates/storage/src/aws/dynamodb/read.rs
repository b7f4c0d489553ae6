//! Many keys within one time limit.
//!
//! The keys are cut into chunks, which a few tasks ask for. DynamoDB answers as much of a chunk as it likes (16 MB at
//! most, and about 1 MB of one partition); the rest is asked for again after a short pause. Chunks are smaller than they
//! could be while tasks are left without one, as 100 vectors of 16 KB never come in one answer.
//!
//! Nothing is waited for longer than the limit: neither the first answer, nor each next one. Up to 100 keys have one limit
//! for all of their answers; a longer list has as many as it has hundreds of keys, as long as answers come. So a table
//! that hangs costs one limit, and a long list whose answers take longer than that is not computed again for it.
//!
//! The limit is on the wait, not on the requests: whoever waits leaves at the limit with what has arrived, and a request
//! under way goes on for a few seconds more. Otherwise credentials or a connection that take longer than the limit would
//! be begun for every read and never be there.

use super::item::{Item, Refusal, decode, key_in, key_of};
use super::jitter::backoff;
use super::trouble::{Doing, Failure};
use super::{Shared, count, epoch_s};
use crate::{CacheKey, Vector};
use aws_sdk_dynamodb::types::KeysAndAttributes;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Requests to read that may be under way at once, all reads together; others wait, within their limit.
pub(super) const CALLS_MAX: usize = 64;

/// Requests of one read under way at once.
const CALLS_OF_ONE: usize = 8;

/// What DynamoDB takes in one request.
const CHUNK_MAX: usize = 100;

/// Fewer keys than this are not worth a request of their own.
const CHUNK_MIN: usize = 25;

/// The most time limits that one read has, however long its list.
const LIMITS_MAX: u32 = 100;

/// How long a request may take in all, whoever waits.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a chunk that fails is asked for.
const TRIES_MAX: u32 = 4;

const PAUSE: Duration = Duration::from_millis(4);
const PAUSE_MAX: Duration = Duration::from_millis(32);

/// One read.
struct Job {
    /// Where each key's vector belongs.
    places: HashMap<CacheKey, usize>,
    chunks: Vec<Vec<CacheKey>>,
    /// The first chunk that no task has taken.
    next: AtomicUsize,
}

/// What comes of a request.
enum Arrival {
    Vectors(Vec<(usize, Vector)>),
    Trouble(Failure),
    /// A chunk is through.
    Done,
}

/// What came of a read.
#[derive(Default)]
struct Outcome {
    answered: bool,
    chunks_done: usize,
    trouble: Option<Failure>,
    timed_out: bool,
}

pub(super) async fn read(shared: &Arc<Shared>, keys: &[CacheKey]) -> Vec<Option<Vector>> {
    let mut found = vec![None; keys.len()];
    if keys.is_empty() {
        return found;
    }
    match shared.reads.admit() {
        None => count(&shared.counters.read_skips, 1),
        Some(pass) => {
            // DynamoDB refuses a request that has a key twice.
            let mut places = HashMap::with_capacity(keys.len());
            let mut distinct = Vec::with_capacity(keys.len());
            let place_of: Vec<usize> = (keys.iter())
                .map(|key| {
                    *places.entry(*key).or_insert_with(|| {
                        distinct.push(*key);
                        distinct.len() - 1
                    })
                })
                .collect();
            let mut vectors = vec![None; distinct.len()];
            let outcome = ask(shared, places, &distinct, &mut vectors).await;
            let lasting = outcome.trouble.as_ref().is_some_and(Failure::lasts);
            let failed = report(shared, &outcome);
            if failed && !outcome.answered {
                pass.failed(lasting)
            } else {
                pass.succeeded()
            }
            for (vector, place) in found.iter_mut().zip(place_of) {
                vector.clone_from(&vectors[place]);
            }
        }
    }
    let hits = found.iter().flatten().count();
    count(&shared.counters.hits, hits);
    count(&shared.counters.misses, keys.len() - hits);
    found
}

/// Asks for `keys`, which are distinct, until all is answered or the time is up.
async fn ask(
    shared: &Arc<Shared>,
    places: HashMap<CacheKey, usize>,
    keys: &[CacheKey],
    vectors: &mut [Option<Vector>],
) -> Outcome {
    let limit = shared.options.read_timeout;
    let mut deadline = Instant::now() + limit;
    let hundreds = u32::try_from(keys.len().div_ceil(CHUNK_MAX)).unwrap_or(u32::MAX);
    let last_deadline = deadline + (limit * hundreds.min(LIMITS_MAX)).saturating_sub(limit);
    let chunk_len = keys.len().div_ceil(CALLS_OF_ONE).clamp(CHUNK_MIN, CHUNK_MAX);
    let chunks: Vec<Vec<CacheKey>> = keys.chunks(chunk_len).map(<[_]>::to_vec).collect();
    let chunk_count = chunks.len();
    let job = Arc::new(Job { places, chunks, next: AtomicUsize::new(0) });
    let (sender, mut arrivals) = channel(2 * CALLS_OF_ONE);
    for _ in 0..chunk_count.min(CALLS_OF_ONE) {
        shared.runtime.spawn(work(Arc::clone(shared), Arc::clone(&job), sender.clone()));
    }
    drop(sender);

    let mut outcome = Outcome::default();
    while outcome.chunks_done < chunk_count {
        match timeout_at(deadline, arrivals.recv()).await {
            Ok(Some(Arrival::Vectors(arrived))) => {
                outcome.answered = true;
                deadline = last_deadline.min(Instant::now() + limit);
                for (place, vector) in arrived {
                    vectors[place] = Some(vector);
                }
            }
            Ok(Some(Arrival::Trouble(failure))) => outcome.trouble = Some(failure),
            Ok(Some(Arrival::Done)) => outcome.chunks_done += 1,
            Ok(None) => break,
            Err(_) => {
                outcome.timed_out = true;
                break;
            }
        }
    }
    if outcome.chunks_done == chunk_count {
        // Trouble that was overcome in time is none.
        outcome.trouble = None;
    }
    outcome
}

/// Counts and logs what came of a read. Answers whether something was left unanswered.
fn report(shared: &Shared, outcome: &Outcome) -> bool {
    let timeout = Failure::timed_out(shared.options.read_timeout);
    let failure = match outcome {
        Outcome { trouble: Some(trouble), .. } => {
            count(&shared.counters.read_failures, 1);
            trouble
        }
        Outcome { timed_out: true, .. } => {
            count(&shared.counters.read_timeouts, 1);
            &timeout
        }
        _ => return false,
    };
    shared.complaints.complain(Doing::Read, failure);
    true
}

/// Takes chunk after chunk, until there is none left, one fails, or nobody waits any more.
async fn work(shared: Arc<Shared>, job: Arc<Job>, arrivals: Sender<Arrival>) {
    loop {
        let at = job.next.fetch_add(1, Ordering::Relaxed);
        let Some(chunk) = job.chunks.get(at) else { return };
        if !ask_chunk(&shared, &job, chunk, &arrivals).await || arrivals.send(Arrival::Done).await.is_err() {
            return;
        }
    }
}

/// Answers whether the chunk is through.
async fn ask_chunk(shared: &Shared, job: &Job, chunk: &[CacheKey], arrivals: &Sender<Arrival>) -> bool {
    let mut left = request_for(chunk);
    let mut tries = 0;
    loop {
        tries += 1;
        let permit = tokio::select! {
            permit = shared.calls.acquire() => permit,
            () = arrivals.closed() => return false,
        };
        let answer = call(shared, left.clone()).await;
        drop(permit);
        match answer {
            Ok(Answer { items, unprocessed }) => {
                // An answer in parts is no failure; one without any part is how some throttling looks.
                let progress = !items.is_empty() || unprocessed.is_none();
                let arrival = if progress {
                    tries = 1;
                    Arrival::Vectors(decode_all(shared, job, &items))
                } else {
                    Arrival::Trouble(Failure::throttled())
                };
                if arrivals.send(arrival).await.is_err() {
                    return false;
                }
                let Some(unprocessed) = unprocessed else { return true };
                left = unprocessed;
            }
            Err(failure) => {
                let again = failure.trouble.is_transient() && tries < TRIES_MAX;
                if arrivals.is_closed() {
                    shared.failed_late(&failure);
                    return false;
                }
                // Whoever waits may have left since: then it says so itself.
                if arrivals.send(Arrival::Trouble(failure)).await.is_err() || !again {
                    return false;
                }
            }
        }
        tokio::select! {
            () = sleep(backoff(tries, PAUSE, PAUSE_MAX)) => {}
            () = arrivals.closed() => return false,
        }
    }
}

fn decode_all(shared: &Shared, job: &Job, items: &[Item]) -> Vec<(usize, Vector)> {
    let now = epoch_s();
    let mut vectors = Vec::with_capacity(items.len());
    for item in items {
        let known = key_in(item).and_then(|key| Some((key, *job.places.get(&key)?)));
        let (key, decoded) = match known {
            Some((key, place)) => (Some(key), decode(&key, item, now).map(|vector| (place, vector))),
            None => (None, Err(Refusal::Damaged(super::item::KEY))),
        };
        match decoded {
            Ok(vector) => vectors.push(vector),
            Err(Refusal::Expired) => {}
            Err(Refusal::Damaged(attribute)) => {
                count(&shared.counters.damaged, 1);
                tracing::debug!(?key, attribute, "a damaged item in the embedding table; it is computed again");
            }
        }
    }
    vectors
}

struct Answer {
    items: Vec<Item>,
    /// What to ask for again.
    unprocessed: Option<Vec<Item>>,
}

fn request_for(keys: &[CacheKey]) -> Vec<Item> {
    keys.iter().map(key_of).collect()
}

/// One BatchGetItem.
async fn call(shared: &Shared, keys: Vec<Item>) -> Result<Answer, Failure> {
    let wanted = KeysAndAttributes::builder().set_keys(Some(keys)).build().map_err(Failure::invalid)?;
    let request = shared.client.batch_get_item().request_items(&shared.options.table, wanted).send();
    let output = match timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(Failure::from(&error)),
        Err(_) => return Err(Failure::timed_out(CALL_TIMEOUT)),
    };
    // One table was asked, whatever name it is given in the answer.
    let items = output.responses.unwrap_or_default().into_values().flatten().collect();
    let unprocessed: Vec<Item> =
        output.unprocessed_keys.unwrap_or_default().into_values().flat_map(|left| left.keys).collect();
    Ok(Answer { items, unprocessed: Some(unprocessed).filter(|left| !left.is_empty()) })
}

/// Asks for a key that nothing is under, so that credentials and a connection are there when a text comes.
pub(super) async fn warm_up(shared: Arc<Shared>) {
    if let Err(failure) = call(&shared, request_for(&[CacheKey::from_bytes([0; 32])])).await {
        shared.failed_late(&failure);
    }
}
