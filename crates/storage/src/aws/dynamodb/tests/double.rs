//! A server that speaks as much DynamoDB as the tests need, and misbehaves when it is told to.
//!
//! It is as strict about keys in a request as the real one (number, no key twice). A thread a connection.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

pub(super) const TABLE: &str = "embeddings";

/// What is done instead of the right thing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Throttle,
    Server,
    Denied,
    Missing,
    /// The table has another key.
    OtherKey,
    /// No answer until the end of the test.
    Hang,
    /// The connection is closed without an answer.
    Close,
    /// The right answer, this much later.
    Late(Duration),
    /// So many of the request's keys or items are processed.
    Partial(usize),
    /// So many of the request's keys or items are not processed, but one is.
    Leave(usize),
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Read,
    Write,
    /// All that is about tables.
    Table,
}

#[derive(Default)]
struct State {
    /// Items by their key in base64.
    items: BTreeMap<String, Value>,
    /// What happens to the next requests, and to those after them.
    plan: BTreeMap<Kind, (VecDeque<Fault>, Option<Fault>)>,
    /// Each request's kind, with the number of keys or items in it.
    calls: Vec<(Kind, usize)>,
    /// Requests at once, now and at most.
    now: usize,
    at_once_max: usize,
    table: Option<Value>,
    ttl: Option<String>,
    /// Looks at the table before it is active.
    creating: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stopping: AtomicBool,
}

pub(super) struct Double {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Double {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&accepting);
                if shared.stopping.load(Ordering::SeqCst) {
                    return;
                }
                thread::spawn(move || {
                    // An error is a client that went away, as some do in the tests.
                    serve(&shared, stream?).or(Ok::<(), std::io::Error>(()))
                });
            }
        });
        Self { address, shared }
    }

    pub(super) fn client(&self) -> Client {
        client(&format!("http://{}", self.address))
    }

    /// What happens to the next requests of this kind.
    pub(super) fn next(&self, kind: Kind, faults: &[Fault]) {
        self.state().plan.entry(kind).or_default().0.extend(faults);
    }

    /// What happens to all further requests of this kind.
    pub(super) fn always(&self, kind: Kind, fault: Fault) {
        self.state().plan.entry(kind).or_default().1 = Some(fault);
    }

    /// The number of keys or items in each request of this kind so far.
    pub(super) fn calls(&self, kind: Kind) -> Vec<usize> {
        self.state().calls.iter().filter(|(k, _)| *k == kind).map(|(_, n)| *n).collect()
    }

    /// Requests that were under way at once, at most.
    pub(super) fn at_once_max(&self) -> usize {
        self.state().at_once_max
    }

    pub(super) fn items(&self) -> Vec<Value> {
        self.state().items.values().cloned().collect()
    }

    /// Changes every item.
    pub(super) fn edit(&self, change: impl Fn(&mut Value)) {
        self.state().items.values_mut().for_each(change);
    }

    /// Makes a table that is there already, by its description.
    pub(super) fn table(&self, description: Value) {
        self.state().table = Some(description);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        TcpStream::connect(self.address).ok();
    }
}

/// A client of whatever listens there.
pub(super) fn client(endpoint: &str) -> Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new("id", "secret", None, None, "tests"))
        .retry_config(aws_sdk_dynamodb::config::retry::RetryConfig::disabled())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

fn serve(shared: &Shared, stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let (mut operation, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            match name.to_ascii_lowercase().as_str() {
                "x-amz-target" => operation = value.rsplit('.').next().unwrap_or_default().to_owned(),
                "content-length" => length = value.trim().parse().unwrap(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let request: Value = serde_json::from_slice(&body).unwrap();
        let answer = answer(shared, &operation, &request);
        shared.state.lock().unwrap().now -= 1;
        let Some((status, answer)) = answer else { return Ok(()) };
        let answer = answer.to_string();
        write!(stream, "HTTP/1.1 {status} x\r\ncontent-type: application/x-amz-json-1.0\r\n")?;
        write!(stream, "content-length: {}\r\n\r\n{answer}", answer.len())?;
        stream.flush()?;
    }
}

/// `None` closes the connection.
fn answer(shared: &Shared, operation: &str, request: &Value) -> Option<(u16, Value)> {
    let kind = match operation {
        "BatchGetItem" => Kind::Read,
        "BatchWriteItem" => Kind::Write,
        _ => Kind::Table,
    };
    let fault = {
        let mut state = shared.state.lock().unwrap();
        state.now += 1;
        state.at_once_max = state.at_once_max.max(state.now);
        state.calls.push((kind, entries(operation, request).len()));
        let (next, always) = state.plan.entry(kind).or_default();
        next.pop_front().or(*always).unwrap_or(Fault::None)
    };
    let (mut most, asked) = (usize::MAX, entries(operation, request).len());
    match fault {
        Fault::Throttle => return Some(error(400, "ProvisionedThroughputExceededException", "slow down")),
        Fault::Server => return Some(error(500, "InternalServerError", "sorry")),
        Fault::Denied => return Some(error(400, "AccessDeniedException", "User: x is not authorized")),
        Fault::Missing => return Some(error(400, "ResourceNotFoundException", "Requested resource not found")),
        Fault::OtherKey => {
            return Some(error(400, "ValidationException", "The provided key element does not match the schema"));
        }
        Fault::Hang => {
            while !shared.stopping.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
            return None;
        }
        Fault::Close => return None,
        Fault::Late(time) => thread::sleep(time),
        Fault::Partial(n) => most = n,
        Fault::Leave(n) => most = asked.saturating_sub(n).max(1),
        Fault::None => {}
    }
    let mut state = shared.state.lock().unwrap();
    Some(match operation {
        "BatchGetItem" => get(&state, request, most),
        "BatchWriteItem" => write(&mut state, request, most),
        "Scan" => scan(&state, request),
        _ => table(&mut state, operation, request),
    })
}

fn error(status: u16, code: &str, message: &str) -> (u16, Value) {
    let kind = format!("com.amazonaws.dynamodb.v20120810#{code}");
    (status, json!({ "__type": kind, "message": message }))
}

fn entries(operation: &str, request: &Value) -> Vec<Value> {
    let table = &request["RequestItems"][TABLE];
    let list = if operation == "BatchGetItem" { &table["Keys"] } else { table };
    list.as_array().cloned().unwrap_or_default()
}

fn key(attributes: &Value) -> String {
    attributes["k"]["B"].as_str().expect("a binary key").to_owned()
}

fn invalid(keys: &[String], most: usize) -> bool {
    keys.is_empty() || keys.len() > most || keys.iter().collect::<HashSet<_>>().len() < keys.len()
}

fn get(state: &State, request: &Value, most: usize) -> (u16, Value) {
    let keys = entries("BatchGetItem", request);
    if invalid(&keys.iter().map(key).collect::<Vec<_>>(), 100) {
        return error(400, "ValidationException", "too many keys, or one of them twice");
    }
    let (now, later) = keys.split_at(keys.len().min(most));
    let found: Vec<_> = now.iter().filter_map(|attributes| state.items.get(&key(attributes))).collect();
    let mut unprocessed = json!({});
    if !later.is_empty() {
        unprocessed[TABLE] = json!({ "Keys": later });
    }
    (200, json!({ "Responses": { TABLE: found }, "UnprocessedKeys": unprocessed }))
}

fn write(state: &mut State, request: &Value, most: usize) -> (u16, Value) {
    let writes = entries("BatchWriteItem", request);
    let item_of = |write: &Value| match &write["PutRequest"]["Item"] {
        Value::Null => write["DeleteRequest"]["Key"].clone(),
        item => item.clone(),
    };
    if invalid(&writes.iter().map(|write| key(&item_of(write))).collect::<Vec<_>>(), 25) {
        return error(400, "ValidationException", "too many items, or one of them twice");
    }
    let (now, later) = writes.split_at(writes.len().min(most));
    for write in now {
        let item = item_of(write);
        if write["PutRequest"].is_null() {
            state.items.remove(&key(&item));
        } else {
            state.items.insert(key(&item), item);
        }
    }
    let mut unprocessed = json!({});
    if !later.is_empty() {
        unprocessed[TABLE] = json!(later);
    }
    let consumed = [json!({ "TableName": TABLE, "CapacityUnits": now.len() as f64 })];
    (200, json!({ "UnprocessedItems": unprocessed, "ConsumedCapacity": consumed }))
}

/// Pages of three items; a filter is on the revision.
fn scan(state: &State, request: &Value) -> (u16, Value) {
    let from = request["ExclusiveStartKey"]["k"]["B"].as_str().unwrap_or_default();
    let page: Vec<_> = state.items.iter().filter(|(key, _)| key.as_str() > from).take(3).collect();
    let wanted = |item: &&Value| match &request["ExpressionAttributeValues"][":r"] {
        Value::Null => true,
        revision => &item["revision"] == revision,
    };
    let items: Vec<_> = page.iter().map(|(_, item)| *item).filter(wanted).collect();
    let mut answer = json!({ "Items": items, "Count": items.len(), "ScannedCount": page.len() });
    answer["ConsumedCapacity"] = json!({ "TableName": TABLE, "CapacityUnits": 0.5 });
    if let (3, Some((key, _))) = (page.len(), page.last()) {
        answer["LastEvaluatedKey"] = json!({ "k": { "B": key } });
    }
    (200, answer)
}

fn table(state: &mut State, operation: &str, request: &Value) -> (u16, Value) {
    match (operation, &mut state.table) {
        ("CreateTable", Some(_)) => error(400, "ResourceInUseException", "Table already exists"),
        ("CreateTable", table) => {
            let mut description = request.clone();
            description["BillingModeSummary"] = json!({ "BillingMode": request["BillingMode"] });
            *table = Some(description.clone());
            state.creating = 2;
            (200, json!({ "TableDescription": description }))
        }
        (_, None) => error(400, "ResourceNotFoundException", "Requested resource not found"),
        ("DescribeTable", Some(description)) => {
            let status = if state.creating > 0 { "CREATING" } else { "ACTIVE" };
            state.creating = state.creating.saturating_sub(1);
            description["TableStatus"] = json!(status);
            description["ItemCount"] = json!(state.items.len());
            description["TableSizeBytes"] = json!(state.items.len() * 16_500);
            (200, json!({ "Table": description }))
        }
        ("DescribeTimeToLive", _) => {
            let ttl = match &state.ttl {
                Some(attribute) => json!({ "TimeToLiveStatus": "ENABLED", "AttributeName": attribute }),
                None => json!({ "TimeToLiveStatus": "DISABLED" }),
            };
            (200, json!({ "TimeToLiveDescription": ttl }))
        }
        ("UpdateTimeToLive", _) => {
            let specification = &request["TimeToLiveSpecification"];
            state.ttl = specification["AttributeName"].as_str().map(str::to_owned);
            (200, json!({ "TimeToLiveSpecification": specification }))
        }
        _ => error(400, "UnknownOperationException", ""),
    }
}
