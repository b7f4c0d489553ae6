//! Whether work whose time is over reaches a device all the same.
//!
//! More embeds at once than can be computed in the time that they have. The service says how many texts its devices got;
//! that may be those of the requests that were answered, and three batches: one that was being computed when its requests
//! expired, one that was on its way, and one for the time in which they arrived, since they do not all expire at once.

use crate::Result;
use crate::client::Pool;
use crate::generator::{End, Sample, Samples, new_embed};
use crate::server::{Plan, Server};
use crate::table::{Table, ms_or_none, quantile};
use crate::texts::Random;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const TIME: Duration = Duration::from_secs(2);
/// Texts of a batch of 4096 tokens, at some 50 tokens a text: more than that only makes the bar stricter.
const TEXTS_A_BATCH: usize = 82;
const BATCHES: usize = 3;

pub(crate) async fn run(plan: &Plan, table: &mut Table) -> Result<()> {
    // Room for all, so that it is the deadline that ends them, and not a bound.
    let settings = [("NEXUS_CACHE", "off"), ("NEXUS_REQUESTS_MAX", "100000"), ("NEXUS_CONNECTIONS_MAX", "100000")];
    let mut server = Server::start(plan, &settings).await?;
    let pool = Pool::new(server.address);
    let (asked, mut random) = (plan.pick(3_000, 1_200), Random::new(50));
    let before = match server.metrics().await {
        Some(metrics) => metrics.sum("nexus_batch_sequences_sum", &[("model", "embedder")]),
        None => 0.0,
    };
    let mut running = JoinSet::new();
    for _ in 0..asked {
        let (pool, ask) = (pool.clone(), new_embed(&mut random).within(TIME));
        running.spawn(async move {
            let start = Instant::now();
            let end = End::of(&pool.ask(&ask).await);
            Sample { due: Duration::ZERO, lag: Duration::ZERO, latency: start.elapsed(), end }
        });
    }
    let samples = Samples(running.join_all().await);
    // What is still on its way to a device has time to get there.
    tokio::time::sleep(Duration::from_secs(2)).await;
    if server.metrics().await.is_none() {
        server.terminate()?;
        server.exit(Duration::from_secs(30)).await?;
    }
    let computed = server.texts_computed("embedder").await? - before;
    let (good, expired) = (samples.count(End::Good), samples.count(End::Expired));
    let allowed = good + BATCHES * TEXTS_A_BATCH;
    table.note(&format!("{asked} embeds at once, each with {} ms", TIME.as_millis()), samples.summary());
    table.row(
        "texts that reached a device, of those and none expired",
        format!("at most {good} answered and {BATCHES} batches: {allowed}"),
        format!("{computed:.0}, beside {expired} expired"),
        good < asked && computed >= good as f64 && computed <= allowed as f64,
    );
    let p99 = quantile(&samples.latencies(End::Expired), 0.99);
    table.note("504 after, p99 (the connection to a busy service included)", ms_or_none(p99));
    Ok(())
}
