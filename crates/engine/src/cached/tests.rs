use super::*;
use crate::{Digests, Revision};
use nexus_storage::CacheStats;
use std::sync::atomic::AtomicUsize;
use tokio::sync::Semaphore;

/// Embeds a text as its length; counts texts; waits for a permit a call; fails for the texts `bad` and
/// `invalid`.
struct Fake {
    info: RetrieverInfo,
    embedded: AtomicUsize,
    gate: Semaphore,
    /// How many calls to refuse before any is answered.
    refusals: AtomicUsize,
}

impl Fake {
    fn new(permits: usize) -> Arc<Self> {
        let revision = Revision::of(&Digests { model: [0; 32], tokenizer: [0; 32] }, "last", 10, "f32");
        let info = RetrieverInfo { model: "fake".into(), revision, dimensions: 2, window_tokens: 10 };
        Arc::new(Self {
            info,
            embedded: AtomicUsize::new(0),
            gate: Semaphore::new(permits),
            refusals: AtomicUsize::new(0),
        })
    }

    fn embedded(&self) -> usize {
        self.embedded.load(Ordering::SeqCst)
    }
}

impl Retriever for Fake {
    fn info(&self) -> &RetrieverInfo {
        &self.info
    }

    fn embed(&self, items: Vec<EmbedItem>) -> BoxFuture<'_, Result<Vec<Embedding>, EngineError>> {
        async move {
            self.gate.acquire().await.unwrap().forget();
            if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                return Err(EngineError::Overloaded { by_client: false, retry_after_s: 1 });
            }
            if let Some(at) = items.iter().position(|item| item.text == "invalid") {
                return Err(EngineError::Invalid { field: "text", index: Some(at), message: "not this".into() });
            }
            self.embedded.fetch_add(items.len(), Ordering::SeqCst);
            if items.iter().any(|item| item.text == "bad") {
                return Err(EngineError::Model("bad text".into()));
            }
            let embed = |item: &EmbedItem| Embedding {
                vector: vec![item.text.len() as f32; item.dimensions.unwrap_or(2)].into(),
                cache_hit: false,
            };
            Ok(items.iter().map(embed).collect())
        }
        .boxed()
    }
}

#[derive(Default)]
struct MapCache(Mutex<HashMap<CacheKey, Vector>>);

impl EmbeddingCache for MapCache {
    fn name(&self) -> String {
        "map".into()
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Vector>>> {
        let found = self.get_now(keys);
        async move { found }.boxed()
    }

    fn get_now(&self, keys: &[CacheKey]) -> Vec<Option<Vector>> {
        let map = self.0.lock().unwrap();
        keys.iter().map(|key| map.get(key).cloned()).collect()
    }

    fn put(&self, entries: Vec<(CacheKey, Vector)>) {
        self.0.lock().unwrap().extend(entries);
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn stats(&self) -> CacheStats {
        CacheStats::default()
    }
}

fn cached(fake: &Arc<Fake>) -> Arc<CachedRetriever> {
    let keys = CacheKeyBuilder::new(&[0; 32], &[0; 32], "last", 512, "f32");
    Arc::new(CachedRetriever::new(fake.clone(), Arc::new(MapCache::default()), keys))
}

fn items(texts: &[&str]) -> Vec<EmbedItem> {
    texts.iter().map(|t| EmbedItem { text: (*t).into(), instruction: None, dimensions: None }).collect()
}

fn hits(result: &[Embedding]) -> Vec<bool> {
    result.iter().map(|e| e.cache_hit).collect()
}

/// Lets every other task run until it waits.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn hits_are_what_was_cached_and_repeats_are_computed_once() {
    let fake = Fake::new(100);
    let retriever = cached(&fake);
    let first = retriever.embed(items(&["a", "bb", "a"])).await.unwrap();
    assert_eq!(hits(&first), [false, false, false]);
    assert_eq!(fake.embedded(), 2);
    let second = retriever.embed(items(&["bb", "ccc", "a"])).await.unwrap();
    assert_eq!(hits(&second), [true, false, true]);
    assert_eq!(second.iter().map(|e| e.vector[0]).collect::<Vec<_>>(), [2.0, 3.0, 1.0]);
    assert_eq!(fake.embedded(), 3);
    assert!(retriever.in_flight.lock().is_empty());
}

#[tokio::test]
async fn another_instruction_or_length_is_another_entry() {
    let fake = Fake::new(100);
    let retriever = cached(&fake);
    retriever.embed(items(&["a"])).await.unwrap();
    let mut item = items(&["a"]);
    item[0].instruction = Some("find".into());
    assert_eq!(hits(&retriever.embed(item.clone()).await.unwrap()), [false]);
    item[0].dimensions = Some(1);
    assert_eq!(retriever.embed(item.clone()).await.unwrap()[0].vector.len(), 1);
    // All dimensions by name and by default are the same request.
    item[0].dimensions = Some(2);
    assert_eq!(hits(&retriever.embed(item).await.unwrap()), [true]);
}

#[tokio::test]
async fn identical_texts_in_flight_compute_once() {
    let fake = Fake::new(0);
    let retriever = cached(&fake);
    let tasks: Vec<_> = (0..5)
        .map(|_| {
            let retriever = retriever.clone();
            tokio::spawn(async move { retriever.embed(items(&["same"])).await })
        })
        .collect();
    settle().await;
    fake.gate.add_permits(1);
    for task in tasks {
        assert_eq!(hits(&task.await.unwrap().unwrap()), [false]);
    }
    assert_eq!(fake.embedded(), 1);
}

#[tokio::test]
async fn those_who_wait_survive_the_one_who_started() {
    let fake = Fake::new(0);
    let retriever = cached(&fake);
    let spawn = |retriever: &Arc<CachedRetriever>| {
        let retriever = retriever.clone();
        tokio::spawn(async move { retriever.embed(items(&["same"])).await })
    };
    let starter = spawn(&retriever);
    settle().await;
    let waiter = spawn(&retriever);
    settle().await;
    starter.abort();
    settle().await;
    fake.gate.add_permits(1);
    assert_eq!(waiter.await.unwrap().unwrap()[0].vector[0], 4.0);
    assert_eq!(fake.embedded(), 1);
}

#[tokio::test]
async fn work_that_nobody_waits_for_ends() {
    let fake = Fake::new(0);
    let retriever = cached(&fake);
    let task = {
        let retriever = retriever.clone();
        tokio::spawn(async move { retriever.embed(items(&["same"])).await })
    };
    settle().await;
    task.abort();
    settle().await;
    assert!(retriever.in_flight.lock().is_empty());
    fake.gate.add_permits(1);
    settle().await;
    assert_eq!(fake.embedded(), 0);
}

#[tokio::test]
async fn a_failed_flight_fails_its_own_request_only() {
    let fake = Fake::new(0);
    let retriever = cached(&fake);
    let spawn = |texts: &'static [&'static str]| {
        let retriever = retriever.clone();
        tokio::spawn(async move { retriever.embed(items(texts)).await })
    };
    let bad = spawn(&["bad", "good"]);
    settle().await;
    let good = spawn(&["good"]);
    settle().await;
    fake.gate.add_permits(2);
    assert_eq!(bad.await.unwrap(), Err(EngineError::Model("bad text".into())));
    assert_eq!(good.await.unwrap().unwrap()[0].vector[0], 4.0);
    assert!(retriever.in_flight.lock().is_empty());
}

#[tokio::test]
async fn a_hit_waits_for_nobody() {
    let fake = Fake::new(1);
    let retriever = cached(&fake);
    retriever.embed(items(&["known"])).await.unwrap();
    let batch = {
        let retriever = retriever.clone();
        tokio::spawn(async move { retriever.embed(items(&["known", "unknown"])).await })
    };
    settle().await;
    // The batch waits for its second text; what is known does not.
    assert_eq!(hits(&retriever.embed(items(&["known"])).await.unwrap()), [true]);
    fake.gate.add_permits(1);
    assert_eq!(hits(&batch.await.unwrap().unwrap()), [true, false]);
}

#[tokio::test]
async fn a_text_waits_for_few_others() {
    let fake = Fake::new(1);
    let retriever = cached(&fake);
    let many: Vec<String> = (0..10 * FLIGHT_TEXTS).map(|i| "x".repeat(i + 1)).collect();
    let list: Vec<EmbedItem> = many.iter().flat_map(|text| items(&[text.as_str()])).collect();
    let batch = {
        let retriever = retriever.clone();
        tokio::spawn(async move { retriever.embed(list).await })
    };
    settle().await;
    // One flight has passed the gate, the others of the list wait before it; the list never has all of its texts
    // under way.
    assert_eq!(fake.embedded(), FLIGHT_TEXTS);
    assert!(retriever.in_flight.lock().len() <= FLIGHT_TEXTS * FLIGHTS_AT_ONCE);
    assert_eq!(hits(&retriever.embed(items(&["x"])).await.unwrap()), [true]);
    fake.gate.add_permits(100);
    let answers = batch.await.unwrap().unwrap();
    assert!(answers.iter().enumerate().all(|(i, e)| e.vector[0] == (i + 1) as f32));
    assert!(retriever.in_flight.lock().is_empty());
}

#[tokio::test]
async fn errors_keep_their_place() {
    let fake = Fake::new(1000);
    let retriever = cached(&fake);
    let mut texts: Vec<String> = (0..3 * FLIGHT_TEXTS).map(|i| format!("text {i}")).collect();
    retriever.embed(items(&[texts[0].as_str(), texts[5].as_str()])).await.unwrap();
    // Behind hits and a repetition, in the third flight.
    texts.insert(1, texts[0].clone());
    let wrong = 2 * FLIGHT_TEXTS + 10;
    texts[wrong] = "invalid".into();
    let list: Vec<EmbedItem> = texts.iter().flat_map(|text| items(&[text.as_str()])).collect();
    let error = retriever.embed(list).await.unwrap_err();
    assert_eq!(error, EngineError::Invalid { field: "text", index: Some(wrong), message: "not this".into() });
}

#[tokio::test]
async fn a_full_queue_refuses_at_the_door_only() {
    let fake = Fake::new(1000);
    let retriever = cached(&fake);
    fake.refusals.store(1, Ordering::SeqCst);
    let refused = retriever.embed(items(&["first"])).await;
    assert_eq!(refused, Err(EngineError::Overloaded { by_client: false, retry_after_s: 1 }));
    assert_eq!(hits(&retriever.embed(items(&["first"])).await.unwrap()), [false]);
}

/// Says until when the answer is wanted, in seconds from a moment: what a queue would be told.
struct Hasty(RetrieverInfo, std::time::Instant, Semaphore);

impl Retriever for Hasty {
    fn info(&self) -> &RetrieverInfo {
        &self.0
    }

    fn embed(&self, _: Vec<EmbedItem>) -> BoxFuture<'_, Result<Vec<Embedding>, EngineError>> {
        async move {
            self.2.acquire().await.unwrap().forget();
            let deadline = crate::caller::deadline().expect("every request has a deadline");
            if deadline < self.1 {
                return Err(EngineError::Expired);
            }
            Ok(vec![Embedding { vector: vec![1.0, 0.0].into(), cache_hit: false }])
        }
        .boxed()
    }
}

#[tokio::test]
async fn who_waits_for_anothers_flight_has_the_time_of_its_own_request() {
    let (soon, late) = (std::time::Instant::now(), std::time::Instant::now() + Duration::from_secs(60));
    let info = Fake::new(0).info.clone();
    for patient_first in [true, false] {
        let hasty = Arc::new(Hasty(info.clone(), soon + Duration::from_secs(1), Semaphore::new(0)));
        let keys = CacheKeyBuilder::new(&[0; 32], &[0; 32], "last", 512, "f32");
        let cached = CachedRetriever::new(hasty.clone(), Arc::new(MapCache::default()), keys);
        let ask = |deadline| crate::within(deadline, cached.embed(items(&["a"])));
        let (mut patient, mut impatient) = (Box::pin(ask(late)), Box::pin(ask(soon)));
        // The flight is the first one's, and is polled by the other at last.
        if patient_first {
            assert!(futures::poll!(patient.as_mut()).is_pending() && futures::poll!(impatient.as_mut()).is_pending());
            hasty.2.add_permits(2);
            assert!(impatient.await.is_ok(), "what is there is there");
            assert!(patient.await.is_ok());
        } else {
            assert!(futures::poll!(impatient.as_mut()).is_pending() && futures::poll!(patient.as_mut()).is_pending());
            hasty.2.add_permits(2);
            assert!(patient.await.is_ok(), "it has a chance of its own");
            assert_eq!(impatient.await, Err(EngineError::Expired));
        }
    }
}

/// Says for whom it is asked: whose part of a queue it would be.
struct Named(RetrieverInfo, Semaphore, std::sync::Mutex<Vec<Option<Arc<str>>>>);

impl Retriever for Named {
    fn info(&self) -> &RetrieverInfo {
        &self.0
    }

    fn embed(&self, _: Vec<EmbedItem>) -> BoxFuture<'_, Result<Vec<Embedding>, EngineError>> {
        async move {
            self.1.acquire().await.unwrap().forget();
            self.2.lock().unwrap().push(crate::caller::client());
            Ok(vec![Embedding { vector: vec![1.0, 0.0].into(), cache_hit: false }])
        }
        .boxed()
    }
}

#[tokio::test]
async fn a_flight_is_for_who_began_it_whoever_drives_it() {
    let named = Arc::new(Named(Fake::new(0).info.clone(), Semaphore::new(0), std::sync::Mutex::default()));
    let keys = CacheKeyBuilder::new(&[0; 32], &[0; 32], "last", 512, "f32");
    let cached = CachedRetriever::new(named.clone(), Arc::new(MapCache::default()), keys);
    let ask = |client: &str| Box::pin(crate::on_behalf_of(client.into(), cached.embed(items(&["a"]))));
    let (mut ann, mut robot) = (ask("ann"), ask("robot"));
    assert!(futures::poll!(ann.as_mut()).is_pending() && futures::poll!(robot.as_mut()).is_pending());
    named.1.add_permits(1);
    assert!(robot.await.is_ok() && ann.await.is_ok());
    assert_eq!(*named.2.lock().unwrap(), [Some(Arc::from("ann"))]);
}
