//! Ten times the load that the service can carry.
//!
//! The peak is what a closed loop of single embeds gets at best, measured before and after, because the machine may be
//! another one by then; its mean counts. All texts are new, and the cache in memory, which is on, is full before anything is
//! measured: a hit would be cheap, and a cache that fills is memory that grows.
//!
//! One open loop goes through half of the peak, ten times the peak, and half of the peak again. Requests have a deadline of
//! two seconds, and what is answered later counts for nothing. `/health` is asked meanwhile over connections of its own.

use crate::Result;
use crate::bounds::REJECTED_IN;
use crate::client::{Ask, Pool};
use crate::generator::{End, Samples, closed_loop, new_embed, open_loop, peak};
use crate::server::{Plan, Server};
use crate::table::{Table, mib, ms, ms_or_none, quantile};
use crate::texts::Random;
use std::time::Duration;
use tokio::time::Instant;

const TIMES: f64 = 10.0;
const DEADLINE: Duration = Duration::from_secs(2);
const HEALTH_EVERY: Duration = Duration::from_millis(50);

/// Recovery is looked at in slices of this length; it is over at the first of so many in a row that are fine.
const SLICE: Duration = Duration::from_millis(500);
const FINE_SLICES: usize = 3;

/// A generator that is later than this has measured itself.
const LAG_MAX: Duration = Duration::from_millis(10);

pub(crate) async fn run(plan: &Plan, table: &mut Table) -> Result<()> {
    let settings = [("NEXUS_CACHE", "memory"), ("NEXUS_CACHE_MEMORY_BYTES_MAX", "2MiB")];
    let server = Server::start(plan, &settings).await?;
    let pool = Pool::new(server.address);
    let (clients, _) = peak(&pool, plan.seconds(8, 3), 10).await;
    let before = closed_loop(&pool, clients, plan.seconds(20, 4), new_embed, 20).await;

    let at_the_peak = server.resident_bytes()?;

    let calm = plan.seconds(15, 4);
    let storm = plan.seconds(120, 12);
    let (begin, end) = (calm, calm + storm);
    let after = plan.seconds(15, 8);
    let phases = [(before / 2.0, calm), (before * TIMES, storm), (before / 2.0, after)];
    let mut random = Random::new(30);
    let watched = watch(&server, begin + plan.seconds(10, 3), end);
    let health = health(&server, begin, end);
    let loop_ = open_loop(&pool, &phases, || new_embed(&mut random).within(DEADLINE));
    let (samples, resident, health) = tokio::join!(loop_, watched, health);
    let again = closed_loop(&pool, clients, plan.seconds(20, 4), new_embed, 40).await;

    let peak = f64::midpoint(before, again);
    table.note("peak, single embeds", format!("{before:.0}/s before, {again:.0}/s after, {clients} clients"));
    let storm = samples.between(begin, end);
    table.note("asked for in the overload", format!("{:.0}/s: {}", before * TIMES, storm.summary()));
    judge_overload(&storm, peak, end - begin, table);
    judge_memory(&resident?, at_the_peak, table);
    let p99 = quantile(&health.latencies(End::Good), 0.99);
    let all_good = health.count(End::Good) == health.0.len();
    table.row(
        "/health meanwhile, p99",
        "100 ms",
        format!("{} ({})", ms_or_none(p99), health.summary()),
        all_good && p99.is_some_and(|p99| p99 < Duration::from_millis(100)),
    );
    let calm_p95 = quantile(&samples.between(Duration::ZERO, begin).latencies(End::Good), 0.95).unwrap_or(DEADLINE);
    let fine_p95 = (calm_p95 * 2).max(calm_p95 + Duration::from_millis(20));
    let recovered = recovery(&samples, end, after, fine_p95);
    table.row(
        &format!("after it, all answered and p95 under {} again (before: {})", ms(fine_p95), ms(calm_p95)),
        "within 5 s",
        recovered.map_or_else(|| "not seen".to_owned(), |time| format!("{:.1} s", time.as_secs_f64())),
        recovered.is_some_and(|time| time <= Duration::from_secs(5)),
    );
    Ok(())
}

fn judge_overload(storm: &Samples, peak: f64, lasts: Duration, table: &mut Table) {
    let in_time = storm.latencies(End::Good).iter().filter(|&&latency| latency <= DEADLINE).count();
    let goodput = in_time as f64 / lasts.as_secs_f64();
    table.row(
        "goodput at ten times the peak",
        "90% of the peak",
        format!("{:.0}% ({goodput:.0}/s)", 100.0 * goodput / peak),
        goodput >= 0.9 * peak,
    );
    let p99 = quantile(&storm.latencies(End::Rejected), 0.99);
    table.row(
        "rejected (503 or 429, with Retry-After) in, p99",
        "50 ms",
        ms_or_none(p99),
        p99.is_some_and(|p99| p99 <= REJECTED_IN),
    );
    let good_p99 = quantile(&storm.latencies(End::Good), 0.99);
    table.note("answered in the overload in, p99", ms_or_none(good_p99));
    let told = storm.count(End::Good) + storm.count(End::Rejected) + storm.count(End::Expired);
    table.row(
        "answers other than 200, a rejection with Retry-After, and 504",
        "0",
        (storm.0.len() - told).to_string(),
        told == storm.0.len(),
    );
    table.row(
        "generator late by, p99: beyond it the figures above are its own",
        ms(LAG_MAX),
        ms(storm.lag_p99()),
        storm.lag_p99() <= LAG_MAX,
    );
}

fn judge_memory(resident: &[u64], at_the_peak: u64, table: &mut Table) {
    let (Some(&least), Some(&most)) = (resident.iter().min(), resident.iter().max()) else { return };
    let grown = 100.0 * (most - least) as f64 / least as f64;
    table.row(
        "resident memory in the overload, most over least",
        "5%",
        format!("{grown:.1}% ({} to {}; at the peak {})", mib(least), mib(most), mib(at_the_peak)),
        grown <= 5.0,
    );
}

/// Resident memory once a second, from `from` to `to`.
async fn watch(server: &Server, from: Duration, to: Duration) -> Result<Vec<u64>> {
    let start = Instant::now();
    tokio::time::sleep_until(start + from).await;
    let mut resident = Vec::new();
    while start.elapsed() < to {
        resident.push(server.resident_bytes()?);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(resident)
}

/// `/health` again and again, from `from` to `to`.
async fn health(server: &Server, from: Duration, to: Duration) -> Samples {
    let pool = Pool::new(server.address);
    tokio::time::sleep(from).await;
    let rate = 1.0 / HEALTH_EVERY.as_secs_f64();
    open_loop(&pool, &[(rate, to - from)], || Ask::get("/health")).await
}

/// How long after `end` the first slices begin in which all is answered, and fast.
fn recovery(samples: &Samples, end: Duration, lasts: Duration, p95_max: Duration) -> Option<Duration> {
    let slices = (lasts.as_secs_f64() / SLICE.as_secs_f64()) as u32;
    let fine: Vec<bool> = (0..slices)
        .map(|slice| {
            let slice = samples.between(end + SLICE * slice, end + SLICE * (slice + 1));
            let p95 = quantile(&slice.latencies(End::Good), 0.95);
            slice.count(End::Good) == slice.0.len() && p95.is_some_and(|p95| p95 <= p95_max)
        })
        .collect();
    let first = fine.windows(FINE_SLICES).position(|slices| slices.iter().all(|fine| *fine))?;
    Some(SLICE * u32::try_from(first).ok()?)
}
