//! The cache and its table on dynalite, which is as strict as DynamoDB about sizes and answers large reads in parts.
//!
//! `npx dynalite --port 4567 --createTableMs 50`, then with `AWS_ENDPOINT_URL_DYNAMODB=http://127.0.0.1:4567`,
//! `AWS_ACCESS_KEY_ID=x` and `AWS_SECRET_ACCESS_KEY=x` in the environment:
//! `cargo test -p nexus-storage --features aws --test dynalite -- --ignored`.

#![forbid(unsafe_code)]
#![cfg(feature = "aws")]

use nexus_storage::{
    CacheKey, CacheKeyBuilder, CacheStats, DynamoCache, DynamoOptions, EmbeddingCache, EmbeddingTable, ItemDtype,
    Vector, aws_config,
};
use std::time::{Duration, SystemTime};

fn key(i: usize) -> CacheKey {
    CacheKeyBuilder::new(&[1; 32], &[2; 32], "last", 512, "f32").key(None, 4096, &i.to_string())
}

/// Unit length, and no two alike.
fn vector(i: usize) -> Vector {
    let raw: Vec<f64> = (0..4096).map(|d| ((i * 4096 + d) as f64 * 0.618).fract() - 0.5).collect();
    let length = raw.iter().map(|x| x * x).sum::<f64>().sqrt();
    raw.iter().map(|x| (x / length) as f32).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs dynalite, which AWS_ENDPOINT_URL_DYNAMODB names"]
async fn replicas_share_a_table_and_pay_what_is_said() {
    const COUNT: usize = 150;
    let config = aws_config("us-east-1").await;
    let unique = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    for (dtype, write_units) in [(ItemDtype::F32, 17.0), (ItemDtype::Bf16, 9.0)] {
        let name = format!("embeddings-{}-{unique}", dtype.name());
        let table = EmbeddingTable::new(&config, name.as_str());
        assert!(table.create(true).await.unwrap().active);
        assert!(!table.create(true).await.unwrap().new);

        let read_timeout = Duration::from_secs(20);
        let options = DynamoOptions { dtype, read_timeout, ttl: Some(read_timeout * 1000), ..DynamoOptions::new(name) };
        let [first, second] = [(); 2].map(|()| DynamoCache::open(&config, options.clone()));
        first.set_revision("r1");
        first.put((0..COUNT).map(|i| (key(i), vector(i))).collect());
        first.flush().await;
        // 150 of 16 KB are more than one answer holds.
        let found = second.get(&(0..COUNT).map(key).collect::<Vec<_>>()).await;
        for (i, found) in found.into_iter().enumerate() {
            let (found, put) = (found.unwrap_or_else(|| panic!("{i} is missing")), vector(i));
            match dtype {
                ItemDtype::F32 => assert_eq!(found, put),
                ItemDtype::Bf16 => assert!(found.iter().zip(put.iter()).all(|(x, y)| (x - y).abs() < 1e-4)),
            }
        }
        let CacheStats { hits, misses, damaged, read_failures, read_timeouts, .. } = second.stats();
        assert_eq!((hits, misses, damaged, read_failures, read_timeouts), (COUNT as u64, 0, 0, 0, 0));

        let sample = table.sample(10).await.unwrap();
        assert!(sample.kinds.keys().all(|kind| kind.revision == "r1" && kind.dtype == dtype.name()));
        let purged = table.purge(Some("r1"), &|_| {}).await.unwrap();
        assert_eq!((purged.deleted, purged.write_units), (COUNT as u64, write_units * COUNT as f64));
    }
}
