//! The cache against a table that behaves, and against one that does not.
//!
//! No test asserts how fast something is, but by bounds that tell a wait for an answer that never comes.

mod double;
mod faults;
mod revisions;
mod tables;

use super::*;
use crate::Circuit;
use crate::testing::{bits, key, vector};
use double::{Double, Fault, Kind, TABLE};
use proptest::prelude::*;
use serde_json::json;
use std::time::Instant;

/// Long enough for any machine to answer in.
const PATIENCE: Duration = Duration::from_secs(20);

fn options() -> DynamoOptions {
    DynamoOptions { read_timeout: PATIENCE, write_timeout: PATIENCE, ..DynamoOptions::new(TABLE) }
}

/// Opens after three failures, for half a minute at least; writes at 25 entries or a flush, and tries three times.
fn tuning() -> Tuning {
    let long = Duration::from_secs(60);
    let pause = Duration::from_millis(1);
    Tuning {
        breaker: BreakerOptions { failures_max: 3, open: long, open_max: long },
        write: write::WriteTuning { delay: PATIENCE, tries_max: 3, pause, pause_max: 4 * pause },
        cold: true,
    }
}

/// As [`tuning`], but it asks again after a moment.
fn eager() -> Tuning {
    let moment = Duration::from_millis(1);
    Tuning { breaker: BreakerOptions { failures_max: 3, open: moment, open_max: moment }, ..tuning() }
}

fn cache(double: &Double) -> DynamoCache {
    DynamoCache::with(double.client(), "eu-west-1", options(), tuning())
}

fn numbered(i: u64) -> (CacheKey, Vector) {
    (key(i), vector(&[i as f32, 0.5]))
}

fn keys(range: std::ops::Range<u64>) -> Vec<CacheKey> {
    range.map(key).collect()
}

/// How many of these the cache has, all of them right.
async fn hits(cache: &DynamoCache, range: std::ops::Range<u64>) -> usize {
    let found = cache.get(&keys(range.clone())).await;
    for (i, vector) in range.zip(&found) {
        assert!(vector.as_ref().is_none_or(|vector| *vector == numbered(i).1), "{i}");
    }
    found.iter().flatten().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_caches_share_a_table() {
    let double = Double::start();
    let (first, second) = (cache(&double), cache(&double));
    assert_eq!(second.get(&keys(0..2)).await, [None, None]);
    first.put(vec![numbered(0)]);
    first.flush().await;
    assert_eq!(second.get(&keys(0..2)).await, [Some(numbered(0).1), None]);
    let stats = second.stats();
    assert_eq!(stats, CacheStats { hits: 1, misses: 3, ..CacheStats::default() });
    assert_eq!(first.name(), "dynamodb embeddings in eu-west-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_are_read_and_written_in_batches() {
    let double = Double::start();
    let cache = cache(&double);
    cache.put((0..1030).map(numbered).collect());
    cache.flush().await;
    assert_eq!(double.items().len(), 1030);
    let writes = double.calls(Kind::Write);
    assert!(writes.iter().all(|n| *n <= 25) && writes.len() == 42, "{writes:?}");
    assert_eq!(hits(&cache, 0..1030).await, 1030);
    let mut reads = double.calls(Kind::Read);
    reads.sort_unstable();
    assert_eq!(reads, [30, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100]);
    assert_eq!((cache.stats().waiting, cache.stats().dropped), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_twice_is_asked_for_and_written_once() {
    let double = Double::start();
    let cache = cache(&double);
    let newer = vector(&[7.0]);
    cache.put(vec![numbered(1), numbered(2), (key(1), newer.clone())]);
    cache.flush().await;
    assert_eq!(double.calls(Kind::Write), [2]);
    let found = cache.get(&[key(1), key(3), key(1), key(2)]).await;
    assert_eq!(found, [Some(newer.clone()), None, Some(newer), Some(numbered(2).1)]);
    assert_eq!(double.calls(Kind::Read), [3]);
    assert_eq!(cache.get(&[]).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_as_it_goes_to_the_table() {
    let double = Double::start();
    let ttl = Some(Duration::from_secs(86_400));
    let cache = DynamoCache::with(double.client(), "eu-west-1", DynamoOptions { ttl, ..options() }, tuning());
    cache.put(vec![(CacheKey::from_bytes([7; 32]), vector(&[1.0, -2.5]))]);
    cache.set_revision("model-v2");
    cache.put(vec![(CacheKey::from_bytes([8; 32]), vector(&[1.0]))]);
    cache.flush().await;
    let mut items = double.items();
    assert_eq!(items[1]["revision"], json!({ "S": "model-v2" }));
    let item = items[0].as_object_mut().unwrap();
    let seconds = |value: &serde_json::Value| value["N"].as_str().unwrap().parse::<u64>().unwrap();
    let created = seconds(&item.remove("created").unwrap());
    assert!(epoch_s() - created < 3600);
    assert_eq!(seconds(&item.remove("expires").unwrap()), created + 86_400);
    assert_eq!(
        items[0],
        json!({
            "k": { "B": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=" },
            "version": { "N": "1" },
            "dimensions": { "N": "2" },
            "dtype": { "S": "f32" },
            "vector": { "B": "AACAPwAAIMA=" },
            "checksum": { "B": "rExpB7/wDo6JWq4b+m0ShA==" },
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_revision_is_cut_between_characters() {
    let double = Double::start();
    let cache = cache(&double);
    cache.set_revision(&"é".repeat(100));
    assert_eq!(&*cache.shared.revision(), "é".repeat(64));
    cache.set_revision(&format!("a{}", "é".repeat(100)));
    assert_eq!(cache.shared.revision().len(), 127);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_dtypes_in_one_table() {
    let double = Double::start();
    let rounding = DynamoOptions { dtype: ItemDtype::Bf16, ..options() };
    let caches = [cache(&double), DynamoCache::with(double.client(), "eu-west-1", rounding, tuning())];
    for (i, cache) in caches.iter().enumerate() {
        cache.put(vec![(key(i as u64), vector(&[0.1, 3.0]))]);
        cache.flush().await;
    }
    for cache in &caches {
        let found = cache.get(&keys(0..2)).await;
        assert_eq!(found[0].as_deref(), Some(&[0.1, 3.0][..]));
        assert_eq!(found[1].as_deref(), Some(&[0.100_097_656, 3.0][..]), "0.1 as bf16 has it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_put_is_a_miss_and_is_written_anew() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change, u64); 8] = [
        ("another version", |item| item["version"]["N"] = json!("2"), 1),
        ("another shape", |item| item["dimensions"]["N"] = json!("3"), 1),
        ("wrong bytes", |item| item["vector"]["B"] = json!("AACAPwAAIME="), 1),
        ("no bytes", |item| drop(item.as_object_mut().unwrap().remove("vector")), 1),
        ("text for bytes", |item| item["vector"] = json!({ "S": "AACAPwAAIME=" }), 1),
        ("a key that is no digest", |item| item["k"]["B"] = json!("AAAA"), 1),
        ("what another program keeps", |item| *item = json!({ "k": item["k"], "embedding": { "L": [] } }), 1),
        ("past its time", |item| item["expires"] = json!({ "N": "1000000000" }), 0),
    ];
    for (what, change, damaged) in changes {
        let double = Double::start();
        let cache = cache(&double);
        cache.put(vec![numbered(1)]);
        cache.flush().await;
        double.edit(change);
        assert_eq!(cache.get(&[key(1)]).await, [None], "{what}");
        assert_eq!(cache.stats().damaged, damaged, "{what}");
        assert_eq!(cache.stats().reads, Circuit::Closed, "{what}");
        cache.put(vec![numbered(1)]);
        cache.flush().await;
        assert_eq!(cache.get(&[key(1)]).await, [Some(numbered(1).1)], "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_kept_is_dropped_and_the_rest_is_written() {
    let double = Double::start();
    let cache = cache(&double);
    cache.put(vec![(key(1), vector(&[f32::NAN])), (key(2), vector(&[0.0; 102_400])), numbered(3)]);
    cache.flush().await;
    assert_eq!((cache.stats().dropped, double.items().len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_in_parts_are_put_together() {
    let double = Double::start();
    let cache = cache(&double);
    double.next(Kind::Write, &[Fault::Partial(7), Fault::Partial(0), Fault::Partial(1)]);
    cache.put((0..60).map(numbered).collect());
    cache.flush().await;
    assert_eq!((double.items().len(), cache.stats().dropped), (60, 0));
    double.next(Kind::Read, &[Fault::Partial(9), Fault::Partial(0), Fault::Partial(3), Fault::Throttle]);
    assert_eq!(hits(&cache, 0..60).await, 60);
    // What is overcome in time is no failure.
    assert_eq!((cache.stats().read_failures, cache.stats().reads), (0, Circuit::Closed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_hit_is_bit_for_bit_what_was_put(words in prop::collection::vec(any::<u32>(), 0..300)) {
        let put: Vector = words.iter().map(|&w| f32::from_bits(w)).filter(|x| x.is_finite()).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let found = runtime.block_on(async {
            let double = Double::start();
            let cache = cache(&double);
            cache.put(vec![(key(1), put.clone())]);
            cache.flush().await;
            cache.get(&[key(1)]).await
        });
        prop_assert_eq!(bits(found[0].as_ref().unwrap()), bits(&put));
    }
}
