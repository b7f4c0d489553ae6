//! How long a rerank of a thousand candidates holds single embeds up: by no more than two batches.
//!
//! Embeds come at a steady pace, first alone, then while one such rerank follows another. What an embed takes longer is set
//! against the time of one of the rerank's batches: the service's own figures where it has them, else the rerank's time
//! over the batches that its texts make.

use crate::Result;
use crate::client::{Ask, Pool};
use crate::generator::{End, Samples, new_embed, open_loop};
use crate::server::{Metrics, Plan, Server};
use crate::table::{Table, ms, quantile};
use crate::texts::{Random, rerank_body};
use std::time::Duration;
use tokio::time::Instant;

const CANDIDATES: usize = 1_000;
const EMBEDS_A_SECOND: f64 = 10.0;
/// Without the service's own figures: some 98 tokens a pair make 41 pairs a batch of 4096.
const PAIRS_A_BATCH: usize = 41;

pub(crate) async fn run(plan: &Plan, table: &mut Table) -> Result<()> {
    let server = Server::start(plan, &[("NEXUS_CACHE", "off")]).await?;
    let pool = Pool::new(server.address);
    let lasts = plan.seconds(30, 6);
    let mut random = Random::new(70);
    let alone = embeds(&pool, lasts, &mut random).await;

    let before = server.metrics().await;
    let (beside, reranks) = tokio::join!(embeds(&pool, lasts, &mut random), reranks(&pool, lasts));
    let after = server.metrics().await;
    let (count, each) = reranks?;
    let batch = match (&before, &after) {
        (Some(before), Some(after)) => batch_of_metrics(before, after),
        _ => None,
    };
    let estimated = if batch.is_none() { ", estimated" } else { "" };
    let batch = batch.unwrap_or(each * u32::try_from(PAIRS_A_BATCH)? / u32::try_from(CANDIDATES)?);

    table.note(
        &format!("reranks of {CANDIDATES} candidates, one after another"),
        format!("{count} of {} each, a batch {}{estimated}", ms(each), ms(batch)),
    );
    let (alone_p50, alone_p99) = quantiles(&alone).ok_or("no embed was answered alone")?;
    let (beside_p50, beside_p99) = quantiles(&beside).ok_or("no embed was answered beside a rerank")?;
    table.note("an embed alone, p50 and p99", format!("{}, {}", ms(alone_p50), ms(alone_p99)));
    table.note("an embed beside a rerank, p50 and p99", format!("{}, {}", ms(beside_p50), ms(beside_p99)));
    table.row("embeds that were not answered", "0", beside.summary(), beside.count(End::Good) == beside.0.len());
    let held = beside_p99.saturating_sub(alone_p50);
    table.row(
        "an embed is held up, p99, by",
        format!("two batches, {}", ms(batch * 2)),
        format!("{} ({:.1} batches)", ms(held), held.as_secs_f64() / batch.as_secs_f64()),
        held <= batch * 2,
    );
    Ok(())
}

async fn embeds(pool: &Pool, lasts: Duration, random: &mut Random) -> Samples {
    open_loop(pool, &[(EMBEDS_A_SECOND, lasts)], || new_embed(random)).await
}

/// One after another for as long; how many, and how long one took on average.
async fn reranks(pool: &Pool, lasts: Duration) -> Result<(u32, Duration)> {
    let (start, mut random, mut count) = (Instant::now(), Random::new(71), 0);
    while start.elapsed() < lasts {
        let ask = Ask::post("/api/v1/rerank", rerank_body(&mut random, CANDIDATES));
        let end = End::of(&pool.ask(&ask).await);
        if end != End::Good {
            return Err(format!("a rerank of {CANDIDATES} candidates: {end:?}").into());
        }
        count += 1;
    }
    Ok((count, start.elapsed() / count))
}

/// What a batch of the reranker took between the two.
fn batch_of_metrics(before: &Metrics, after: &Metrics) -> Option<Duration> {
    let labels = [("stage", "compute"), ("model", "reranker")];
    let grown = |name| after.sum(name, &labels) - before.sum(name, &labels);
    let batches = grown("nexus_stage_duration_seconds_count");
    (batches > 0.0).then(|| Duration::from_secs_f64(grown("nexus_stage_duration_seconds_sum") / batches))
}

fn quantiles(samples: &Samples) -> Option<(Duration, Duration)> {
    let latencies = samples.latencies(End::Good);
    Some((quantile(&latencies, 0.5)?, quantile(&latencies, 0.99)?))
}
