//! Clients that mean harm: what bounds each, and what the others feel of it.
//!
//! Normal traffic is an open loop of embeds at 30% of the peak. It runs five times without and five times with each attack,
//! in turn, and the medians of its p95 are compared. Attacks have a pace, which their descriptions name: what is measured is
//! whether a connection can take more than its share, and not how much work an unbounded number of them can ask for.
//!
//! What time ends, time is waited for: one slow sender of each kind is kept beside everything until the service closes it.

mod http1;
mod http2;
mod slow;

use crate::Result;
use crate::client::Pool;
use crate::generator::{End, Samples, new_embed, open_loop, peak};
use crate::server::{Plan, Server};
use crate::table::{Table, median, mib, ms, quantile};
use crate::texts::Random;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// For `NEXUS_REQUEST_TIMEOUT_MS`: what ends a slow body.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// Load of the normal traffic, as a share of the peak.
const SHARE: f64 = 0.3;

/// What an attack saw of the service, by what it was, and how often.
pub(crate) type Seen = BTreeMap<String, usize>;

pub(crate) fn saw(seen: &mut Seen, what: impl Into<String>) {
    *seen.entry(what.into()).or_default() += 1;
}

/// What it took for an attack to be bounded.
struct Verdict {
    bar: &'static str,
    holds: bool,
}

#[derive(Clone, Copy, Debug)]
enum Attack {
    SlowHeaders,
    SlowBodies,
    Idle,
    SlowReaders,
    Pipelining,
    OversizedHeaders,
    BothLengths,
    NotHttp,
    ManyStreams,
    RapidReset,
    EndlessHeaders,
}

const ATTACKS: [Attack; 11] = [
    Attack::SlowHeaders,
    Attack::SlowBodies,
    Attack::Idle,
    Attack::SlowReaders,
    Attack::Pipelining,
    Attack::OversizedHeaders,
    Attack::BothLengths,
    Attack::NotHttp,
    Attack::ManyStreams,
    Attack::RapidReset,
    Attack::EndlessHeaders,
];

impl Attack {
    fn name(self) -> &'static str {
        match self {
            Self::SlowHeaders => "300 senders of a byte of headers a second",
            Self::SlowBodies => "300 senders of a byte of a body a second",
            Self::Idle => "1,000 idle sockets",
            Self::SlowReaders => "50 that ask for 20 large answers each and read nothing",
            Self::Pipelining => "1,000 pipelined requests, once a second",
            Self::OversizedHeaders => "8 MiB of headers, 10 a second",
            Self::BothLengths => "both Content-Length and Transfer-Encoding, and the like, 20 a second",
            Self::NotHttp => "a TLS hello, and noise, 20 a second",
            Self::ManyStreams => "HTTP/2: 2,000 streams opened at once, 4 connections",
            Self::RapidReset => "HTTP/2: embeds that are reset at once, 1,000 a connection, 4 connections a second",
            Self::EndlessHeaders => "HTTP/2: headers that go on for ever, 4 a second",
        }
    }

    async fn run(self, address: SocketAddr, until: Instant) -> Seen {
        match self {
            Self::SlowHeaders => slow::headers(address, 300, until).await,
            Self::SlowBodies => slow::bodies(address, 300, until).await,
            Self::Idle => slow::idle(address, 1_000, until).await,
            Self::SlowReaders => slow::readers(address, 50, until).await,
            Self::Pipelining => http1::pipelining(address, until).await,
            Self::OversizedHeaders => http1::oversized(address, until).await,
            Self::BothLengths => http1::both_lengths(address, until).await,
            Self::NotHttp => http1::not_http(address, until).await,
            Self::ManyStreams => http2::many_streams(address, until).await,
            Self::RapidReset => http2::rapid_reset(address, until).await,
            Self::EndlessHeaders => http2::endless_headers(address, until).await,
        }
    }

    /// Whether what it saw is a bound. Of those that only time ends, `outlast` is the judge.
    fn judge(self, seen: &Seen) -> Option<Verdict> {
        let only = |prefix: &str| !seen.is_empty() && seen.keys().all(|what| what.starts_with(prefix));
        let verdict = |bar, holds| Some(Verdict { bar, holds });
        match self {
            Self::SlowHeaders | Self::SlowBodies | Self::Idle | Self::SlowReaders => None,
            Self::Pipelining => verdict("all answered, in order", only("1000 answers")),
            Self::OversizedHeaders => verdict("refused and closed before 2 MiB", only("refused")),
            Self::BothLengths => verdict("one answer, a 4xx or 501, and closed", only("refused")),
            Self::NotHttp => verdict("closed within a second", only("closed")),
            Self::ManyStreams => verdict("no more open than announced, 1,000 at most", only("bounded")),
            Self::RapidReset => verdict("closed before 1,000 are reset", only("closed")),
            Self::EndlessHeaders => verdict("closed before 2 MiB", only("closed")),
        }
    }
}

pub(crate) async fn run(plan: &Plan, table: &mut Table) -> Result<()> {
    let time = REQUEST_TIME.as_millis().to_string();
    let settings = [
        ("NEXUS_CACHE", "memory"),
        ("NEXUS_CACHE_MEMORY_BYTES_MAX", "2MiB"),
        ("NEXUS_REQUEST_TIMEOUT_MS", time.as_str()),
    ];
    let server = Server::start(plan, &settings).await?;
    let pool = Pool::new(server.address);
    let (_, peak) = peak(&pool, plan.seconds(5, 2), 100).await;
    drop(pool);
    let rate = peak * SHARE;
    table.note("normal traffic", format!("{rate:.0} embeds a second, of a peak of {peak:.0}"));
    let outlasting = (!plan.quick).then(|| tokio::spawn(slow::outlast(server.address)));
    let only = std::env::var("NEXUS_LOAD_ATTACK").ok();
    for attack in ATTACKS {
        if only.as_ref().is_none_or(|only| format!("{attack:?}") == *only) {
            under(attack, &server, rate, plan, table).await?;
        }
    }
    if let Some(outlasting) = outlasting {
        for (what, bar, closed_after) in outlasting.await? {
            table.row(
                &format!("{what}: closed after"),
                format!("{} s", bar.as_secs()),
                closed_after.map_or_else(|| "never".to_owned(), |time| format!("{:.0} s", time.as_secs_f64())),
                closed_after.is_some_and(|time| time <= bar),
            );
        }
    }
    Ok(())
}

async fn under(attack: Attack, server: &Server, rate: f64, plan: &Plan, table: &mut Table) -> Result<()> {
    let (rounds, lasts) = (plan.pick(5, 2), plan.seconds(6, 2));
    let mut random = Random::new(110 + attack as u64);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let (mut seen, mut normal_all, mut lag) = (Seen::new(), Samples::default(), Duration::ZERO);
    let (mut fds_most, mut fds_left, mut resident) = (0, 0, (server.resident_bytes()?, 0));
    let fds_before = server.open_fds()?;
    for _ in 0..rounds {
        // A pool of its own for each: connections that are kept alive are no leak.
        let pool = Pool::new(server.address);
        let calm = open_loop(&pool, &[(rate, lasts)], || new_embed(&mut random)).await;
        without.push(p95(&calm));
        drop(pool);
        let idle_fds = server.fds_back_to(fds_before, Duration::from_secs(3)).await?;

        let until = Instant::now() + lasts + Duration::from_secs(1);
        let normal = async {
            // The attack has its sockets open by then.
            tokio::time::sleep(Duration::from_millis(700)).await;
            let pool = Pool::new(server.address);
            let under = open_loop(&pool, &[(rate, lasts)], || new_embed(&mut random)).await;
            (under, server.open_fds(), server.resident_bytes())
        };
        let (attacked, (under, fds, bytes)) = tokio::join!(attack.run(server.address, until), normal);
        with.push(p95(&under));
        fds_most = fds_most.max(fds?);
        resident.1 = resident.1.max(bytes?);
        lag = lag.max(under.lag_p99());
        normal_all.0.extend(under.0);
        for (what, count) in attacked {
            *seen.entry(what).or_default() += count;
        }
        fds_left = fds_left.max(server.fds_back_to(idle_fds, Duration::from_secs(3)).await?.saturating_sub(idle_fds));
    }
    let what: Vec<String> = seen.iter().map(|(what, count)| format!("{count} {what}")).collect();
    match attack.judge(&seen) {
        Some(Verdict { bar, holds }) => table.row(attack.name(), bar, what.join("; "), holds),
        None => table.note(attack.name(), what.join("; ")),
    }
    let (without, with) = (median(without), median(with));
    table.row(
        "... normal traffic's p95, without and with",
        "+20%",
        format!(
            "{:+.0}% ({without:.1} and {with:.1} ms; generator late by {})",
            100.0 * (with / without - 1.0),
            ms(lag)
        ),
        with <= 1.2 * without,
    );
    table.row(
        "... normal traffic not answered; file descriptors left after it",
        "0; 0",
        format!(
            "{}; {fds_left} of {fds_most} (memory {} to {})",
            normal_all.0.len() - normal_all.count(End::Good),
            mib(resident.0),
            mib(resident.1)
        ),
        normal_all.count(End::Good) == normal_all.0.len() && fds_left == 0,
    );
    Ok(())
}

/// In milliseconds.
fn p95(samples: &Samples) -> f64 {
    quantile(&samples.latencies(End::Good), 0.95).map_or(f64::INFINITY, |p95| p95.as_secs_f64() * 1e3)
}
