//! The table of embeddings, when all is well: what one replica computes is there for all.

use crate::places::Table;
use crate::replica::{Replica, Start};
use crate::support::{cosine, floats};
use serde_json::{Value, json};

/// A replica whose reads have all the time they need: these tests are about what is read, not when.
pub(crate) fn start(table: &Table) -> Start {
    Start::new()
        .env("NEXUS_CACHE", "dynamodb")
        .env("EMBEDDING_CACHE_TABLE", &table.name)
        .env("NEXUS_CACHE_READ_TIMEOUT_MS", "10000")
}

/// So many texts, no two alike.
pub(crate) fn texts(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("Control {i}: access number {i} is reviewed every {} days", i + 1)).collect()
}

/// Embeds all texts with one request: each vector, and whether it came from the cache.
pub(crate) fn embed_all(replica: &Replica, texts: &[String]) -> Vec<(Vec<f32>, bool)> {
    let items: Vec<Value> = texts.iter().map(|text| json!({ "control_id": text, "text": text })).collect();
    let answer = replica.ask("/api/v1/embed/batch", &json!({ "items": items }));
    let results = answer["results"].as_array().expect("results");
    assert_eq!(results.len(), texts.len());
    (results.iter())
        .map(|result| (floats(&result["embedding"]), result["cache_hit"].as_bool().expect("a boolean")))
        .collect()
}

pub(crate) fn hits(of: &[(Vec<f32>, bool)]) -> usize {
    of.iter().filter(|(_, hit)| *hit).count()
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_second_replica_has_hits_for_what_the_first_computed() {
    let table = Table::new();
    let texts = texts(130);
    let first = start(&table).start().ready();
    let computed = embed_all(&first, &texts);
    assert_eq!(hits(&computed), 0);
    table.wait_for_items(130);

    // While the first lives.
    let second = start(&table).start().ready();
    for ((vector, hit), (computed, _)) in embed_all(&second, &texts).iter().zip(&computed) {
        assert!(hit);
        assert_eq!(vector, computed);
    }
    // And the other way round.
    let (vector, hit) = second.embed("only the second has seen this");
    assert!(!hit);
    table.wait_for_items(131);
    assert_eq!(first.embed("only the second has seen this"), (vector, true));
    assert_eq!(table.items().len(), 131);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn what_was_just_computed_is_written_before_the_end() {
    let table = Table::new();
    let texts = texts(120);
    let first = start(&table).start().ready();
    let computed = embed_all(&first, &texts);
    // Nothing is waited for.
    first.stop();
    assert_eq!(table.items().len(), 120);
    let second = start(&table).start().ready();
    let found = embed_all(&second, &texts);
    assert_eq!(hits(&found), 120);
    assert!(found.iter().zip(&computed).all(|((found, _), (computed, _))| found == computed));
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn every_thing_that_a_vector_depends_on_is_a_key_of_its_own() {
    let table = Table::new();
    let first = start(&table).start().ready();
    let bodies = [
        json!({ "control_id": "a", "text": "one" }),
        json!({ "control_id": "a", "text": "one " }),
        json!({ "control_id": "a", "text": "one", "dimensions": 64 }),
        json!({ "control_id": "a", "text": "one", "instruction": "Find the control" }),
    ];
    for (i, body) in bodies.iter().enumerate() {
        assert_eq!(first.ask("/api/v1/embed", body)["cache_hit"], false, "{body}");
        table.wait_for_items(i + 1);
    }
    let second = start(&table).start().ready();
    for body in &bodies {
        assert_eq!(second.ask("/api/v1/embed", body)["cache_hit"], true, "{body}");
    }
    // Another window is another model, as far as vectors go.
    let narrow = start(&table).env("NEXUS_TEXT_TOKENS_MAX", "64").start().ready();
    assert_eq!(narrow.ask("/api/v1/embed", &bodies[0])["cache_hit"], false);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn half_the_bytes_are_nearly_the_same_vector() {
    let table = Table::new();
    let texts = texts(20);
    let first = start(&table).env("NEXUS_CACHE_DTYPE", "bf16").start().ready();
    let computed = embed_all(&first, &texts);
    let items = table.wait_for_items(20);
    // In base64, which has four letters for three bytes.
    let bytes = items[0]["vector"]["B"].as_str().map_or(0, str::len) / 4 * 3;
    assert!(bytes.abs_diff(2 * computed[0].0.len()) <= 2, "{bytes} bytes for {} components", computed[0].0.len());
    // Whatever a replica writes, it reads both.
    let second = start(&table).start().ready();
    for ((found, hit), (computed, _)) in embed_all(&second, &texts).iter().zip(&computed) {
        assert!(hit);
        assert!(cosine(found, computed) > 0.9999);
        let length: f32 = found.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
    }
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn items_that_are_not_what_was_put_are_misses() {
    let table = Table::new();
    let texts = texts(9);
    let first = start(&table).start().ready();
    let mut computed = Vec::new();
    let mut damage = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        computed.push(first.embed(text).0);
        let items = table.wait_for_items(i + 1);
        let known: Vec<Value> = damage.iter().map(|item: &Value| item["k"].clone()).collect();
        damage.push(items.into_iter().find(|item| !known.contains(&item["k"])).expect("a new item"));
    }
    let other = damage[8].clone();
    let changes: [&dyn Fn(&mut Value); 8] = [
        &|item| flip(&mut item["vector"]["B"]),
        &|item| flip(&mut item["checksum"]["B"]),
        &|item| item["version"]["N"] = json!("2"),
        &|item| item["dimensions"]["N"] = json!("1"),
        &|item| item["dtype"]["S"] = json!("bf16"),
        // Whole, and another text's.
        &|item| item["vector"] = other["vector"].clone(),
        // Past its time, and not deleted yet.
        &|item| item["expires"] = json!({ "N": "1000000000" }),
        &|item| *item = json!({ "k": item["k"], "vector": { "S": "?" } }),
    ];
    for (item, change) in damage.iter_mut().zip(changes) {
        let before = item.clone();
        change(item);
        assert_ne!(*item, before, "the test changes nothing");
        table.ask("PutItem", &json!({ "TableName": table.name, "Item": item })).expect("it is put");
    }
    let second = start(&table).start().ready();
    for (i, (text, computed)) in texts.iter().zip(&computed).enumerate() {
        let (vector, hit) = second.embed(text);
        // The last one is as it was.
        assert_eq!(hit, i == 8, "{text}");
        assert!(cosine(&vector, computed) > 0.99999, "{text}");
    }
    second.stop();
    // What was computed again has taken the place of what was damaged.
    let third = start(&table).start().ready();
    assert_eq!(hits(&embed_all(&third, &texts)), 9);
}

/// Another letter in the middle of base64.
fn flip(value: &mut Value) {
    let mut text = value.as_str().expect("base64").to_owned();
    let middle = text.len() / 2;
    let letter = if &text[middle..=middle] == "A" { "B" } else { "A" };
    text.replace_range(middle..=middle, letter);
    *value = json!(text);
}
