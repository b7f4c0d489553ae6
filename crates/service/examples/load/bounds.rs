//! Whether work is bounded in requests, in tokens, in bytes and for each client, each bound set so low that little reaches
//! it: what is beyond is refused within 50 ms at p99 and says when to come back, what is within is answered.

use crate::Result;
use crate::client::{Ask, Pool};
use crate::generator::{End, Sample, Samples};
use crate::server::{Plan, Server};
use crate::table::{Table, ms_or_none, quantile};
use crate::texts::{Random, batch_body, rerank_body, text};
use std::process::Command;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) const REJECTED_IN: Duration = Duration::from_millis(50);

const CLIENTS: u64 = 96;

pub(crate) async fn run(plan: &Plan, table: &mut Table) -> Result<()> {
    for (name, settings) in [
        ("requests", [("NEXUS_REQUESTS_MAX", "8"), ("NEXUS_CACHE", "off")]),
        ("tokens", [("NEXUS_QUEUE_TOKENS_MAX", "8192"), ("NEXUS_CACHE", "off")]),
    ] {
        let server = Server::start(plan, &settings).await?;
        let samples = all_at_once(&server, None).await;
        judge(name, &samples, table);
    }
    bytes(plan, table).await?;
    clients(plan, table).await
}

/// Reranks of 50 candidates, all at once.
async fn all_at_once(server: &Server, key: Option<&str>) -> Samples {
    let pool = Pool::new(server.address);
    let mut random = Random::new(1);
    let asks: Vec<Ask> = (0..CLIENTS)
        .map(|_| Ask { key: key.map(str::to_owned), ..Ask::post("/api/v1/rerank", rerank_body(&mut random, 50)) })
        .collect();
    let mut running = JoinSet::new();
    for ask in asks {
        let pool = pool.clone();
        running.spawn(async move {
            let start = Instant::now();
            let end = End::of(&pool.ask(&ask).await);
            Sample { due: Duration::ZERO, lag: Duration::ZERO, latency: start.elapsed(), end }
        });
    }
    Samples(running.join_all().await)
}

fn judge(name: &str, samples: &Samples, table: &mut Table) {
    let (good, rejected) = (samples.count(End::Good), samples.count(End::Rejected));
    table.row(
        &format!("bounded in {name}: {CLIENTS} reranks at once are answered, or told when to come back"),
        "both kinds, no other",
        samples.summary(),
        good > 0 && rejected > 0 && good + rejected == samples.0.len(),
    );
    let p99 = quantile(&samples.latencies(End::Rejected), 0.99);
    table.row(
        &format!("bounded in {name}: refused in, p99"),
        "50 ms",
        ms_or_none(p99),
        p99.is_some_and(|p99| p99 <= REJECTED_IN),
    );
}

/// Two bodies that stop short of their end hold the room of a third.
async fn bytes(plan: &Plan, table: &mut Table) -> Result<()> {
    let settings = [
        ("NEXUS_BODIES_BYTES_MAX", "1MiB"),
        ("NEXUS_BODY_BYTES_MAX", "1MiB"),
        ("NEXUS_TEXT_BODY_BYTES_MAX", "1MiB"),
        ("NEXUS_CACHE", "off"),
    ];
    let server = Server::start(plan, &settings).await?;
    let pool = Pool::new(server.address);
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await?;
        let head = "POST /api/v1/embed/batch HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\n\
                    content-length: 500000\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&vec![b' '; 499_000]).await?;
        holders.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut random = Random::new(2);
    let texts: Vec<String> = (0..8).map(|_| text(&mut random)).collect();
    let body = batch_body(texts.iter().map(String::as_str)) + &" ".repeat(400_000);
    let ask = Ask::post("/api/v1/embed/batch", body);
    let start = Instant::now();
    let (refused, took) = (End::of(&pool.ask(&ask).await), start.elapsed());
    drop(holders);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let after = End::of(&pool.ask(&ask).await);
    table.row(
        "bounded in bytes: a body beside two half-read ones; again 100 ms after they have left",
        "Rejected in 50 ms, then Good",
        format!("{refused:?} in {}, then {after:?}", crate::table::ms(took)),
        refused == End::Rejected && took <= REJECTED_IN && after == End::Good,
    );
    Ok(())
}

/// One client asks for all there is; another is served beside it.
async fn clients(plan: &Plan, table: &mut Table) -> Result<()> {
    let (greedy, greedy_line) = key(plan, "greedy")?;
    let (modest, modest_line) = key(plan, "modest")?;
    let keys = format!("{greedy_line},{modest_line}");
    let settings = [("NEXUS_API_KEYS", keys.as_str()), ("NEXUS_REQUESTS_MAX", "8"), ("NEXUS_CACHE", "off")];
    let server = Server::start(plan, &settings).await?;
    let pool = Pool::new(server.address);
    let beside = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut random = Random::new(3);
        End::of(&pool.ask(&Ask { key: Some(modest), ..Ask::embed(&text(&mut random)) }).await)
    };
    let (samples, beside) = tokio::join!(all_at_once(&server, Some(&greedy)), beside);
    judge("requests of one client", &samples, table);
    table.row("another client meanwhile", "Good", format!("{beside:?}"), beside == End::Good);
    Ok(())
}

/// A new key, and what the service is told of it.
fn key(plan: &Plan, name: &str) -> Result<(String, String)> {
    let made = Command::new(plan.nexus()).args(["key", name]).output()?;
    let out = String::from_utf8_lossy(&made.stdout).into_owned() + &String::from_utf8_lossy(&made.stderr);
    let words: Vec<&str> = out.split_whitespace().collect();
    let line = words.iter().find(|word| word.starts_with(&format!("{name}:"))).ok_or("no line of `nexus key`")?;
    let key = words.iter().find(|word| word.len() >= 32 && !word.contains(':')).ok_or("no key of `nexus key`")?;
    Ok(((*key).to_owned(), (*line).to_owned()))
}
