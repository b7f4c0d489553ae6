//! Buckets and tables: made, filled and looked into from outside, without the code under test.

use crate::support::{PATIENCE, root};
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// Where scripts/aws_services.sh says that S3 is.
pub(crate) fn s3_url() -> String {
    std::env::var("NEXUS_TEST_S3_URL").expect("run by scripts/aws_services.sh")
}

/// Where scripts/aws_services.sh says that DynamoDB is.
pub(crate) fn dynamodb_url() -> String {
    std::env::var("NEXUS_TEST_DYNAMODB_URL").expect("run by scripts/aws_services.sh")
}

/// A name that nothing else has, in these servers.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Numbers that look random and are the same at every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// So many bytes, none like those of another seed.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// Both servers want to see a signature, and check none.
fn signed(request: RequestBuilder, service: &str) -> RequestBuilder {
    let credential = format!("outside/20260101/us-east-1/{service}/aws4_request");
    let signature = "SignedHeaders=host;x-amz-date, Signature=0";
    request
        .header("authorization", format!("AWS4-HMAC-SHA256 Credential={credential}, {signature}"))
        .header("x-amz-date", "20260101T000000Z")
}

fn client() -> Client {
    Client::builder().timeout(PATIENCE).build().expect("a client")
}

/// A bucket of the test's own.
pub(crate) struct Bucket {
    pub(crate) name: String,
    client: Client,
}

impl Bucket {
    /// An empty one.
    pub(crate) fn new() -> Self {
        let bucket = Self { name: unique("models"), client: client() };
        bucket.send(bucket.client.put(format!("{}/{}", s3_url(), bucket.name)));
        bucket
    }

    /// One with the built-in models where the original has its own.
    pub(crate) fn with_models() -> Self {
        let bucket = Self::new();
        bucket.put_folder("embedder", "models/qwen-embedding-8b");
        bucket.put_folder("reranker", "models/modernbert-reranker");
        bucket
    }

    /// Puts a built-in model's folder under `prefix`.
    pub(crate) fn put_folder(&self, model: &str, prefix: &str) {
        for entry in std::fs::read_dir(root().join("models").join(model)).expect("a folder") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("UTF-8");
            self.put(&format!("{prefix}/{name}"), std::fs::read(entry.path()).expect("a file"));
        }
    }

    pub(crate) fn put(&self, key: &str, bytes: Vec<u8>) {
        self.send(self.client.put(self.url(key)).body(bytes));
    }

    pub(crate) fn get(&self, key: &str) -> Vec<u8> {
        self.send(self.client.get(self.url(key))).bytes().expect("a body").to_vec()
    }

    pub(crate) fn delete(&self, key: &str) {
        self.send(self.client.delete(self.url(key)));
    }

    /// Removes the bucket, with all that is in it.
    pub(crate) fn remove(&self) {
        for key in self.keys("") {
            self.delete(&key);
        }
        self.send(self.client.delete(format!("{}/{}", s3_url(), self.name)));
    }

    /// The keys under `prefix`.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let url = format!("{}/{}?list-type=2&prefix={prefix}", s3_url(), self.name);
        let listing = self.send(self.client.get(url)).text().expect("text");
        listing.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned())).collect()
    }

    fn url(&self, key: &str) -> String {
        format!("{}/{}/{key}", s3_url(), self.name)
    }

    fn send(&self, request: RequestBuilder) -> Response {
        let response = signed(request, "s3").send().expect("an answer");
        assert!(response.status().is_success(), "{}: {:?}", response.status(), response.text());
        response
    }
}

/// A table's name of the test's own, and what is in it.
pub(crate) struct Table {
    pub(crate) name: String,
    client: Client,
}

impl Table {
    /// A name without a table.
    pub(crate) fn named() -> Self {
        Self { name: unique("embeddings"), client: client() }
    }

    /// Asks DynamoDB.
    pub(crate) fn ask(&self, operation: &str, body: &Value) -> Result<Value, Value> {
        let request = self
            .client
            .post(dynamodb_url())
            .header("x-amz-target", format!("DynamoDB_20120810.{operation}"))
            .header("content-type", "application/x-amz-json-1.0")
            .body(body.to_string());
        let response = signed(request, "dynamodb").send().expect("an answer");
        let good = response.status().is_success();
        let answer: Value = response.json().expect("JSON");
        if good { Ok(answer) } else { Err(answer) }
    }

    /// All items, each an object of attributes.
    pub(crate) fn items(&self) -> Vec<Value> {
        let mut items = Vec::new();
        let mut request = json!({ "TableName": self.name });
        loop {
            let page = self.ask("Scan", &request).expect("a page");
            items.extend(page["Items"].as_array().expect("items").iter().cloned());
            if page["LastEvaluatedKey"].is_null() {
                return items;
            }
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"].clone();
        }
    }

    /// Waits until the writes behind the answers have brought the table to `count` items.
    pub(crate) fn wait_for_items(&self, count: usize) -> Vec<Value> {
        let started = Instant::now();
        loop {
            let items = self.items();
            if items.len() >= count {
                return items;
            }
            assert!(started.elapsed() < PATIENCE, "{} of {count} items", items.len());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Table {
    /// An empty table as `nexus cache create-table` makes it.
    pub(crate) fn new() -> Self {
        let table = Self::named();
        table.create();
        table
    }

    /// Makes the table, and waits until it can be used.
    pub(crate) fn create(&self) {
        let request = json!({
            "TableName": self.name,
            "AttributeDefinitions": [{ "AttributeName": "k", "AttributeType": "B" }],
            "KeySchema": [{ "AttributeName": "k", "KeyType": "HASH" }],
            "BillingMode": "PAY_PER_REQUEST",
        });
        self.ask("CreateTable", &request).expect("a table");
        self.wait_until_active();
    }

    pub(crate) fn wait_until_active(&self) {
        let started = Instant::now();
        loop {
            let answer = self.ask("DescribeTable", &json!({ "TableName": self.name })).expect("a table");
            if answer["Table"]["TableStatus"] == "ACTIVE" {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{answer}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
