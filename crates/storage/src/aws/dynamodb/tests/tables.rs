//! What people do with a table.

use super::*;
use std::sync::Mutex;

fn table(double: &Double) -> EmbeddingTable {
    EmbeddingTable::with(double.client(), "eu-west-1", TABLE)
}

fn kind(dtype: &str, revision: &str) -> ItemKind {
    ItemKind { version: "1".into(), dtype: dtype.into(), dimensions: "2".into(), revision: revision.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_created_once() {
    let double = Double::start();
    let table = table(&double);
    let error = table.stats().await.unwrap_err().to_string();
    assert!(error.contains("nexus cache create-table") && !error.contains('\n'), "{error}");
    assert_eq!(table.create(false).await.unwrap(), Created { new: true, active: false, ttl: Ttl::Off });
    assert_eq!(table.create(true).await.unwrap(), Created { new: false, active: true, ttl: Ttl::On });
    assert_eq!(table.create(false).await.unwrap(), Created { new: false, active: true, ttl: Ttl::On });
    let stats = table.stats().await.unwrap();
    assert_eq!((stats.status.as_str(), stats.billing.as_str(), stats.ttl), ("ACTIVE", "PAY_PER_REQUEST", Ttl::On));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_for_something_else_is_left_alone() {
    let hash = |name: &str| json!({ "AttributeName": name, "KeyType": "HASH" });
    let attribute = |name: &str, kind: &str| json!({ "AttributeName": name, "AttributeType": kind });
    let range = json!({ "AttributeName": "at", "KeyType": "RANGE" });
    for (keys, attributes, found) in [
        (vec![hash("text_hash")], vec![attribute("text_hash", "S")], "found `text_hash` (S);"),
        (vec![hash("k")], vec![attribute("k", "S")], "found `k` (S);"),
        (vec![hash("k"), range], vec![attribute("at", "N"), attribute("k", "B")], "found `k` (B), `at` (N);"),
    ] {
        let double = Double::start();
        double.table(json!({ "KeySchema": keys, "AttributeDefinitions": attributes }));
        for error in [table(&double).create(true).await.unwrap_err(), table(&double).stats().await.unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains(found), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_takes_one_revision_or_all() {
    let double = Double::start();
    let (cache, table) = (cache(&double), table(&double));
    for (revision, range) in [("old", 0..40), ("new", 40..47)] {
        cache.set_revision(revision);
        cache.put(range.map(numbered).collect());
    }
    cache.flush().await;
    assert_eq!(table.purge(Some("unknown"), &|_| {}).await.unwrap().deleted, 0);

    double.next(Kind::Write, &[Fault::Throttle, Fault::Partial(1), Fault::Server]);
    let pages = Mutex::new(Vec::new());
    let purged = table.purge(Some("old"), &|purged| pages.lock().unwrap().push(*purged)).await.unwrap();
    assert_eq!((purged.scanned, purged.deleted), (47, 40));
    assert!(purged.read_units > 0.0 && purged.write_units >= 40.0);
    assert_eq!(pages.into_inner().unwrap().last(), Some(&purged));
    assert_eq!(hits(&cache, 0..47).await, 7);

    assert_eq!(table.purge(None, &|_| {}).await.unwrap().deleted, 7);
    assert!(double.items().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_counts_kinds() {
    let double = Double::start();
    let cache = cache(&double);
    cache.put(vec![numbered(1)]);
    cache.set_revision("r1");
    cache.put(vec![numbered(2), numbered(3)]);
    cache.flush().await;
    let sample = table(&double).sample(100).await.unwrap();
    assert_eq!(sample.items, 3);
    assert_eq!(sample.kinds.into_iter().collect::<Vec<_>>(), [(kind("f32", "?"), 1), (kind("f32", "r1"), 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_what_to_allow() {
    let double = Double::start();
    double.always(Kind::Table, Fault::Denied);
    double.always(Kind::Write, Fault::Denied);
    let table = table(&double);
    for (error, action) in [
        (table.create(false).await.unwrap_err(), "dynamodb:CreateTable"),
        (table.stats().await.unwrap_err(), "dynamodb:DescribeTable"),
        (table.sample(1).await.unwrap_err(), "dynamodb:Scan"),
        (table.purge(None, &|_| {}).await.unwrap_err(), "dynamodb:Scan"),
    ] {
        let error = error.to_string();
        assert!(error.contains(action) && error.contains("eu-west-1") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn what_a_purge_costs() {
    let stats = |items, bytes| TableStats { status: String::new(), items, bytes, billing: String::new(), ttl: Ttl::On };
    assert_eq!((stats(0, 0).scan_read_units(), stats(0, 0).delete_write_units()), (0, 0));
    let full = stats(1000, 16_500_000);
    assert_eq!((full.scan_read_units(), full.delete_write_units()), (2015, 17_000));
}
