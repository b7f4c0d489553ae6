//! Models that are loaded while their files arrive: a built-in model in three shards, the last of them held back.

use crate::places::{Bucket, s3_url};
use crate::proxy::{Fault, Proxy};
use crate::replica::{Replica, Start};
use crate::support::{PATIENCE, Service, root};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MODEL: &str = "models/qwen-embedding-8b";
const TEXT: &str = "MFA is enabled for the root user of the account";
const SHARDS: [&str; 3] =
    ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];

/// Cuts the built-in embedder's weights into shards, as large models are published, and puts them into a bucket.
fn put_shards(bucket: &Bucket) {
    let whole = std::fs::read(root().join("models/embedder/model.safetensors")).expect("the weights");
    let (length, rest) = whole.split_at(8);
    let length = u64::from_le_bytes(*length.first_chunk().expect("8 bytes")) as usize;
    let (header, data) = rest.split_at(length);
    let mut header: Map<String, Value> = serde_json::from_slice(header).expect("a header");
    header.remove("__metadata__");
    let mut shards = [(Map::new(), Vec::new()), (Map::new(), Vec::new()), (Map::new(), Vec::new())];
    let mut weight_map = Map::new();
    for (name, mut tensor) in header {
        let offset = |i: usize| tensor["data_offsets"][i].as_u64().expect("an offset") as usize;
        let bytes = &data[offset(0)..offset(1)];
        // The token table, the layers, and the last layer with what comes after it.
        let shard = if name.starts_with("embed") { 0 } else { 1 + usize::from(name.as_str() >= "layers.3") };
        let (header, content) = &mut shards[shard];
        tensor["data_offsets"] = json!([content.len(), content.len() + bytes.len()]);
        content.extend_from_slice(bytes);
        weight_map.insert(name.clone(), json!(SHARDS[shard]));
        header.insert(name, tensor);
    }
    bucket.put_folder("embedder", MODEL);
    bucket.delete(&format!("{MODEL}/model.safetensors"));
    let index = json!({ "metadata": { "total_size": data.len() }, "weight_map": weight_map });
    bucket.put(&format!("{MODEL}/model.safetensors.index.json"), index.to_string().into_bytes());
    for (name, (header, content)) in SHARDS.iter().zip(shards) {
        assert!(!content.is_empty(), "{name}");
        let mut header = Value::from(header).to_string().into_bytes();
        // Numbers at multiples of their size, as in published files.
        header.resize(header.len().next_multiple_of(8), b' ');
        let shard = [&(header.len() as u64).to_le_bytes()[..], &header, &content].concat();
        bucket.put(&format!("{MODEL}/{name}"), shard);
    }
}

/// A replica that has prepared all weights but those of the last shard, which comes once the flag is set.
fn start_without_last(bucket: &Bucket, proxy: &Proxy) -> (Replica, Arc<AtomicBool>) {
    let released = Arc::new(AtomicBool::new(false));
    let release = released.clone();
    proxy.rule(move |asked| {
        let since = Instant::now();
        while asked.method == "GET" && asked.path.contains(SHARDS[2]) && !release.load(Ordering::SeqCst) {
            if since.elapsed() > PATIENCE {
                return Fault::Reset;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Fault::Pass
    });
    let replica = start(bucket).env("AWS_ENDPOINT_URL_S3", &proxy.url).start();
    let started = Instant::now();
    // A shard is waited for when the first of its tensors is due, and that is after all of the shards before.
    while !replica.log().iter().any(|line| line.contains("waiting for") && line.contains(SHARDS[2])) {
        assert!(started.elapsed() < PATIENCE, "it does not get to the last shard");
        std::thread::sleep(Duration::from_millis(5));
    }
    // What is told may be some tenths of a second old.
    replica.ready_when(|answer| {
        let retriever = &answer["models"][0];
        let bytes = |name: &str| retriever[name].as_u64().unwrap_or_default();
        assert_eq!(retriever["stage"], "fetching", "{answer}");
        assert!(bytes("bytes_done") < bytes("bytes_total"), "{answer}");
        bytes("bytes_done") > 0
    });
    (replica, released)
}

fn start(bucket: &Bucket) -> Start {
    Start::new().env("MODEL_BUCKET", &bucket.name).env("LOG_LEVEL", "DEBUG")
}

fn retriever_ready(replica: &Replica) -> Vec<f32> {
    let answer = replica.ready_when(|answer| answer["models"][0]["status"] != "loading");
    assert_eq!(answer["models"][0]["status"], "ready", "{answer}");
    replica.embed(TEXT).0
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn weights_are_prepared_while_the_last_shard_is_on_its_way() {
    let bucket = Bucket::new();
    put_shards(&bucket);
    let proxy = Proxy::to(&s3_url());
    let (replica, released) = start_without_last(&bucket, &proxy);
    released.store(true, Ordering::SeqCst);
    let builtin = Service::start(&[("NEXUS_CACHE", "off")]).ready();
    assert_eq!(retriever_ready(&replica), builtin.embed(TEXT).0);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn weights_that_change_after_they_were_prepared_are_loaded_again() {
    let bucket = Bucket::new();
    put_shards(&bucket);
    let proxy = Proxy::to(&s3_url());
    let (replica, released) = start_without_last(&bucket, &proxy);
    // The token table, with the sign of each number changed.
    let key = format!("{MODEL}/{}", SHARDS[0]);
    let mut shard = bucket.get(&key);
    let header = 8 + u64::from_le_bytes(*shard.first_chunk().expect("8 bytes")) as usize;
    shard[header..].chunks_exact_mut(2).for_each(|number| number[1] ^= 0x80);
    bucket.put(&key, shard);
    released.store(true, Ordering::SeqCst);
    let vector = retriever_ready(&replica);
    assert!(replica.log().iter().any(|line| line.contains("changed while it was loaded")));

    let plain = start(&bucket).start();
    assert_eq!(vector, retriever_ready(&plain));
    let builtin = Service::start(&[("NEXUS_CACHE", "off")]).ready();
    assert_ne!(vector, builtin.embed(TEXT).0);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_replica_stops_while_it_waits_for_a_shard() {
    let bucket = Bucket::new();
    put_shards(&bucket);
    let proxy = Proxy::to(&s3_url());
    let (replica, released) = start_without_last(&bucket, &proxy);
    replica.stop();
    released.store(true, Ordering::SeqCst);
}
