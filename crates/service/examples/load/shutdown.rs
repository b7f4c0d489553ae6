//! SIGTERM under load, again and again: `/ready` says no at once, whoever was answered before is still answered, and the
//! process ends in time.
//!
//! Clients with kept-alive connections, with a new connection for each request and over HTTP/2 ask in closed loops, one of
//! them for reranks. At a random moment the service is told to stop. As behind a load balancer, the clients go on for a
//! second; every request of theirs has to be answered with 200, or, if it was begun after the signal, with a rejection that
//! says when to come back. A connection that is refused after the signal is no failure; one that breaks is.

use crate::Result;
use crate::client::{Ask, Failure, Http2, Pool, Reply};
use crate::generator::{End, new_embed};
use crate::server::{Plan, Server};
use crate::table::{Table, ms};
use crate::texts::{Random, rerank_body, retrieve_body};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const BOUND: Duration = Duration::from_secs(10);
const READY_SAYS_NO_IN: Duration = Duration::from_millis(100);
/// How long a load balancer goes on sending.
const GOES_ON: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Sum {
    requests: usize,
    after_signal: usize,
    failed: BTreeMap<String, usize>,
    ready_max: Duration,
    ready_wrong: usize,
    exit_max: Duration,
    exits_wrong: Vec<String>,
}

pub(crate) async fn run(plan: &Plan, table: &mut Table) -> Result<()> {
    let (runs, mut random, mut sum) = (plan.pick(20, 3), Random::new(80), Sum::default());
    for run in 0..runs {
        one(plan, &mut random, run, &mut sum).await?;
    }
    table.note(
        &format!("{runs} runs"),
        format!("{} requests, {} of them begun after the signal", sum.requests, sum.after_signal),
    );
    let failed: Vec<String> = sum.failed.iter().map(|(how, count)| format!("{count} {how}")).collect();
    table.row(
        "requests that failed",
        "0",
        if failed.is_empty() { "0".to_owned() } else { failed.join(", ") },
        failed.is_empty() && sum.requests > 0,
    );
    table.row(
        "/ready says 503 after, at most",
        ms(READY_SAYS_NO_IN),
        format!("{}{}", ms(sum.ready_max), if sum.ready_wrong > 0 { ", and something else afterwards" } else { "" }),
        sum.ready_max <= READY_SAYS_NO_IN && sum.ready_wrong == 0,
    );
    table.row(
        "the process ends with status 0 after, at most",
        format!("{} (NEXUS_SHUTDOWN_TIMEOUT_MS)", ms(BOUND)),
        format!("{}{}", ms(sum.exit_max), sum.exits_wrong.iter().map(|it| format!(", {it}")).collect::<String>()),
        sum.exit_max <= BOUND && sum.exits_wrong.is_empty(),
    );
    Ok(())
}

/// A request: when it was begun and what became of it.
type Seen = (Instant, std::result::Result<Reply, Failure>, &'static str);

async fn one(plan: &Plan, random: &mut Random, run: u64, sum: &mut Sum) -> Result<()> {
    let bound = BOUND.as_millis().to_string();
    let mut server = Server::start(plan, &[("NEXUS_SHUTDOWN_TIMEOUT_MS", bound.as_str())]).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients: JoinSet<Vec<Seen>> = JoinSet::new();
    let kept = Pool::new(server.address);
    let new = Pool::without_keep_alive(server.address);
    let http2 = Http2::connect(server.address).await.map_err(|failure| format!("HTTP/2: {failure:?}"))?;
    for client in 0..16_u64 {
        let seed = (run << 16) | (client << 8) | 0x8000_0000;
        match client % 4 {
            0 | 1 => {
                let pool = kept.clone();
                ask_until(&mut clients, Arc::clone(&stop), seed, client, "kept alive", move |ask| {
                    let pool = pool.clone();
                    async move { pool.ask(&ask).await }
                });
            }
            2 => {
                let pool = new.clone();
                ask_until(&mut clients, Arc::clone(&stop), seed, client, "new connection", move |ask| {
                    let pool = pool.clone();
                    async move { pool.ask(&ask).await }
                });
            }
            _ => {
                let http2 = http2.clone();
                ask_until(&mut clients, Arc::clone(&stop), seed, client, "HTTP/2", move |ask| {
                    let http2 = http2.clone();
                    async move { http2.ask(&ask).await }
                });
            }
        }
    }
    tokio::time::sleep(Duration::from_millis(300 + random.below(900))).await;
    let signalled = Instant::now();
    server.terminate()?;
    let ready = watch_ready(&server, signalled);
    let stopping = async {
        tokio::time::sleep_until(signalled + GOES_ON).await;
        stop.store(true, Ordering::Relaxed);
        let seen: Vec<Seen> = clients.join_all().await.into_iter().flatten().collect();
        seen
    };
    let ((ready_after, wrong), seen) = tokio::join!(ready, stopping);
    let status = server.exit(BOUND + Duration::from_secs(5)).await?;
    let took = signalled.elapsed();

    sum.ready_max = sum.ready_max.max(ready_after);
    sum.ready_wrong += usize::from(wrong);
    sum.exit_max = sum.exit_max.max(took);
    match status {
        Some(status) if status.success() => {}
        Some(status) => sum.exits_wrong.push(status.to_string()),
        None => sum.exits_wrong.push("still there".to_owned()),
    }
    for (begun, result, how) in seen {
        let late = begun >= signalled;
        sum.requests += 1;
        sum.after_signal += usize::from(late);
        let fine = match End::of(&result) {
            End::Good => true,
            End::Rejected | End::Failed(Failure::Connect) => late,
            _ => false,
        };
        if !fine {
            let when =
                if late { (begun - signalled).as_millis().to_string() + " ms after" } else { "before".to_owned() };
            eprintln!("   run {run}: {how}, begun {when} the signal: {:?}", End::of(&result));
            let when = if late { "begun after" } else { "begun before" };
            *sum.failed.entry(format!("{:?} ({how}, {when} the signal)", End::of(&result))).or_default() += 1;
        }
    }
    Ok(())
}

fn ask_until<F>(
    clients: &mut JoinSet<Vec<Seen>>,
    stop: Arc<AtomicBool>,
    seed: u64,
    client: u64,
    how: &'static str,
    ask: impl Fn(Ask) -> F + Send + 'static,
) where
    F: Future<Output = std::result::Result<Reply, Failure>> + Send + 'static,
{
    clients.spawn(async move {
        let (mut random, mut seen) = (Random::new(seed), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let next = match client {
                // One long request at a time is enough.
                0 => Ask::post("/api/v1/rerank", rerank_body(&mut random, 50)),
                1 | 6 | 7 => Ask::post("/api/v1/retrieve", retrieve_body(&mut random, 50, 64)),
                _ => new_embed(&mut random),
            };
            let begun = Instant::now();
            let result = ask(next).await;
            let gone = matches!(result, Err(Failure::Connect));
            seen.push((begun, result, how));
            if gone {
                break;
            }
            // A retrieve is answered so fast that a closed loop of them would be all there is.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        seen
    });
}

/// How long `/ready` still said 200, and whether it said anything but 503 after that.
async fn watch_ready(server: &Server, signalled: Instant) -> (Duration, bool) {
    let pool = Pool::without_keep_alive(server.address);
    let (mut said_no, mut wrong) = (None, false);
    while signalled.elapsed() < GOES_ON {
        match pool.get("/ready").await {
            Ok(reply) if reply.status == 503 => {
                said_no.get_or_insert_with(|| signalled.elapsed());
            }
            // Nobody listens any more.
            Err(_) => {
                said_no.get_or_insert_with(|| signalled.elapsed());
                break;
            }
            Ok(_) => wrong |= said_no.is_some(),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (said_no.unwrap_or(GOES_ON), wrong)
}
