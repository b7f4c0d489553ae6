//! Twenty minutes of everything: embeds, hits, batches, reranks, retrieves, target sets, errors of clients, clients that
//! leave, new connections and kept ones, HTTP/2. Resident memory and file descriptors stay where they are.
//!
//! The caches have their bounds set low, so that they are full when the first quarter is over; what grows after that grows
//! for ever. Memory is compared by medians of the second and of the last quarter: a peak of a moment is no leak.

use crate::Result;
use crate::client::{Ask, Failure, Http2, Pool};
use crate::generator::End;
use crate::server::{Plan, Server};
use crate::table::{Table, median, mib};
use crate::texts::{Random, batch_body, embed_body, rerank_body, retrieve_body, text};
use hyper::Method;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

const CLIENTS: u64 = 12;
/// Between two requests of a client.
const PAUSE_MS: u64 = 40;
const LEAVES_AFTER: Duration = Duration::from_millis(15);

type Ends = Arc<Mutex<BTreeMap<String, usize>>>;

pub(crate) async fn run(plan: &Plan, table: &mut Table) -> Result<()> {
    let settings =
        [("NEXUS_CACHE", "redb"), ("NEXUS_CACHE_MEMORY_BYTES_MAX", "4MiB"), ("NEXUS_CACHE_STORE_BYTES_MAX", "32MiB")];
    let mut server = Server::start(plan, &settings).await?;
    let idle_fds = server.open_fds()?;
    let (lasts, ends) = (plan.seconds(20 * 60, 40), Ends::default());
    let until = Instant::now() + lasts;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(converse(server.address, client, until, Arc::clone(&ends)));
    }
    let (mut resident, mut fds) = (Vec::new(), Vec::new());
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
        resident.push(server.resident_bytes()? as f64);
        fds.push(server.open_fds()? as f64);
    }
    clients.join_all().await;
    let fds_after = server.fds_back_to(idle_fds, Duration::from_secs(10)).await?;
    let ends = std::mem::take(&mut *ends.lock().unwrap_or_else(|e| e.into_inner()));
    let wrong: Vec<String> =
        ends.iter().filter(|(what, _)| what.contains("UNEXPECTED")).map(|it| format!("{} {}", it.1, it.0)).collect();
    let all: usize = ends.values().sum();
    table.note(
        &format!("{} s, {CLIENTS} clients", lasts.as_secs()),
        format!(
            "{all} requests: {}",
            ends.iter().map(|it| format!("{} {}", it.1, it.0)).collect::<Vec<_>>().join(", ")
        ),
    );
    table.row("answers that were not to be expected", "0", or_none(&wrong), wrong.is_empty());
    let quarter = |values: &[f64], number: usize| {
        let length = values.len() / 4;
        median(values[number * length..(number + 1) * length].to_vec())
    };
    let (early, late) = (quarter(&resident, 1), quarter(&resident, 3));
    let grown = 100.0 * (late - early) / early;
    table.row(
        "resident memory, last quarter over second",
        "5%",
        format!("{grown:+.1}% ({} to {})", mib(early as u64), mib(late as u64)),
        grown <= 5.0,
    );
    let (early, late) = (quarter(&fds, 1), quarter(&fds, 3));
    table.row(
        "file descriptors, last quarter over second",
        "5%, or 4",
        format!("{early:.0} to {late:.0}"),
        late - early <= (0.05 * early).max(4.0),
    );
    // The store's file, and what opening it costs.
    table.row(
        "file descriptors when all have gone",
        format!("{idle_fds}, and 2 of the store and the sets"),
        fds_after.to_string(),
        fds_after <= idle_fds + 2,
    );
    let panics = server.log()?.matches("panicked").count();
    table.row("panics in the log", "0", panics.to_string(), panics == 0);
    server.terminate()?;
    let status = server.exit(Duration::from_secs(30)).await?;
    let fine = status.is_some_and(|status| status.success());
    table.row("ends with status 0", "yes", status.map_or("no".to_owned(), |status| status.to_string()), fine);
    Ok(())
}

fn or_none(of: &[String]) -> String {
    if of.is_empty() { "0".to_owned() } else { of.join(", ") }
}

async fn converse(address: SocketAddr, client: u64, until: Instant, ends: Ends) {
    let mut random = Random::new(0x50AC + client);
    let kept = Pool::new(address);
    let new = Pool::without_keep_alive(address);
    let mut http2 = None;
    while Instant::now() < until {
        let what = match random.below(16) {
            0 => leave(address, &mut random).await,
            kind => {
                let (name, ask, expected) = next(kind, client, &mut random);
                let result = match random.below(4) {
                    0 => new.ask(&ask).await,
                    1 => over_http2(address, &mut http2, &ask, &mut random).await,
                    _ => kept.ask(&ask).await,
                };
                match result {
                    Ok(reply) if expected.contains(&reply.status) => format!("{name} {}", reply.status),
                    other => format!("UNEXPECTED {name} {:?}", End::of(&other)),
                }
            }
        };
        *ends.lock().unwrap_or_else(|e| e.into_inner()).entry(what).or_default() += 1;
        tokio::time::sleep(Duration::from_millis(random.below(2 * PAUSE_MS))).await;
    }
}

/// What is asked next, and what may be the answer.
fn next(kind: u64, client: u64, random: &mut Random) -> (&'static str, Ask, &'static [u16]) {
    let set = format!("/api/v1/targets/soak-{client}");
    match kind {
        1..=4 => ("embed", Ask::embed(&text(random)), &[200]),
        5 | 6 => {
            let known = Random::new(random.below(50)).next();
            ("hit", Ask::embed(&format!("a control that is asked for again and again, number {known}")), &[200])
        }
        7 => {
            let texts: Vec<String> = (0..8).map(|_| text(random)).collect();
            ("batch", Ask::post("/api/v1/embed/batch", batch_body(texts.iter().map(String::as_str))), &[200])
        }
        8 => ("rerank", Ask::post("/api/v1/rerank", rerank_body(random, 8)), &[200]),
        9 | 10 => ("retrieve", Ask::post("/api/v1/retrieve", retrieve_body(random, 200, 64)), &[200]),
        11 => {
            // The source is taken out: a set has targets alone.
            let body = retrieve_body(random, 100, 32);
            let targets = body.split_once("\"target_embeddings\"").map_or("", |it| it.1);
            let targets = targets.split_once(",\"top_k\"").map_or("", |it| it.0);
            let ask = Ask { method: Method::PUT, ..Ask::post(&set, format!("{{\"target_embeddings\"{targets}}}")) };
            ("put a set", ask, &[200, 201])
        }
        12 => {
            let method = if random.below(4) == 0 { Method::DELETE } else { Method::GET };
            ("a set", Ask { method, ..Ask::get(&set) }, &[200, 204, 404])
        }
        13 => match random.below(4) {
            0 => ("no JSON", Ask::post("/api/v1/embed", "{\"control_id\": ".to_owned()), &[422]),
            1 => ("no text", Ask::post("/api/v1/embed", r#"{"control_id":"C"}"#.to_owned()), &[422]),
            2 => ("nowhere", Ask::get("/api/v1/nowhere"), &[404]),
            _ => ("wrong method", Ask::get("/api/v1/embed"), &[405]),
        },
        // A little time, which is sometimes enough, and sometimes known not to be.
        14 => ("in 5 ms", Ask::embed(&text(random)).within(Duration::from_millis(5)), &[200, 503, 504]),
        _ => ("ready", Ask::get("/ready"), &[200]),
    }
}

/// Over a connection that lasts for some ten requests.
async fn over_http2(
    address: SocketAddr,
    connection: &mut Option<Http2>,
    ask: &Ask,
    random: &mut Random,
) -> std::result::Result<crate::client::Reply, Failure> {
    if random.below(10) == 0 {
        *connection = None;
    }
    let open = match connection.take() {
        Some(open) => open,
        None => Http2::connect(address).await?,
    };
    let reply = open.ask(ask).await;
    *connection = reply.is_ok().then_some(open);
    reply
}

/// Sends some of a request, or all of it, and goes away.
async fn leave(address: SocketAddr, random: &mut Random) -> String {
    let body = embed_body(&text(random));
    let head = format!(
        "POST /api/v1/embed HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let whole = head + &body;
    let sent = if random.below(2) == 0 { whole.len() } else { random.below(whole.len() as u64) as usize };
    match TcpStream::connect(address).await {
        Ok(mut stream) => {
            let _ = stream.write_all(&whole.as_bytes()[..sent]).await;
            tokio::time::sleep(LEAVES_AFTER).await;
            "left".to_owned()
        }
        Err(error) => format!("UNEXPECTED connect: {error}"),
    }
}
