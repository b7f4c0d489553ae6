//! Clients that go away before they are answered: when their places are free again, and what is left of ten thousand.

use crate::Result;
use crate::client::{Ask, Pool};
use crate::generator::End;
use crate::server::{Plan, Server};
use crate::table::{Table, mib, ms};
use crate::texts::{Random, batch_body, embed_body, known, rerank_body};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

const FREE_IN: Duration = Duration::from_millis(100);
const AT_ONCE: usize = 32;
const CANDIDATES: usize = 40;

pub(crate) async fn run(plan: &Plan, table: &mut Table) -> Result<()> {
    places(plan, table).await?;
    leaks(plan, table).await
}

/// Reranks take every place there is, so that another one is rejected. Then all of them leave, and one is tried until it is
/// answered.
async fn places(plan: &Plan, table: &mut Table) -> Result<()> {
    let settings = [("NEXUS_REQUESTS_MAX", "16"), ("NEXUS_QUEUE_TOKENS_MAX", "1000000"), ("NEXUS_CACHE", "off")];
    let server = Server::start(plan, &settings).await?;
    let pool = Pool::new(server.address);
    let mut random = Random::new(60);
    let (mut worst, mut filled) = (Duration::ZERO, 0);
    let rounds = plan.pick(20, 5_u64);
    for _ in 0..rounds {
        let mut holders = Vec::new();
        for _ in 0..AT_ONCE {
            holders.push(begin(server.address, "/api/v1/rerank", &rerank_body(&mut random, CANDIDATES)).await?);
        }
        let held = all_held(&server).await && {
            let ask = Ask::post("/api/v1/rerank", rerank_body(&mut random, CANDIDATES));
            matches!(End::of(&pool.ask(&ask).await), End::Rejected)
        };
        filled += u64::from(held);
        drop(holders);
        let left = Instant::now();
        loop {
            // When it was asked counts, and not when it was answered: it waits for what a device has begun.
            let asked = left.elapsed();
            let ask = Ask::post("/api/v1/rerank", rerank_body(&mut random, CANDIDATES));
            match End::of(&pool.ask(&ask).await) {
                End::Rejected | End::RejectedBare if asked < Duration::from_secs(10) => {}
                End::Good => {
                    worst = worst.max(asked);
                    break;
                }
                other => return Err(format!("after {AT_ONCE} clients have left: {other:?}").into()),
            }
        }
        // What was begun for it is over before the next round.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    table.row(
        &format!("{rounds} times, {AT_ONCE} clients that hold every place go away: a place is free after, at most"),
        "100 ms",
        format!("{} (all places were held in {filled})", ms(worst)),
        worst <= FREE_IN && filled == rounds,
    );
    Ok(())
}

/// Waits until all places are held. Asks the metrics, which need none: a request that tries would take what it looks for.
async fn all_held(server: &Server) -> bool {
    let given_up = Instant::now() + Duration::from_secs(10);
    while Instant::now() < given_up {
        if let Some(metrics) = server.metrics().await {
            let of = |name| metrics.sum(name, &[]);
            if of("nexus_http_requests_in_flight") >= of("nexus_http_requests_in_flight_max") {
                return true;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

/// A request that is sent whole, on a connection of its own.
async fn begin(address: SocketAddr, path: &str, body: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request(path, body).as_bytes()).await?;
    Ok(stream)
}

fn request(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Ten thousand clients that leave: within the headers, within the body, or while they wait.
async fn leaks(plan: &Plan, table: &mut Table) -> Result<()> {
    let server = Server::start(plan, &[("NEXUS_CACHE", "memory"), ("NEXUS_CACHE_MEMORY_BYTES_MAX", "2MiB")]).await?;
    // Full batches of both models, and the first who leave, make threads and buffers that stay.
    let (pool, mut random) = (Pool::new(server.address), Random::new(63));
    let texts: Vec<String> = (0..500).map(|_| known(&mut random)).collect();
    let full = Ask::post("/api/v1/embed/batch", batch_body(texts.iter().map(String::as_str)));
    for ask in [full, Ask::post("/api/v1/rerank", rerank_body(&mut random, 500))] {
        if End::of(&pool.ask(&ask).await) != End::Good {
            return Err("a full batch is not answered".into());
        }
    }
    leave(&server, plan.pick(4_000, 500), 61).await;
    let (before, idle_fds) = (server.resident_bytes()?, server.open_fds()?);
    let count = plan.pick(10_000, 1_500);
    leave(&server, count, 62).await;
    let (after, fds) = (server.resident_bytes()?, server.fds_back_to(idle_fds, Duration::from_secs(5)).await?);
    let grown = 100.0 * (after as f64 - before as f64) / before as f64;
    table.row(
        &format!("{count} clients that leave: resident memory grows by"),
        "5%",
        format!("{grown:.1}% ({} to {})", mib(before), mib(after)),
        grown <= 5.0,
    );
    let which = if fds > idle_fds { server.which_fds()?.join(" ") } else { String::new() };
    table.row("their file descriptors", format!("back to {idle_fds}"), format!("{fds} {which}"), fds <= idle_fds);
    if let Some(metrics) = server.metrics().await {
        let in_flight = metrics.sum("nexus_http_requests_in_flight", &[]);
        table.row("their requests in flight", "0", in_flight.to_string(), in_flight <= 0.0);
    }
    let answered = End::of(&Pool::new(server.address).ask(&Ask::embed("and the next client")).await);
    table.row("the next client", "Good", format!("{answered:?}"), answered == End::Good);
    Ok(())
}

/// `count` clients come and go, [`AT_ONCE`] at a time.
async fn leave(server: &Server, count: usize, seed: u64) {
    let mut random = Random::new(seed);
    let mut running = JoinSet::new();
    for _ in 0..count {
        if running.len() >= AT_ONCE {
            running.join_next().await;
        }
        let whole = if random.below(8) == 0 {
            request("/api/v1/rerank", &rerank_body(&mut random, 8))
        } else {
            request("/api/v1/embed", &embed_body(&known(&mut random)))
        };
        let sent = match random.below(4) {
            0 => random.below(whole.len() as u64) as usize,
            _ => whole.len(),
        };
        let stays = Duration::from_micros(random.below(20_000));
        let address = server.address;
        running.spawn(async move {
            let Ok(mut stream) = TcpStream::connect(address).await else { return };
            let _ = stream.write_all(&whole.as_bytes()[..sent]).await;
            tokio::time::sleep(stays).await;
        });
    }
    running.join_all().await;
    // What they left on the device, and the last of their connections, are gone by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
}
