//! A cache in front of a retriever, and one computation for identical texts in flight.
//!
//! A request looks its texts up, and works on those that are missing in flights of a few texts each. A text that another
//! request's flight is working on is waited for. A flight belongs to all who wait for it: it ends when it is done, or
//! when the last of them has gone away. Flights are small, and few of one request run at once, so that a hit waits for
//! nobody, a single text waits for few others, and a long list leaves room in the queue.

use crate::{EmbedItem, Embedding, EngineError, Observer, Retriever, RetrieverInfo, Role, Stage, Unobserved, caller};
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, Shared, WeakShared, join_all},
    stream,
};
use nexus_storage::{CacheKey, CacheKeyBuilder, EmbeddingCache, Vector, record::all_finite};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tracing::Instrument as _;

type Flight = Shared<BoxFuture<'static, Result<Arc<[Embedding]>, EngineError>>>;
type Waiting = WeakShared<BoxFuture<'static, Result<Arc<[Embedding]>, EngineError>>>;

/// A retriever that remembers.
pub(crate) struct CachedRetriever {
    shared: Arc<Inner>,
    keys: CacheKeyBuilder,
    in_flight: Arc<InFlight>,
    observer: Arc<dyn Observer>,
    pause: Pause,
}

struct Inner {
    retriever: Arc<dyn Retriever>,
    cache: Arc<dyn EmbeddingCache>,
}

/// Which flight is working on each key.
#[derive(Default)]
struct InFlight {
    register: Mutex<HashMap<CacheKey, Registered>>,
    /// Flights so far, for their ids.
    started: AtomicU64,
    /// Flights that are over.
    ended: AtomicU64,
}

struct Registered {
    flight_id: u64,
    flight: Waiting,
    /// Where in the flight's result the key's embedding will be.
    place: usize,
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, HashMap<CacheKey, Registered>> {
        self.register.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Takes the keys of a flight off the register when the flight ends, however it ends.
struct Registration {
    in_flight: Arc<InFlight>,
    flight_id: u64,
    keys: Vec<CacheKey>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut register = self.in_flight.lock();
        self.in_flight.ended.fetch_add(1, Ordering::SeqCst);
        for key in &self.keys {
            // A flight that everybody left may find that a younger one has taken its place.
            if register.get(key).is_some_and(|entry| entry.flight_id == self.flight_id) {
                register.remove(key);
            }
        }
    }
}

/// Texts in one flight.
const FLIGHT_TEXTS: usize = 32;

/// Flights of one request under way at once: enough to fill batches.
const FLIGHTS_AT_ONCE: usize = 8;

/// Hashing more bytes than this moves off the threads that serve sockets: it would take longer than a millisecond.
const INLINE_BYTES_MAX: usize = 256 << 10;

/// How long to wait before a list that is partly done is tried again on a full queue.
pub(crate) const FULL_PAUSE: Duration = Duration::from_millis(20);

/// Waits as long.
pub(crate) type Pause = Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>;

/// A text that is not in the cache: its key, and itself.
type Missing = (CacheKey, EmbedItem);

impl CachedRetriever {
    pub(crate) fn new(retriever: Arc<dyn Retriever>, cache: Arc<dyn EmbeddingCache>, keys: CacheKeyBuilder) -> Self {
        Self::with_pause(retriever, cache, keys, Box::new(|time| tokio::time::sleep(time).boxed()))
    }

    /// With a clock of its own.
    pub(crate) fn with_pause(
        retriever: Arc<dyn Retriever>,
        cache: Arc<dyn EmbeddingCache>,
        keys: CacheKeyBuilder,
        pause: Pause,
    ) -> Self {
        let shared = Arc::new(Inner { retriever, cache });
        Self { shared, keys, in_flight: Arc::default(), observer: Arc::new(Unobserved), pause }
    }

    /// Tells `observer` how long the cache takes.
    pub(crate) fn observed(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer, ..self }
    }

    /// How many keys flights work on, now.
    #[cfg(test)]
    pub(crate) fn keys_in_flight(&self) -> usize {
        self.in_flight.lock().len()
    }

    async fn keys(&self, items: Vec<EmbedItem>) -> Result<(Vec<CacheKey>, Vec<EmbedItem>), EngineError> {
        let all = self.info().dimensions;
        let builder = self.keys.clone();
        let bytes: usize = items.iter().map(|item| item.text.len()).sum();
        let work = move || {
            let key =
                |item: &EmbedItem| builder.key(item.instruction.as_deref(), item.dimensions.unwrap_or(all), &item.text);
            (items.iter().map(key).collect(), items)
        };
        if bytes <= INLINE_BYTES_MAX {
            return Ok(work());
        }
        tokio::task::spawn_blocking(work).await.map_err(|e| EngineError::Model(format!("hashing stopped: {e}")))
    }

    /// Like [`Self::resolve`], for a part of a list that begins at `offset`. What is refused by a full queue at the door
    /// is refused at once; what is half done (`started`) is not thrown away, and waits.
    async fn persist(
        &self,
        missing: &[Missing],
        offset: usize,
        looked_up_at: u64,
        started: &AtomicBool,
    ) -> Result<Vec<Embedding>, EngineError> {
        loop {
            match self.resolve(missing, looked_up_at).await {
                Err(EngineError::Overloaded { .. }) if offset > 0 || started.load(Ordering::Relaxed) => {
                    (self.pause)(FULL_PAUSE).await;
                }
                Err(error) => return Err(moved(error, |at| offset + at)),
                Ok(embeddings) => {
                    started.store(true, Ordering::Relaxed);
                    return Ok(embeddings);
                }
            }
        }
    }

    /// Embeds texts of which none was in the cache at `looked_up_at`. An error's index is a position in `missing`.
    async fn resolve(&self, missing: &[Missing], looked_up_at: u64) -> Result<Vec<Embedding>, EngineError> {
        let joined = self.join(missing.to_vec(), looked_up_at);
        let results = join_all(joined.flights).await;
        let mut answers = Vec::with_capacity(missing.len());
        let mut lost = Vec::new();
        for (at, (flight, place)) in joined.places.into_iter().enumerate() {
            let answer = match &results[flight] {
                Ok(answers) => answers.get(place).cloned(),
                Err(error) if joined.own == Some(flight) => {
                    return Err(moved(error.clone(), |place| joined.own_texts[place]));
                }
                // Another request's flight failed, perhaps for a text of its own: this text gets its own chance.
                Err(_) => None,
            };
            if answer.is_none() {
                lost.push(at);
            }
            answers.push(answer);
        }
        if !lost.is_empty() {
            let again = lost.iter().map(|&at| missing[at].1.clone()).collect();
            let found = self.shared.retriever.embed(again).await.map_err(|error| moved(error, |i| lost[i]))?;
            for (at, embedding) in lost.into_iter().zip(found) {
                answers[at] = Some(embedding);
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Finds the flights that work on `missing`, and starts one for what nobody works on.
    fn join(&self, missing: Vec<Missing>, looked_up_at: u64) -> Joined {
        let mut joined = Joined::default();
        let (mut new_keys, mut new_items) = (Vec::new(), Vec::new());
        let mut numbers: HashMap<u64, usize> = HashMap::new();
        let mut register = self.in_flight.lock();
        for (at, (key, item)) in missing.into_iter().enumerate() {
            let entry = register.get(&key);
            if let Some((entry, flight)) = entry.and_then(|entry| Some((entry, entry.flight.upgrade()?))) {
                let number = *numbers.entry(entry.flight_id).or_insert_with(|| {
                    joined.flights.push(flight);
                    joined.flights.len() - 1
                });
                joined.places.push((number, entry.place));
            } else {
                // Its own flight comes after those of others.
                joined.places.push((usize::MAX, new_keys.len()));
                joined.own_texts.push(at);
                new_keys.push(key);
                new_items.push(item);
            }
        }
        if new_keys.is_empty() {
            return joined;
        }

        let flight_id = self.in_flight.started.fetch_add(1, Ordering::Relaxed);
        let registration = Registration { in_flight: self.in_flight.clone(), flight_id, keys: new_keys.clone() };
        // A flight that ended since the look-up may have put what was missing then.
        let look_again = self.in_flight.ended.load(Ordering::SeqCst) != looked_up_at;
        let inner = self.shared.clone();
        let flight = async move {
            let result = inner.answer(&registration.keys, new_items, look_again).await;
            drop(registration);
            result
        };
        // Whoever comes to poll it, its time and client are those of the request that began it. Who joined and has more will have
        // its own.
        let flight = caller::same(flight).boxed().shared();
        for (place, key) in new_keys.into_iter().enumerate() {
            if let Some(flight) = flight.downgrade() {
                register.insert(key, Registered { flight_id, flight, place });
            }
        }
        drop(register);
        let own = joined.flights.len();
        joined.flights.push(flight);
        joined.own = Some(own);
        for (flight, _) in joined.places.iter_mut().filter(|(flight, _)| *flight == usize::MAX) {
            *flight = own;
        }
        joined
    }
}

/// Each key once: the positions of their first items; and for each item, which of them it uses.
fn distinct(keys: &[CacheKey]) -> (Vec<usize>, Vec<usize>) {
    // A single text needs no table.
    if keys.len() == 1 {
        return (vec![0], vec![0]);
    }
    let mut known: HashMap<CacheKey, usize> = HashMap::new();
    let mut firsts = Vec::new();
    let number = |(at, key): (usize, &CacheKey)| {
        *known.entry(*key).or_insert_with(|| {
            firsts.push(at);
            firsts.len() - 1
        })
    };
    let uses = keys.iter().enumerate().map(number).collect();
    (firsts, uses)
}

/// Where the answers for a list of missing texts will be.
#[derive(Default)]
struct Joined {
    flights: Vec<Flight>,
    /// For each text, which flight, and where in its result.
    places: Vec<(usize, usize)>,
    /// Which of the flights was started for this list.
    own: Option<usize>,
    /// For each place of that flight's result, which text it is.
    own_texts: Vec<usize>,
}

/// `error` with its index put through `position`.
fn moved(error: EngineError, position: impl Fn(usize) -> usize) -> EngineError {
    match error {
        EngineError::Invalid { field, index, message } => {
            EngineError::Invalid { field, index: index.map(position), message }
        }
        other => other,
    }
}

impl Inner {
    /// What the cache has `found`, as far as it can be what `items` ask for.
    fn hits(&self, found: Vec<Option<Vector>>, items: &[&EmbedItem]) -> Vec<Option<Embedding>> {
        let all = self.retriever.info().dimensions;
        let hit = |(vector, item): (Option<Vector>, &&EmbedItem)| {
            // The key covers the length, and no vector is kept that is not finite; a store that answers with another one
            // is not believed.
            let vector = vector.filter(|it| it.len() == item.dimensions.unwrap_or(all) && all_finite(it))?;
            Some(Embedding { vector, cache_hit: true })
        };
        found.into_iter().zip(items).map(hit).collect()
    }

    /// Computes the embeddings of `keys` and keeps them. An error's index is a position in `items`.
    async fn answer(
        &self,
        keys: &[CacheKey],
        items: Vec<EmbedItem>,
        look_again: bool,
    ) -> Result<Arc<[Embedding]>, EngineError> {
        let mut answers = vec![None; keys.len()];
        if look_again {
            // A flight that ended just now has left it in memory; a slow store is not waited for twice.
            answers = self.hits(self.cache.get_now(keys), &items.iter().collect::<Vec<_>>());
        }
        let (places, missing): (Vec<usize>, Vec<EmbedItem>) =
            items.into_iter().enumerate().filter(|(at, _)| answers[*at].is_none()).unzip();
        if !missing.is_empty() {
            let computed = self.retriever.embed(missing).await.map_err(|error| moved(error, |i| places[i]))?;
            self.cache.put(places.iter().zip(&computed).map(|(&at, e)| (keys[at], e.vector.clone())).collect());
            for (at, embedding) in places.into_iter().zip(computed) {
                answers[at] = Some(embedding);
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }
}

impl Retriever for CachedRetriever {
    fn info(&self) -> &RetrieverInfo {
        self.shared.retriever.info()
    }

    fn embed(&self, items: Vec<EmbedItem>) -> BoxFuture<'_, Result<Vec<Embedding>, EngineError>> {
        async move {
            let (keys, items) = self.keys(items).await?;
            let (firsts, uses) = distinct(&keys);
            let distinct_keys: Vec<CacheKey> = firsts.iter().map(|&at| keys[at]).collect();
            let distinct_items: Vec<&EmbedItem> = firsts.iter().map(|&at| &items[at]).collect();

            let looked_up_at = self.in_flight.ended.load(Ordering::SeqCst);
            let asked = Instant::now();
            let span = tracing::debug_span!("cache", keys = distinct_keys.len());
            let found = self.shared.cache.get(&distinct_keys).instrument(span).await;
            self.observer.stage(Role::Retriever, Stage::Cache, asked.elapsed());
            let mut answers = self.shared.hits(found, &distinct_items);
            let pick = |answers: &[Option<Embedding>]| uses.iter().filter_map(|&at| answers[at].clone()).collect();
            if answers.iter().all(Option::is_some) {
                return Ok(pick(&answers));
            }
            let (places, missing): (Vec<usize>, Vec<Missing>) = (0..answers.len())
                .filter(|&at| answers[at].is_none())
                .map(|at| (at, (distinct_keys[at], distinct_items[at].clone())))
                .unzip();

            let started = AtomicBool::new(false);
            let flights: Vec<BoxFuture<'_, _>> = (missing.chunks(FLIGHT_TEXTS).enumerate())
                .map(|(chunk, texts)| self.persist(texts, chunk * FLIGHT_TEXTS, looked_up_at, &started).boxed())
                .collect();
            let computed: Vec<Vec<Embedding>> = stream::iter(flights)
                .buffered(FLIGHTS_AT_ONCE)
                .try_collect()
                .await
                .map_err(|error| moved(error, |at| firsts[places[at]]))?;
            for (at, embedding) in places.into_iter().zip(computed.into_iter().flatten()) {
                answers[at] = Some(embedding);
            }
            Ok(pick(&answers))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
