//! The table of embeddings, when something is wrong: every request is answered with the right vector, the log says what
//! it is once a minute, and when it is over there are hits again.

use crate::cache::{embed_all, hits, start, texts};
use crate::places::{Table, dynamodb_url};
use crate::proxy::{Asked, Fault, Message, Proxy};
use crate::replica::Replica;
use crate::support::cosine;
use serde_json::{Value, json};
use std::io::Result;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a request may take, all told: the read's limit, which is one second here, and the work. Far below what the
/// SDK would wait by itself for something that hangs.
const REQUEST_TIME: Duration = Duration::from_secs(20);

/// How long hits may stay away after a fault is over.
const RECOVERY_TIME: Duration = Duration::from_secs(75);

/// Texts that are in a table, and their vectors, but in no replica's memory.
struct Stock {
    table: Table,
    texts: Vec<String>,
    vectors: Vec<Vec<f32>>,
    next: usize,
}

impl Stock {
    fn new() -> Self {
        const COUNT: usize = 250;
        let (table, texts) = (Table::new(), texts(COUNT));
        let replica = start(&table).start().ready();
        let vectors = embed_all(&replica, &texts).into_iter().map(|(vector, _)| vector).collect();
        table.wait_for_items(COUNT);
        replica.stop();
        Self { table, texts, vectors, next: 0 }
    }

    /// Embeds the next text, which has to give its vector: whether it came from the cache.
    fn embed_next(&mut self, replica: &Replica) -> bool {
        let started = Instant::now();
        let (vector, hit) = replica.embed(&self.texts[self.next]);
        assert!(started.elapsed() < REQUEST_TIME, "{:?}", started.elapsed());
        let expected = &self.vectors[self.next];
        self.next += 1;
        if hit {
            assert_eq!(&vector, expected);
        } else {
            assert!(cosine(&vector, expected) > 0.99999);
        }
        hit
    }

    /// The same with several at once: how many came from the cache.
    fn embed_some(&mut self, count: usize, replica: &Replica) -> usize {
        let range = self.next..self.next + count;
        self.next += count;
        let started = Instant::now();
        let found = embed_all(replica, &self.texts[range.clone()]);
        assert!(started.elapsed() < REQUEST_TIME, "{:?}", started.elapsed());
        for ((vector, _), expected) in found.iter().zip(&self.vectors[range]) {
            assert!(cosine(vector, expected) > 0.99999);
        }
        hits(&found)
    }

    /// Waits for hits.
    fn recover(&mut self, replica: &Replica) {
        let started = Instant::now();
        while !self.embed_next(replica) {
            assert!(started.elapsed() < RECOVERY_TIME, "no hits {:?} after the fault is over", started.elapsed());
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

fn error(status: u16, code: &str) -> Message {
    let kind = format!("com.amazonaws.dynamodb.v20120810#{code}");
    let body = json!({ "__type": kind, "message": "told by the proxy" });
    Message::response(status, &[("content-type", "application/x-amz-json-1.0")], body.to_string())
}

/// Lines of the log, but the quietest, about a table.
fn complaints(replica: &Replica, table: &Table) -> Vec<String> {
    let mut lines = replica.log();
    lines.retain(|line| line.contains(&table.name) && (line.contains("WARN") || line.contains("ERROR")));
    lines
}

/// Waits for the table to have what is computed now, and for the replica's writes with that.
fn wait_for_writes(replica: &Replica, table: &Table) {
    let before = table.items().len();
    let started = Instant::now();
    for i in 0.. {
        replica.embed(&format!("written when the fault is over, try {i}"));
        std::thread::sleep(Duration::from_millis(500));
        if table.items().len() > before {
            return;
        }
        assert!(started.elapsed() < RECOVERY_TIME, "no writes {:?} after the fault is over", started.elapsed());
    }
}

/// What holds whatever `fault` does to reads and writes. One of `words` has to be in the line that is logged.
fn survives(fault: impl Fn(&Asked) -> Fault + Send + Sync + 'static, words: &[&str]) {
    let mut stock = Stock::new();
    let proxy = Proxy::to(&dynamodb_url());
    let started = Instant::now();
    let env = start(&stock.table).env("AWS_ENDPOINT_URL_DYNAMODB", &proxy.url);
    let replica = env.env("NEXUS_CACHE_READ_TIMEOUT_MS", "1000").start().ready();
    stock.recover(&replica);

    proxy.rule(fault);
    for _ in 0..12 {
        assert!(!stock.embed_next(&replica), "a hit that nobody can have told");
    }
    assert_eq!(stock.embed_some(40, &replica), 0);
    replica.embed("a text that is in no table");

    let said = complaints(&replica, &stock.table);
    let most = 1 + started.elapsed().as_secs() as usize / 60;
    assert!((1..=most).contains(&said.len()), "{} lines: {said:?}", said.len());
    let last = said[said.len() - 1].to_lowercase();
    assert!(words.iter().any(|word| last.contains(word)), "none of {words:?} in: {last}");

    proxy.pass();
    stock.recover(&replica);
    wait_for_writes(&replica, &stock.table);
    // For good.
    let found = stock.embed_some(20, &replica);
    assert_eq!(found, 20);
    replica.stop();
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_throttled_table() {
    survives(|_| Fault::Answer(error(400, "ProvisionedThroughputExceededException")), &["throttl", "throughput"]);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_table_that_is_broken() {
    let count = AtomicUsize::new(0);
    survives(
        move |_| match count.fetch_add(1, Ordering::Relaxed) % 3 {
            0 => Fault::Answer(error(500, "InternalServerError")),
            1 => Fault::Answer(Message::response(503, &[], "<html>not even JSON</html>")),
            _ => Fault::Answer(Message::response(200, &[], "{\"Responses\": 7")),
        },
        &["internal", "503", "500", "service", "pars", "deserial", "json", "unhandled", "response"],
    );
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_table_that_hangs() {
    survives(|_| Fault::Hang, &["time", "no answer"]);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_table_that_answers_too_late() {
    survives(|_| Fault::Delay(Duration::from_secs(4)), &["time", "no answer"]);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_table_whose_answers_trickle() {
    survives(|_| Fault::Trickle { bytes_per_s: 10 }, &["time", "no answer"]);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_table_that_resets_connections() {
    let count = AtomicUsize::new(0);
    survives(
        move |_| match count.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Fault::Reset,
            _ => Fault::Cut { bytes: 1 },
        },
        &["connection", "reset", "dispatch", "incomplete", "io error"],
    );
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_table_that_is_denied() {
    survives(|_| Fault::Answer(error(400, "AccessDeniedException")), &["denied"]);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_table_that_leaves_everything_unprocessed() {
    fn nothing_processed(request: Message, _: &dyn Fn(Message) -> Result<Message>) -> Result<Message> {
        let asked: Value = serde_json::from_slice(&request.body)?;
        let left = if asked.to_string().contains("PutRequest") { "UnprocessedItems" } else { "UnprocessedKeys" };
        let body = json!({ "Responses": {}, left: asked["RequestItems"] });
        Ok(Message::response(200, &[("content-type", "application/x-amz-json-1.0")], body.to_string()))
    }
    survives(|_| Fault::Between(nothing_processed), &["throttl", "unprocessed", "capacity", "time"]);
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn a_table_that_is_missing_is_used_once_it_is_there() {
    let table = Table::named();
    let replica = start(&table).start().ready();
    let all = texts(30);
    assert_eq!(hits(&embed_all(&replica, &all)), 0);
    assert!(!replica.embed("alone").1);
    // From its memory, all the same.
    assert!(replica.embed("alone").1);
    let said = complaints(&replica, &table);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("nexus cache create-table"), "{said:?}");

    table.create();
    wait_for_writes(&replica, &table);
}

/// Half of every batch is processed, and the rest handed back.
fn half_processed(mut request: Message, server: &dyn Fn(Message) -> Result<Message>) -> Result<Message> {
    let mut asked: Value = serde_json::from_slice(&request.body)?;
    let mut left = json!({});
    for (table, items) in asked["RequestItems"].as_object_mut().expect("tables") {
        let is_read = items.is_object();
        let list = if is_read { &mut items["Keys"] } else { &mut *items };
        let list = list.as_array_mut().expect("a list");
        let rest = list.split_off(list.len().div_ceil(2));
        if !rest.is_empty() {
            left[table] = if is_read { json!({ "Keys": rest }) } else { json!(rest) };
        }
    }
    request.body = asked.to_string().into_bytes();
    let mut answer = server(request)?;
    let mut told: Value = serde_json::from_slice(&answer.body)?;
    if let Some(before) = ["UnprocessedKeys", "UnprocessedItems"].into_iter().find(|name| told[name].is_object()) {
        assert_eq!(told[before], json!({}), "the server left something itself: the test is too large");
        told[before] = left;
    }
    answer.body = told.to_string().into_bytes();
    Ok(answer)
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn batches_that_are_processed_in_part_come_whole_in_the_end() {
    let table = Table::new();
    // Five batches to write, most of which take five requests.
    let texts = texts(110);
    let proxy = Proxy::to(&dynamodb_url());
    proxy.rule(|asked| match asked.operation() {
        "BatchGetItem" | "BatchWriteItem" => Fault::Between(half_processed),
        _ => Fault::Pass,
    });
    let start = start(&table).env("AWS_ENDPOINT_URL_DYNAMODB", &proxy.url);
    let first = start.start().ready();
    let computed = embed_all(&first, &texts);
    table.wait_for_items(110);
    first.stop();
    let writes = proxy.asked().iter().filter(|asked| asked.operation() == "BatchWriteItem").count();
    assert!(writes >= 20, "{writes}");

    let second = start.start().ready();
    let found = embed_all(&second, &texts);
    assert_eq!(hits(&found), 110);
    assert!(found.iter().zip(&computed).all(|((found, _), (computed, _))| found == computed));
}

#[test]
#[ignore = "needs scripts/aws_services.sh"]
fn what_hangs_holds_no_end_up_for_long() {
    let table = Table::new();
    let proxy = Proxy::to(&dynamodb_url());
    let start = start(&table).env("AWS_ENDPOINT_URL_DYNAMODB", &proxy.url);
    let replica = start.env("NEXUS_CACHE_READ_TIMEOUT_MS", "100").start().ready();
    proxy.rule(|_| Fault::Hang);
    embed_all(&replica, &texts(60));
    let started = Instant::now();
    replica.stop();
    // The orderly end has 25 s by default.
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
}
